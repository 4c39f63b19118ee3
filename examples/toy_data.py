"""The toy distributions of section 3 of arXiv 1704.00028, and what can be said of samples that should be theirs.

8 Gaussians on a ring, 25 on a grid, a Swiss roll, each scaled to fill about [-1.5, 1.5]^2. examples/toy.py trains on
them:

    python examples/toy.py --steps 8000 --data 25gaussians

Needs POT (pip install pot) and scikit-learn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ot
import torch
from sklearn.datasets import make_swiss_roll

GOOD = 3  # a sample is good within so many standard deviations of a mode
ENOUGH = 0.2  # a mode is covered if it has this part of the good samples that are due to it


@dataclass(frozen=True)
class Distribution:
    draw: Callable  # count -> (count, 2), from PyTorch's global random state
    modes: torch.Tensor | None = None  # (modes, 2): the centres of a mixture in equal parts
    deviation: float | None = None  # of each of them, along each axis
    share: float = 0.5  # of --steps: what it takes to learn


def mixture(modes, deviation, share):
    def draw(count):
        return modes[torch.randint(len(modes), (count,))] + deviation * torch.randn(count, 2)

    return Distribution(draw, modes, deviation, share)


def ring(count, radius):
    angles = torch.arange(count) * (2 * math.pi / count)
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def grid(side, reach):
    line = torch.linspace(-reach, reach, side)
    return torch.cartesian_prod(line, line)


def swiss_roll(count):
    points, _ = make_swiss_roll(count, noise=0.25, random_state=int(torch.randint(2**31 - 1, ())))
    return torch.tensor(points[:, [0, 2]], dtype=torch.float32) / 7.5


DATA = {
    "8gaussians": mixture(ring(8, math.sqrt(2)), 0.02, share=0.5),
    "25gaussians": mixture(grid(5, math.sqrt(2)), 0.05 / math.sqrt(8), share=1.0),
    "swissroll": Distribution(swiss_roll),
}


def coverage(points, distribution):
    """(modes covered, share of good points) of samples that should be a mixture's."""
    distance, nearest = torch.cdist(points, distribution.modes).min(1)
    good = distance < GOOD * distribution.deviation
    found = torch.bincount(nearest[good], minlength=len(distribution.modes))
    due = len(points) / len(distribution.modes)
    return int((found >= ENOUGH * due).sum()), good.double().mean().item()


def wasserstein(first, second):
    """W1 between two equally weighted sets of points, exact."""
    return float(ot.emd2([], [], torch.cdist(first.double(), second.double()).numpy(), numItermax=1_000_000))
