"""The lines under the benchmark's table: each engine over classes of critics."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from gpfast.cli import timing
from gpfast.cli.competitors import BARE, CHUNKS, COMPILE, EAGER
from gpfast.cli.table import Row, share

SMALL_BYTES = 1e6
LINEAR, CURVED, CONVOLUTIONAL, NORMS = "piecewise-linear", "curved", "convolutional", "norms"

Figure = tuple[float, Row]


def summary(rows: list[Row]) -> str:
    """A paragraph an engine of gpfast, each over the critics that it has figures for; "" where there are none."""
    others = {}
    for row in rows:
        others.setdefault((row.critic, row.batch), {})[row.engine] = row
    engines = dict.fromkeys(row.engine for row in rows if row.engine not in (EAGER, BARE, COMPILE))
    paragraphs = [
        _paragraph(engine, [r for r in rows if r.engine == engine and r.times_ms], others) for engine in engines
    ]
    return "\n\n".join(filter(None, paragraphs))


def _paragraph(engine: str, rows: list[Row], others: dict) -> str:
    def of(row: Row, engine: str) -> Row:
        return others[row.critic, row.batch].get(engine) or Row(row.critic, row.batch, engine)

    def figures(value: Callable[[Row], float | None], *traits: str, without: str = "") -> list[Figure]:
        chosen = (r for r in rows if set(traits) <= set(r.traits) and without not in r.traits)
        return [(figure, row) for row in chosen if (figure := value(row)) is not None]

    def peak(row: Row) -> float | None:
        return share(row.raw_peak_bytes, of(row, EAGER).raw_peak_bytes)

    def launches(row: Row) -> float | None:
        return share(row.launches, of(row, EAGER).launches)

    def launches_as_on_gpu(row: Row) -> float | None:
        return share(row.launches_as_on_gpu, of(row, EAGER).launches_as_on_gpu)

    def judged(row: Row) -> float | None:
        return peak(row) if _is_judged(row) else None

    lines = []
    for kind in (LINEAR, CURVED):
        lines += _spread(f"eager / {engine}, {kind}", figures(lambda r: r.ratio, kind), least=True)
        lines += _spread(f"{engine} / bare passes, {kind}", figures(lambda r: r.over_bare, kind))
    lines += _spread(f"peak of eager's, {LINEAR} {CONVOLUTIONAL}", figures(judged, LINEAR, CONVOLUTIONAL))
    lines += _spread(f"peak of eager's, other {LINEAR}", figures(judged, LINEAR, without=CONVOLUTIONAL))
    lines += _spread(f"peak of eager's, {CURVED}", figures(judged, CURVED))
    small = [f"{row.critic} {figure:.2f}" for figure, row in figures(peak) if not _is_judged(row)]
    lines += [f"peak of eager's, activations under 1 MB, not judged: {', '.join(small)}"] if small else []
    for what, value in (("launches of eager's", launches), ("launches of eager's, as on a GPU", launches_as_on_gpu)):
        lines += _spread(f"{what}, no {NORMS}", figures(value, without=NORMS))
        lines += _spread(f"{what}, with {NORMS}", figures(value, NORMS))
    if engine.startswith(CHUNKS):
        whole = lambda r: share(r.own_bytes, of(r, "auto").own_bytes) if _is_judged(r) else None  # noqa: E731
        lines += _spread("own MB (peak without the gradients) of auto's", figures(whole))
    lines += _compiled([(row, of(row, COMPILE)) for row in rows])
    return "\n".join([engine, *(f"  {line}" for line in lines)]) if lines else ""


def _is_judged(row: Row) -> bool:
    return row.activation_bytes is not None and row.activation_bytes >= SMALL_BYTES


def _spread(what: str, figures: list[Figure], least: bool = False) -> list[str]:
    """Geometric mean and the worst of them: the least, or else the most."""
    if not figures:
        return []
    worst, row = (min if least else max)(figures, key=lambda figure: figure[0])
    mean = _geometric_mean(figure for figure, _ in figures)
    word, count = ("least" if least else "most"), f"{len(figures)} critic{'s' * (len(figures) > 1)}"
    return [f"{what}: geometric mean {mean:.2f}, {word} {worst:.2f} ({row.critic}); {count}"]


def _geometric_mean(figures: Iterable[float]) -> float:
    found = list(figures)
    return statistics.geometric_mean(found) if all(x > 0 for x in found) else 0.0


def _compiled(pairs: list[tuple[Row, Row]]) -> list[str]:
    """How often it was faster than code made by torch.compile; what that could not serve counts as neither."""
    timed = [(ours, theirs) for ours, theirs in pairs if theirs.times_ms]
    faster = sum(timing.ratio(theirs.times_ms, ours.times_ms) > 1 for ours, theirs in timed)
    without = [theirs.critic for _, theirs in pairs if theirs.note]
    line = f"faster than compile on {faster} of {len(timed)}"
    line += f"; counted as neither: {', '.join(without)}" if without else ""
    return [line] if timed or without else []
