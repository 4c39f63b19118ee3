"""Every CUDA kernel's PTX, executed by the emulator: what it gives, the bytes it moves, and races.

The emulator looks for races, divergent barriers and accesses out of bounds in every run; test_cuda_faults.py shows that
it finds them.
"""

import cuda
import pytest
import simt
from cuda_runs import DRAM, SECTORS, execute, table

LACKING = "needs nvcc" if cuda.NVCC is None else simt.missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))


def runs(kind: str) -> list:
    return [pytest.param(s, name, id=f"{s} {name}") for s in cuda.SOURCES for name in table(s, kind)]


@pytest.mark.parametrize(("source", "name"), runs("VALUES"))
def test_values(source, name):
    execute(source, "VALUES", name)


@pytest.mark.parametrize(("source", "name"), runs("TRAFFIC"))
def test_traffic(source, name):
    moved = execute(source, "TRAFFIC", name)
    assert moved.bound.sectors <= SECTORS or moved.bound.reason
    found = moved.dram / moved.bound.least, moved.sectors / moved.bound.least
    assert found[0] <= DRAM and found[1] <= moved.bound.sectors, (found, moved.bound)


@pytest.mark.parametrize("source", cuda.SOURCES)
def test_every_kernel_is_executed(source):
    """For its values, for its traffic, and by several CTAs, between which a race would show."""
    every = set(cuda.entries(source, "sm_90"))
    done = {kind: [k for name in table(source, kind) for k in execute(source, kind, name).kernels] for kind in KINDS}
    missing = {kind: every - {kernel for kernel, _ in found} for kind, found in done.items()}
    missing["several CTAs"] = every - {kernel for found in done.values() for kernel, ctas in found if ctas > 1}
    assert not any(missing.values()), missing


KINDS = ("VALUES", "TRAFFIC")
