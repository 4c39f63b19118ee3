"""`explain`: what the tape does with a critic, node by node, and what that costs beside PyTorch's double backward."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from gpfast import graph, once, tape
from gpfast.checks import check_arguments, checked_score
from gpfast.columns import columns, digits
from gpfast.cost import Cost
from gpfast.inputs import Structure, pick_score, tensors_of
from gpfast.modules import modules_in
from gpfast.node_cost import ALONE, Node, NodeCounter
from gpfast.penalty import gradient_penalty
from gpfast.running import twice_differentiable
from gpfast.undisturbed import (
    about,
    as_made,
    cloned,
    detached,
    device_of,
    overheard,
    undisturbed,
    without_tape,
)
from gpfast.watch import Watch


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` it for a table.

    about      The critic and its input, in words.
    nodes      From the points to the scores; none where the tape did not run.
    refused    Why the tape did not run; "" where it did.
    tape       What a step costs: the penalty and the gradient of every parameter. Where the tape did not run it is that
               of PyTorch's double backward between the fused ends.
    reference  What the same step costs in the eager lines; None where they cannot differentiate the critic twice.
    notes      What was warned of while the critic ran, and why there is no reference.
    """

    about: str
    nodes: tuple[Node, ...]
    refused: str
    tape: Cost
    reference: Cost | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"gpfast.explain: {self.about}"]
        if self.nodes:
            parts.append(_node_table(self.nodes))
        parts.append(_totals("autograd" if self.refused else "tape", self.tape, self.reference))
        sentences = (textwrap.fill(sentence, 110) for sentence in (*self.advice(), *self.notes))
        return "\n\n".join([*parts, "\n".join(sentences)])

    def advice(self) -> list[str]:
        """What would make this critic's penalty faster, a sentence each."""
        if self.refused:
            return [
                f"The tape does not run: {self.refused}. PyTorch's double backward does it instead, on the same graph:"
                " exact, at its speed."
            ]
        return [_about_alone(self.nodes), _about_bends(self.nodes)]


def explain(
    critic: Callable,
    real: Structure | None,
    fake: Structure | None = None,
    *,
    at: str = "interpolates",
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    output: Callable | int | str | None = None,
    engine: str = "auto",
    progress: Callable[[str], None] = lambda run: None,
    **options,
) -> Explanation:
    """What the tape does with `critic`, node by node, and the cost of a step beside that of the eager lines.

        print(gpfast.explain(critic, real))

    The arguments are those of `gradient_penalty`; `fake` may be left out, for nothing here depends on the data. A step
    is the penalty and the gradient of every parameter. Counts come from PyTorch's dispatcher (see `gpfast.cost`) and
    are the same on any machine; nothing is timed.

    The critic runs twice, each time on a deep copy: parameters, their `.grad`, buffers and PyTorch's random state stay
    as they are, and the data is detached. A critic that cannot be copied is run itself, and its buffers are put back
    afterwards; other state that its forward leaves behind (a list it appends to) stays. A function is copied with the
    modules that it uses. `progress` is told what runs, before it does.

    Raises ValueError for an engine without a tape, RuntimeError, which names the operation, where gpfast cannot
    differentiate the critic twice, and else what `gradient_penalty` raises.
    """
    if engine not in ("auto", "tape"):
        raise ValueError(f"`engine` must be 'auto' or 'tape', for the tape is what is explained; got {engine!r}.")
    check_arguments(critic, args, kwargs, output)
    if fake is None and at == "interpolates":
        fake = real
    real, fake, args, kwargs, options = tree_map(detached, (real, fake, args, kwargs, options))
    step = functools.partial(_step, critic, real=real, fake=fake, args=args, kwargs=kwargs, output=output, at=at)
    with overheard() as notes, Watch() as watch:
        ours, reference = NodeCounter(watch), NodeCounter(watch)
        progress(engine)
        with once.told("gpfast"):
            step(ours, engine=engine, **options)
        progress("reference")
        eager, missing = functools.partial(step, engine="reference", **without_tape(options)), ""
        try:
            try:
                eager(reference)
            except RuntimeError as error:
                if "leaf Variable" not in str(error) or at in ("real", "fake"):
                    raise
                reference = NodeCounter(watch)  # the critic writes to its input
                eager(reference, real=tree_map(as_made, real))
        except RuntimeError as error:
            if not (missing := once.operation(error)):
                raise
    if missing:
        notes.append(once.sentence("The eager lines", missing) + "; gpfast's tape can.")
    refused = tape.absence() or watch.refused
    return Explanation(
        about=about(critic, fake if at == "fake" else real),
        nodes=() if refused else tuple(ours.nodes(watch.steps)),
        refused=refused,
        tape=ours.cost,
        reference=None if missing else reference.cost,
        notes=tuple(notes),
    )


