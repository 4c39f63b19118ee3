"""`check`: whether gpfast agrees with the eager lines on one's own critic, value and every parameter's gradient."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_map

from gpfast import graph, once, reference
from gpfast.checks import checked_score
from gpfast.columns import columns, first_line
from gpfast.compare import VALUE, Comparison, Outcome, compared, compared_rounded, is_yardstick, stacked
from gpfast.engines import takes_tape
from gpfast.inputs import Structure, arranged, call_critic, pick_score, tensors_of
from gpfast.machine import machine_line, versions
from gpfast.modules import modules_in
from gpfast.node_cost import ALONE
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

LARGEST = "the largest difference, as a share of the largest gradient entry of all"
TO_FLOAT64 = "the distance to float64, as a share of its size; allowed is 1.5 times the eager lines' own, and 4 eps"


@dataclass(frozen=True)
class Row:
    """One tensor in one dtype: how far gpfast is off and what is allowed, as shares of its size."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float
    allowed: float
    ok: bool


@dataclass(frozen=True)
class Check:
    """What `check` found; `print` it for a table to paste into a bug report.

    about     The critic and its input, in words.
    engine    What ran, in words.
    rows      The value and every gradient that there is, in float64 and in the dtype of the data.
    measures  What an error is, by dtype.
    failures  What is wrong, a sentence each.
    notes     What could not be judged and why, and what was warned of while the critic ran.
    """

    about: str
    engine: str
    rows: tuple[Row, ...]
    measures: dict[str, str]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    machine: str

    @property
    def ok(self) -> bool:
        """Whether everything that was judged agrees."""
        return not self.failures

    def __str__(self) -> str:
        found = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        head = f"gpfast.check: {self.about}; {self.engine}\n{found}; {self.machine}"
        wrong = sum(not row.ok for row in self.rows)
        verdict = "Everything agrees." if self.ok else f"WRONG: {wrong} of {len(self.rows)} comparisons fail."
        notes = (textwrap.fill(note, 110) for note in self.notes)
        return "\n\n".join([head, self._table(), "\n".join([verdict, *self.failures, *notes])])

    def _table(self) -> str:
        dtypes = list(dict.fromkeys(row.dtype for row in self.rows))
        by_name: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            by_name.setdefault(row.name, {})[row.dtype] = row
        lines = [["", "shape", *(head for dtype in dtypes for head in (dtype, "allowed")), ""]]
        for name, found in by_name.items():
            cells = [(f"{found[d].error:.1e}", f"{found[d].allowed:.1e}") if d in found else ("", "") for d in dtypes]
            shape = str(next(iter(found.values())).shape)
            verdict = "ok" if all(row.ok for row in found.values()) else "WRONG"
            lines.append([name, shape, *(cell for pair in cells for cell in pair), verdict])
        legend = [f"{dtype}: {self.measures[dtype]}" for dtype in dtypes]
        return "\n".join([columns(lines, [False, False, *[True] * 2 * len(dtypes), False]), *legend])


