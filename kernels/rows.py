"""Parts shared by the kernels: rows of a flat block, and ranges cut at vector bounds."""

import math

import torch
import triton
import triton.language as tl

from . import launch

VECTOR = tl.constexpr(launch.VECTOR)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and statistics over `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


def shape_2d(tensor: torch.Tensor, keep: int) -> tuple[int, int]:
    """(N, K) of a tensor with dense rows: the lengths of its first `keep` dimensions, and of the others, multiplied."""
    return math.prod(tensor.shape[:keep]), math.prod(tensor.shape[keep:])


@triton.jit
def flat_block(rows, cols, BLOCK: tl.constexpr):
    """(start, length, whole) of this program's block of flat memory; `whole` of its elements fill whole vectors."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    length = tl.minimum(rows * cols - start, BLOCK).to(tl.int32)
    return start, length, length // VECTOR * VECTOR


@triton.jit
def row_boundary(start, row, cols, BLOCK: tl.constexpr):
    """How many of the BLOCK elements from `start`, which lies in `row`, belong to that row."""
    return tl.minimum((row + 1) * cols - start, BLOCK).to(tl.int32)


@triton.jit
def rows_of_block(start, row, cols, lane):
    """The row of each element start + lane, where `start` lies in `row` and rows are shorter than the block."""
    column = (start - row * cols).to(tl.int32)
    return row + (column + lane) // cols.to(tl.int32)


@triton.jit
def vector_bounds(begin, end):
    """The largest [first, last) in [begin, end) between multiples of VECTOR; first <= last where end - begin >= 31."""
    return (begin + VECTOR - 1) // VECTOR * VECTOR, end // VECTOR * VECTOR


@triton.jit
def edges(begin, first, last, end):
    """Offsets from `begin` of what [first, last) leaves of [begin, end): its head and its tail, and which exist."""
    lane = tl.arange(0, 2 * VECTOR)
    in_head = lane < VECTOR
    offset = tl.where(in_head, lane, (last - begin).to(tl.int32) + lane - VECTOR)
    stop = tl.where(in_head, first - begin, end - begin)
    return offset, offset < stop
