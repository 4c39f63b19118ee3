"""Reading autograd's graph from Python: its nodes, where it ends, and the memory that it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


def read(scores: Tensor, first: int) -> tuple[list[Any], list[Tensor | GradientEdge]]:
    """(nodes of the graph of `scores`, what they end in), of nodes that autograd numbered `first` or later.

    It ends in leaves and in older nodes, of a graph that somebody else made, say a weight computed outside.
    """
    nodes, ends, seen, open_ = [], [], set(), [(scores.grad_fn, scores.output_nr)]
    while open_:
        node, output = open_.pop()
        old = node is not None and node._sequence_nr() < first
        place = (node, output) if old else node
        if node is None or place in seen:
            continue
        seen.add(place)
        if type(node).__name__ == "AccumulateGrad":
            ends.append(node.variable)
        elif old:
            ends.append(GradientEdge(node, output))
        else:
            nodes.append(node)
            open_ += node.next_functions
    return nodes, ends


def next_number() -> int:
    """The number of the node that autograd makes next on this thread."""
    return torch.autograd._get_sequence_nr()


def saved_by(node: Any) -> list[Tensor]:
    """The tensors that `node` saved, as they lie in memory: nothing is unpacked, and no hook is called.

    Of sparse ones their parts.
    """
    found: list[Tensor] = []
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            raw = getattr(node, name)
            kept = (_held(saved) for saved in (raw if isinstance(raw, tuple | list) else (raw,)))
            found += [part for x in kept if isinstance(x, Tensor) for part in in_memory(x)]
    return found


def _held(saved: Any) -> Any:
    try:
        return getattr(saved, "data", None)
    except RuntimeError:  # hooks that are not Python's hold what another node saved (csrc/sharing.cpp)
        return None


def in_memory(x: Tensor) -> list[Tensor]:
    """What `x` consists of that has memory: itself, or the indices and values of a sparse tensor."""
    if x.layout == torch.sparse_coo:
        return [x._indices(), x._values()]
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [x.crow_indices(), x.col_indices(), x.values()]
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [x.ccol_indices(), x.row_indices(), x.values()]
    return [x] if x.layout == torch.strided else []
