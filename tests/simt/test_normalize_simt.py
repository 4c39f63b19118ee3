"""csrc/ops/normalize.cu on the CPU against the formulas in float64: every order, dtype and way through the kernels."""

import ctypes
import math
from typing import NamedTuple

import pytest
import torch
from simt import CSRC, DTYPES, SANITIZED, Library, SimtError, needs_extension

OPS = torch.ops.gpfast
PLANES, PIXELS, BATCH = range(3)
POINTERS = (
    "in_", "input", "other", "out", "bent", "mean", "rstd", "weight", "already", "of_weight", "of_bias", "bits",
)  # fmt: skip


class NormCall(ctypes.Structure):
    """gpfast::NormCall."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("samples", "groups", "depth", "length", "order")]
        + [(name, ctypes.c_void_p) for name in POINTERS]
        + [("on", ctypes.c_double), ("off", ctypes.c_double), ("workspace", ctypes.c_void_p)]
    )

    def __init__(self, *values, **named):
        super().__init__(*values, **named)
        self.tensors = {}  # what its pointers mean, by name


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "normalize.cu")


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class Shape(NamedTuple):
    """N samples of G groups of D channels of I elements, in one of three orders."""

    order: int
    samples: int
    groups: int
    depth: int
    length: int

    @property
    def sizes(self):
        n, g, d, i = self[1:]
        return {PLANES: (n, g, d, i), PIXELS: (n, i, g, d), BATCH: (n, g, 1, i)}[self.order]

    @property
    def statistics(self):
        n, g = self.samples, self.groups
        return {PLANES: (n, g, 1, 1), PIXELS: (n, 1, g, 1), BATCH: (1, g, 1, 1)}[self.order]

    @property
    def weights(self):
        g, d = self.groups, self.depth
        return {PLANES: (1, g, d, 1), PIXELS: (1, 1, g, d), BATCH: (1, g, 1, 1)}[self.order]

    @property
    def of_group(self):
        return tuple(k for k in range(4) if self.statistics[k] == 1 and (self.sizes[k] > 1 or k in self.inside))

    @property
    def inside(self):
        return {PLANES: (2, 3), PIXELS: (1, 3), BATCH: (0, 3)}[self.order]

    @property
    def other_than_channels(self):
        return {PLANES: (0, 3), PIXELS: (0, 1), BATCH: (0, 3)}[self.order]


LENGTHS = [(3, 1), (5, 7), (9, 31), (2, 32), (70, 33), (3, 255), (2, 256), (2, 257), (1, 4099)]
ROWS = [Shape(PIXELS, n, 1, d, 1) for n, d in LENGTHS]
GROUPED_ROWS = [Shape(PIXELS, 3, 2, 5, 1), Shape(PIXELS, 2, 3, 32, 1)]
# Of more rows than a block takes all of, in all dtypes.
MANY_GROUPED_ROWS = [Shape(PIXELS, 1100, 2, 5, 1)]
# Longer than a block holds, in float64 and in all dtypes; it reads them twice.
LONG_ROWS = [Shape(PIXELS, 3, 1, 2053, 1), Shape(PIXELS, 2, 2, 2304, 1)]
LONGER_ROWS = [
    Shape(PIXELS, 2, 1, 9000, 1), Shape(PIXELS, 1, 1, 8448, 1), Shape(PIXELS, 1, 2, 8201, 1),
    Shape(PLANES, 1, 2, 1, 9000), Shape(PLANES, 1, 1, 5, 1800),
]  # fmt: skip
# Longer than a block reads twice, in float64 and in all dtypes.
LONGEST_ROWS = [Shape(PIXELS, 1, 1, 16390, 1), Shape(PIXELS, 2, 1, 65540, 1), Shape(PLANES, 1, 1, 3, 22000)]
PIXEL_SHAPES = [
    Shape(PIXELS, 2, 2, 8, 9),
    Shape(PIXELS, 1, 3, 5, 70),
    Shape(PIXELS, 2, 7, 1, 4),
    Shape(PIXELS, 3, 1, 33, 2),
]
PLANE_SHAPES = [
    Shape(PLANES, 2, 3, 4, 5), Shape(PLANES, 3, 1, 17, 9), Shape(PLANES, 2, 5, 1, 33), Shape(PLANES, 2, 2, 8, 64),
    Shape(PLANES, 1, 2, 1, 2051), Shape(PLANES, 2, 1, 3, 720), Shape(PLANES, 2, 3, 4, 1), Shape(PLANES, 40, 2, 1, 3),
]  # fmt: skip
BATCH_SHAPES = [
    Shape(BATCH, 4, 3, 1, 7),
    Shape(BATCH, 3, 5, 1, 1),
    Shape(BATCH, 1, 4, 1, 11),
    Shape(BATCH, 5, 2, 1, 2052),
]
SHAPES = ROWS + GROUPED_ROWS + LONG_ROWS + PIXEL_SHAPES + PLANE_SHAPES + BATCH_SHAPES


def name_of(shape):
    return f"{('planes', 'pixels', 'batch')[shape.order]}-{'x'.join(map(str, shape[1:]))}"


class Case:
    """Random tensors of a block, whose data begins `start` elements behind a 16-byte bound."""

    def __init__(self, shape, dtype, *, affine=True, centered=True, gate=None, start=0):
        self.shape, self.dtype, self.gate, self.start = shape, dtype, gate, start
        draw = torch.Generator().manual_seed(hash(shape) % 1000)
        self.h, self.z, self.t, self.a, self.add = (
            self.put(torch.randn(shape.sizes, generator=draw)) for _ in range(5)
        )
        self.h += 0.5
        computed = wide(dtype)
        h = self.h.double()
        self.mean = h.mean(shape.inside, keepdim=True).to(computed) if centered else None
        d = h - self.mean.double() if centered else h
        self.rstd = (d.square().mean(shape.inside, keepdim=True) + 0.1).rsqrt().to(computed)
        self.weight = self.put(torch.randn(shape.weights, generator=draw), computed) if affine else None
        self.already = torch.randn(shape.groups * shape.depth, generator=draw).to(computed)
        self.slopes = gate or (1.0, 1.0)
        self.mask = torch.rand(shape.sizes, generator=draw) < 0.5
        self.bits = packed(self.mask) if gate else None

    def put(self, values, dtype=None):
        """A copy of values that begins at the case's start."""
        dtype = dtype or self.dtype
        memory = torch.full((values.numel() + self.start,), math.nan, dtype=dtype)
        return memory[self.start :].copy_(values.flatten()).view(values.shape)

    def empty(self):
        return self.put(torch.full(self.shape.sizes, math.nan))

    def call(self, library, launcher, seed=5, **tensors):
        """The launcher with a workspace exactly as long as it says."""
        told = {
            "mean": self.mean,
            "rstd": self.rstd,
            "weight": self.weight,
            "input": self.h,
            "bits": self.bits,
        } | tensors
        pointers = {name: x.data_ptr() for name, x in told.items() if x is not None}
        shape = self.shape
        call = NormCall(*shape[1:], shape.order, on=self.slopes[0], off=self.slopes[1], **pointers)
        call.tensors = {name: x for name, x in told.items() if x is not None}
        workspace_for(library, launcher, self.dtype, call, math.nan)
        library.run(f"gpfast_normalize_{launcher}_cuda", self.dtype, call, seed=seed)
        return call

    def of_parameter(self, wanted=True):
        return torch.full((self.shape.groups * self.shape.depth,), math.nan, dtype=wide(self.dtype)) if wanted else None

    def adjoint(self, library, *, out="new", add=True, weight=True, bias=True, already=False, seed=5):
        z, more = self.put(self.z), self.put(self.add) if add else None
        to = {"new": self.empty(), "z": z, "add": more, None: None}[out]
        of_weight, of_bias = self.of_parameter(weight), self.of_parameter(bias)
        self.call(
            library, "adjoint", seed, in_=z, other=more, out=to, of_weight=of_weight, of_bias=of_bias,
            already=self.already if already else None,
        )  # fmt: skip
        return to, of_weight, of_bias

    def tangent(self, library, *, out="new", bent="new", a=True, weight=True, seed=5):
        t, u = self.put(self.t), self.put(self.a) if a else None
        to, bent_to = {"new": self.empty(), "t": t, None: None}[out], {"new": self.empty(), "a": u, None: None}[bent]
        of_weight = self.of_parameter(weight)
        self.call(library, "tangent", seed, in_=t, other=u, out=to, bent=bent_to, of_weight=of_weight)
        return to, bent_to, of_weight

    def expected(self, dtype=torch.float64):
        return Formula(self, dtype)


