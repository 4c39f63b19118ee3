"""The engine "tape": four sweeps over autograd's own graph of an ordinary forward, in C++ (csrc/tape.cpp)."""

from __future__ import annotations

import contextlib
import functools
import warnings

import torch
from torch import Tensor

from gpfast import _extension, autograd
from gpfast.backend import under_transform
from gpfast.gradient_norm import penalty_of
from gpfast.inputs import Structure
from gpfast.options import Options
from gpfast.points import Target

REFUSED = "gpfast's tape cannot differentiate this critic's graph"


class _RecomputedOnce:
    """A context in which a checkpoint is recomputed once, for all that is read of it, and not for each tensor anew."""

    __slots__ = ("mine",)

    def __enter__(self) -> None:
        self.mine = torch._C._get_graph_exec_group() is None
        if self.mine:
            torch._C._set_graph_exec_group(self)  # which checkpoints tell one pass from another by

    def __exit__(self, *error) -> None:
        if self.mine:
            torch._C._set_graph_exec_group(None)


class Sharing:
    """Holds once what autograd saves twice of what is computed within, from `least` bytes on (csrc/sharing.cpp)."""

    __slots__ = ("handle", "least")

    def __init__(self, least: int) -> None:
        self.least = least

    def __enter__(self) -> None:
        self.handle = torch.ops.gpfast.begin_sharing.default(self.least)

    def __exit__(self, *error) -> None:
        torch.ops.gpfast.end_sharing.default(self.handle)


WORTH_SHARING = 64 << 10  # bytes of an activation; and of points, for with fewer a critic takes little memory
_SEPARATE = contextlib.nullcontext()


def sharing(points: list[Tensor], by_tape: bool) -> contextlib.AbstractContextManager:
    """A context to run a critic in, in which an activation holds its result where the next layer saves that anyway."""
    return Sharing(WORTH_SHARING) if by_tape and sum(x.nbytes for x in points) >= WORTH_SHARING else _SEPARATE


def penalty_op(*arguments):
    """The sweeps for the usual penalty (csrc/handover.cpp): (penalty, norms, why not, targets of no gradient)."""
    with _RecomputedOnce():
        return torch.ops.gpfast.penalty.default(*arguments)


def input_gradient_op(*arguments):
    """The adjoint sweep (csrc/handover.cpp): (gradients, the outputs again, why not)."""
    with _RecomputedOnce():
        return torch.ops.gpfast.input_gradient.default(*arguments)


def absence() -> str | None:
    """Why the tape cannot run here, or None where it can."""
    if not _extension.available:
        return f"the tape needs the C++ extension: {_extension.absence()}"
    if under_transform():
        return "the tape reads autograd's graph, which torch.func and forward-mode differentiation do not leave whole"
    return None


def penalty(
    scores: Tensor,
    targets: dict[str, Target],
    mask: Structure | None,
    options: Options,
    weight: float,
    *,
    derivatives: bool,
    release: bool,
    onto: Tensor | None = None,
    whole: bool = True,
) -> tuple[Tensor, Tensor] | None:
    """(penalty, norms): with `derivatives`, the parameters' gradients are computed with the value, and handed over.

    `release` lets go of what the graph of `scores` saved, as the sweeps pass it. A graph that the sweeps cannot read
    (backward hooks) is left as it is, for autograd to differentiate: that is said once, and the result is None.
    whole: false for a part of a batch; `onto` is the result of the parts before it, and is used up.
    """
    usual = mask is None and options.norm_dims is None and options.reduction != "none"
    if usual:
        result, norms, refused, unused = penalty_op(
            scores,
            list(targets.values()),
            options.center,
            options.one_sided,
            options.eps,
            options.reduction,
            weight,
            release,
            derivatives,
            onto,
        )
        autograd.check_every_place_used(targets, unused)
    else:
        gradients, _, refused = input_gradient_op(scores, list(targets.values()), release, derivatives, False)
    if refused and not whole:
        raise RuntimeError(
            f"`chunks` needs the tape, which cannot differentiate this critic's graph ({refused}); leave `chunks` out."
        )
    if refused:
        say_refused(refused)
        return None
    if usual:
        return result, norms
    autograd.check_used(targets, gradients)
    if not derivatives or options.reduction == "none":  # with incoming weights, which belong in the seed
        value, norms = penalty_of(gradients, mask, options)
        return weight * value + (0 if onto is None else onto), norms
    value, norms, seeds = _with_seeds(gradients, mask, options)
    return torch.ops.gpfast.hand_over.default(value, gradients, seeds, weight, onto), norms


def _with_seeds(gradients: list[Tensor], mask: Structure | None, options: Options) -> tuple[Tensor, Tensor, list]:
    """(value, norms, d(value)/d(gradients))."""
    leaves = [g.detach().requires_grad_() for g in gradients]
    with torch.enable_grad():
        value, norms = penalty_of(leaves, mask, options)
    seeds = torch.autograd.grad(value, leaves)
    return value.detach(), norms, list(seeds)


@functools.cache
def say_refused(reason: str) -> None:
    """Says once for each reason that autograd's double backward is taken instead."""
    warnings.warn(
        f"{REFUSED} ({reason}); PyTorch's double backward does it, on the"
        " same graph: exact, at its speed. engine='autograd' asks for that and is silent.",
        stacklevel=2,
    )
