"""What a step costs, node by node: which node of autograd's graph each dispatched operator works for."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpfast import graph
from gpfast.cost import Counter
from gpfast.modules import modules_in
from gpfast.watch import Step, Watch

ALONE = "alone"


@dataclass(frozen=True)
class Node:
    """One node of autograd's graph that depends on the points, and what the tape does with it.

    name         As autograd has it: ConvolutionBackward0.
    module       The name of the module that made it, "" for the critic itself.
    rule         The rule that differentiates it; "alone" where there is none, and PyTorch runs it.
    bends        Whether second adjoints start here: an activation that is curved, a norm, a product of two live values.
    second       Whether second adjoints reach it from nodes nearer to the scores.
    proportional  Whether those are its adjoints times a number for each sample, known ahead: no sweep brings them.
    passes       Products of the layer's size in a step, counted in those of its forward; None without products.
    forward_flop, flop  Of products and convolutions, in the forward and in the whole step.
    kept_bytes   What it holds between the adjoint sweep and the others; alone, with what autograd saved for it.
    launches, moved_bytes  Of the sweeps, as `gpfast.cost` counts them.
    """

    name: str
    module: str
    rule: str
    bends: bool
    second: bool
    proportional: bool
    passes: float | None
    forward_flop: int
    flop: int
    kept_bytes: int
    launches: int
    moved_bytes: int


class NodeCounter(Counter):
    """Counts as `Counter` does, and for each node of the tapes that `watch` sees."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(granularity=1)
        self._watch, self._now = watch, watch.now()
        self._path = [""]
        self._modules: dict[int, str] = {}  # by the number of the node
        self._forward: dict[int, list[tuple[bool, int]]] = defaultdict(list)  # with gradient or not, FLOP
        self._swept: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])  # launches, FLOP, bytes
        self._saved: dict[int, list[tuple[int, int]]] = {}  # address, bytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._now = self._watch.now()
        if not self._now.sweep:
            self._modules.setdefault(self._now.sequence, self._path[-1])
        return super().__torch_dispatch__(function, types, args, kwargs)

    def count(self, launches: int, flop: int, moved: int) -> None:
        super().count(launches, flop, moved)
        now = self._now
        if now.sweep:
            swept = self._swept[now.tape, now.step]
            swept[:] = swept[0] + launches, swept[1] + flop, swept[2] + moved
        elif flop:
            self._forward[now.sequence].append((torch.is_grad_enabled(), flop))

    @contextmanager
    def naming(self, critic: Callable) -> Iterator[None]:
        """Knows the modules of `critic` by their names while they run."""
        hooks = []
        for owner in modules_in(critic):
            for name, module in owner.named_modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                hooks.append(module.register_forward_pre_hook(functools.partial(self._enter, name)))
                hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str, *_) -> None:
        self._path.append(name)

    def _leave(self, *_) -> None:
        self._path.pop()

    def read(self, nodes: Sequence[Any], existing: Sequence[Tensor]) -> None:
        """Before the sweeps: what each node saved that is not `existing`."""
        there = {_address(part) for x in existing for part in graph.in_memory(x)}
        for node in nodes:
            saved = ((_address(x), x.untyped_storage().nbytes()) for x in graph.saved_by(node))
            self._saved[node._sequence_nr()] = [(address, n) for address, n in saved if address not in there]

    def nodes(self, steps: Sequence[Step]) -> list[Node]:
        """The nodes of `steps`; those of a batch in parts, which are alike, are added up."""
        tapes: dict[int, list[Step]] = defaultdict(list)
        for step in steps:
            tapes[step.tape].append(step)
        plans = list(tapes.values())
        if any([s.node for s in plan] != [s.node for s in plans[0]] for plan in plans):
            plans = [list(steps)]
        met: set[int] = set()
        return [self._node(parts, met) for parts in zip(*plans, strict=True)]

    def _node(self, parts: tuple[Step, ...], met: set[int]) -> Node:
        step = parts[0]
        forward = sum(self._forward_flop(part) for part in parts)
        launches, flop, moved = (sum(n) for n in zip(*(self._swept[p.tape, p.index] for p in parts), strict=True))
        kept = step.kept
        if step.rule == ALONE:
            for address, size in self._saved.get(step.sequence, ()):
                kept += 0 if address in met else size
                met.add(address)
        return Node(
            name=step.node,
            module=self._modules.get(step.sequence, ""),
            rule=step.rule,
            bends=any(p.bends for p in parts),
            second=any(p.bent for p in parts),
            proportional=any(p.proportional for p in parts),
            passes=(forward + flop) / forward if forward and flop else None,
            forward_flop=forward if flop else 0,
            flop=forward + flop if flop else 0,
            kept_bytes=kept,
            launches=launches,
            moved_bytes=moved,
        )

    def _forward_flop(self, step: Step) -> int:
        """An operator of PyTorch has one product; a Function of the user's own runs without gradient, and has any."""
        found = self._forward.get(step.sequence, [])
        if step.node[-1].isdigit():
            return next((flop for with_grad, flop in found if with_grad), 0)
        return sum(flop for _, flop in found)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata
