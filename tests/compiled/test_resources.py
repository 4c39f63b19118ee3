"""Every kernel variant, compiled ahead of time: no spills, no local memory, 16-byte accesses whatever the length."""

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from gpfast.kernels import launch  # noqa: E402
from gpfast.kernels.gradient_norm import gradient_norm, gradient_norm_seed  # noqa: E402
from gpfast.kernels.interpolate import interpolate  # noqa: E402
from offline import TARGETS, Launch, launches  # noqa: E402
from resources import Resources, resources  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MIXED = [(torch.float16, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, torch.float64)]
ROWS = 600  # enough for more than one program of every kernel
NVIDIA_REGISTERS = 65536  # of a multiprocessor

# The lengths of a row that choose each kernel, with and without a remainder by VECTOR.
TILES = [1, 3, 100, 64]
SINGLE = [1001, 12288, launch.ROW_COLUMNS - 1]
SPLIT = [launch.ROW_COLUMNS + 1, 2**20]
FORMS = {"two-sided": (1.0, False), "one-sided": (1.0, True), "zero": (0.0, False)}


class Compiled(NamedTuple):
    """One variant: what it is, its 16-byte loads and stores where nothing hinders them, and what it needs."""

    label: str
    launch: Launch
    wide_loads: float
    wide_stores: float
    needs: Resources

    def __str__(self):
        threads = self.launch.kernel.metadata.num_warps * self.launch.kernel.metadata.target.warp_size
        return f"{self.label:58} {threads:5} threads {self.needs}"

    @property
    def faults(self) -> list[str]:
        found = ["spills"] if self.needs.spills or self.needs.local_bytes else []
        found += ["narrow loads"] if self.needs.wide_loads < self.wide_loads else []
        found += ["narrow stores"] if self.needs.wide_stores < self.wide_stores else []
        return found


def compiled(label, found: Launch, *, elements, loads, stores) -> Compiled:
    """loads, stores: the bytes an element of the tensors read and written; elements: those of one program."""
    threads = found.kernel.metadata.num_warps * found.kernel.metadata.target.warp_size
    vectors = elements / threads / 16
    return Compiled(f"{found.name} {label}", found, vectors * loads, vectors * stores, resources(found.kernel))


def accumulator_bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def flat(target, label, launcher, *arguments, out, loads):
    """`out`: the dtype written; loads: the bytes an element of what is read."""
    (found,) = launches(target, launcher, *arguments)
    elements = launch.flat_block(accumulator_bytes(out))
    return compiled(label, found, elements=elements, loads=loads, stores=out.itemsize)


def norms(target, gradient, form, with_seed):
    cols = gradient.shape[1]
    size, accumulator = gradient.element_size(), accumulator_bytes(gradient.dtype)
    plan = launch.gradient_norm_plan(cols, accumulator)
    # Rows of a tile are neither padded nor aligned, so those of odd length are read element by element, side by side.
    wide = plan.kind != "tile" or cols % launch.VECTOR == 0
    elements = plan.block * (launch.tile_rows(cols, accumulator) if plan.kind == "tile" else 1)
    for found in launches(target, gradient_norm, gradient, 1, *FORMS[form], 1e-12, "mean", with_seed):
        reads = wide and not (found.name == "_finish_kernel" and not with_seed)
        writes = wide and with_seed and found.name != "_partial_kernel"
        label = f"{gradient.dtype} K={cols} {form} {'seed' if with_seed else 'no seed'}"
        yield compiled(label, found, elements=elements, loads=size * reads, stores=size * writes)


def check(variants: list[Compiled]):
    faulty = [f"{variant} {', '.join(variant.faults)}" for variant in variants if variant.faults]
    table = "\n".join(map(str, variants))
    assert not faulty, "\n".join(faulty) + "\n\nall variants:\n" + table


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpolate(target, dtype):
    variants = []
    for cols, alpha in ((1001, torch.empty(())), (1001, torch.empty(ROWS)), (7001, torch.empty(ROWS))):
        x = torch.empty(ROWS, cols, dtype=dtype)
        label = f"{dtype} K={cols} alpha {tuple(alpha.shape)}"
        variants.append(flat(target, label, interpolate, x, x, alpha, out=dtype, loads=2 * dtype.itemsize))
    check(variants)


def test_interpolate_mixed_dtypes(target):
    variants = []
    for real, fake in MIXED:
        x, y = torch.empty(ROWS, 1001, dtype=real), torch.empty(ROWS, 1001, dtype=fake)
        out, loads = torch.promote_types(real, fake), real.itemsize + fake.itemsize
        variants.append(flat(target, f"{real} {fake}", interpolate, x, y, torch.empty(ROWS), out=out, loads=loads))
    check(variants)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_norm(target, dtype):
    variants = []
    for cols in TILES + SINGLE + SPLIT:
        gradient = torch.empty(2 if cols in SPLIT else ROWS, cols, dtype=dtype)
        variants += norms(target, gradient, "one-sided", True)
        if cols % launch.VECTOR:
            variants += norms(target, gradient, "zero", False)
    for form in ("two-sided", "zero"):
        variants += norms(target, torch.empty(ROWS, 1001, dtype=dtype), form, True)
    check(variants)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_norm_seed(target, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    variants = []
    for cols in (100, 7001):
        gradient, per_row = torch.empty(ROWS, cols, dtype=dtype), torch.empty(ROWS, dtype=wide)
        for cotangent in (per_row, torch.empty((), dtype=wide)):
            for form, (center, one_sided) in FORMS.items():
                label = f"{dtype} K={cols} {form} cotangent {tuple(cotangent.shape)}"
                arguments = gradient, per_row, cotangent, 1, center, one_sided, 0.125
                variants.append(flat(target, label, gradient_norm_seed, *arguments, out=dtype, loads=dtype.itemsize))
    check(variants)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_programs_share_a_multiprocessor(dtype):
    """One program loads while the other reduces. float64 has twice the registers, and there one program is enough."""
    variants = []
    for cols in SINGLE + SPLIT:
        variants += norms("sm_90", torch.empty(2, cols, dtype=dtype), "one-sided", True)
    programs = 1 if dtype == torch.float64 else 2
    for variant in variants:
        a_thread = -(-variant.needs.registers // 8) * 8  # granted eight at a time
        threads = 32 * variant.launch.kernel.metadata.num_warps
        assert programs * threads * a_thread <= NVIDIA_REGISTERS, str(variant)


def test_unaligned_pointers_compile_to_narrow_loads(target):
    """A slice may start between 16-byte bounds: wide accesses would fault."""
    x = torch.empty(2 * 1001 + 1)[1:].view(2, 1001)
    for found in launches(target, gradient_norm, x, 1, 1.0, False, 0.0, "sum", False):
        assert resources(found.kernel).wide_loads == 0
    (found,) = launches(target, interpolate, x, x, torch.empty(2))
    assert resources(found.kernel).wide_loads == 0
