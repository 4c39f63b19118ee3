"""Every kernel variant, compiled ahead of time: no spills, no local memory, 16-byte accesses whatever the length."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import variants  # noqa: E402
from gpfast.kernels.gradient_norm import gradient_norm  # noqa: E402
from gpfast.kernels.interpolate import interpolate  # noqa: E402
from occupancy import resident_blocks  # noqa: E402
from offline import TARGETS, launches  # noqa: E402
from resources import resources  # noqa: E402
from variants import DTYPES, FORMS, SINGLE, SPLIT, Variant  # noqa: E402


def check(found: list[Variant]):
    faulty = [f"{variant} {', '.join(variant.faults)}" for variant in found if variant.faults]
    assert not faulty, "\n".join(faulty) + "\n\nall variants:\n" + "\n".join(map(str, found))


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpolate(target, dtype):
    check(variants.of_interpolate(target, dtype))


def test_interpolate_mixed_dtypes(target):
    check(variants.of_interpolate_mixed(target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_norm(target, dtype):
    check(variants.of_gradient_norm(target, dtype) + variants.of_gradient_norm_forms(target, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_norm_seed(target, dtype):
    check([variant for form in FORMS for variant in variants.of_gradient_norm_seed(target, dtype, form)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_programs_share_a_multiprocessor(dtype):
    """One program loads while the other reduces. float64 has twice the registers, and there one program is enough."""
    programs = 1 if dtype == torch.float64 else 2
    for cols in SINGLE + SPLIT:
        for variant in variants.norms("sm_90", dtype, cols, "one-sided", True):
            needs = variant.needs
            resident = resident_blocks("sm_90", variant.threads, needs.registers, needs.shared_bytes)
            assert resident >= programs, str(variant)


def test_unaligned_pointers_compile_to_narrow_loads(target):
    """A slice may start between 16-byte bounds: wide accesses would fault."""
    x = torch.empty(2 * 1001 + 1)[1:].view(2, 1001)
    for found in launches(target, gradient_norm, x, 1, 1.0, False, 0.0, "sum", False):
        assert resources(found.kernel).wide_loads == 0
    (found,) = launches(target, interpolate, x, x, torch.empty(2))
    assert resources(found.kernel).wide_loads == 0
