"""float16 and bfloat16: no underflow before a GradScaler's factor is known, and no more error than PyTorch's recipe."""

import copy

import pytest
import torch
from torch import nn

import gpfast
from gpfast import reference


def critic(size, width=4):
    torch.manual_seed(0)
    layers, channels = [], 3
    while size > 4:
        layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels, size = width, size // 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, size), nn.Flatten())


def recipe(model, real, fake, alpha, dtype, factor):
    """Gradient penalty as in PyTorch's AMP examples: scores scaled before, the gradient unscaled after, loss scaled."""
    x = (alpha[:, None, None, None] * real + (1 - alpha[:, None, None, None]) * fake).requires_grad_()
    with torch.autocast("cpu", dtype):
        scores = model(x)
    (g,) = torch.autograd.grad(scores * factor, x, torch.ones_like(scores), create_graph=True)
    g = g / factor
    value = 10 * ((g.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()
    (value * factor).backward()
    return value.detach(), [None if p.grad is None else p.grad / factor for p in model.parameters()]


def ours(model, real, fake, alpha, dtype, factor, **options):
    with torch.autocast("cpu", dtype):
        value = gpfast.gradient_penalty(model, real, fake, alpha=alpha, engine="tape", **options)
    (value * factor).backward()
    return value.detach(), [p.grad / factor for p in model.parameters()]


def error(found, exact):
    pairs = [(a.double(), b) for a, b in zip(found, exact, strict=True) if b is not None and a is not None]
    return float(sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(b.square().sum() for _, b in pairs).sqrt())


@pytest.mark.parametrize("size", [32, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_error_is_no_larger_than_that_of_the_recipe(dtype, size):
    model = critic(size)
    torch.manual_seed(1)
    real, fake, alpha = torch.randn(2, 3, size, size), torch.randn(2, 3, size, size), torch.rand(2)
    high = copy.deepcopy(model).double()
    value = reference.gradient_penalty(high, real.double(), fake.double(), alpha=alpha.double())
    value.backward()
    exact = [p.grad for p in high.parameters()]
    theirs = recipe(copy.deepcopy(model), real, fake, alpha, dtype, 1024.0)
    for options in ({}, {"chunks": 2}):
        mine = ours(copy.deepcopy(model), real, fake, alpha, dtype, 1024.0, **options)
        assert error(mine[1], exact) <= 1.5 * error(theirs[1], exact) + 4 * torch.finfo(dtype).eps
        assert (mine[0] - value).abs() <= 1.5 * (theirs[0] - value).abs() + 4 * torch.finfo(dtype).eps * value.abs()


def test_small_gradients_do_not_underflow():
    """Adjoints of 1e-6 and less are subnormal in float16: the scores' gradient is carried times a power of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    with torch.no_grad():
        model[0].weight.mul_(0.005)
        model[2].weight.mul_(0.005)
    real, fake = torch.randn(2, 8, 64)
    errors = {}
    exact = [p.grad for p in gradients_of(model, real, fake, "reference", torch.float64)]
    for engine in ("reference", "tape"):
        found = [p.grad for p in gradients_of(model, real, fake, engine, torch.float16)]
        errors[engine] = error(found, exact)
    assert errors["tape"] <= 0.25 * errors["reference"]


def gradients_of(model, real, fake, engine, dtype):
    model = copy.deepcopy(model)
    if dtype == torch.float64:
        model, real, fake = model.double(), real.double(), fake.double()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
        (gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine) * 1024).backward()
    for p in model.parameters():
        p.grad = None if p.grad is None else p.grad / 1024
    return list(model.parameters())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinity_reaches_the_scaler(bad):
    model = critic(32)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = bad
    with torch.autocast("cpu", torch.float16):
        gpfast.gradient_penalty(model, torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), engine="tape").backward()
    assert not all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_half_critics_and_half_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    real, fake = (torch.randn(2, 8, 16) * 16).round() / 16
    high = copy.deepcopy(model).half().double()
    low = copy.deepcopy(model).half()
    eager = copy.deepcopy(low)
    reference.gradient_penalty(high, real.double(), fake.double(), alpha=0.5).backward()
    reference.gradient_penalty(eager, real.half(), fake.half(), alpha=0.5).backward()
    for mask in (None, torch.ones(16)):
        low.zero_grad()
        gpfast.gradient_penalty(low, real.half(), fake.half(), alpha=0.5, mask=mask, engine="tape").backward()
        for p, q, e in zip(low.parameters(), high.parameters(), eager.parameters(), strict=True):
            if q.grad is not None:
                allowed = 1.5 * (e.grad - q.grad).norm() + 4 * torch.finfo(torch.float16).eps * q.grad.norm()
                assert p.grad.dtype == torch.float16 and (p.grad - q.grad).norm() <= allowed
