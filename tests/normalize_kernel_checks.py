"""What csrc/ops/normalize.cu must give, whoever runs it: calls, shapes, the formulas in float64, tolerances."""

import ctypes
import math
from typing import NamedTuple

import torch

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