def _step(critic: Callable, counter: NodeCounter, *, real, fake, args, kwargs, output, **options) -> None:
    """A penalty and the gradient of all that it depends on, counted, on a copy of `critic`."""
    options["generator"] = cloned(options.get("generator"))
    with undisturbed(critic, device_of(real, fake)) as critic, torch.enable_grad():
        first, ends = graph.next_number(), {}
        modules = modules_in(critic)

        def scored(result: Any) -> Any:
            if not torch.is_grad_enabled():  # a probe
                return pick_score(result, output)
            scores = checked_score(result, output)
            nodes, found = graph.read(scores, first)
            ends.update((id(end) if isinstance(end, Tensor) else end, end) for end in found)
            existing = [x for x in tree_iter((found, args, kwargs)) if isinstance(x, Tensor)]
            counter.read(nodes, [*existing, *(b for m in modules for b in m.buffers())])
            return scores

        counter.add_existing((modules, real, fake, args, kwargs))
        with counter.naming(critic), counter:
            result = gradient_penalty(critic, real, fake, args=args, kwargs=kwargs, output=scored, **options)
            value = result[0] if isinstance(result, tuple) else result
            if ends:
                point = tensors_of(fake if real is None else real)[0]
                inputs = [*ends.values(), *once.refusing(value)]
                with twice_differentiable(critic, point):  # checkpoints run again
                    torch.autograd.grad(value.sum() if value.ndim else value, inputs, allow_unused=True)


def _node_table(nodes: Sequence[Node]) -> str:
    lines = [["node", "made in", "rule", "bends", "2nd adjoint", "passes", "GFLOP", "kept MB"]]
    for n in nodes:
        lines.append(
            [
                n.name,
                n.module,
                n.rule,
                "yes" if n.bends else "",
                "yes" if n.second else "known" if n.proportional else "",
                f"{n.passes:.3g}" if n.passes else "",
                digits(n.flop / 1e9) if n.flop else "",
                digits(n.kept_bytes / 1e6) if n.kept_bytes else "",
            ]
        )
    flop, kept = sum(n.flop for n in nodes), sum(n.kept_bytes for n in nodes)
    lines.append([f"{len(nodes)} nodes", "", "", "", "", "", digits(flop / 1e9), digits(kept / 1e6)])
    legend = (
        "From the points to the scores. passes: products of a layer's size in a step, forward included; PyTorch's\n"
        "double backward has 6. kept: what a node holds from the adjoint sweep to the others."
    )
    return columns(lines, [False] * 5 + [True] * 3) + "\n" + legend


def _totals(engine: str, ours: Cost, reference: Cost | None) -> str:
    lines = [["a step", "launches", "GFLOP", "peak MB"]]
    for name, cost in ((engine, ours), ("reference", reference)):
        if cost:
            lines.append([name, f"{cost.launches:,}", digits(cost.flop / 1e9), digits(cost.peak_bytes / 1e6)])
    if reference:
        pairs = [(getattr(ours, n), getattr(reference, n)) for n in ("launches", "flop", "peak_bytes")]
        lines.append(["share", *(_percent(a, b) for a, b in pairs)])
    return columns(lines, [False, True, True, True])


def _about_alone(nodes: Sequence[Node]) -> str:
    alone = [n for n in nodes if n.rule == ALONE]
    if not alone:
        return "Every node has a rule."
    names = ", ".join(f"{name}{f' ({k} times)' if k > 1 else ''}" for name, k in Counter(n.name for n in alone).items())

    def share(part: Callable[[Node], int]) -> str:
        return _percent(sum(map(part, alone)), sum(map(part, nodes)))

    return (
        f"{len(alone)} of {len(nodes)} nodes have no rule and run alone, through PyTorch: {names}. Of the sweeps they"
        f" have {share(lambda n: n.flop - n.forward_flop)} of the FLOP, {share(lambda n: n.moved_bytes)} of the bytes"
        f" moved and {share(lambda n: n.launches)} of the launches; with operations that have a rule in their place it"
        " would be faster."
    )


def _about_bends(nodes: Sequence[Node]) -> str:
    bending = [n for n in nodes if n.bends]
    if not bending:
        return "Nothing bends, so there are no second adjoints: 4 passes where there would be 6."
    last = bending[-1]
    layers = [n for n in nodes if n.passes]
    below = [n for n in layers if n.second]
    where = f"{last.name} of {last.module}" if last.module else last.name
    if any(n.proportional for n in nodes):
        return (
            f"What bends, down to {where}, reads one number a sample: below, second adjoints are the adjoints times a"
            " number for each sample, which is known before the tangents: 4 passes where there would be 6."
        )
    alone = " (Alone, a node counts as bent where PyTorch's derivative of it depends on the points at all.)"
    return (
        f"Second adjoints start at {where}, the last node that bends, and reach {len(below)} of {len(layers)} nodes"
        " with products: up to 6 passes there, 4 elsewhere. Linear maps, ReLU and LeakyReLU do not bend."
        f"{alone if last.rule == ALONE else ''}"
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"
