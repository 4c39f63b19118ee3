"""Launch numbers of the Triton kernels, the plan they give for an (N, K) shape, and how many kernels that launches.

Nothing here needs Triton or a GPU, so costs can be counted on any machine. The numbers are read at every call.
"""

from typing import NamedTuple

# Bounds of vector accesses are multiples of this many elements, so that those stay 16 bytes wide.
VECTOR = 16

# Elementwise kernels: a block has this many bytes in the accumulator's dtype, 16 registers a thread. Also on a GPU of
# 64 lanes a thread then has 8 elements of 16 bits, one 16-byte load.
FLAT_BYTES = 8192
FLAT_WARPS = 4

# Up to this length a warp holds a row with at most one 16-byte fp32 load a lane, so one warp takes several rows: a tile
# of this many bytes in the accumulator's dtype, 16 registers a thread. One warp needs no barrier. At least 2 * VECTOR:
# longer rows hold whole vectors wherever they start.
TILE_COLUMNS = 128
TILE_BYTES = 2048

# Up to this length one program holds a row in registers, 32 elements a thread: the gradient is read once.
ROW_COLUMNS = 16384
WARP_ELEMENTS = 1024

# Longer rows are cut into chunks, a program each. Every program of the second pass reads all partial sums of its
# row, so their number is bounded: past SPLITS blocks the chunks grow, and are looped over block by block. A block has
# this many bytes in the accumulator's dtype, 16 registers a thread, since a loop holds sums beside what it loads.
SPLIT_BYTES = 32768
SPLIT_WARP_BYTES = 2048
SPLITS = 1024


class Plan(NamedTuple):
    """How gradient_norm covers (N, K): `kind` is "tile", "row" or "split"; chunk and splits are of one row."""

    kind: str
    block: int
    num_warps: int
    chunk: int
    splits: int


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def flat_block(accumulator_bytes: int) -> int:
    """How many elements a program of an elementwise kernel takes."""
    return FLAT_BYTES // accumulator_bytes


def tile_rows(cols: int, accumulator_bytes: int) -> int:
    """How many rows of up to TILE_COLUMNS elements a program takes."""
    return max(TILE_BYTES // (accumulator_bytes * power_of_two(cols)), 1)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def gradient_norm_plan(cols: int, accumulator_bytes: int) -> Plan:
    """The plan for rows of `cols` elements, whatever their number: a row gives the same bits in any batch."""
    if cols <= TILE_COLUMNS:
        return Plan("tile", power_of_two(cols), 1, cols, 1)
    if cols <= ROW_COLUMNS:
        block = power_of_two(cols)
        return Plan("row", block, _warps(block / WARP_ELEMENTS), cols, 1)
    block = SPLIT_BYTES // accumulator_bytes
    chunk = ceil_div(ceil_div(cols, SPLITS), block) * block
    return Plan("split", block, _warps(SPLIT_BYTES / SPLIT_WARP_BYTES), chunk, ceil_div(cols, chunk))


def interpolate_launches(rows: int, cols: int) -> int:
    """GPU kernels launched by interpolate on (rows, cols)."""
    return 1 if rows * cols else 0


def gradient_norm_launches(rows: int, cols: int, reduction: str, with_seed: bool) -> int:
    """GPU kernels launched by gradient_norm on (rows, cols), the sum or mean over the rows included."""
    passes = 0 if rows == 0 else 2 if cols > ROW_COLUMNS else 1
    return passes + (reduction != "none")


def gradient_norm_seed_launches(rows: int, cols: int) -> int:
    """GPU kernels launched by gradient_norm_seed on (rows, cols)."""
    return 1 if rows * cols else 0


def _warps(wanted: float) -> int:
    return min(max(int(wanted), 1), 16)
