"""csrc/ops/normalize.cu on the CPU against the formulas in float64: every order, dtype and way through the kernels."""

import math

import pytest
import torch
from normalize_kernel_checks import (
    BATCH,
    BATCH_SHAPES,
    GROUPED_ROWS,
    LONG_ROWS,
    LONGER_ROWS,
    LONGEST_ROWS,
    MANY_GROUPED_ROWS,
    OPS,
    PIXEL_SHAPES,
    PIXELS,
    PLANE_SHAPES,
    PLANES,
    ROWS,
    SHAPES,
    Case,
    NormCall,
    Shape,
    assert_near,
    in_front,
    name_of,
    workspace_for,
)
from simt import CSRC, DTYPES, SANITIZED, Library, SimtError, needs_extension


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "normalize.cu")


@pytest.mark.parametrize("shape", SHAPES + MANY_GROUPED_ROWS + LONGER_ROWS + LONGEST_ROWS, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_formulas(library, dtype, shape):
    case = Case(shape, dtype)
    expected = case.expected()
    assert_near(case.adjoint(library), expected.adjoint(), dtype, (1, 2))
    assert_near(case.tangent(library), expected.tangent(), dtype, (2,))


FEW = [
    ROWS[2], ROWS[4], GROUPED_ROWS[0], *LONG_ROWS, *PIXEL_SHAPES[:2], *PLANE_SHAPES[:3], *PLANE_SHAPES[4:6],
    BATCH_SHAPES[0],
]  # fmt: skip


@pytest.mark.parametrize("shape", FEW, ids=name_of)
def test_without_parameters_weights_or_means(library, shape):
    """Where no parameter's gradient is wanted, other kernels run."""
    for affine, centered in ((True, True), (False, True), (True, False)):
        case = Case(shape, torch.float64, affine=affine, centered=centered)
        expected, plain = case.expected(), {"weight": False}
        out, *none = case.adjoint(library, add=False, weight=False, bias=False)
        assert none == [None, None]
        assert_near((out,), expected.adjoint(add=False)[:1], case.dtype)
        assert_near(case.tangent(library, **plain), expected.tangent(), case.dtype)
        assert_near(case.tangent(library, a=False, bent=None, **plain), expected.tangent(), case.dtype)
        assert_near(case.adjoint(library), expected.adjoint(), case.dtype)
        assert_near(case.tangent(library), expected.tangent(), case.dtype)


@pytest.mark.parametrize("shape", FEW, ids=name_of)
def test_in_place_and_only_what_is_wanted(library, shape):
    case = Case(shape, torch.float64)
    adjoint, tangent = case.adjoint(library), case.tangent(library)
    expected = case.expected()

    def same(found, whole):
        for mine, theirs in zip(found, whole, strict=True):
            assert mine is None or torch.equal(mine, theirs)

    same(case.adjoint(library, out="z"), adjoint)
    same(case.adjoint(library, out="add"), adjoint)
    assert case.adjoint(library, out=None)[0] is None
    assert_near(case.adjoint(library, out=None, bias=False), adjoint, case.dtype)
    assert_near(case.adjoint(library, out=None, weight=False), adjoint, case.dtype)
    assert_near(case.adjoint(library, already=True), expected.adjoint(already=True), case.dtype)
    same(case.tangent(library, out="t", bent="a"), tangent)
    assert_near(case.tangent(library, out=None), tangent, case.dtype)
    assert_near(case.tangent(library, bent=None), tangent, case.dtype)
    assert_near(case.tangent(library, out=None, bent=None), tangent, case.dtype)
    assert_near(case.tangent(library, out="t", bent="a", weight=False), tangent, case.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*FEW, *LONGER_ROWS[:4]], ids=name_of)
