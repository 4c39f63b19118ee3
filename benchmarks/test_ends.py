"""The fused ends against the same formulas in plain PyTorch: rows of points, images, sound, and of a large batch."""

import math

import pytest
import torch
from cases import DEVICES

pytestmark = [
    pytest.mark.benchmark(min_rounds=20, max_time=1.0),
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("form", ["fused", "plain"]),
    pytest.mark.parametrize("shape", [(256, 2), (64, 3, 64, 64), (8, 1, 262144), (4096, 210)], ids=str),
]
OPTIONS = 1, 1.0, False, 1e-12  # keep, center, one_sided, eps


def rowwise(values, like):
    return values.reshape(-1, *[1] * (like.ndim - 1))


def plain_interpolate(real, fake, alpha):
    alpha = rowwise(alpha, real)
    return alpha * real + (1 - alpha) * fake


def plain_gradient_norm(gradient, keep, center, one_sided, eps, reduction, with_seed):
    norms = (gradient.flatten(1).square().sum(1) + eps).sqrt()
    seed = rowwise(2 / len(norms) * (norms - center) / norms, gradient) * gradient if with_seed else None
    return (norms - center).square().mean(), norms, seed


def plain_gradient_norm_seed(gradient, norms, cotangent, keep, center, one_sided, scale):
    return rowwise(2 * scale * cotangent * (norms - center) / norms, gradient) * gradient


PLAIN = {
    "interpolate": plain_interpolate,
    "gradient_norm": plain_gradient_norm,
    "gradient_norm_seed": plain_gradient_norm_seed,
}


def compare(run, name, form, device, *arguments):
    fused, plain = getattr(torch.ops.gpfast, name).default, PLAIN[name]
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    exact, ours, theirs = (f(*a) for f, a in ((plain, wide), (fused, arguments), (plain, arguments)))
    if isinstance(exact, torch.Tensor):
        exact, ours, theirs = (exact,), (ours,), (theirs,)
    eps = torch.finfo(torch.float32).eps
    for e, o, t in zip(exact, ours, theirs, strict=True):
        assert (o - e).norm() <= 1.5 * (t - e).norm() + 4 * eps * e.norm()
    function = fused if form == "fused" else plain
    rows, cols = arguments[0].shape[0], math.prod(arguments[0].shape[1:])
    run(lambda: function(*arguments), f"{name} {rows} x {cols} {device}", device)


def normal(shape, device, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def test_interpolate(run, shape, form, device):
    alpha = torch.linspace(0, 1, shape[0], device=device)
    compare(run, "interpolate", form, device, normal(shape, device), normal(shape, device, 1), alpha)


def test_gradient_norm(run, shape, form, device):
    compare(run, "gradient_norm", form, device, normal(shape, device), *OPTIONS, "mean", True)


def test_gradient_norm_seed(run, shape, form, device):
    gradient, one = normal(shape, device), torch.ones((), device=device)
    norms = (gradient.flatten(1).square().sum(1) + OPTIONS[-1]).sqrt()
    compare(run, "gradient_norm_seed", form, device, gradient, norms, one, *OPTIONS[:3], 1 / shape[0])
