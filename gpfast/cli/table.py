"""The benchmark's table and its JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpfast.cli.competitors import EAGER

FORMAT = 1


@dataclass
class Row:
    """One engine on one critic; `note` says in words why figures are missing, or how they were come by.

    ratio               Eager's time over this one's in the same round, median over the rounds.
    over_bare           This one's time over that of the bare matrix passes, likewise.
    peak_bytes          Counted from the dispatcher (gpfast.cost); raw_peak_bytes: as the allocator has it.
    launches            Counted from the dispatcher, of the run that is timed.
    launches_as_on_gpu  Of the same step as a GPU would be given it (gpfast.operators); None of what ran on a GPU.
    gradient_bytes      Of the parameters' gradients, which are in both peaks.
    activation_bytes    The critic's: most bytes alive in its forward.
    traits              The critic's: "curved" or "piecewise-linear", "convolutional", "norms"; empty where unknown.
    """

    critic: str
    batch: int
    engine: str
    times_ms: list[float] = field(default_factory=list)
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    ratio: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    flop: int | None = None
    bytes_moved: int | None = None
    note: str = ""
    over_bare: float | None = None
    raw_peak_bytes: int | None = None
    gradient_bytes: int | None = None
    activation_bytes: int | None = None
    traits: list[str] = field(default_factory=list)
    launches_as_on_gpu: int | None = None

    @property
    def own_bytes(self) -> int | None:
        """Of the raw peak what is not the parameters' gradients: activations, adjoints, workspace."""
        return None if self.raw_peak_bytes is None else max(0, self.raw_peak_bytes - self.gradient_bytes)


HEAD = ["critic", "batch", "engine", "median ms", "20 %", "80 %", "ratio", "x bare"]
HEAD += ["peak MB", "/ eager", "own MB", "GFLOP", "launches", "/ eager"]
AS_ON_GPU = ["as on GPU", "/ eager"]


def render(rows: list[Row], against: list[Row] | None = None) -> str:
    """The rows as a Markdown table in even columns; with `against`, earlier rows, each ratio's change beside it."""
    on_gpu = counts_as_on_gpu(rows)
    lines = [HEAD + (AS_ON_GPU if on_gpu else []) + (["was", "change"] if against is not None else [])]
    earlier = {(r.critic, r.batch, r.engine): r.ratio for r in against or []}
    eager = {(r.critic, r.batch): r for r in rows if r.engine == EAGER}
    for row in rows:
        cells = [row.critic, str(row.batch), row.engine, *map(_digits, (row.median_ms, row.p20_ms, row.p80_ms))]
        base = eager.get((row.critic, row.batch))
        cells += [_fixed(row.ratio), _fixed(row.over_bare), *_counts(row, base)]
        if on_gpu:
            cells += _as_on_gpu(row, base)
        if against is not None:
            cells += _change(row.ratio, earlier.get((row.critic, row.batch, row.engine)))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [name not in ("critic", "engine") for name in lines[0]]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    text = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)] for cells in lines]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [text[0], rule, *text[1:]])
    notes = "".join(f"\n{row.critic}, {row.engine}: {row.note}" for row in rows if row.note)
    return table + ("\n" + notes if notes else "")


def counts_as_on_gpu(rows: list[Row]) -> bool:
    """Whether any row has the launches as on a GPU: then the table has a column of them."""
    return any(row.launches_as_on_gpu is not None for row in rows)


def write_json(path: Path, rows: list[Row], **about: Any) -> None:
    """Writes the rows, with every time in milliseconds, and what they are about."""
    path.write_text(json.dumps({"format": FORMAT, **about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def read_json(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """(rows, what they are about) of a file that `write_json` wrote; ValueError for any other file."""
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        rows = [Row(**row) for row in data.pop("rows")]
        if not isinstance(data.get("settings"), dict) or not all(isinstance(r.ratio, float | None) for r in rows):
            raise ValueError("settings or ratios of another kind")
        return rows, data
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file that this version's --json wrote ({error}).") from error


def share(part: int | None, whole: int | None) -> float | None:
    """part / whole, None where either is unknown or there is no whole."""
    return part / whole if part is not None and whole else None


def _counts(row: Row, eager: Row | None) -> list[str]:
    return [
        _digits(_scaled(row.raw_peak_bytes, 1e6)),
        _fixed(share(row.raw_peak_bytes, eager and eager.raw_peak_bytes)),
        _digits(_scaled(row.own_bytes, 1e6)),
        _digits(_scaled(row.flop, 1e9)),
        _whole(row.launches),
        "-" if row.raw_peak_bytes is None else _fixed(share(row.launches, eager and eager.launches)),
    ]


def _as_on_gpu(row: Row, eager: Row | None) -> list[str]:
    count = row.launches_as_on_gpu
    return [_whole(count), _fixed(share(count, eager and eager.launches_as_on_gpu))]


def _scaled(x: float | None, unit: float) -> float | None:
    return None if x is None else x / unit


def _whole(x: int | None) -> str:
    return "-" if x is None else str(x)


def _fixed(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _digits(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 99.95 else f"{x:.1f}" if x >= 9.995 else f"{x:.2f}" if x >= 0.095 else f"{x:.2g}"


def _change(now: float | None, then: float | None) -> list[str]:
    if now is None or then is None:
        return ["-" if then is None else f"{then:.2f}", "new" if then is None and now is not None else "-"]
    return [f"{then:.2f}", f"{100 * (now / then - 1):+.1f} %"]
