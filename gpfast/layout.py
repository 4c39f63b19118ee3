"""Which dimensions a norm runs over, and how a tensor lies in memory as rows.

The fused kernels see memory as N rows of K elements: the first `keep` dimensions are the rows, outermost and in order;
what remains fills each row densely, in any order. NCHW and channels_last batches both are such rows, without a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, norms and penalties: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reduced_dims(ndim: int, norm_dims: tuple[int, ...] | str | None) -> tuple[int, ...]:
    """The non-negative dimensions a norm runs over, in order, for a tensor of `ndim` dimensions."""
    if norm_dims is None:
        return tuple(range(1, ndim))
    if norm_dims == "batch":
        return tuple(range(ndim))
    return tuple(sorted(d % ndim for d in norm_dims))


def kept_first(tensor: Tensor, norm_dims: tuple[int, ...] | str | None) -> tuple[Tensor, int]:
    """`tensor` with the dimensions that the norm keeps moved to the front, and how many they are."""
    if norm_dims is None:
        return tensor, 1
    reduced = reduced_dims(tensor.ndim, norm_dims)
    kept = tuple(d for d in range(tensor.ndim) if d not in reduced)
    order = kept + reduced
    return (tensor if order == tuple(range(tensor.ndim)) else tensor.permute(order)), len(kept)


def rows_are_dense(tensor: Tensor, keep: int) -> bool:
    """Whether memory holds `tensor` as rows: the first `keep` dimensions outermost and in order, the rest dense."""
    if tensor.is_contiguous():
        return True
    size, stride = tensor.shape, tensor.stride()
    expected = 1
    for d in sorted((d for d in range(keep, tensor.ndim) if size[d] != 1), key=lambda d: stride[d]):
        if stride[d] != expected:
            return False
        expected *= size[d]
    for d in reversed([d for d in range(keep) if size[d] != 1]):
        if stride[d] != expected:
            return False
        expected *= size[d]
    return True


def dense_rows(tensor: Tensor, keep: int) -> Tensor:
    """`tensor` itself where its rows are dense, else a contiguous copy. Differentiable to any order."""
    return tensor if rows_are_dense(tensor, keep) else tensor.contiguous()


def like_layout(tensor: Tensor, model: Tensor) -> Tensor:
    """`tensor` itself where it lies in memory as `model` does, else a copy that does. Differentiable to any order."""
    if all(n == 1 or a == b for n, a, b in zip(model.shape, tensor.stride(), model.stride(), strict=True)):
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def rowwise(values: Tensor, tensor: Tensor) -> Tensor:
    """`values`, one a row of `tensor` or 0-dim, shaped to broadcast over the rows."""
    return values.reshape(*values.shape, *[1] * (tensor.ndim - values.ndim)) if values.ndim else values
