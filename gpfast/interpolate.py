"""The first fused end: x_hat = alpha * real + (1 - alpha) * fake, one pass, alpha per sample or shared."""

from __future__ import annotations

import torch
from torch import Tensor

from gpfast.backend import choose, under_transform
from gpfast.checks import check_alpha_shape, check_alpha_type, check_pair, check_tensor
from gpfast.layout import accumulate_dtype, dense_rows, like_layout, rowwise

_library = torch.library.Library("gpfast", "FRAGMENT")
_library.define("interpolate(Tensor real, Tensor fake, Tensor alpha) -> Tensor")


def interpolate(real: Tensor, fake: Tensor, alpha: float | Tensor) -> Tensor:
    """Points on the line between `real` and `fake`: alpha * real + (1 - alpha) * fake.

    Shapes: `real` and `fake` (B, ...) alike, any rank of at least 1, any layout. `alpha`, the weight on `real`, is a
    number or 0-dim tensor (shared by the batch), a 1-D tensor of length B (per sample), or a tensor of the data's rank
    that broadcasts to it. The result has the dtype `torch.promote_types(real.dtype, fake.dtype)`, in whose choice alpha
    takes no part; arithmetic is float32 (float64 for float64), each operation rounded as the formula's would be, so the
    bits are those of the eager lines. Where alpha is shared or per sample, the layout is `real`'s.

    Raises TypeError or ValueError, naming the argument. Differentiable to any order in real, fake and alpha.
    Source: Gulrajani et al. 2017 (arXiv 1704.00028), Algorithm 1, line 6.
    """
    check_tensor("real", real)
    check_pair("real", real, "fake", fake)
    check_alpha_type(alpha)
    rows = as_rows(alpha, real, torch.promote_types(real.dtype, fake.dtype))
    if rows.ndim > 1 or under_transform():
        return _formula(real, fake, rowwise(rows, real))
    real = dense_rows(real, 1)
    return _differentiable(real, like_layout(fake, real), rows)


def as_rows(alpha: float | Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
    """`alpha` on the data's device in the dtype of the arithmetic, 0-dim or 1-D where it is one value a sample."""
    wide = accumulate_dtype(dtype)
    if not isinstance(alpha, Tensor):
        return torch.full((), float(alpha), dtype=wide, device=real.device)
    if alpha.ndim == 0:
        return alpha.to(device=real.device, dtype=wide)
    check_alpha_shape(alpha, "real", real)
    if alpha.ndim > 1 and alpha.numel() == alpha.shape[0]:
        alpha = alpha.reshape(-1) if alpha.shape[0] == real.shape[0] else alpha.reshape(())
    return alpha.to(wide)


def _formula(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Plain PyTorch: differentiable by every means it has."""
    dtype = torch.promote_types(real.dtype, fake.dtype)
    return (alpha * real.to(alpha.dtype) + (1 - alpha) * fake.to(alpha.dtype)).to(dtype)


@torch.library.impl(_library, "interpolate", "CompositeExplicitAutograd")
def _plain(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    dtype = torch.promote_types(real.dtype, fake.dtype)
    alpha = rowwise(alpha.to(accumulate_dtype(dtype)), real)
    return torch.empty_like(real, dtype=dtype).copy_(_formula(real, fake, alpha))


@torch.library.impl(_library, "interpolate", "CUDA")
def _cuda(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    name, _ = choose(real.device, cuda_kernel=True)
    if name == "triton":
        from gpfast.kernels.interpolate import interpolate as kernel

        return kernel(real, fake, alpha)
    return torch.ops.gpfast.interpolate_cuda(real, fake, alpha) if name == "cuda" else _plain(real, fake, alpha)


@torch.library.register_fake("gpfast::interpolate", lib=_library)
def _fake(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    return torch.empty_like(real, dtype=torch.promote_types(real.dtype, fake.dtype))


class _Interpolate(torch.autograd.Function):
    """A scaling for each end, and a row sum for alpha: plain PyTorch, so differentiable in turn."""

    @staticmethod
    def forward(ctx, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
        ctx.dtypes = real.dtype, fake.dtype
        needs_ends = ctx.needs_input_grad[2]
        ctx.save_for_backward(alpha, real if needs_ends else None, fake if needs_ends else None)
        return _below_autograd(real, fake, alpha)

    @staticmethod
    def backward(ctx, grad: Tensor):
        alpha, real, fake = ctx.saved_tensors
        wide = accumulate_dtype(grad.dtype)
        grad, weight = grad.to(wide), rowwise(alpha, grad).to(wide)
        to_real = (weight * grad).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        to_fake = ((1 - weight) * grad).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        to_alpha = None
        if ctx.needs_input_grad[2]:
            slope = grad * (real.to(wide) - fake.to(wide))
            to_alpha = (slope.flatten(1).sum(1) if alpha.ndim else slope.sum()).to(alpha.dtype)
        return to_real, to_fake, to_alpha


def _below_autograd(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gpfast.interpolate.default(real, fake, alpha)


@torch.library.impl(_library, "interpolate", "Autograd")
def _differentiable(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    if under_transform():
        return _formula(real, fake, rowwise(alpha, real))
    if torch.is_grad_enabled() and (real.requires_grad or fake.requires_grad or alpha.requires_grad):
        return _Interpolate.apply(real, fake, alpha)
    return _below_autograd(real, fake, alpha)
