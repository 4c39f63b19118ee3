"""Launches of CUDA kernels that the emulator executes; a module for each file of cuda.SOURCES, of the same stem.

A module has two tables by name. VALUES: functions of a library, each of which runs launchers and checks what they give.
TRAFFIC: functions that run what moves as many bytes as a Bound says.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from emulated_cuda import EmulatedLibrary

DRAM, SECTORS = 1.05, 1.1


class Bound(NamedTuple):
    """least: the fewest bytes that can be moved. sectors: how many times as many the requests may ask the caches for;
    more than SECTORS only for a reason."""

    least: int
    sectors: float = SECTORS
    reason: str = ""


def one_by_one(dtype) -> tuple[float, str]:
    """The bound of tensors that 16-byte accesses cannot read."""
    return 16 / dtype.itemsize + 0.1, "a thread's elements are asked for one by one, each for all threads of its warp"


class Executed(NamedTuple):
    """Of one run: each kernel with its CTAs; dram, sectors: bytes, over all kernels; bound: of traffic alone."""

    kernels: list[tuple[str, int]]
    dram: int
    sectors: int
    bound: Bound | None


def table(source: str, kind: str) -> dict[str, Callable]:
    """VALUES or TRAFFIC of a file."""
    return getattr(import_module(f"cuda_runs.{Path(source).stem}"), kind)


@cache
def execute(source: str, kind: str, name: str) -> Executed:
    library = EmulatedLibrary(source)
    bound = table(source, kind)[name](library)
    dram, sectors = (sum(getattr(r.counters, what) for r in library.ran) for what in ("dram_bytes", "sector_bytes"))
    return Executed([(r.kernel, r.ctas) for r in library.ran], dram, sectors, bound)
