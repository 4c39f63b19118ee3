"""PyTorch's own double backward between the fused ends: exact on every critic that PyTorch differentiates twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpfast.gradient_norm import penalty_of
from gpfast.inputs import Structure
from gpfast.options import Options
from gpfast.points import Target, edge


def penalty(
    scores: Tensor,
    targets: dict[str, Target],
    mask: Structure | None,
    options: Options,
    *,
    create_graph: bool,
    retain_graph: bool,
) -> tuple[Tensor, Tensor]:
    """(reduced penalty without its weight, norms) of the gradient of all `scores`; `targets` have names for errors.

    With `create_graph` the value carries PyTorch's graph and is differentiable to any order that the critic is.
    """
    if create_graph:
        check_static_graph(scores)
    gradients = torch.autograd.grad(
        scores,
        [edge(target) for target in targets.values()],
        torch.ones_like(scores),
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    check_used(targets, gradients)
    with torch.set_grad_enabled(create_graph):
        return penalty_of(list(gradients), mask, options)


def check_static_graph(scores: Tensor) -> None:
    """Raises where DistributedDataParallel would reduce gradients at the end of the first backward pass.

    The mark that it leaves, for the first iteration, lies in the graph of what it returned, near the scores.
    """
    node = scores.grad_fn
    for _ in range(8):
        if type(node).__name__ == "_DDPSinkBackward" and getattr(node.ddp_weakref(), "static_graph", False):
            raise RuntimeError(
                "DistributedDataParallel(static_graph=True) reduces gradients at the end of the first backward pass,"
                " and PyTorch's double backward then leaves wrong ones in silence; use engine='auto' (the tape), or"
                " static_graph=False."
            )
        if node is None or not node.next_functions:
            return
        node = node.next_functions[0][0]


def transformed(function: Callable, points: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """(function(points), the gradient of its sum at each point) under torch.func, where no tensor can require grad."""

    def total(*points):
        y = function(list(points))
        return y.sum(), y

    gradients, y = torch.func.grad(total, argnums=tuple(range(len(points))), has_aux=True)(*points)
    return y, list(gradients)


def check_used(targets: dict[str, Target], gradients: Sequence[Tensor | None]) -> None:
    """Raises where the score does not depend on a point."""
    check_every_place_used(targets, [i for i, g in enumerate(gradients) if g is None])


def check_every_place_used(targets: dict[str, Target], places: Sequence[int]) -> None:
    """As check_used, from the places of the points that have no gradient."""
    if places:
        names = list(targets)
        unused = [names[i] for i in places]
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
