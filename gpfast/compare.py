"""Whether a penalty is right: its value and the gradient of every parameter, against the reference in float64.

In float64 everything must lie within 1e-10 of the critic's largest gradient entry. In another dtype, for each
parameter, ||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64||, where eager is the reference in that dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-10


@dataclass(frozen=True)
class Outcome:
    """The penalty, the gradient of every parameter by name, None where it has none, and for the reference its norms.

    Over several draws of the points each tensor has a first dimension more.
    """

    value: Tensor
    gradients: dict[str, Tensor | None]
    norms: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """How far one tensor is off and what is allowed, as shares of its size; in words what is wrong, "" if nothing."""

    name: str
    error: float
    allowed: float
    failure: str = ""


VALUE = "the value"


def stacked(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of several draws in one."""
    gradients = {}
    for name, first in outcomes[0].gradients.items():
        every = [outcome.gradients[name] for outcome in outcomes]
        gradients[name] = None if first is None or any(g is None for g in every) else torch.stack(every)
    norms = None if outcomes[0].norms is None else torch.stack([outcome.norms for outcome in outcomes])
    return Outcome(torch.stack([outcome.value for outcome in outcomes]), gradients, norms)


def compared(ours: Outcome, exact: Outcome, tolerance: float = EXACT) -> list[Comparison]:
    """The value and each gradient, which may be off by `tolerance` of the largest gradient entry of all."""
    largest = max((float(g.abs().max()) for g in exact.gradients.values() if g is not None and g.numel()), default=0.0)
    scale = max(float(exact.value.abs().max()), largest)
    off = float((ours.value - exact.value).abs().max())
    wrong = f"the value is {_first(ours.value):.12g}, the reference has {_first(exact.value):.12g}"
    found = [Comparison(VALUE, _share(off, scale), tolerance, "" if off <= tolerance * scale else wrong)]
    for name, mine, gradient in _pairs(ours, exact):
        off = float((mine - gradient).abs().max()) if gradient.numel() else 0.0
        wrong = f"the gradient of {name} is off by {off:.2g}; the largest entry of all is {largest:.2g}"
        found.append(Comparison(name, _share(off, largest), tolerance, "" if off <= tolerance * largest else wrong))
    return found + _absences(ours, exact)


def compared_rounded(
    ours: Outcome, eager: Outcome, exact: Outcome, dtype: torch.dtype, slack: float = 0.0, weight=10.0, center=1.0
) -> list[Comparison]:
    """The value and each gradient, which may be off by as much as eager's, half as much again, and 4 eps + `slack`.

    A gradient that is zero but for the rounding of float64 is measured by the largest gradient instead of by itself.
    `weight` and `center` are the penalty's, for the rounding of its value.
    """
    eps = torch.finfo(dtype).eps
    off = float((ours.value - exact.value).norm())
    allowed, size = _value_tolerance(eager, exact, eps, weight, center), float(exact.value.norm())
    allowed += slack * size
    wrong = f"the value {_first(ours.value):.8g} is off by {off:.2g}; {allowed:.2g} is allowed"
    found = [Comparison(VALUE, _share(off, size), _share(allowed, size), "" if off <= allowed else wrong)]
    sizes = {name: float(gradient.norm()) for name, gradient in exact.gradients.items() if gradient is not None}
    largest = max(sizes.values(), default=0.0)
    distances = {name: float((theirs - gradient).norm()) for name, theirs, gradient in _pairs(eager, exact)}
    for name, mine, gradient in _pairs(ours, exact):
        off, size = float((mine - gradient).norm()), sizes[name]
        scale = size if size > EXACT * largest else largest
        allowed = 1.5 * distances.get(name, 0.0) + 4 * eps * scale + slack * largest
        wrong = f"the gradient of {name} is off by {off:.2g} of {size:.2g}; eager's is off by {distances.get(name):.2g}"
        found.append(Comparison(name, _share(off, scale), _share(allowed, scale), "" if off <= allowed else wrong))
    return found + _absences(ours, exact)


def is_yardstick(eager: Outcome, exact: Outcome) -> bool:
    """Whether the eager lines themselves are near float64: within half of all gradients."""
    off = sum(float((theirs - gradient).norm()) ** 2 for _, theirs, gradient in _pairs(eager, exact))
    return off <= 0.25 * sum(float(g.norm()) ** 2 for g in exact.gradients.values() if g is not None)


def exact_failures(ours: Outcome, exact: Outcome) -> list[str]:
    """Where `ours` is further from `exact` than 1e-10 of its largest gradient entry, a sentence each."""
    return [c.failure for c in compared(ours, exact) if c.failure]


def rounded_failures(
    ours: Outcome, eager: Outcome, exact: Outcome, dtype: torch.dtype, slack: float = 0.0
) -> list[str]:
    """Where `ours` is further off than `compared_rounded` allows, a sentence each, or that eager is no yardstick."""
    if not is_yardstick(eager, exact):
        return ["the eager lines themselves are far from float64 here, so nothing can be compared"]
    return [c.failure for c in compared_rounded(ours, eager, exact, dtype, slack) if c.failure]


def _value_tolerance(eager: Outcome, exact: Outcome, eps: float, weight: float, center: float) -> float:
    """The same rule for the value, with its norms' rounding: (n - 1)^2 near zero magnifies what n itself is off by."""
    norms_off = 1.5 * (eager.norms - exact.norms).abs() + 4 * eps * exact.norms
    magnified = 2 * (exact.norms - center).abs() * norms_off + norms_off.square()
    magnified = weight * magnified.reshape(*exact.value.shape, -1).mean(-1)
    return float((magnified + 1.5 * (eager.value - exact.value).abs() + 4 * eps * exact.value.abs()).norm())


def _absences(ours: Outcome, exact: Outcome) -> list[Comparison]:
    found = []
    for name, gradient in exact.gradients.items():
        mine = ours.gradients.get(name)
        if gradient is not None and mine is None:
            found.append(Comparison(name, float("inf"), 0.0, f"{name} has no gradient"))
        if gradient is None and mine is not None and mine.any():
            found.append(Comparison(name, float("inf"), 0.0, f"{name} has a gradient, where the reference has none"))
    return found


def _pairs(ours: Outcome, exact: Outcome) -> list[tuple[str, Tensor, Tensor]]:
    found = ((name, ours.gradients.get(name), gradient) for name, gradient in exact.gradients.items())
    return [(name, mine, gradient) for name, mine, gradient in found if mine is not None and gradient is not None]


def _share(off: float, size: float) -> float:
    return off / size if size else off and float("inf")


def _first(value: Tensor) -> float:
    return float(value.flatten()[0])
