"""Bytes that the compiled Triton kernels move, counted: of DRAM at most 1.05 of the fewest, of sectors at most 1.1.

Sectors are counted a request, so one that two requests share counts twice though the cache answers the second: DRAM's
bytes stay the fewest. Where that happens to more than a tenth, the case is in an exception below with its reason.
"""

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from gpfast.kernels import launch  # noqa: E402
from gpfast.kernels.gradient_norm import gradient_norm, gradient_norm_seed  # noqa: E402
from gpfast.kernels.interpolate import interpolate  # noqa: E402

DRAM, SECTORS = 1.05, 1.1
ELEMENTS = 40_000
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Shared(NamedTuple):
    """Rows of these lengths, and up to how many times the fewest sectors they ask for: of elements of two bytes, and
    of four or eight."""

    lengths: list[int]
    narrow: float
    wide: float
    reason: str


# A tile of short rows is read element by element where their length is no multiple of VECTOR: a request of a warp then
# starts between two sectors and asks for both; the shorter the rows, the fewer elements a request has.
TILES = Shared([3, 17, 37, 65, 100, 127], 2.5, 1.8, "rows of a tile start between sectors")
# Head and tail of a row are read apart from its vectors; their sectors are shared with those, and with the next row.
SHORT_ROWS = Shared([129, 200], 1.25, 1.15, "the edges of a short row are much of it")
# Rows shorter than a block: each element asks for its row's numbers (alpha; norm and cotangent), the same ones mostly.
MIXED_ROWS = Shared([37, 200, 1001], 1.3, 1.15, "every element asks for the weight of its row")
SEEDED_ROWS = Shared([37, 200, 1001], 1.85, 1.35, "every element asks for norm and cotangent of its row")


def sample(cols: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ELEMENTS // cols + 1, cols, generator=generator, dtype=torch.float64).to(dtype)


def per_row(x: torch.Tensor) -> torch.Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.rand(len(x), dtype=wide)


def ratios(emulator, least: int) -> tuple[float, float]:
    """(DRAM, sectors) of what ran last, over all its kernels, in parts of the fewest bytes."""
    counters = [c for _, c in emulator.counters]
    return sum(c.dram_bytes for c in counters) / least, sum(c.sector_bytes for c in counters) / least


def of_gradient_norm(emulator, cols: int, dtype: torch.dtype) -> tuple[float, float]:
    """Each element is read once, where rows are split twice, and its seed written once."""
    g = sample(cols, dtype)
    rows = per_row(g)
    with emulator.running():
        gradient_norm(g, 1, 1.0, False, 1e-12, "none", True)
    reads = 2 if launch.gradient_norm_plan(cols, rows.itemsize).kind == "split" else 1
    return ratios(emulator, g.nbytes * (reads + 1) + 2 * rows.nbytes)


def of_gradient_norm_seed(emulator, cols: int, dtype: torch.dtype) -> tuple[float, float]:
    g = sample(cols, dtype)
    rows = per_row(g)
    with emulator.running():
        gradient_norm_seed(g, rows, rows.clone(), 1, 1.0, False, 1.0)
    return ratios(emulator, 2 * g.nbytes + 2 * rows.nbytes)


def of_interpolate(emulator, cols: int, dtype: torch.dtype) -> tuple[float, float]:
    real, alpha = sample(cols, dtype), per_row(sample(cols, dtype))
    with emulator.running():
        interpolate(real, real.clone(), alpha)
    return ratios(emulator, 3 * real.nbytes + alpha.nbytes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [64, 301, 1001, 12289, launch.ROW_COLUMNS - 1, 20001])
def test_gradient_norm(emulator, cols, dtype):
    dram, sectors = of_gradient_norm(emulator, cols, dtype)
    assert dram <= DRAM and sectors <= SECTORS, (dram, sectors)


@pytest.mark.parametrize("run", [of_gradient_norm_seed, of_interpolate], ids=lambda run: run.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [2053, 5001, 20001])
def test_flat_kernels(emulator, run, cols, dtype):
    dram, sectors = run(emulator, cols, dtype)
    assert dram <= DRAM and sectors <= SECTORS, (dram, sectors)


@pytest.mark.parametrize(
    "run, exception",
    [
        (of_gradient_norm, TILES),
        (of_gradient_norm, SHORT_ROWS),
        (of_interpolate, MIXED_ROWS),
        (of_gradient_norm_seed, SEEDED_ROWS),
    ],
    ids=["tiles", "short rows", "interpolate", "seed"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_exceptions_ask_for_more_sectors_but_no_more_of_dram(emulator, run, exception, dtype):
    for cols in exception.lengths:
        dram, sectors = run(emulator, cols, dtype)
        allowed = exception.narrow if dtype.itemsize == 2 else exception.wide
        assert dram <= DRAM and sectors <= allowed, (cols, dram, sectors, exception.reason)
