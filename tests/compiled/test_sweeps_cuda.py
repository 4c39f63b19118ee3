"""The CUDA kernels of the sweeps as nvcc compiles them: spills, registers, width of accesses."""

import re

import pytest
from nvcc import MANGLED, NVCC, TARGETS, compiled, entries, usage, wide_accesses

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

THREADS = 256
REGISTERS = 65536  # of a multiprocessor
# Bytes that must be under way in a multiprocessor for its memory to be busy: bandwidth times latency, as on an H100
# (3.35 TB/s, about 600 ns, 132 multiprocessors).
IN_FLIGHT = 3.35e12 * 600e-9 / 132
# Kernels by name: how many 16-byte loads and stores each has.
ACCESSES = {
    "gate": {r"4gateI": (2, 1), r"5gatedI": (1, 1)},
    "activation": {
        r"smoothI.*TaskE0E": (2, 1),  # slope
        r"smoothI.*TaskE1E": (3, 1),  # add_slope
        r"smoothI.*TaskE2E": (3, 2),  # slope_and_curve
    },
}
LIBRARY_FUNCTIONS = r"smoothI.*Lb0E"  # those of CUDA that reduce large arguments keep a few words in a stack


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stem", ACCESSES)
def test_no_kernel_spills(stem, target):
    found = usage(stem, target)
    assert len(found) == {"gate": 4, "activation": 6}[stem] * len(MANGLED)
    for name, used in found.items():
        assert used.spills == 0, name
        assert used.stack == 0 or re.search(LIBRARY_FUNCTIONS, name), name


@pytest.mark.parametrize("dtype", MANGLED, ids=str)
@pytest.mark.parametrize(("stem", "kernel"), [(stem, kernel) for stem in ACCESSES for kernel in ACCESSES[stem]])
def test_accesses_are_16_bytes_wide_whatever_the_length(stem, kernel, dtype):
    ptx = compiled(stem, "ptx", "sm_90")[1]
    found = entries(ptx, kernel.replace("I", f"I{MANGLED[dtype]}", 1))
    assert len(found) == 2
    for name in found:
        loads, stores = wide_accesses(ptx, name)
        wanted = ACCESSES[stem][kernel]
        assert stores == wanted[1], name
        # CUDA's functions in double read their coefficients from memory, too.
        assert loads == wanted[0] or (loads > wanted[0] and re.search(LIBRARY_FUNCTIONS, name)), name


@pytest.mark.parametrize("stem", ACCESSES)
def test_enough_loads_are_under_way(stem):
    """With the registers that each takes, as many threads fit as keep an H100's memory busy."""
    for name, used in usage(stem, "sm_90").items():
        (loads,) = (loads for kernel, (loads, _) in ACCESSES[stem].items() if re.search(kernel, name))
        granted = -(-used.registers // 8) * 8  # eight at a time
        blocks = min(REGISTERS // (granted * THREADS), 2048 // THREADS)
        assert blocks * THREADS * 16 * loads >= IN_FLIGHT, (name, used)
