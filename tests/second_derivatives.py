"""Second derivatives that PyTorch has from some version on."""

import functools

import pytest
import torch
from torch.nn import functional as F

from gpfast import once


def is_there(function, operation) -> bool:
    """Whether this PyTorch differentiates `function` twice; where it does not, `operation` must be the reason."""
    x = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), x)
    except RuntimeError as error:
        if once.operation(error) != operation:
            raise
        return False
    return True


@functools.cache
def of_grid_sample() -> bool:
    """2.13 has it, 2.11 does not."""
    places = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    return is_there(lambda x: F.grid_sample(x[None, None], places, align_corners=False), "grid_sampler_2d")


@functools.cache
def of_distances_by_differences() -> bool:
    """2.14 has it, 2.13 does not."""
    rows = torch.full((1, 2), 2.0, dtype=torch.float64)
    return is_there(lambda x: torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist"), "cdist")


needs_that_of_grid_sample = pytest.mark.skipif(
    not of_grid_sample(), reason=f"PyTorch {torch.__version__} has no second derivative of grid_sample"
)
