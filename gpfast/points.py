"""Where the gradient is taken: the interpolates, the real or the generated samples, or DRAGAN's perturbed ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gpfast import _extension
from gpfast.backend import under_transform
from gpfast.inputs import Structure, arrangement, tensors_of
from gpfast.interpolate import interpolate
from gpfast.layout import accumulate_dtype


class _Root(torch.autograd.Function):
    """As gpfast::root, for where there is no extension."""

    @staticmethod
    def forward(ctx, x: Tensor, anchor: Tensor | None, ours: bool) -> Tensor:
        return x.detach() if ours else x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return (grad if ctx.needs_input_grad[0] else None), None, None


# Where a point stands in the graph, whatever the critic writes to it: a tensor that stays at its node, or the place.
Target = Tensor | GradientEdge


def rooted(x: Tensor, ours: bool) -> tuple[Tensor, Target]:
    """(`x` to give to a critic, where to take the gradient).

    The point a critic is given is a node of its own, with nothing to accumulate into. `ours`: it was made here, so a
    critic may write to it. A view of the caller's tensor may not be written to in place: PyTorch refuses before it is.
    """
    if _extension.available and not under_transform():
        with torch._C.DisableTorchFunctionSubclass():
            point, anchor = torch.ops.gpfast.root.default(x, ours)
        own_class = type(x) is not Tensor and type(x).__torch_function__ is not torch._C._disabled_torch_function_impl
        return (point.as_subclass(type(x)) if own_class else point), anchor
    point = _Root.apply(x, None if x.requires_grad else torch.empty((), requires_grad=True), ours)
    return point, GradientEdge(point.grad_fn, point.output_nr)


def plain_start(
    real: Structure | None, fake: Structure | None, at: str, alpha, generator: torch.Generator | None
) -> list[tuple[Tensor, Target]] | None:
    """(point, target) an input of the usual call, in one step: plain batches that fit together; None for any other."""
    if alpha is not None or at == "dragan" or not _extension.available or under_transform():
        return None
    if generator is not None and not isinstance(generator, torch.Generator):
        return None
    reals = _plain_tensors(fake if at == "fake" else real)
    if not reals:
        return None
    fakes = None
    if at == "interpolates":
        fakes = _plain_tensors(fake)
        if not fakes or arrangement(real) != arrangement(fake):
            return None
    points, targets = torch.ops.gpfast.plain_start.default(reals, fakes, generator)
    return list(zip(points, targets, strict=True)) or None


def _plain_tensors(structure: Structure | None) -> list[Tensor] | None:
    """The tensors of `structure`, where all are of no other class."""
    tensors = tensors_of(structure)
    return tensors if all(type(x) is Tensor for x in tensors) else None


def edge(target: Target) -> Target:
    """What to ask autograd's gradient for."""
    if isinstance(target, GradientEdge) or target.grad_fn is None or target.grad_fn.name() != "gpfast::Root":
        return target
    return GradientEdge(target.grad_fn, 0)


def draw(
    real: Structure | None,
    fake: Structure | None,
    at: str,
    alpha: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """The points of one call, one tensor an input, connected to `real`, `fake` and `alpha` where those require grad.

    interpolates  alpha * real + (1 - alpha) * fake, alpha ~ U[0, 1) one draw a sample, shared by all inputs.
    real, fake    the samples themselves.
    dragan        alpha * real + (1 - alpha) * (real + 0.5 * std(real) * u), u ~ U[0, 1) one draw an element, std over
                  the whole batch of an input, unbiased, and not differentiated (Kodali et al. 2017, arXiv
                  1705.07215).

    Draws come from `generator`, alpha first, then u for each input in order, in float32 (float64 for float64 data).
    """
    if at in ("real", "fake"):
        return tensors_of(real if at == "real" else fake)
    reals = tensors_of(real)
    if at == "interpolates":
        fakes = tensors_of(fake)
        dtype = torch.promote_types(reals[0].dtype, fakes[0].dtype)
    else:
        fakes, dtype = None, reals[0].dtype
    if alpha is None:
        alpha = _uniform(reals[0].shape[:1], reals[0], dtype, generator)
    if fakes is None:
        fakes = [_perturbed(x, _uniform(x.shape, x, x.dtype, generator)) for x in reals]
    return [interpolate(r, f, alpha) for r, f in zip(reals, fakes, strict=True)]


def _uniform(shape: torch.Size, like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, dtype=accumulate_dtype(dtype), device=like.device, generator=generator)


def _perturbed(x: Tensor, noise: Tensor) -> Tensor:
    deviation = x.detach().to(noise.dtype).std()
    return x + (0.5 * deviation * noise).to(x.dtype)