class Formula:
    """The plain formulas in one dtype."""

    def __init__(self, case, dtype):
        def to(x):
            return None if x is None else x.to(dtype)

        self.shape, self.centered = case.shape, case.mean is not None
        self.z, self.t, self.a, self.add = map(to, (case.z, case.t, case.a, case.add))
        self.rstd, self.weight = to(case.rstd), to(case.weight) if case.weight is not None else 1
        self.d = to(case.h) - to(case.mean) if self.centered else to(case.h)
        self.case = case

    def gated(self, x):
        on, off = self.case.slopes
        return torch.where(self.case.mask, on * x if on else x * 0, off * x if off else x * 0) if self.case.gate else x

    def mean(self, x):
        return x.mean(self.shape.inside, keepdim=True)

    def without_mean(self, x):
        return x - self.mean(x) if self.centered else x

    def projection(self, x):
        return self.mean(x * self.d) * self.rstd

    def jacobian(self, x):
        return self.rstd * (self.without_mean(x) - self.d * (self.rstd * self.projection(x)))

    def of_channels(self, x):
        return x.sum(self.shape.other_than_channels).flatten()

    def adjoint(self, add=True, already=False):
        z = self.gated(self.z)
        of_weight = self.of_channels(z * self.d * self.rstd)
        if already:
            of_weight = of_weight + self.case.already
        return self.jacobian(self.weight * z) + (self.add if add else 0), of_weight, self.of_channels(z)

    def tangent(self):
        t, u = self.t, self.weight * self.a
        line, p, q = self.jacobian(t), self.projection(u), self.projection(t)
        u0, t0 = self.without_mean(u), self.without_mean(t)
        s = self.mean(u0 * t0)
        bent = -(self.rstd**2) * (q * u0 + p * t0 + (s - 3 * p * q) * self.rstd * self.d)
        return self.gated(self.weight * line), bent, self.of_channels(self.a * line)


def packed(mask):
    padded = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).reshape(-1, 8).long()
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


def tolerance(dtype):
    """Of the largest entry. Sums are in float32, so that half types add their rounding to its error alone."""
    return {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]


def assert_near(found, expected, dtype, of_parameters=()):
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine is None:
            continue
        limit = tolerance(wide(dtype) if i in of_parameters else dtype) + tolerance(wide(dtype))
        assert not mine.isnan().any()
        assert (mine.double() - theirs).abs().max() <= limit * theirs.abs().max().clamp(min=1), i


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


def in_front(tensor, elements):
    """Where a longer tensor begins that ends with this one."""
    return tensor.data_ptr() - (elements - tensor.numel()) * tensor.element_size()


def workspace_for(library, launcher, dtype, call, fill):
    """A workspace exactly as long as the launcher says, which the call is told of."""
    elements = torch.zeros(1, dtype=torch.int64)
    library.ask(f"gpfast_normalize_{launcher}_workspace_cuda", dtype, call, elements)
    workspace = torch.full((int(elements),), fill, dtype=wide(dtype))
    call.workspace = workspace.data_ptr() or None
    if workspace.numel():
        call.tensors["workspace"] = workspace
    return workspace


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
