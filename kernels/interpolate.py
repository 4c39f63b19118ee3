"""interpolate on the GPU: out = alpha * real + (1 - alpha) * fake, one pass over flat memory.

Products and sums are not fused (enable_fp_fusion), so float32 and float64 have the bits of the eager formula.
"""

import torch
import triton
import triton.language as tl

from . import launch
from .rows import TRITON_DTYPE, VECTOR, accumulator, flat_block, row_boundary, rows_of_block, shape_2d


@triton.jit
def _mix(
    real_ptr,
    fake_ptr,
    alpha_ptr,
    out_ptr,
    start,
    lane,
    mask,
    rows,
    cols,
    SHARED: tl.constexpr,
    NARROW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The elements start + lane where mask; lane < BLOCK."""
    if SHARED:
        alpha = tl.load(alpha_ptr).to(ACC)
    else:
        row = start // cols
        if NARROW:
            alpha = tl.load(alpha_ptr + rows_of_block(start, row, cols, lane), mask).to(ACC)
        else:
            this = tl.load(alpha_ptr + row).to(ACC)
            following = tl.load(alpha_ptr + tl.minimum(row + 1, rows - 1)).to(ACC)
            alpha = tl.where(lane < row_boundary(start, row, cols, BLOCK), this, following)
    real = tl.load(real_ptr + start + lane, mask).to(ACC)
    fake = tl.load(fake_ptr + start + lane, mask).to(ACC)
    out = alpha * real + (1.0 - alpha) * fake
    tl.store(out_ptr + start + lane, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "cols"])
def _interpolate_kernel(
    real_ptr,  # (rows, cols)
    fake_ptr,  # (rows, cols)
    alpha_ptr,  # () where SHARED, else (rows,)
    out_ptr,  # (rows, cols)
    rows: tl.int64,
    cols: tl.int64,
    SHARED: tl.constexpr,
    NARROW: tl.constexpr,  # cols < BLOCK
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start, length, whole = flat_block(rows.to(tl.int64), cols, BLOCK)
    lane = tl.arange(0, BLOCK)
    _mix(real_ptr, fake_ptr, alpha_ptr, out_ptr, start, lane, lane < whole, rows, cols, SHARED, NARROW, ACC, BLOCK)
    if whole < length:
        tail = whole + tl.arange(0, VECTOR)
        _mix(real_ptr, fake_ptr, alpha_ptr, out_ptr, start, tail, tail < length, rows, cols, SHARED, NARROW, ACC, BLOCK)


def interpolate(real: torch.Tensor, fake: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """alpha * real + (1 - alpha) * fake in the promoted dtype of real and fake, with the strides of real.

    real, fake: one shape and one set of strides, dense rows (N = real.shape[0]); alpha: 0-dim, or (N,).
    """
    assert real.shape == fake.shape and real.stride() == fake.stride()
    assert alpha.dim() == 0 or alpha.shape == real.shape[:1]
    out = torch.empty_like(real, dtype=torch.promote_types(real.dtype, fake.dtype))
    if out.numel() == 0:
        return out
    rows, cols = shape_2d(real, 1)
    dtype = accumulator(out.dtype)
    block = launch.flat_block(dtype.itemsize)
    with torch.cuda.device_of(real):
        _interpolate_kernel[(launch.ceil_div(out.numel(), block),)](
            real,
            fake,
            alpha.contiguous(),
            out,
            rows,
            cols,
            SHARED=alpha.dim() == 0,
            NARROW=cols < block,
            ACC=TRITON_DTYPE[dtype],
            BLOCK=block,
            num_warps=launch.FLAT_WARPS,
            enable_fp_fusion=False,
        )
    return out
