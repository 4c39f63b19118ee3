"""gpfast: the gradient penalty of WGAN-GP, R1, R2, WGAN-LP and DRAGAN, exact first and fast second."""

from gpfast import reference
from gpfast._version import __version__ as __version__
from gpfast.check import Check, check
from gpfast.explain import Explanation, explain
from gpfast.gradient_norm import gradient_norm_penalty
from gpfast.input_gradient import input_gradient_loss
from gpfast.interpolate import interpolate
from gpfast.penalty import GradientPenalty, dragan, gradient_penalty, gradient_penalty_from, r1, r2, wgan_lp
from gpfast.stats import GradientStats

__all__ = [
    "Check",
    "Explanation",
    "GradientPenalty",
    "GradientStats",
    "check",
    "dragan",
    "explain",
    "gradient_norm_penalty",
    "gradient_penalty",
    "gradient_penalty_from",
    "input_gradient_loss",
    "interpolate",
    "r1",
    "r2",
    "reference",
    "wgan_lp",
]
