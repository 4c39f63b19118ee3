"""The correctness gate of every measurement: value and parameter gradients against the reference in float64.

Small form, in float64: everything within 1e-10 of the critic's largest gradient entry. Real form, in the measured
dtype: ||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64|| for each parameter, where eager is the reference in that
dtype. Every run starts from a deepcopy, the same random state and the same alpha.

Data and alpha are short dyadic numbers, so that the interpolates need no rounding in any dtype. For a critic of ReLUs
has kinks, and an activation that lies within rounding of one falls on this side or that, and takes a visible part of
the gradient with it, by the last bit of its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import gpfast
from gpfast import zoo
from gpfast.cli.competitors import Penalty, penalty_function
from gpfast.layout import accumulate_dtype

EXACT = 1e-10


@dataclass(frozen=True)
class Outcome:
    """The penalty, the gradient of every parameter by name, None where it has none, and for the reference its norms."""

    value: Tensor
    gradients: dict[str, Tensor | None]
    norms: Tensor | None = None


class Gate:
    """The references of one critic of the zoo, taken once, for any number of engines.

    `critic` is the one to be measured, and stays as it is; `self.case` is `case` in short numbers.
    """

    def __init__(self, entry: zoo.Entry, critic: nn.Module, case: zoo.Case) -> None:
        first = case.real[0] if isinstance(case.real, tuple) else case.real
        generator = torch.Generator().manual_seed(2)
        self.critic, self.case, self.dtype = critic, _map_floats(_shortened, case), first.dtype
        self.alpha = _short_alpha(len(first), generator).to(first.device, accumulate_dtype(first.dtype))
        self.exact = _reference(
            copy.deepcopy(critic).double(), _map_floats(Tensor.double, self.case), self.alpha.double()
        )
        self.eager = None if first.dtype == torch.float64 else _reference(copy.deepcopy(critic), self.case, self.alpha)
        double = {"dtype": torch.float64, "device": first.device}
        self.small_critic = zoo.build(entry.name, small=True, **double)
        self.small_case = entry.inputs(entry.small_batch, True, generator=generator, **double)
        self.small_alpha = _short_alpha(entry.small_batch, generator).to(**double)
        self.small_exact = _reference(copy.deepcopy(self.small_critic), self.small_case, self.small_alpha)

    def failures(self, engine: str) -> list[str]:
        """What is wrong with `engine` in its two forms, a sentence each; empty where it passes."""
        critic = copy.deepcopy(self.small_critic)
        ours = outcome(penalty_function(engine, critic, self.small_case), critic, self.small_alpha)
        small = [f"small form, float64: {failure}" for failure in exact_failures(ours, self.small_exact)]
        critic = copy.deepcopy(self.critic)
        return small + self.real_failures(penalty_function(engine, critic, self.case), critic)

    def real_failures(self, penalty: Penalty, critic: nn.Module, slack: float = 0.0) -> list[str]:
        """What is wrong with `penalty`, which holds `critic`, a fresh deepcopy of the critic to be measured.

        `slack` of the value and of the largest gradient is allowed on top, for code that rounds otherwise from the
        first layer on.
        """
        ours = outcome(penalty, critic, self.alpha)
        if self.eager is None:
            failures = exact_failures(ours, self.exact)
        else:
            failures = rounded_failures(ours, self.eager, self.exact, self.dtype, slack)
        return [f"real form, {str(self.dtype).removeprefix('torch.')}: {failure}" for failure in failures]


def outcome(penalty: Penalty, critic: nn.Module, alpha: Tensor) -> Outcome:
    """What `penalty(alpha)` and its backward give, from a fixed random state; the global state is left as it was."""
    devices = [alpha.device] if alpha.device.type == "cuda" else []
    critic.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(1)
        value = penalty(alpha)
        value.backward()
    gradients = {name: None if p.grad is None else p.grad.double() for name, p in critic.named_parameters()}
    critic.zero_grad(set_to_none=True)
    return Outcome(value.detach().double(), gradients)


def exact_failures(ours: Outcome, exact: Outcome) -> list[str]:
    """Where `ours` is further from `exact` than 1e-10 of its largest gradient entry."""
    largest = max((float(g.abs().max()) for g in exact.gradients.values() if g is not None), default=0.0)
    failures = _presence_failures(ours, exact)
    off = float((ours.value - exact.value).abs())
    if not off <= EXACT * max(abs(float(exact.value)), largest):
        failures.append(f"the value is {float(ours.value):.12g}, the reference has {float(exact.value):.12g}")
    for name, mine, gradient in _pairs(ours, exact):
        off = float((mine - gradient).abs().max())
        if not off <= EXACT * largest:
            failures.append(f"the gradient of {name} is off by {off:.2g}; the largest entry of all is {largest:.2g}")
    return failures


def rounded_failures(
    ours: Outcome, eager: Outcome, exact: Outcome, dtype: torch.dtype, slack: float = 0.0
) -> list[str]:
    """Where `ours` breaks ||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64|| + slack, or eager is no yardstick.

    A gradient that is zero but for the rounding of float64 is measured by the largest gradient instead of by itself.
    """
    eps = torch.finfo(dtype).eps
    failures = _presence_failures(ours, exact)
    off, allowed = float((ours.value - exact.value).abs()), _value_tolerance(eager, exact, eps)
    allowed += slack * float(exact.value.abs())
    if not off <= allowed:
        failures.append(f"the value {float(ours.value):.8g} is off by {off:.2g}; {allowed:.2g} is allowed")
    sizes = {name: float(gradient.norm()) for name, gradient in exact.gradients.items() if gradient is not None}
    largest = max(sizes.values(), default=0.0)
    distances = {name: float((theirs - gradient).norm()) for name, theirs, gradient in _pairs(eager, exact)}
    if not sum(d * d for d in distances.values()) <= 0.25 * sum(n * n for n in sizes.values()):
        return [*failures, "the eager lines themselves are far from float64 here, so nothing can be compared"]
    for name, mine, gradient in _pairs(ours, exact):
        off, size = float((mine - gradient).norm()), sizes[name]
        rounding = 4 * eps * (size if size > EXACT * largest else largest)
        if not off <= 1.5 * distances[name] + rounding + slack * largest:
            failures.append(
                f"the gradient of {name} is off by {off:.2g} of {size:.2g}; eager's is off by {distances[name]:.2g}"
            )
    return failures


def _value_tolerance(eager: Outcome, exact: Outcome, eps: float) -> float:
    """The same rule for the value, with its norms' rounding: (n - 1)^2 near zero magnifies what n itself is off by."""
    norms_off = 1.5 * (eager.norms - exact.norms).abs() + 4 * eps * exact.norms
    magnified = 10.0 * (2 * (exact.norms - 1).abs() * norms_off + norms_off.square()).mean()
    return float(magnified + 1.5 * (eager.value - exact.value).abs() + 4 * eps * exact.value.abs())


