"""gradient_norm and gradient_norm_seed on the GPU.

n = sqrt(sum_row g^2 + eps), phi(n), and the tangent seed scale * phi'(n)/n * g. Three ways to cover (rows, cols),
chosen by launch.gradient_norm_plan: a tile of several short rows a program, one row a program, or a row cut into
chunks with partial sums in between. Sums run in a fixed order, without atomics: every run gives the same bits. Products
and sums are not fused (enable_fp_fusion), since the compiler would choose which by what else a kernel does.
"""

import torch
import triton
import triton.language as tl

from . import launch
from .penalty import penalty, seed_factor
from .rows import (
    TRITON_DTYPE,
    VECTOR,
    accumulator,
    edges,
    flat_block,
    row_boundary,
    rows_of_block,
    shape_2d,
    vector_bounds,
)


@triton.jit(do_not_specialize=["rows"])
def _tile_kernel(
    gradient_ptr,  # (rows, cols)
    norms_ptr,  # (rows,)
    phi_ptr,  # (rows,)
    seed_ptr,  # (rows, cols) where WITH_SEED
    rows: tl.int64,
    cols,
    center: tl.float64,
    eps: tl.float64,
    scale: tl.float64,
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    WITH_SEED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    live = row < rows - first
    mask = live[:, None] & (col[None, :] < cols)
    offset = row[:, None] * cols + col[None, :]
    g = tl.load(gradient_ptr + first * cols + offset, mask, other=0.0).to(ACC)

    norm, phi = penalty(tl.sum(g * g, axis=1), center, eps, AT_ZERO, ONE_SIDED)
    tl.store(norms_ptr + first + row, norm, live)
    tl.store(phi_ptr + first + row, phi, live)
    if WITH_SEED:
        factor = seed_factor(norm, center, tl.full((ROWS,), scale, ACC), AT_ZERO, ONE_SIDED)
        seed = (factor[:, None] * g).to(seed_ptr.dtype.element_ty)
        tl.store(seed_ptr + first * cols + offset, seed, mask)


@triton.jit(do_not_specialize=["cols"])
def _row_kernel(
    gradient_ptr,  # (rows, cols)
    norms_ptr,  # (rows,)
    phi_ptr,  # (rows,)
    seed_ptr,  # (rows, cols) where WITH_SEED
    cols: tl.int64,
    center: tl.float64,
    eps: tl.float64,
    scale: tl.float64,
    EDGES: tl.constexpr,  # cols is no multiple of VECTOR
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    WITH_SEED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    begin = row * cols
    end = begin + cols
    first, last = vector_bounds(begin, end)
    lane = tl.arange(0, BLOCK)
    mask = lane < (last - first).to(tl.int32)
    g = tl.load(gradient_ptr + first + lane, mask, other=0.0).to(ACC)
    if EDGES:
        edge, at_edge = edges(begin, first, last, end)
        g_edge = tl.load(gradient_ptr + begin + edge, at_edge, other=0.0).to(ACC)
        total = tl.sum(g * g) + tl.sum(g_edge * g_edge)
    else:
        total = tl.sum(g * g)

    norm, phi = penalty(total, center, eps, AT_ZERO, ONE_SIDED)
    tl.store(norms_ptr + row, norm)
    tl.store(phi_ptr + row, phi)
    if WITH_SEED:
        factor = seed_factor(norm, center, tl.full((), scale, ACC), AT_ZERO, ONE_SIDED)
        tl.store(seed_ptr + first + lane, (factor * g).to(seed_ptr.dtype.element_ty), mask)
        if EDGES:
            tl.store(seed_ptr + begin + edge, (factor * g_edge).to(seed_ptr.dtype.element_ty), at_edge)


@triton.jit
def _chunk(row, piece, cols, chunk, splits):
    """[begin, end) of a row's chunk number `piece`; inner bounds are multiples of VECTOR whatever the row's start."""
    row_begin = row * cols
    row_end = row_begin + cols
    begin = row_begin // VECTOR * VECTOR + piece * chunk
    return tl.maximum(begin, row_begin), tl.where(piece == splits - 1, row_end, begin + chunk)


@triton.jit(do_not_specialize=["cols", "chunk", "splits"])
def _partial_kernel(
    gradient_ptr,  # (rows, cols)
    partial_ptr,  # (rows, splits)
    cols: tl.int64,
    chunk: tl.int64,
    splits: tl.int64,
    EDGES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    begin, end = _chunk(program // splits, program % splits, cols, chunk, splits)
    first, last = vector_bounds(begin, end)
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), ACC)
    for start in range(first, last, BLOCK):
        g = tl.load(gradient_ptr + start + lane, lane < (last - start).to(tl.int32), other=0.0).to(ACC)
        squares += g * g
    total = tl.sum(squares)
    if EDGES:
        edge, at_edge = edges(begin, first, last, end)
        g_edge = tl.load(gradient_ptr + begin + edge, at_edge, other=0.0).to(ACC)
        total += tl.sum(g_edge * g_edge)
    tl.store(partial_ptr + program, total)


@triton.jit(do_not_specialize=["cols", "chunk", "splits"])
def _finish_kernel(
    gradient_ptr,  # (rows, cols)
    partial_ptr,  # (rows, splits)
    norms_ptr,  # (rows,)
    phi_ptr,  # (rows,)
    seed_ptr,  # (rows, cols) where WITH_SEED
    cols: tl.int64,
    chunk: tl.int64,
    splits: tl.int64,
    center: tl.float64,
    eps: tl.float64,
    scale: tl.float64,
    EDGES: tl.constexpr,
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    WITH_SEED: tl.constexpr,  # one program a chunk; without: one a row
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,  # a power of two >= splits
):
    program = tl.program_id(0).to(tl.int64)
    row = program
    piece = program * 0
    if WITH_SEED:
        row = program // splits
        piece = program % splits
    split = tl.arange(0, SPLITS)
    total = tl.sum(tl.load(partial_ptr + row * splits + split, split < splits, other=0.0))
    norm, phi = penalty(total, center, eps, AT_ZERO, ONE_SIDED)
    if piece == 0:
        tl.store(norms_ptr + row, norm)
        tl.store(phi_ptr + row, phi)
    if WITH_SEED:
        factor = seed_factor(norm, center, tl.full((), scale, ACC), AT_ZERO, ONE_SIDED)
        begin, end = _chunk(row, piece, cols, chunk, splits)
        first, last = vector_bounds(begin, end)
        lane = tl.arange(0, BLOCK)
        for start in range(first, last, BLOCK):
            mask = lane < (last - start).to(tl.int32)
            g = tl.load(gradient_ptr + start + lane, mask).to(ACC)
            tl.store(seed_ptr + start + lane, (factor * g).to(seed_ptr.dtype.element_ty), mask)
        if EDGES:
            edge, at_edge = edges(begin, first, last, end)
            g_edge = tl.load(gradient_ptr + begin + edge, at_edge).to(ACC)
            tl.store(seed_ptr + begin + edge, (factor * g_edge).to(seed_ptr.dtype.element_ty), at_edge)


@triton.jit
def _row_factor(
    norms_ptr,
    cotangent_ptr,
    row,
    mask,
    center,
    scale,
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    SHARED: tl.constexpr,
):
    norm = tl.load(norms_ptr + row, mask)
    if SHARED:
        cotangent = tl.load(cotangent_ptr)
    else:
        cotangent = tl.load(cotangent_ptr + row, mask)
    weight = tl.full((), scale, norm.dtype) * cotangent
    return seed_factor(norm, center, weight, AT_ZERO, ONE_SIDED)


@triton.jit
def _scale(
    gradient_ptr,
    norms_ptr,
    cotangent_ptr,
    seed_ptr,
    start,
    lane,
    mask,
    rows,
    cols,
    center,
    scale,
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    SHARED: tl.constexpr,
    NARROW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The elements start + lane where mask; lane < BLOCK."""
    row = start // cols
    if NARROW:
        row = rows_of_block(start, row, cols, lane)
        factor = _row_factor(norms_ptr, cotangent_ptr, row, mask, center, scale, AT_ZERO, ONE_SIDED, SHARED)
    else:
        this = _row_factor(norms_ptr, cotangent_ptr, row, None, center, scale, AT_ZERO, ONE_SIDED, SHARED)
        following = tl.minimum(row + 1, rows - 1)
        following = _row_factor(norms_ptr, cotangent_ptr, following, None, center, scale, AT_ZERO, ONE_SIDED, SHARED)
        factor = tl.where(lane < row_boundary(start, row, cols, BLOCK), this, following)
    g = tl.load(gradient_ptr + start + lane, mask).to(ACC)
    tl.store(seed_ptr + start + lane, (factor * g).to(seed_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "cols"])
def _seed_kernel(
    gradient_ptr,  # (rows, cols)
    norms_ptr,  # (rows,)
    cotangent_ptr,  # () where SHARED, else (rows,)
    seed_ptr,  # (rows, cols)
    rows: tl.int64,
    cols: tl.int64,
    center: tl.float64,
    scale: tl.float64,
    AT_ZERO: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    SHARED: tl.constexpr,
    NARROW: tl.constexpr,  # cols < BLOCK
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start, length, whole = flat_block(rows.to(tl.int64), cols, BLOCK)
    lane = tl.arange(0, BLOCK)
    _scale(
        gradient_ptr, norms_ptr, cotangent_ptr, seed_ptr, start, lane, lane < whole, rows, cols, center, scale,
        AT_ZERO, ONE_SIDED, SHARED, NARROW, ACC, BLOCK,
    )  # fmt: skip
    if whole < length:
        tail = whole + tl.arange(0, VECTOR)
        _scale(
            gradient_ptr, norms_ptr, cotangent_ptr, seed_ptr, start, tail, tail < length, rows, cols, center, scale,
            AT_ZERO, ONE_SIDED, SHARED, NARROW, ACC, BLOCK,
        )  # fmt: skip


def gradient_norm(
    gradient: torch.Tensor,
    keep: int,
    center: float,
    one_sided: bool,
    eps: float,
    reduction: str,
    with_seed: bool,
    weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(value, norms, seed) of a gradient with dense rows.

    gradient: its first `keep` dimensions are the N rows, the others the K elements of each; norms: their shape is
    gradient.shape[:keep]; value: the mean or sum of phi(norms), 0-dim, or with "none" phi itself, times weight;
    seed: like gradient, with the weight in it, or empty without it.
    """
    rows, cols = shape_2d(gradient, keep)
    dtype = accumulator(gradient.dtype)
    norms = gradient.new_empty(gradient.shape[:keep], dtype=dtype)
    phi = torch.empty_like(norms)
    seed = torch.empty_like(gradient) if with_seed else gradient.new_empty((0,))
    if rows:
        scale = weight / rows if reduction == "mean" else weight
        options = {
            "AT_ZERO": center == 0,
            "ONE_SIDED": one_sided,
            "WITH_SEED": with_seed,
            "ACC": TRITON_DTYPE[dtype],
        }
        with torch.cuda.device_of(gradient):
            _launch_norms(gradient, norms, phi, seed, rows, cols, (float(center), float(eps), scale), options)
    value = phi if reduction == "none" else phi.mean() if reduction == "mean" else phi.sum()
    return value if weight == 1 else value.mul_(weight), norms, seed


def _launch_norms(gradient, norms, phi, seed, rows, cols, scalars, options):
    plan = launch.gradient_norm_plan(cols, norms.element_size())
    if plan.kind == "tile":
        tile_rows = launch.tile_rows(cols, norms.element_size())
        _tile_kernel[(launch.ceil_div(rows, tile_rows),)](
            gradient, norms, phi, seed, rows, cols, *scalars, **options,
            ROWS=tile_rows, COLS=plan.block, num_warps=plan.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
        return
    edges_exist = cols % launch.VECTOR != 0
    if plan.kind == "row":
        _row_kernel[(rows,)](
            gradient, norms, phi, seed, cols, *scalars, EDGES=edges_exist, **options,
            BLOCK=plan.block, num_warps=plan.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
        return
    partial = norms.new_empty((rows, plan.splits))
    pieces = (cols, plan.chunk, plan.splits)
    _partial_kernel[(rows * plan.splits,)](
        gradient,
        partial,
        *pieces,
        EDGES=edges_exist,
        ACC=options["ACC"],
        BLOCK=plan.block,
        num_warps=plan.num_warps,
        enable_fp_fusion=False,
    )
    _finish_kernel[(rows * plan.splits if options["WITH_SEED"] else rows,)](
        gradient, partial, norms, phi, seed, *pieces, *scalars, EDGES=edges_exist, **options,
        BLOCK=plan.block, SPLITS=launch.power_of_two(plan.splits), num_warps=plan.num_warps, enable_fp_fusion=False,
    )  # fmt: skip


def gradient_norm_seed(
    gradient: torch.Tensor,
    norms: torch.Tensor,
    cotangent: torch.Tensor,
    keep: int,
    center: float,
    one_sided: bool,
    scale: float,
) -> torch.Tensor:
    """scale * cotangent * phi'(norms)/norms * gradient, like gradient: the seed for a cotangent known only later.

    gradient: dense rows; norms: gradient.shape[:keep]; cotangent: 0-dim or like norms, both in the accumulator's dtype.
    """
    seed = torch.empty_like(gradient)
    if seed.numel() == 0:
        return seed
    rows, cols = shape_2d(gradient, keep)
    shared = cotangent.dim() == 0
    dtype = accumulator(gradient.dtype)
    assert norms.dtype == cotangent.dtype == dtype and norms.shape == gradient.shape[:keep]
    block = launch.flat_block(norms.element_size())
    with torch.cuda.device_of(gradient):
        _seed_kernel[(launch.ceil_div(seed.numel(), block),)](
            gradient,
            norms.contiguous(),
            cotangent.contiguous(),
            seed,
            rows,
            cols,
            float(center),
            float(scale),
            AT_ZERO=center == 0,
            ONE_SIDED=one_sided,
            SHARED=shared,
            NARROW=cols < block,
            ACC=TRITON_DTYPE[dtype],
            BLOCK=block,
            num_warps=launch.FLAT_WARPS,
            enable_fp_fusion=False,
        )
    return seed
