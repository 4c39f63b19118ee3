"""The last fused end: the norms of the critic's gradient, their penalty, and the seed that differentiates it.

    n_i = sqrt(||g_i||^2 + eps)
    phi(n) = (n - c)^2, one-sided max(0, n - c)^2, and ||g||^2 + eps exactly where c = 0
    v_i = scale * phi'(n_i) / n_i * g_i, scale = 1/N for the mean over N norms, 1 for the sum and for no reduction

The operator gives value and seed times a weight. A zero norm has a zero seed, and with c = 0 the seed is
2 * scale * weight * g with no division.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpfast.backend import choose, under_transform
from gpfast.checks import check_inputs, check_mask, check_weight
from gpfast.inputs import Structure, named_tensors, tensors_of
from gpfast.layout import accumulate_dtype, dense_rows, kept_first, rowwise
from gpfast.options import Options, checked
from gpfast.stats import GradientStats

_library = torch.library.Library("gpfast", "FRAGMENT")
_library.define(
    "gradient_norm(Tensor gradient, int keep, float center, bool one_sided, float eps, str reduction, bool with_seed,"
    " float weight=1.0) -> (Tensor value, Tensor norms, Tensor seed)"
)
_library.define(
    "gradient_norm_seed(Tensor gradient, Tensor norms, Tensor cotangent, int keep, float center,"
    " bool one_sided, float scale)"
    " -> Tensor"
)


def gradient_norm_penalty(
    gradients: Structure,
    *,
    weight: float | Tensor = 10.0,
    center: float = 1.0,
    one_sided: bool = False,
    norm_dims: tuple[int, ...] | int | str | None = None,
    eps: float = 1e-12,
    mask: Structure | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, GradientStats]:
    """The penalty weight * reduction(phi(n)) of critic gradients that are there already.

        n_i = sqrt(||mask * g_i||^2 + eps),  phi(n) = (n - center)^2, or max(0, n - center)^2 where one_sided

    `gradients` is a tensor (B, ...) or a tuple, list or dict of them, over which one norm runs; the options are those
    of `gpfast.gradient_penalty`. The result is float32 (float64 for float64 gradients): 0-dim, or of the norms' shape
    for `reduction="none"`; with `return_stats=True` it comes with a `GradientStats`.

    Raises ValueError or TypeError for an option that does not fit. Differentiable to any order in the gradients; the
    norms in the statistics are detached. Source: Gulrajani et al. 2017 (arXiv 1704.00028), equation 3.
    """
    options = checked(center=center, one_sided=one_sided, norm_dims=norm_dims, eps=eps, reduction=reduction)
    tensors = named_tensors(gradients, "gradients")
    check_inputs(tensors, options)
    check_weight(weight, next(iter(tensors.values())).device)
    check_mask(mask, gradients, "gradients")
    value, norms = penalty_of(tensors_of(gradients), mask, options)
    return weighted(weight, value, norms, return_stats)


def weighted(
    weight: float | Tensor, value: Tensor, norms: Tensor, return_stats: bool
) -> Tensor | tuple[Tensor, GradientStats]:
    """What the public functions return: the penalty with its weight, and the statistics where they are asked for."""
    penalty = (weight if isinstance(weight, Tensor) else float(weight)) * value
    return (penalty, GradientStats.of(norms)) if return_stats else penalty


def penalty_of(gradients: list[Tensor], mask: Structure | None, options: Options) -> tuple[Tensor, Tensor]:
    """(reduced penalty without its weight, norms) of checked gradients; one norm runs over all of them."""
    if mask is not None:
        masks = [mask] * len(gradients) if isinstance(mask, Tensor) else tensors_of(mask)
        wide = [g.to(accumulate_dtype(g.dtype)) for g in gradients]
        gradients = [g * m.to(g.dtype) for g, m in zip(wide, masks, strict=True)]
    if len(gradients) == 1:
        rows, keep = kept_first(gradients[0], options.norm_dims)
    else:
        parts = [kept_first(g, options.norm_dims) for g in gradients]
        keep = parts[0][1]
        rows = torch.cat([g.reshape(*g.shape[:keep], -1) for g, _ in parts], dim=keep)
    norm = _plain if under_transform() else _GradientNorm.apply
    value, norms, _ = norm(
        dense_rows(rows, keep), keep, options.center, options.one_sided, options.eps, options.reduction, False
    )
    return value, norms


def _scale(reduction: str, norms: int) -> float:
    return 1.0 / max(norms, 1) if reduction == "mean" else 1.0


def _squares(gradient: Tensor, keep: int, eps: float) -> Tensor:
    g = gradient.to(accumulate_dtype(gradient.dtype))
    dims = tuple(range(keep, gradient.ndim))
    return (g.square().sum(dims) if dims else g.square()) + eps


def _norms(squares: Tensor) -> Tensor:
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())


def _seed(gradient: Tensor, norms: Tensor, cotangent: Tensor, center: float, one_sided: bool, scale: float) -> Tensor:
    """The seed in plain PyTorch: differentiable to any order where `norms` is, as a function of `gradient`."""
    if center == 0:
        coefficient = (2 * scale) * cotangent
    else:
        excess = norms - center
        flat = norms == 0
        if one_sided:
            flat = flat | (excess <= 0)
        coefficient = torch.where(flat, 0, (2 * scale) * cotangent * excess / torch.where(norms == 0, 1, norms))
    coefficient = coefficient.expand(norms.shape)
    return (rowwise(coefficient, gradient) * gradient.to(norms.dtype)).to(gradient.dtype)


@torch.library.impl(_library, "gradient_norm", "CompositeExplicitAutograd")
def _plain(
    gradient: Tensor,
    keep: int,
    center: float,
    one_sided: bool,
    eps: float,
    reduction: str,
    with_seed: bool,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    squares = _squares(gradient, keep, eps)
    norms = _norms(squares)
    if center == 0:
        penalties = squares
    else:
        excess = norms - center
        penalties = (excess.relu() if one_sided else excess).square()
    value = {"mean": torch.mean, "sum": torch.sum, "none": torch.clone}[reduction](penalties)
    value = value if weight == 1 else value * weight
    if not with_seed:
        return value, norms, gradient.new_empty((0,))
    scale = weight * _scale(reduction, norms.numel())
    return value, norms, _plain_seed(gradient, norms, norms.new_ones(()), keep, center, one_sided, scale)


@torch.library.impl(_library, "gradient_norm_seed", "CompositeExplicitAutograd")
def _plain_seed(
    gradient: Tensor, norms: Tensor, cotangent: Tensor, keep: int, center: float, one_sided: bool, scale: float
) -> Tensor:
    return torch.empty_like(gradient).copy_(_seed(gradient, norms, cotangent, center, one_sided, scale))


@torch.library.impl(_library, "gradient_norm", "CUDA")
def _cuda(gradient: Tensor, *options) -> tuple[Tensor, Tensor, Tensor]:
    if choose(gradient.device)[0] != "triton":
        return _plain(gradient, *options)
    from gpfast.kernels.gradient_norm import gradient_norm as kernel

    return kernel(gradient, *options)


@torch.library.impl(_library, "gradient_norm_seed", "CUDA")
def _cuda_seed(gradient: Tensor, *options) -> Tensor:
    if choose(gradient.device)[0] != "triton":
        return _plain_seed(gradient, *options)
    from gpfast.kernels.gradient_norm import gradient_norm_seed as kernel

    return kernel(gradient, *options)


@torch.library.register_fake("gpfast::gradient_norm", lib=_library)
def _fake(gradient, keep, center, one_sided, eps, reduction, with_seed, weight=1.0):
    norms = gradient.new_empty(gradient.shape[:keep], dtype=accumulate_dtype(gradient.dtype))
    value = torch.empty_like(norms) if reduction == "none" else norms.new_empty(())
    return value, norms, torch.empty_like(gradient) if with_seed else gradient.new_empty((0,))


@torch.library.register_fake("gpfast::gradient_norm_seed", lib=_library)
def _fake_seed(gradient, norms, cotangent, keep, center, one_sided, scale):
    return torch.empty_like(gradient)


class _GradientNorm(torch.autograd.Function):
    """The seed times what arrives: fused where nothing is differentiated further, plain PyTorch where it is."""

    @staticmethod
    def forward(
        ctx, gradient: Tensor, keep: int, center: float, one_sided: bool, eps: float, reduction: str, with_seed: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            value, norms, seed = torch.ops.gpfast.gradient_norm.default(
                gradient, keep, center, one_sided, eps, reduction, with_seed
            )
        ctx.keep, ctx.center, ctx.one_sided, ctx.eps = keep, center, one_sided, eps
        ctx.scale = _scale(reduction, norms.numel())
        ctx.mark_non_differentiable(norms, seed)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, norms)
        return value, norms, seed

    @staticmethod
    def backward(ctx, grad_value: Tensor | None, _norms_grad, _seed_grad):
        if grad_value is None:
            return (None,) * 7
        gradient, norms = ctx.saved_tensors
        if torch.is_grad_enabled():
            norms = _norms(_squares(gradient, ctx.keep, ctx.eps))
            seed = _seed(gradient, norms, grad_value, ctx.center, ctx.one_sided, ctx.scale)
        else:
            seed = torch.ops.gpfast.gradient_norm_seed.default(
                gradient, norms, grad_value.contiguous(), ctx.keep, ctx.center, ctx.one_sided, ctx.scale
            )
        return seed, None, None, None, None, None, None


@torch.library.impl(_library, "gradient_norm", "Autograd")
def _autograd(gradient: Tensor, *options) -> tuple[Tensor, Tensor, Tensor]:
    *options, weight = options if len(options) == 7 else (*options, 1.0)
    value, norms, seed = _GradientNorm.apply(gradient, *options)
    return (value, norms, seed) if weight == 1 else (value * weight, norms, seed * weight)


@torch.library.impl(_library, "gradient_norm_seed", "Autograd")
def _autograd_seed(gradient: Tensor, norms: Tensor, cotangent: Tensor, *options) -> Tensor:
    if torch.is_grad_enabled() and (gradient.requires_grad or norms.requires_grad or cotangent.requires_grad):
        raise RuntimeError(
            "gpfast::gradient_norm_seed has no derivative, and an input requires grad; differentiate"
            " gpfast.gradient_norm_penalty, or detach the input."
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gpfast.gradient_norm_seed.default(gradient, norms, cotangent, *options)