def check(
    critic: Callable,
    real: Structure | None,
    fake: Structure | None = None,
    *,
    at: str = "interpolates",
    alpha: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    output: Callable | int | str | None = None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    engine: str = "auto",
    draws: int = 8,
    raise_on_failure: bool = False,
    progress: Callable[[str], None] = lambda run: None,
    **options,
) -> Check:
    """Whether the penalty and the gradient of every parameter are those of `gpfast.reference`, on this very critic.

        print(gpfast.check(critic, real, fake))

    The arguments are those of `gradient_penalty`. In float64, on a copy of the critic made double, every difference
    must be within 1e-10 of the largest gradient entry. In the dtype of the data, and under autocast where that is on,
    each gradient may be as far from float64 as 1.5 times the eager lines' own error, plus 4 eps. One gradient may have
    its error small there by luck, so what fails is judged again over up to `draws` draws of the points. A critic that
    cannot run in float64, or whose random layers draw otherwise there, is held to the eager lines in its own dtype
    alone, within sqrt(eps) of the largest gradient entry, and that is said.

    Every run starts from a deep copy, from the same points and the same random state; afterwards parameters, their
    `.grad`, buffers and PyTorch's random state are as before (`explain` says what happens to a critic that cannot be
    copied). It takes the time of some six steps, and memory for a copy in float64. (With `chunks`, a critic with random
    layers draws otherwise than the eager lines, and fails.)

    Returns a `Check`, whose `ok` is the verdict; with raise_on_failure a verdict against gpfast is an AssertionError
    that holds the table. `progress` is told what runs, before it does. Raises what `gradient_penalty` raises, and
    RuntimeError where the eager lines or gpfast cannot differentiate the critic twice, which names the operation, or
    where the eager lines' own gradients are not finite.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be an integer of at least 1; got {draws!r}.")
    real, fake, args, kwargs, options = tree_map(detached, (real, fake, args, kwargs, options))
    like = fake if at == "fake" else real
    case = _Case(critic, like, at, output, args, kwargs, engine, options, progress, set())
    with overheard() as notes:
        progress("as it is called")
        with Watch() as watch, once.told("gpfast"):  # first, for it says what is wrong with the arguments
            case.run(real, fake, alpha=alpha, generator=cloned(generator), engine=engine)
        judge = _Judge(case, lambda draw: _points(real, fake, at, alpha, generator, draw), notes)
        with once.told(
            "The eager lines (gpfast.reference)", ", so there is nothing that gpfast can be checked against"
        ):
            judge.judge(draws)
    found = Check(
        about=about(critic, like),
        engine=_ran(engine, watch),
        rows=tuple(judge.rows),
        measures=judge.measures,
        failures=tuple(judge.failures),
        notes=tuple(notes),
        versions=versions(),
        machine=machine_line(device_of(like)),
    )
    if raise_on_failure and not found.ok:
        raise AssertionError(str(found))
    return found


def _ran(engine: str, watch: Watch) -> str:
    if engine == "reference":
        return "engine reference: the eager lines"
    if not takes_tape(engine) or watch.refused:
        why = f", for the tape does not run: {watch.refused}" if watch.refused else ""
        return f"engine {engine}: PyTorch's double backward{why}"
    alone = sum(step.rule == ALONE for step in watch.steps)
    return f"engine {engine}: the tape, {len(watch.steps)} nodes, {alone} of them alone"


def _points(real, fake, at: str, alpha, generator: torch.Generator | None, draw: int) -> list[Tensor]:
    """The points as they are called for; from the second draw on others, near them."""
    device = device_of(real, fake)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        generator = torch.Generator(device).manual_seed(draw) if draw else cloned(generator)
        points = reference.points(real, fake, at, alpha, generator)
    return [x.detach() * (1 - draw / 64) if draw else x.detach() for x in points]


class _Case(NamedTuple):
    """What stays the same from one run to the next."""

    critic: Callable
    like: Structure
    at: str
    output: Callable | int | str | None
    args: tuple
    kwargs: Mapping[str, Any] | None
    engine: str
    options: dict[str, Any]
    progress: Callable[[str], None]
    dtypes: set[torch.dtype]  # that were met inside, where the critic was not made double

    def at_points(self, points: list[Tensor], engine: str, *, double: bool = False) -> Outcome:
        """An outcome at `points`; a point mixed with itself stays what it is, in every dtype."""
        self.progress(f"{'float64' if double else _name(points[0].dtype)}, {engine}")
        points = [x.double() for x in points] if double else points
        if self.at in ("real", "fake"):
            return self.run(*[arranged(self.like, points)] * 2, alpha=None, engine=engine, double=double)
        real = arranged(self.like, [as_made(x) for x in points] if engine == "reference" else points)
        fake = arranged(self.like, points)
        return self._replace(at="interpolates").run(real, fake, alpha=1.0, engine=engine, double=double)

    def run(self, real, fake, *, alpha, engine: str, generator=None, double: bool = False) -> Outcome:
        """Value, gradients and norms, on a copy of the critic; in float64, which may not be possible, if `double`."""
        device = device_of(real, fake)
        args, kwargs = tree_map(_widened, (self.args, self.kwargs)) if double else (self.args, self.kwargs)
        precision = torch.autocast(device.type, enabled=False) if double else contextlib.nullcontext()
        with undisturbed(self.critic, device, double=double) as critic, torch.enable_grad(), precision:
            like = tree_map(detached, fake if self.at == "fake" else real)
            parameters = self._parameters(critic, like, args, kwargs)
            first = graph.next_number()

            def scored(result: Any) -> Any:
                if not torch.is_grad_enabled():  # a probe
                    return pick_score(result, self.output)
                scores = checked_score(result, self.output)
                if double:
                    _refuse_narrow(scores, first)
                else:
                    self.dtypes.update(dtype for dtype, _ in _dtypes(scores, first))
                return scores

            options = without_tape(self.options) if engine == "reference" else self.options
            value, stats = gradient_penalty(
                critic,
                real,
                fake,
                at=self.at,
                alpha=alpha,
                generator=generator,
                output=scored,
                args=args,
                kwargs=kwargs,
                engine=engine,
                **(options | {"return_stats": True}),
            )
            gradients = [None] * len(parameters)
            if parameters and value.requires_grad:
                total = value.sum() if value.ndim else value
                with twice_differentiable(critic, tensors_of(like)[0]):  # checkpoints run again
                    inputs = [*parameters.values(), *once.refusing(value)]
                    gradients = torch.autograd.grad(total, inputs, allow_unused=True)[: len(parameters)]
        found = zip(parameters, gradients, strict=True)
        return Outcome(
            value.detach().double().sum(),
            {name: None if g is None else g.double() for name, g in found},
            stats.norms.double(),
        )

    def _parameters(self, critic: Callable, like: Structure, args, kwargs) -> dict[str, Any]:
        """What gradients are compared of: the parameters of the modules; without modules, the leaves of the graph."""
        owners = modules_in(critic)
        named = {}
        for i, owner in enumerate(owners):
            prefix = f"{i}." if len(owners) > 1 else ""
            named |= {prefix + name: p for name, p in owner.named_parameters() if p.requires_grad}
        if owners:
            return named
        first = graph.next_number()
        try:
            scores = pick_score(call_critic(critic, like, tensors_of(like), args, kwargs), self.output)
            ends = graph.read(scores, first)[1]
        except Exception:  # the penalty itself will say what is wrong
            ends = []
        return {f"leaf {i}": end for i, end in enumerate(ends)}


class _Judge:
    """Compares; `rows` and `failures` grow, and `notes` says what could not be judged."""

    def __init__(self, case: _Case, points: Callable[[int], list[Tensor]], notes: list[str]) -> None:
        self.case, self.points, self.notes = case, points, notes
        self.rows: list[Row] = []
        self.measures: dict[str, str] = {}
        self.failures: list[str] = []
        first = points(0)[0]
        self.name, self.dtype = _name(first.dtype), first.dtype
        if torch.is_autocast_enabled(first.device.type):
            self.dtype = torch.get_autocast_dtype(first.device.type)
            self.name = f"{self.name}, autocast {_name(self.dtype)}"
        inside = max(case.dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=self.dtype)
        if torch.finfo(inside).eps > torch.finfo(self.dtype).eps:
            self.name, self.dtype = f"{self.name}, {_name(inside)} inside", inside

    def judge(self, draws: int) -> None:
        """In float64, then in the dtype of the data."""
        points = self.points(0)
        exact = self._exact(points)
        if exact is not None:
            _refuse_not_finite(exact, "float64")
            ours = self.case.at_points(points, self.case.engine, double=True)
            self._add("float64", compared(ours, exact), exact, LARGEST)
        if exact is None or self.dtype != torch.float64:
            self._judge_rounded(exact, 1 if self.failures else draws)

    def _exact(self, points: list[Tensor]) -> Outcome | None:
        try:
            return self.case.at_points(points, "reference", double=True)
        except Exception as error:  # whatever stands against it is the answer
            why = str(error) if isinstance(error, _Narrow) else first_line(error)
            self._judge_alone(f"The critic cannot be judged in float64 ({why})")
            return None

    @property
    def tolerance(self) -> float:
        """Without a yardstick: the share of the largest gradient entry that may differ from the eager lines."""
        return torch.finfo(self.dtype).eps ** 0.5

    def _judge_alone(self, why: str) -> None:
        self.notes.append(
            f"{why}; so in {self.name} gpfast is held to the eager lines alone, within {self.tolerance:.1g} of the"
            " largest gradient entry."
        )

    def _judge_rounded(self, exact: Outcome | None, draws: int) -> None:
        case, ours, eager, truth, found = self.case, [], [], [], []
        for draw in range(draws):
            points = self.points(draw)
            ours.append(case.at_points(points, case.engine))
            eager.append(case.at_points(points, "reference"))
            if exact is None:
                _refuse_not_finite(eager[0], self.name)
                break
            truth.append(case.at_points(points, "reference", double=True) if draw else exact)
            if not is_yardstick(stacked(eager), stacked(truth)):
                self._judge_alone(
                    "The eager lines themselves are far from float64 (do random layers draw otherwise there?)"
                )
                exact = None
                break
            found = compared_rounded(stacked(ours), stacked(eager), stacked(truth), self.dtype, **self._weights(eager))
            if not any(c.failure for c in found):
                break
        if exact is None:
            found = compared(ours[0], eager[0], self.tolerance)
        self._add(self.name, found, eager[0], TO_FLOAT64 if exact is not None else f"from the eager lines, {LARGEST}")

    def _weights(self, eager: list[Outcome]) -> dict[str, float]:
        options = self.case.options
        norms = 1 if options.get("reduction", "mean") == "mean" else eager[0].norms.numel()
        return {"weight": norms * float(options.get("weight", 10.0)), "center": float(options.get("center", 1.0))}

    def _add(self, dtype: str, found: list[Comparison], outcome: Outcome, measure: str) -> None:
        self.measures[dtype] = measure
        for c in found:
            gradient = outcome.gradients.get(c.name)
            shape = () if gradient is None else tuple(gradient.shape)
            self.rows.append(Row(c.name, shape, dtype, c.error, c.allowed, not c.failure))
            if c.failure:
                self.failures.append(f"{dtype}: {c.failure}.")


def _refuse_not_finite(eager: Outcome, dtype: str) -> None:
    found = {VALUE: eager.value} | {name: g for name, g in eager.gradients.items() if g is not None}
    bad = [name for name, x in found.items() if not x.isfinite().all()]
    if bad:
        which = ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")
        raise RuntimeError(
            f"the eager lines (gpfast.reference) themselves give NaN or infinity in {dtype}, for {which}, so there is"
            " nothing that gpfast can be checked against. A norm, root or division at zero inside the critic does that"
            " (add an eps there), or data or weights that are not finite."
        )


class _Narrow(RuntimeError):
    """A critic that computes in another dtype although it was made double."""

    def __init__(self, dtype: torch.dtype, node: str) -> None:
        super().__init__(f"it computes in {_name(dtype)} inside, at {node}")


def _refuse_narrow(scores: Tensor, first: int) -> None:
    for dtype, name in _dtypes(scores, first):
        if dtype != torch.float64:
            raise _Narrow(dtype, name)


def _dtypes(scores: Tensor, first: int) -> Iterator[tuple[torch.dtype, str]]:
    """What the nodes of a graph compute in, with their names."""
    for node in graph.read(scores, first)[0]:
        results = getattr(node, "_input_metadata", ())
        for metadata in results:
            # What a custom Function marks as not differentiable (indices, say) is described as a float32 number.
            undescribed = len(results) > 1 and isinstance(node, BackwardCFunction) and not metadata.shape
            if metadata.dtype.is_floating_point and not undescribed:
                yield metadata.dtype, node.name()


def _widened(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
