"""The CUDA kernels of the sweeps as nvcc compiles them: spills, registers, width of accesses."""

import re

import pytest
from cuda import NVCC, TARGETS, kernels

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

DTYPES = ("__half", "__nv_bfloat16", "float", "double")
THREADS = 256
REGISTERS = 65536  # of a multiprocessor
# Bytes that must be under way in a multiprocessor for its memory to be busy: bandwidth times latency, as on an H100
# (3.35 TB/s, about 600 ns, 132 multiprocessors).
IN_FLIGHT = 3.35e12 * 600e-9 / 132
# Kernels by name: how many 16-byte loads and stores each has.
ACCESSES = {
    "gate": {"gate<DTYPE,": (2, 1), "gated<DTYPE,": (1, 1)},
    "activation": {
        "smooth<DTYPE, 0,": (2, 1),  # slope
        "smooth<DTYPE, 1,": (3, 1),  # add_slope
        "smooth<DTYPE, 2,": (3, 2),  # slope_and_curve
    },
}
# Of the norms: at least as many loads, as weights and what is added are read besides. A vector of each tensor, four in
# kernels that hold a group, two where the next row is read before this one is written.
LINE, BEND = "Line<{wide}>", "Bend<{wide}>"
NORMS = {
    ("held", LINE): (8, 4),
    ("held", BEND): (12, 8),
    ("run_sums", LINE): (2, 0),
    ("run_sums", BEND): (3, 0),
    ("column_sums", LINE): (2, 0),
    ("column_sums", BEND): (3, 0),
    ("write_runs", LINE): (2, 1),
    ("write_runs", BEND): (3, 2),
    ("write_columns", LINE): (4, 1),
    ("write_columns", BEND): (6, 2),
}
SMALL = ("coefficients", "add_parts")  # of what is small beside the tensors
LIBRARY_FUNCTIONS = r"smooth<.*false>"  # those of CUDA that reduce large arguments keep a few words in a stack


def kernels_of(stem, target):
    return kernels(f"ops/{stem}.cu", target)


def resident_threads(kernel):
    """Of a multiprocessor, as far as registers go."""
    granted = -(-kernel.needs.registers // 8) * 8  # eight at a time
    return min(REGISTERS // (granted * THREADS), 2048 // THREADS) * THREADS


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stem", [*ACCESSES, "normalize"])
def test_no_kernel_spills(stem, target):
    found = kernels_of(stem, target)
    # The norms have 9 kernels for a line and for a bend, and one that adds up parts.
    assert len(found) == ({"gate": 4, "activation": 6, "normalize": 18}[stem] * len(DTYPES)) + 2 * (stem == "normalize")
    for kernel in found:
        assert kernel.needs.spills == 0, kernel
        assert kernel.needs.local_bytes == 0 or re.search(LIBRARY_FUNCTIONS, kernel.name), kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem in ACCESSES for name in ACCESSES[stem]])
def test_accesses_are_16_bytes_wide_whatever_the_length(stem, name, dtype):
    found = [kernel for kernel in kernels_of(stem, "sm_90") if kernel.name.startswith(name.replace("DTYPE", dtype))]
    assert len(found) == 2
    for kernel in found:
        loads, stores = ACCESSES[stem][name]
        assert kernel.needs.wide_stores == stores, kernel
        # CUDA's functions in double read their coefficients from memory, too.
        wide = kernel.needs.wide_loads
        assert wide == loads or (wide > loads and re.search(LIBRARY_FUNCTIONS, kernel.name)), kernel


@pytest.mark.parametrize("stem", ACCESSES)
def test_enough_loads_are_under_way(stem):
    """With the registers that each takes, as many threads fit as keep an H100's memory busy."""
    for kernel in kernels_of(stem, "sm_90"):
        (loads,) = (
            loads for name, (loads, _) in ACCESSES[stem].items() if re.match(name.replace("DTYPE", r"\w+"), kernel.name)
        )
        assert resident_threads(kernel) * 16 * loads >= IN_FLIGHT, kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "form"), NORMS)
def test_norms_read_and_write_16_bytes_at_a_time(kernel, form, dtype):
    loads, stores = NORMS[kernel, form]
    found = norms(kernel, form, dtype)
    assert found
    for one in found:
        assert one.needs.wide_loads >= loads, one
        assert one.needs.wide_stores == stores, one


@pytest.mark.parametrize(("kernel", "form"), NORMS)
def test_norms_have_enough_loads_under_way(kernel, form):
    loads, _ = NORMS[kernel, form]
    for dtype in DTYPES:
        for one in norms(kernel, form, dtype):
            assert resident_threads(one) * 16 * loads >= IN_FLIGHT, one


def test_every_kernel_of_the_norms_is_one_of_these():
    names = {kernel.name.split("<")[0] for kernel in kernels_of("normalize", "sm_90")}
    assert names == {kernel for kernel, _ in NORMS} | set(SMALL)


def norms(kernel, form, dtype):
    start = f"{kernel}<{dtype}, {form.format(wide='double' if dtype == 'double' else 'float')}"
    return [one for one in kernels_of("normalize", "sm_90") if one.name.startswith(start)]