def test_a_gate_on_the_way_in_and_out(library, dtype, shape):
    case = Case(shape, dtype, gate=(1.5, 0.0), start=shape.samples % 2)
    expected = case.expected()
    assert_near(case.adjoint(library, out="z"), expected.adjoint(), dtype, (1, 2))
    assert_near(case.tangent(library, weight=False), expected.tangent(), dtype)
    assert_near(case.tangent(library, a=False, bent=None, weight=False), expected.tangent(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [Shape(PIXELS, 3, 1, 64, 1), PIXEL_SHAPES[0], PLANE_SHAPES[3], BATCH_SHAPES[3], LONGER_ROWS[1], LONGER_ROWS[4]],
    ids=name_of,
)
def test_data_between_16_byte_bounds(library, dtype, shape):
    case = Case(shape, dtype, start=1)
    expected = case.expected()
    assert_near(case.adjoint(library), expected.adjoint(), dtype, (1, 2))
    assert_near(case.tangent(library), expected.tangent(), dtype, (2,))


def test_a_slope_of_zero_is_zero_whatever_comes(library):
    case = Case(Shape(PIXELS, 2, 1, 12, 1), torch.float32, gate=(1.0, 0.0))
    case.z[~case.mask] = math.nan
    found = case.adjoint(library)
    case.z[~case.mask] = 0
    assert_near(found, case.expected().adjoint(), torch.float32)


def error(found, expected):
    return [float((x.double() - y).abs().max()) for x, y in zip(found, expected, strict=True)]


@pytest.mark.skipif(SANITIZED, reason="of values, not of accesses")
@needs_extension
@pytest.mark.parametrize(
    "shape",
    [
        ROWS[5],
        LONGER_ROWS[0],
        Shape(PIXELS, 1, 1, 30000, 1),
        LONGEST_ROWS[1],
        PIXEL_SHAPES[1],
        PLANE_SHAPES[3],
        BATCH_SHAPES[3],
    ],
    ids=name_of,
)
def test_float32_is_as_near_as_the_cpu_kernels(library, shape):
    case = Case(shape, torch.float32)
    expected = case.expected()
    block, small = list(shape[1:]), [x.flatten() for x in (case.mean, case.rstd, case.weight)]
    out, line, bent = case.empty(), case.empty(), case.empty()
    first = OPS.normalize_adjoint(out, case.z, case.add, case.h, *small, None, block, shape.order, True, True)
    second = OPS.normalize_tangent(line, bent, case.t, case.a, case.h, *small, block, shape.order, True)
    pairs = [
        (case.adjoint(library), (out, *first), expected.adjoint()),
        (case.tangent(library), (line, bent, second), expected.tangent()),
    ]
    for mine, theirs, exact in pairs:
        for ours, cpu, x in zip(error(mine, exact), error(theirs, exact), exact, strict=True):
            assert ours <= 1.5 * cpu + 4 * torch.finfo(torch.float32).eps * float(x.abs().max())


@pytest.mark.skipif(SANITIZED, reason="of values, not of accesses")
def test_bits_are_the_same_in_every_order_of_threads(library):
    for shape in (ROWS[4], LONGER_ROWS[1], PIXEL_SHAPES[1], PLANE_SHAPES[0], BATCH_SHAPES[3]):
        case = Case(shape, torch.float32)
        found = [(*case.adjoint(library, seed=seed), *case.tangent(library, seed=seed)) for seed in (0, 1, 2)]
        for one, *others in zip(*found, strict=True):
            assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize(
    "shape", [Shape(PIXELS, 0, 1, 8, 1), Shape(PIXELS, 0, 2, 8, 3), Shape(BATCH, 0, 3, 1, 5)], ids=name_of
)
def test_no_samples(library, shape):
    case = Case(shape, torch.float32)
    _, of_weight, of_bias = case.adjoint(library, already=True)
    assert torch.equal(of_weight, case.already) and not of_bias.any()
    assert not case.tangent(library)[2].any()


@pytest.mark.skipif(SANITIZED, reason="of values, not of accesses")
def test_more_rows_than_blocks_hold_at_once(library):
    """Blocks take a second row each, and add to the parts of the parameters' gradients that they hold."""
    case = Case(Shape(PIXELS, 16500, 1, 16, 1), torch.float64)
    assert_near(case.adjoint(library, add=False), case.expected().adjoint(add=False), torch.float64)


class Launches:
    """A library that counts the launches of calls, and runs none."""

    def __init__(self, library):
        self.ask, self._launches, self.found = library.ask, library.launches, []

    def run(self, launcher, *arguments, seed):
        self.found.append(len(self._launches(launcher, *arguments)))


@pytest.mark.parametrize(("rows", "n"), [(32, 8192), (64, 32768), (1024, 8192)])
def test_launches_of_a_layer_norm(library, rows, n):
    counting = Launches(library)
    case = Case(Shape(PIXELS, rows, 1, n, 1), torch.float32)
    case.adjoint(counting, weight=False, bias=False)
    case.tangent(counting, weight=False)
    case.tangent(counting, a=False, bent=None, weight=False)
    case.adjoint(counting)
    case.tangent(counting)
    # A block that takes every row of its channels needs no parts of the parameters' gradients to be added up.
    assert counting.found == [1, 1, 1, *((2, 2) if rows <= 256 else (3, 3))]


@pytest.mark.parametrize(
    ("shape", "launches"),
    [
        (Shape(PIXELS, 4, 1, 32769, 1), [3, 3]),  # too long for one of few blocks
        (Shape(PIXELS, 18, 1, 32769, 1), [1, 2]),
        (Shape(PLANES, 2, 16, 1, 2**14), [1, 2]),  # an instance norm
        (Shape(PLANES, 2, 4, 4, 4096), [1, 4]),  # whose channels are not groups
        (Shape(PIXELS, 3, 2, 5, 1), [1, 3]),
    ],
    ids=str,
)
def test_launches_of_an_adjoint(library, shape, launches):
    """Without and with the parameters' gradients."""
    counting, case = Launches(library), Case(shape, torch.float32)
    case.adjoint(counting, weight=False, bias=False)
    case.adjoint(counting)
    assert counting.found == launches


@pytest.mark.parametrize("n", [4096, 8192])
def test_rows_beyond_32_bits(library, n):
    rows = 2**33 // n + 3
    case = Case(Shape(PIXELS, 1, 1, n, 1), torch.float32, affine=False, gate=(1.0, 0.5))
    out = case.empty()
    whole = {"in_": case.z, "input": case.h, "other": case.add, "out": out}
    pointers = {name: in_front(x, rows * n) for name, x in whole.items()}
    pointers |= {"mean": in_front(case.mean, rows), "rstd": in_front(case.rstd, rows)}
    pointers["bits"] = in_front(case.bits, rows * n // 8)
    call = NormCall(rows, 1, n, 1, PIXELS, on=1.0, off=0.5, **pointers)
    assert library.run("gpfast_normalize_adjoint_cuda", torch.float32, call, blocks=(rows - 1, rows)) == rows
    assert_near((out,), case.expected().adjoint()[:1], torch.float32)


HUGE = [
    Shape(PIXELS, 2, 1, 4, 2**30 + 3),
    Shape(PLANES, 2, 2**13, 1, 2**19 + 3),
    Shape(BATCH, 2, 2**18, 1, 2**14 + 3),
]


@pytest.mark.parametrize("shape", HUGE, ids=name_of)
def test_lines_beyond_32_bits(library, shape):
    """The very last block of what is written, from coefficients of zero: out is what is added."""
    n, part = math.prod(shape[1:]), 8192
    draw = torch.Generator().manual_seed(1)
    z, h, add = (torch.randn(part, generator=draw) for _ in range(3))
    out = torch.full_like(z, math.nan)
    tensors = {"in_": z, "input": h, "other": add, "out": out}
    pointers = {name: in_front(x, n) for name, x in tensors.items()}
    rstd = torch.ones(shape.groups * (1 if shape.order == BATCH else shape.samples))
    call = NormCall(*shape[1:], shape.order, on=1.0, off=1.0, rstd=rstd.data_ptr(), **pointers)
    workspace = workspace_for(library, "adjoint", torch.float32, call, 0.0)
    blocks = library.run("gpfast_normalize_adjoint_cuda", torch.float32, call, blocks=(0, 0))
    library.run("gpfast_normalize_adjoint_cuda", torch.float32, call, blocks=(blocks - 1, blocks))
    written = int((~out.isnan()).sum())
    assert 0 < written < part and torch.equal(out[-written:], add[-written:])
    assert not workspace.any()


def test_sums_beyond_32_bits(library):
    """The very last block of the first pass: the sums of the last channel, before its gradient is wanted of them."""
    channels, length = 2**20 + 2, 8200
    draw = torch.Generator().manual_seed(1)
    z, h = torch.randn(length, generator=draw), torch.randn(length, generator=draw)
    rstd, of_bias = torch.ones(channels // 2), torch.full((channels,), math.nan)
    pointers = {"in_": in_front(z, channels * length), "input": in_front(h, channels * length)}
    call = NormCall(
        1,
        channels // 2,
        2,
        length,
        PLANES,
        on=1.0,
        off=1.0,
        rstd=rstd.data_ptr(),
        of_bias=of_bias.data_ptr(),
        **pointers,
    )
    workspace = workspace_for(library, "adjoint", torch.float32, call, 0.0)
    library.run("gpfast_normalize_adjoint_cuda", torch.float32, call, blocks=(channels - 1, channels))
    places = workspace.nonzero().flatten()
    assert places.tolist() == [2 * channels - 2, 2 * channels - 1]
    exact = torch.stack([z.double().sum(), (z.double() * h).sum()])
    torch.testing.assert_close(workspace[places].double(), exact, rtol=1e-5, atol=1e-4)


def test_more_blocks_than_a_grid_has(library):
    call = NormCall(1, 1, 1, 2**42, PLANES, out=16)
    with pytest.raises(SimtError, match="cudaErrorInvalidConfiguration"):
        library.run("gpfast_normalize_adjoint_cuda", torch.float32, call, blocks=(0, 0))
