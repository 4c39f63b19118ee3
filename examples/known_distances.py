"""Pairs of distributions whose Wasserstein distance W1 is known: in closed form, or by linear programme (POT)."""

import math
from dataclasses import dataclass

import ot
import torch
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

FRESH, COUPLED = 100_000, 1_000  # samples of a Gaussian: for an expectation, for a plan


@dataclass
class Points:
    """A distribution held by points (n, d) with weights (n,), which need not sum to 1; both float64."""

    points: torch.Tensor
    weights: torch.Tensor

    def draw(self, count):
        return self.points[torch.multinomial(self.weights, count, replacement=True)].float()

    def sum(self, function):
        return self.weights.dot(function(self.points.float()).squeeze(1).double()).item()

    def held(self):
        return self


@dataclass
class Gaussian:
    """N(mean, I)."""

    mean: torch.Tensor

    def draw(self, count):
        return self.mean + torch.randn(count, len(self.mean))

    def sum(self, function):
        return function(self.draw(FRESH)).double().mean().item()

    def held(self):
        return even(self.draw(COUPLED))


@dataclass
class Pair:
    """Two distributions and their W1; and couples (real, fake), each (n, d), of an optimal plan, where it moves mass.

    The plan between Gaussians is that between samples of them.
    """

    name: str
    kind: str
    real: Points | Gaussian
    fake: Points | Gaussian
    exact: float | None = None
    exact_by: str = "closed form"
    parameter: float | None = None  # what its kind is varied by: theta, the dimension

    def __post_init__(self):
        real, fake = self.real.held(), self.fake.held()
        self.centre = ((real.points.mean(0) + fake.points.mean(0)) / 2).float()
        cost, costs, plan = transport(real, fake)
        if self.exact is None:
            self.exact, self.exact_by = cost, "linear programme"
        moved = torch.as_tensor(plan * (costs > 0))
        drawn = torch.multinomial(moved.flatten(), COUPLED, replacement=True)
        at_real, at_fake = torch.unravel_index(drawn, moved.shape)
        self.couples = real.points[at_real].float(), fake.points[at_fake].float()


def even(points):
    return Points(points.double(), torch.full((len(points),), 1 / len(points), dtype=torch.float64))


def transport(real, fake):
    """(W1, costs, plan) between two `Points`: of shovelfuls times distance, where weights are shovelfuls."""
    a, b = real.weights.numpy(), fake.weights.numpy()
    check_masses(a, b)
    costs = cdist(real.points, fake.points)
    plan, log = ot.emd(a, b, costs, numItermax=10_000_000, log=True)
    if log["warning"]:
        raise RuntimeError(f"the linear programme did not end: {log['warning']}")
    return float((plan * costs).sum()), costs, plan


def check_masses(a, b):
    if not math.isclose(sum(a), sum(b), rel_tol=1e-9):
        raise ValueError(
            f"the two hold {sum(a):g} and {sum(b):g}, and W1 is between equal masses: add to one, or take away"
        )


def lines(theta, points=64):
    """(0, z) and (theta, z), z uniform: W1 is theta."""
    z = torch.linspace(0, 1, points, dtype=torch.float64)
    real, fake = (even(torch.stack([torch.full_like(z, x), z], 1)) for x in (0.0, theta))
    return Pair(f"lines {theta:g}", "lines", real, fake, parameter=theta)


def piles(before, after):
    """Heaps of sand at the places 1, 2, ... and where it shall be: W1 is the least sum of shovelfuls times steps."""
    places = torch.arange(1.0, len(before) + 1, dtype=torch.float64)[:, None]
    real, fake = (Points(places, torch.tensor(heaps, dtype=torch.float64)) for heaps in (before, after))
    return Pair("piles", "piles", real, fake)


def gaussians(dimension, shift=2.0):
    """N(m, I) and N(0, I): W1 is |m|, here `shift`."""
    mean = torch.full((dimension,), shift / math.sqrt(dimension))
    real, fake = Gaussian(mean), Gaussian(torch.zeros(dimension))
    return Pair(f"gaussians {dimension}", "gaussians", real, fake, exact=shift, parameter=dimension)


def digits():
    """scikit-learn's 1,797 digits, pixels in [0, 1], and as many points of uniform noise: W1 between these points."""
    images = torch.tensor(load_digits().data) / 16
    return Pair("digits", "digits", even(images), even(torch.rand_like(images)))
