"""The correctness gate of every measurement: value and parameter gradients against the reference in float64.

The small form in float64, the real form in the measured dtype, by the rules of gpfast.compare. Every run starts from a
deepcopy, the same random state and the same alpha. A parameter that takes part and whose gradient is zero for certain
may have zeros where the reference has None.

Data and alpha are short dyadic numbers, so that the interpolates need no rounding in any dtype. For a critic of ReLUs
has kinks, and an activation that lies within rounding of one falls on this side or that, and takes a visible part of
the gradient with it, by the last bit of its input.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import gpfast
from gpfast import zoo
from gpfast.chunks import cut
from gpfast.cli.competitors import Penalty, penalty_function
from gpfast.compare import Outcome, exact_failures, rounded_failures
from gpfast.inputs import call_critic, tensors_of
from gpfast.layout import accumulate_dtype


class Gate:
    """The references of one critic of the zoo, taken once, for any number of engines; on a GPU without TF32.

    `critic` is the one to be measured, and stays as it is; `self.case` is `case` in short numbers. parts: the batch
    goes through the reference in so many, for a critic that draws: an engine that cuts the batch draws for each part.
    """

    def __init__(self, entry: zoo.Entry, critic: nn.Module, case: zoo.Case, parts: int = 1) -> None:
        with in_full():
            self._take_references(entry, critic, case, parts)

    def _take_references(self, entry: zoo.Entry, critic: nn.Module, case: zoo.Case, parts: int) -> None:
        first = case.real[0] if isinstance(case.real, tuple) else case.real
        generator = torch.Generator().manual_seed(2)
        self.critic, self.case, self.dtype = critic, _map_floats(_shortened, case), first.dtype
        self.alpha = _short_alpha(len(first), generator).to(first.device, accumulate_dtype(first.dtype))
        self.exact = _reference(
            copy.deepcopy(critic).double(), _map_floats(Tensor.double, self.case), self.alpha.double(), parts
        )
        self.eager = None
        if first.dtype != torch.float64:
            self.eager = _reference(copy.deepcopy(critic), self.case, self.alpha, parts)
        double = {"dtype": torch.float64, "device": first.device}
        self.small_critic = zoo.build(entry.name, small=True, **double)
        self.small_case = entry.inputs(entry.small_batch, True, generator=generator, **double)
        self.small_alpha = _short_alpha(entry.small_batch, generator).to(**double)
        self.small_exact = _reference(copy.deepcopy(self.small_critic), self.small_case, self.small_alpha, parts)

    def failures(self, engine: str) -> list[str]:
        """What is wrong with `engine` in its two forms, a sentence each; empty where it passes."""
        critic = copy.deepcopy(self.small_critic)
        with in_full():
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


@contextlib.contextmanager
def in_full() -> Iterator[None]:
    """Products of float32 in float32, not in TF32: one draw of its errors is too few to judge by."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


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


def draws(critic: nn.Module, case: zoo.Case) -> bool:
    """Whether the critic draws random numbers when it runs."""
    device = tensors_of(case.real)[0].device
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []), torch.no_grad():
        before = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else torch.empty(0)
        call_critic(copy.deepcopy(critic), case.real, tensors_of(case.real), case.args, case.kwargs)
        after = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else torch.empty(0)
    return not all(map(torch.equal, before, after))


def _reference(critic: nn.Module, case: zoo.Case, alpha: Tensor, parts: int = 1) -> Outcome:
    norms = []

    def penalty(alpha: Tensor) -> Tensor:
        total, several = 0.0, isinstance(case.real, tuple)
        inputs = tensors_of(case.real)
        for part in cut([*inputs, *tensors_of(case.fake), alpha], None, case.args, case.kwargs, parts):
            real, fake = tuple(part.points[: len(inputs)]), tuple(part.points[len(inputs) : -1])
            value, stats = gpfast.reference.gradient_penalty(
                critic,
                real if several else real[0],
                fake if several else fake[0],
                weight=10.0 * part.share,
                alpha=part.points[-1],
                args=part.args,
                kwargs=part.kwargs,
                output=case.output,
                return_stats=True,
            )
            norms.append(stats.norms.double())
            total = total + value
        return total

    return replace(outcome(penalty, critic, alpha), norms=torch.cat(norms))


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
