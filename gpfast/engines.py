"""Which engine differentiates a graph that is there: the tape, or PyTorch's double backward."""

from __future__ import annotations

import torch
from torch import Tensor

from gpfast import autograd, tape
from gpfast.inputs import Structure
from gpfast.options import Options
from gpfast.points import Target


def takes_tape(engine: str) -> bool:
    """Whether `engine` means the tape here; raises RuntimeError where it was asked for by name and cannot run."""
    if engine not in ("auto", "tape"):
        return False
    absence = tape.absence()
    if absence and engine == "tape":
        raise RuntimeError(f"{absence}; engine='auto' takes PyTorch's double backward there.")
    return not absence


def differentiated(
    scores: Tensor,
    targets: dict[str, Target],
    mask: Structure | None,
    options: Options,
    weight: float,
    *,
    release: bool,
    onto: Tensor | None = None,
    whole: bool = True,
) -> tuple[Tensor, Tensor]:
    """(penalty, norms) of the gradient of all `scores` at `targets`, which have names for errors.

    release: the graph of `scores` was made here and nobody else differentiates it. whole, onto: as in `tape.penalty`.
    """
    derivatives = torch.is_grad_enabled()
    if takes_tape(options.engine):
        form = {"derivatives": derivatives, "release": release, "onto": onto, "whole": whole}
        with torch._C.DisableTorchFunctionSubclass():  # which puts a view between a result and the node that made it
            swept = tape.penalty(scores, targets, mask, options, weight, **form)
        if swept is not None:
            return swept
    value, norms = autograd.penalty(
        scores, targets, mask, options, create_graph=derivatives, retain_graph=derivatives or not release
    )
    return weight * value, norms
