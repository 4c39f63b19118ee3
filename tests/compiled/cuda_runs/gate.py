"""Launches of ops/gate.cu."""

from functools import partial
from itertools import product

import torch
from gate_kernel_checks import (
    ABOVE,
    BELOW,
    BETWEEN,
    EDGES,
    GATES,
    WITHIN,
    check_channels,
    check_gate,
    check_in_place,
    check_limits,
    check_zero_slopes,
    numbers,
    run_gate,
    run_gated,
    wide,
)
from simt import DTYPES

from cuda_runs import Bound, one_by_one

LENGTHS = [1, 31, 33, 255, 257, 1003, 4099]
LIMITS = list(zip(EDGES, EDGES[3:] + EDGES[:3], strict=True))
# channels, elements from one slope to the next
CHANNELS = [(5, 35), (5, 1), (3, 2), (66, 7), (1, 2**62)]


def gates(library, dtype, n, start):
    for gate in GATES:
        check_gate(library, dtype, n, start, gate)


VALUES = {
    **{
        f"{dtype} {n} from {start}": partial(gates, dtype=dtype, n=n, start=start)
        for dtype, n, start in product(DTYPES, LENGTHS, (0, 1))
    },
    **{
        f"{dtype} {n} from {start}, {channels} channels of {inner}": partial(
            check_channels, dtype=dtype, n=n, channels=channels, inner=inner, start=start
        )
        for dtype, (n, start), (channels, inner) in product(DTYPES, [(33, 1), (1003, 0), (4099, 0)], CHANNELS)
    },
    **{f"{dtype} in place": partial(check_in_place, dtype=dtype, n=4099) for dtype in DTYPES},
    **{f"{dtype} slopes of zero": partial(check_zero_slopes, dtype=dtype) for dtype in DTYPES},
    **{
        f"{dtype} limits of {test}": partial(check_limits, dtype=dtype, test=test, limits=LIMITS)
        for dtype, test in product(DTYPES, (ABOVE, BETWEEN, WITHIN, BELOW))
    },
}

ELEMENTS = 20_011


def gate_traffic(library, dtype, weight=None, inner=1, start=0, bound=()):
    """Two elements are read and one written, and a bit of each; each slope is read once."""
    z, h = numbers(ELEMENTS, dtype, 1, start), numbers(ELEMENTS, dtype, 2, start)
    run_gate(library, z, h, (ABOVE, 0.0, 0.0, 1.0, 0.2), weight, inner)
    return Bound(3 * z.nbytes + (ELEMENTS + 7) // 8 + (0 if weight is None else weight.nbytes), *bound)


def gated_traffic(library, dtype, weight=None, inner=1, start=0, bound=()):
    z, bits = numbers(ELEMENTS, dtype, 1, start), torch.full(((ELEMENTS + 7) // 8,), 0x5A, dtype=torch.uint8)
    run_gated(library, z, bits, (1.0, 0.2), weight, inner)
    return Bound(2 * z.nbytes + bits.nbytes + (0 if weight is None else weight.nbytes), *bound)


def cases(dtype):
    """Arguments by name, with the sectors that are asked for where they are more than elsewhere."""
    few, many = (numbers(count, wide(dtype), 3) for count in (16, 64))
    crossings = "a vector that crosses from one channel to the next asks for the next slope"
    every = "every element asks for its slope"
    return {
        "one slope": {},
        "channels": {"weight": few, "inner": 1024},
        "short channels": {"weight": many, "inner": 49, "bound": (1.2, crossings)},
        "channels last": {"weight": many, "inner": 1, "bound": (3 if dtype.itemsize == 2 else 2.05, every)},
        "unaligned": {"start": 1, "bound": one_by_one(dtype)},
    }


TRAFFIC = {
    f"{run.__name__} {dtype} {name}": partial(run, dtype=dtype, **arguments)
    for run, dtype in product((gate_traffic, gated_traffic), DTYPES)
    for name, arguments in cases(dtype).items()
}
