"""Launches of ops/normalize.cu."""

from functools import partial
from itertools import product

import torch
from normalize_kernel_checks import (
    BATCH,
    BATCH_SHAPES,
    GROUPED_ROWS,
    LONG_ROWS,
    LONGER_ROWS,
    LONGEST_ROWS,
    PIXEL_SHAPES,
    PIXELS,
    PLANE_SHAPES,
    PLANES,
    ROWS,
    Case,
    Shape,
    assert_near,
    name_of,
)
from simt import DTYPES

from cuda_runs import Bound

# One of each way through the kernels, and lengths that are no multiples of a vector.
MANY_GROUPS = Shape(BATCH, 2, 300, 1, 3)  # more than the coefficients of one block
SHAPES = [ROWS[2], GROUPED_ROWS[0], PIXEL_SHAPES[0], *PLANE_SHAPES[:3], BATCH_SHAPES[0], MANY_GROUPS]
LONG = [LONG_ROWS[0], LONGER_ROWS[3], LONGEST_ROWS[2], BATCH_SHAPES[3]]
MANY_GROUPED_ROWS = Shape(PIXELS, 300, 2, 5, 1)  # more, in float64, than a block takes all of


def read_twice(dtype):
    """Rows a little longer than a block holds."""
    return Shape(PIXELS, 2, 1, 16384 // dtype.itemsize + 5, 1)


def lines(library, shape, dtype, start=0, gate=None):
    """The adjoint, the tangent, its bend and the parameters' gradients; then without the parameters'."""
    case = Case(shape, dtype, start=start, gate=gate)
    expected = case.expected()
    assert_near(case.adjoint(library), expected.adjoint(), dtype, (1, 2))
    if gate is None:  # a gate behind the line has no parameters' gradient
        assert_near(case.tangent(library), expected.tangent(), dtype, (2,))
    plain = case.adjoint(library, out="z", add=False, weight=False, bias=False)
    assert_near(plain[:1], expected.adjoint(add=False)[:1], dtype)
    assert_near(case.tangent(library, out="t", bent="a", weight=False), expected.tangent(), dtype)


VALUES = {
    **{f"{dtype} {name_of(s)}": partial(lines, shape=s, dtype=dtype) for dtype, s in product(DTYPES, SHAPES)},
    **{f"{dtype} read twice": partial(lines, shape=read_twice(dtype), dtype=dtype) for dtype in DTYPES},
    **{f"{name_of(shape)}": partial(lines, shape=shape, dtype=torch.float32) for shape in LONG},
    name_of(MANY_GROUPED_ROWS): partial(lines, shape=MANY_GROUPED_ROWS, dtype=torch.float64),
    **{
        f"{dtype} {name_of(shape)} gated, from 1": partial(lines, shape=shape, dtype=dtype, start=1, gate=(1.5, 0.0))
        for dtype, shape in product(DTYPES, (ROWS[2], PLANE_SHAPES[2]))
    },
}

ROWS_HELD, PLANES_HELD = Shape(PIXELS, 16, 1, 1024, 1), Shape(PLANES, 4, 4, 4, 256)
LONG_ROW, GROUPED_PIXELS = Shape(PIXELS, 2, 1, 9000, 1), Shape(PIXELS, 2, 8, 8, 128)
BATCHES = Shape(BATCH, 4, 16, 1, 256)
PASSES = (GROUPED_PIXELS, BATCHES)


def traffic(library, launcher, shape, dtype, parameters, bound=()):
    """Each tensor is read or written once; where two launches read it, what their sums are of is read twice.

    The workspace is written and read.
    """
    case, tangent = Case(shape, dtype), launcher == "tangent"
    tensors = {"in_": case.t, "other": case.a, "bent": case.empty()} if tangent else {"in_": case.z, "other": case.add}
    if parameters:
        tensors |= {"of_weight": case.of_parameter()} | ({} if tangent else {"of_bias": case.of_parameter()})
    told = case.call(library, launcher, out=case.empty(), **tensors).tensors
    twice = {"workspace"}
    if shape in PASSES or (shape == LONG_ROW and parameters):
        twice |= {"in_", "input"} | ({"other"} if tangent else set()) | ({"weight"} if shape == LONG_ROW else set())
    return Bound(sum(x.nbytes * (2 if name in twice else 1) for name, x in told.items()), *bound)


def exception(shape, dtype):
    """The sectors that are asked for where they are more than elsewhere, though the caches answer most of them."""
    half = dtype.itemsize == 2
    if shape == LONG_ROW:
        return (
            4.4 if half else 2.6,
            "most of a row is read again, and every row asks for the weights, as where it is held",
        )
    if shape == ROWS_HELD:
        return 3.2 if half else 1.8, "every row asks for the weights, those of half types by two accesses side by side"
    if shape == GROUPED_PIXELS:
        return 3.6 if half else 2.3, "the threads of a pixel ask for their groups' coefficients, element by element"
    return 1.3 if half else 1.15, "each thread asks for the weight or the coefficients of its group"


TRAFFIC = {
    f"{launcher} {dtype} {name_of(shape)}{' with parameters' if parameters else ''}": partial(
        traffic, launcher=launcher, shape=shape, dtype=dtype, parameters=parameters, bound=exception(shape, dtype)
    )
    for launcher, dtype, (shape, parameters) in product(
        ("adjoint", "tangent"),
        DTYPES,
        [
            (ROWS_HELD, False), (ROWS_HELD, True), (PLANES_HELD, False), (LONG_ROW, False), (LONG_ROW, True),
            (GROUPED_PIXELS, False), (BATCHES, False),
        ],
    )
}  # fmt: skip
