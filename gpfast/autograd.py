"""PyTorch's own double backward between the fused ends: exact on every critic that PyTorch differentiates twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gpfast.gradient_norm import penalty_of
from gpfast.inputs import Structure
from gpfast.options import Options


def penalty(
    scores: Tensor,
    targets: dict[str, Tensor | GradientEdge],
    mask: Structure | None,
    options: Options,
    *,
    create_graph: bool,
    retain_graph: bool,
) -> tuple[Tensor, Tensor]:
    """(reduced penalty without its weight, norms) of the gradient of all `scores`; `targets` have names for errors.

    With `create_graph` the value carries PyTorch's graph and is differentiable to any order that the critic is.
    """
    gradients = torch.autograd.grad(
        scores,
        list(targets.values()),
        torch.ones_like(scores),
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    unused = [name for name, g in zip(targets, gradients, strict=True) if g is None]
    if unused:
        every = len(unused) == len(targets)
        raise RuntimeError(
            f"the critic's score does not depend on {' or '.join(f'`{name}`' for name in unused)}, so"
            " it has no gradient there"
            + (
                " (was the input detached, or replaced by other data?)."
                if every
                else "; pass such an input through `args` or `kwargs`."
            )
        )
    with torch.set_grad_enabled(create_graph):
        return penalty_of(list(gradients), mask, options)
