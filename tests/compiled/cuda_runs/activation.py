"""Launches of ops/activation.cu."""

from functools import partial
from itertools import product

import torch
from activation_kernel_checks import (
    FAR,
    KINDS,
    check_activation,
    check_far_from_zero,
    check_in_place,
    check_large_arguments,
    curve,
    numbers,
    saved_numbers,
)
from simt import DTYPES

from cuda_runs import Bound, one_by_one

LENGTHS = [1, 31, 33, 255, 257, 1003, 4099]
# One of each kernel: the formulas are all in one, and in another those that call CUDA's functions.
ONE_OF_EACH = ["silu", "sinh"]

VALUES = {
    **{
        f"{dtype} {name}": partial(check_activation, dtype=dtype, name=name, n=333)
        for dtype, name in product(DTYPES, KINDS)
    },
    **{
        f"{dtype} {name} {n} from {start}, in place": partial(check_in_place, dtype=dtype, name=name, n=n, start=start)
        for dtype, name, n, start in product(DTYPES, ONE_OF_EACH, LENGTHS, (0, 1))
    },
    **{
        f"{dtype} {name} far": partial(check_far_from_zero, dtype=dtype, name=name)
        for dtype, name in product(DTYPES, FAR)
    },
    **{
        f"{dtype} {name} of large numbers": partial(check_large_arguments, dtype=dtype, name=name)
        for dtype, name in product(DTYPES, ("sin", "cos"))
    },
}

ELEMENTS = 20_011


def traffic(library, task, dtype, name, start=0, bound=()):
    """Each tensor that is read or written is so once."""
    saved, *_ = saved_numbers(name, ELEMENTS, dtype, start)
    z, a = numbers(ELEMENTS, dtype, 1, start), numbers(ELEMENTS, dtype, 2, start)
    out, bend = torch.empty_like(numbers(ELEMENTS, dtype, 1, start)), torch.empty_like(a)
    given, moved = {
        "slope": ((z, saved, out), 3),
        "add_slope": ((out, z, saved), 4),
        "slope_and_curve": ((z, a, saved, out, bend), 5),
    }[task]
    library.run(f"gpfast_{task}_cuda", dtype, *given, ELEMENTS, curve(name))
    return Bound(moved * z.nbytes, *bound)


def exception(dtype, name, start):
    """The sectors that are asked for where they are more than elsewhere."""
    if start:
        return one_by_one(dtype)
    if name == "sin" and dtype == torch.float64:
        return 1.35, "CUDA's function reads its coefficients from memory"
    return ()


TRAFFIC = {
    f"{task} {dtype} {name} from {start}": partial(
        traffic, task=task, dtype=dtype, name=name, start=start, bound=exception(dtype, name, start)
    )
    for task, dtype, (name, start) in product(
        ("slope", "add_slope", "slope_and_curve"), DTYPES, [("silu", 0), ("sinh", 0), ("sin", 0), ("silu", 1)]
    )
}