def _presence_failures(ours: Outcome, exact: Outcome) -> list[str]:
    failures = []
    for name, gradient in exact.gradients.items():
        mine = ours.gradients.get(name)
        if gradient is not None and mine is None:
            failures.append(f"{name} has no gradient")
        if gradient is None and mine is not None and mine.any():
            failures.append(f"{name} has a gradient, where the reference has none")
    return failures


def _pairs(ours: Outcome, exact: Outcome) -> list[tuple[str, Tensor, Tensor]]:
    found = ((name, ours.gradients.get(name), gradient) for name, gradient in exact.gradients.items())
    return [(name, mine, gradient) for name, mine, gradient in found if mine is not None and gradient is not None]


def _reference(critic: nn.Module, case: zoo.Case, alpha: Tensor) -> Outcome:
    norms = []

    def penalty(alpha: Tensor) -> Tensor:
        value, stats = gpfast.reference.gradient_penalty(
            critic,
            case.real,
            case.fake,
            alpha=alpha,
            args=case.args,
            kwargs=case.kwargs,
            output=case.output,
            return_stats=True,
        )
        norms.append(stats.norms.double())
        return value

    return replace(outcome(penalty, critic, alpha), norms=norms[0])


def _short_alpha(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(17, (batch,), generator=generator) / 16


def _shortened(x: Tensor) -> Tensor:
    return (x.double() * 1024).round().div(1024).to(x.dtype)


def _map_floats(function: Callable[[Tensor], Tensor], case: zoo.Case) -> zoo.Case:
    def change(value):
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return replace(
        case, real=tree_map(change, case.real), fake=tree_map(change, case.fake), args=tree_map(change, case.args)
    )
