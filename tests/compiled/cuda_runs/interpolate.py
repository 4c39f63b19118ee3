"""Launches of ops/interpolate.cu."""

from functools import partial
from itertools import product

import torch
from interpolate_kernel_checks import check_interpolation
from simt import DTYPES

from cuda_runs import Bound

SHAPES = [(1, 1), (1, 37), (3, 5), (7, 1), (5, 256), (2, 2049), (300, 7)]

VALUES = {
    f"{dtype} {shape} {'one alpha' if shared else 'alphas'} from {start}": partial(
        check_interpolation, dtype=dtype, shape=shape, shared=shared, start=start
    )
    for dtype, shape, shared, start in product(DTYPES, SHAPES, (False, True), (0, 1))
}


def traffic(library, dtype, cols, start=0, bound=()):
    """Two elements are read for each written, and each row's weight once."""
    rows = 40_000 // cols
    real, fake, out = (torch.randn(rows * cols + start).to(dtype)[start:] for _ in range(3))
    alpha = torch.rand(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    library.run("gpfast_interpolate_cuda", dtype, real, fake, alpha, out, rows, cols)
    return Bound(3 * rows * cols * dtype.itemsize + alpha.nbytes, *bound)


BETWEEN_SECTORS = "a request of single elements begins between sectors, and asks for a weight too"
TRAFFIC = {
    f"{dtype} {cols} from {start}": partial(
        traffic,
        dtype=dtype,
        cols=cols,
        start=start,
        bound=(1.2 + 1 / dtype.itemsize, BETWEEN_SECTORS) if start else (),
    )
    for dtype, cols, start in product(DTYPES, (1001, 5001), (0, 1))
}
