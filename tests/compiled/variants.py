"""The variants of every Triton kernel: what is launched for each dtype, length and form, compiled for a target."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from gpfast.kernels import launch
from gpfast.kernels.gradient_norm import gradient_norm, gradient_norm_seed
from gpfast.kernels.interpolate import interpolate
from offline import Launch, launches
from resources import WIDEST, Resources, resources

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MIXED = [(torch.float16, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, torch.float64)]
ROWS = 600  # enough for more than one program of every kernel

# The lengths of a row that choose each kernel, with and without a remainder by VECTOR.
TILES = [1, 3, 100, 64]
SINGLE = [1001, 12288, launch.ROW_COLUMNS - 1]
SPLIT = [launch.ROW_COLUMNS + 1, 2**20]
FORMS = {"two-sided": (1.0, False), "one-sided": (1.0, True), "zero": (0.0, False)}


class Variant(NamedTuple):
    """What it is, its 16-byte loads and stores where nothing hinders them, and what it needs."""

    label: str
    launch: Launch
    wide_loads: float
    wide_stores: float
    needs: Resources

    def __str__(self):
        return f"{self.label:58} {self.threads:5} threads {self.needs}"

    @property
    def threads(self) -> int:
        metadata = self.launch.kernel.metadata
        return metadata.num_warps * metadata.target.warp_size

    @property
    def faults(self) -> list[str]:
        found = ["spills"] if self.needs.spills or self.needs.local_bytes else []
        found += ["narrow loads"] if self.needs.wide_loads < self.wide_loads else []
        found += ["narrow stores"] if self.needs.wide_stores < self.wide_stores else []
        return found


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def variant(label, found: Launch, *, elements, loads, stores) -> Variant:
    """loads, stores: the bytes an element of the tensors read and written; elements: those of one program."""
    threads = found.kernel.metadata.num_warps * found.kernel.metadata.target.warp_size
    vectors = elements / threads / WIDEST
    return Variant(f"{found.name} {label}", found, vectors * loads, vectors * stores, resources(found.kernel))


def accumulator_bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def flat(target, label, launcher, *arguments, out, loads) -> Variant:
    """`out`: the dtype written; loads: the bytes an element of what is read."""
    (found,) = launches(target, launcher, *arguments)
    elements = launch.flat_block(accumulator_bytes(out))
    return variant(label, found, elements=elements, loads=loads, stores=out.itemsize)


def norms(target, dtype, cols, form, with_seed) -> Iterator[Variant]:
    gradient = torch.empty(2 if cols in SPLIT else ROWS, cols, dtype=dtype)
    size, accumulator = gradient.element_size(), accumulator_bytes(dtype)
    plan = launch.gradient_norm_plan(cols, accumulator)
    # Rows of a tile are neither padded nor aligned, so those of odd length are read element by element, side by side.
    wide = plan.kind != "tile" or cols % launch.VECTOR == 0
    elements = plan.block * (launch.tile_rows(cols, accumulator) if plan.kind == "tile" else 1)
    for found in launches(target, gradient_norm, gradient, 1, *FORMS[form], 1e-12, "mean", with_seed):
        reads = wide and not (found.name == "_finish_kernel" and not with_seed)
        writes = wide and with_seed and found.name != "_partial_kernel"
        label = f"{name_of(dtype)} K={cols} {form} {'seed' if with_seed else 'no seed'}"
        yield variant(label, found, elements=elements, loads=size * reads, stores=size * writes)


@cache
def of_interpolate(target: str, dtype: torch.dtype) -> list[Variant]:
    found = []
    for cols, alpha in ((1001, torch.empty(())), (1001, torch.empty(ROWS)), (7001, torch.empty(ROWS))):
        x = torch.empty(ROWS, cols, dtype=dtype)
        label = f"{name_of(dtype)} K={cols} alpha {'per row' if alpha.dim() else 'shared'}"
        found.append(flat(target, label, interpolate, x, x, alpha, out=dtype, loads=2 * dtype.itemsize))
    return found


@cache
def of_interpolate_mixed(target: str) -> list[Variant]:
    found = []
    for real, fake in MIXED:
        x, y = torch.empty(ROWS, 1001, dtype=real), torch.empty(ROWS, 1001, dtype=fake)
        out, loads = torch.promote_types(real, fake), real.itemsize + fake.itemsize
        label = f"{name_of(real)} {name_of(fake)} K=1001 alpha per row"
        found.append(flat(target, label, interpolate, x, y, torch.empty(ROWS), out=out, loads=loads))
    return found


@cache
def of_gradient_norm(target: str, dtype: torch.dtype) -> list[Variant]:
    """One-sided with its seed at every length."""
    return [found for cols in TILES + SINGLE + SPLIT for found in norms(target, dtype, cols, "one-sided", True)]


@cache
def of_gradient_norm_forms(target: str, dtype: torch.dtype) -> list[Variant]:
    """The other forms, at one length a kernel."""
    odd = [cols for cols in TILES + SINGLE + SPLIT if cols % launch.VECTOR]
    found = [v for cols in odd for v in norms(target, dtype, cols, "zero", False)]
    return found + [v for form in ("two-sided", "zero") for v in norms(target, dtype, 1001, form, True)]


@cache
def of_gradient_norm_seed(target: str, dtype: torch.dtype, form: str) -> list[Variant]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = []
    for cols in (100, 7001):
        gradient, per_row = torch.empty(ROWS, cols, dtype=dtype), torch.empty(ROWS, dtype=wide)
        for cotangent in (per_row, torch.empty((), dtype=wide)):
            label = f"{name_of(dtype)} K={cols} {form} cotangent {'per row' if cotangent.dim() else 'shared'}"
            arguments = gradient, per_row, cotangent, 1, *FORMS[form], 0.125
            found.append(flat(target, label, gradient_norm_seed, *arguments, out=dtype, loads=dtype.itemsize))
    return found


def in_budget(target: str) -> Iterator[Variant]:
    """Those of the tables in benchmarks/budgets: every kernel, dtype and way to cover (rows, cols), one form each."""
    for dtype in DTYPES:
        yield from of_interpolate(target, dtype)
    yield from of_interpolate_mixed(target)
    for dtype in DTYPES:
        yield from of_gradient_norm(target, dtype)
    for dtype in DTYPES:
        yield from of_gradient_norm_seed(target, dtype, "one-sided")
