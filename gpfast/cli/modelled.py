"""What `python -m gpfast roofline` prints and writes; what is modelled is called so, in each title and each line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gpfast._version import __version__
from gpfast.columns import columns, digits
from gpfast.operators import CountedStep, Operator
from gpfast.roofline import BOUNDS, Modelled, Roofline


@dataclass(frozen=True)
class Comparison:
    """A step of one critic, with the eager lines and with gpfast."""

    name: str
    about: str
    eager: CountedStep
    gpfast: CountedStep


class ByName(NamedTuple):
    """The operators of one name, added up."""

    launches: int
    flop: int
    bytes_moved: int
    modelled: Modelled


def report(found: Sequence[Comparison], models: Sequence[Roofline], *, operators: bool, plain: bool) -> str:
    """Plain text: one critic at length, several as a table."""
    parts = [_one(found[0], models) if len(found) == 1 else _table(found, models)]
    parts.append("\n".join(_assumed(models, plain) + _real_runs(found)))
    if operators:
        parts += [_operator_table(comparison, model) for comparison in found for model in models]
    return "\n\n".join(parts)


def as_json(found: Sequence[Comparison], models: Mapping[str, Roofline], *, plain: bool) -> dict[str, Any]:
    """The same as data: seconds, FLOP, bytes, FLOP/s, bytes/s."""
    return {
        "modelled": True,
        "gpfast": __version__,
        "plain": plain,
        "gpus": {name: asdict(model) for name, model in models.items()},
        "critics": [_critic_json(comparison, models) for comparison in found],
    }


def by_name(operators: Sequence[Operator], model: Roofline) -> dict[str, ByName]:
    """What the operators of each name cost together."""
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(operator.name, []).append(operator)
    return {
        name: ByName(
            sum(x.launches for x in group),
            sum(x.flop for x in group),
            sum(x.bytes_moved for x in group),
            model.step(group),
        )
        for name, group in groups.items()
    }


def _one(found: Comparison, models: Sequence[Roofline]) -> str:
    pairs = [(getattr(found.gpfast, n), getattr(found.eager, n)) for n in ("launches", "flop", "bytes_moved")]
    counted = [["counted", "launches", "GFLOP", "MB moved"]]
    for name, step in (("eager", found.eager), ("gpfast", found.gpfast)):
        counted.append([name, f"{step.launches:,}", digits(step.flop / 1e9), digits(step.bytes_moved / 1e6)])
    counted.append(["gpfast / eager", *(_share(ours, eager) for ours, eager in pairs)])
    modelled = [["modelled", "engine", "modelled ms", *BOUNDS, "bound by"]]
    for model in models:
        eager, ours = model.step(found.eager.operators), model.step(found.gpfast.operators)
        where = f"modelled {model.gpu.name}"
        modelled += [[where, "eager", *_times(eager)], [where, "gpfast", *_times(ours)]]
        modelled.append([where, "eager / gpfast", _ratio(eager, ours), *[""] * len(BOUNDS), ""])
    return "\n\n".join(
        [
            f"gpfast.roofline, modelled, not measured: {found.about}",
            columns(counted, [False, True, True, True]),
            columns(modelled, [False, False, *[True] * (1 + len(BOUNDS)), False]),
        ]
    )


def _table(found: Sequence[Comparison], models: Sequence[Roofline]) -> str:
    lines = [
        [
            "critic",
            "on",
            "launches: eager",
            "gpfast",
            "share",
            "MB moved: eager",
            "gpfast",
            "share",
            "modelled ms: eager",
            "gpfast",
            "modelled eager / gpfast",
            "bound by: eager",
            "gpfast",
        ]
    ]
    for model in models:
        for comparison in found:
            steps = comparison.eager, comparison.gpfast
            eager, ours = (model.step(step.operators) for step in steps)
            lines.append(
                [
                    comparison.name,
                    f"modelled {model.gpu.name}",
                    *(f"{step.launches:,}" for step in steps),
                    _share(steps[1].launches, steps[0].launches),
                    *(digits(step.bytes_moved / 1e6) for step in steps),
                    _share(steps[1].bytes_moved, steps[0].bytes_moved),
                    digits(eager.seconds * 1e3),
                    digits(ours.seconds * 1e3),
                    _ratio(eager, ours),
                    eager.bound,
                    ours.bound,
                ]
            )
    right = [False, False, *[True] * 9, False, False]
    rule = ["---:" if r else "---" for r in right]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])
    title = "gpfast.roofline: modelled, not measured; a step is the penalty and the gradient of every parameter"
    return f"{title}\n\n{table}"


def _operator_table(found: Comparison, model: Roofline) -> str:
    eager, ours = (by_name(step.operators, model) for step in (found.eager, found.gpfast))
    none = ByName(0, 0, 0, Modelled())
    lines = [["operator", "launches: eager", "gpfast", "MB moved: eager", "gpfast", "modelled us: eager", "gpfast"]]
    for name in sorted({*eager, *ours}, key=lambda n: (-ours.get(n, none).launches, -eager.get(n, none).launches, n)):
        pair = eager.get(name, none), ours.get(name, none)
        lines.append(
            [
                name,
                *(str(x.launches or "") for x in pair),
                *(digits(x.bytes_moved / 1e6) if x.launches else "" for x in pair),
                *(digits(x.modelled.seconds * 1e6) if x.launches else "" for x in pair),
            ]
        )
    title = f"{found.name} by operator, modelled on {model.gpu.name}"
    return title + "\n" + columns(lines, [False, *[True] * 6])


def _assumed(models: Sequence[Roofline], plain: bool) -> list[str]:
    some = models[0]
    counts = "as its plain formula where it has" if plain else "as one launch, also where it has"
    lines = [
        "modelled: per operator the largest of FLOP / rate, bytes / bandwidth and launch cost, summed over operators",
        f"modelled with {some.launch_seconds * 1e6:g} us a launch; float32 products in TF32: {some.tf32};"
        f" a fused operator of gpfast counts {counts} no CUDA kernel",
    ]
    for model in models:
        g = model.gpu
        rates = f"fp32 {g.fp32 / 1e12:g}, tf32 {g.tf32 / 1e12:g}, bf16 {g.bf16 / 1e12:g} TFLOP/s"
        lines.append(f"modelled {g.name}: {rates}, {g.bandwidth / 1e12:g} TB/s ({g.source})")
    return lines


def _real_runs(found: Sequence[Comparison]) -> list[str]:
    return [
        f"{comparison.name}, {engine}: counted on real tensors, for on fake ones it raised {step.refused.split(':')[0]}"
        for comparison in found
        for engine, step in (("eager", comparison.eager), ("gpfast", comparison.gpfast))
        if step.refused
    ]


def _times(modelled: Modelled) -> list[str]:
    shares = [_share(getattr(modelled, name), modelled.seconds) for name in BOUNDS]
    return [digits(modelled.seconds * 1e3), *shares, modelled.bound]


def _ratio(eager: Modelled, ours: Modelled) -> str:
    return f"{eager.seconds / ours.seconds:.2f}" if ours.seconds else "-"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _critic_json(found: Comparison, models: Mapping[str, Roofline]) -> dict[str, Any]:
    steps = {"eager": found.eager, "gpfast": found.gpfast}
    return {
        "name": found.name,
        "about": found.about,
        "counted": {engine: _counted_json(step) for engine, step in steps.items()},
        "modelled": {
            name: {engine: _modelled_json(model.step(step.operators)) for engine, step in steps.items()}
            for name, model in models.items()
        },
    }


def _counted_json(step: CountedStep) -> dict[str, Any]:
    return {
        "launches": step.launches,
        "flop": step.flop,
        "bytes_moved": step.bytes_moved,
        "refused_on_fake_tensors": step.refused,
        "operators": [asdict(x) | {"dtype": str(x.dtype).removeprefix("torch.")} for x in step.operators],
    }


def _modelled_json(modelled: Modelled) -> dict[str, Any]:
    return {"seconds": modelled.seconds, "bound": modelled.bound, **asdict(modelled)}
