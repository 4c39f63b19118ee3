"""The benchmark's table and its JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass
class Row:
    """One engine on one critic; `note` says in words why there are no figures."""

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


def render(rows: list[Row], against: list[Row] | None = None) -> str:
    """The rows as a Markdown table in even columns; with `against`, earlier rows, each ratio's change beside it."""
    head = ["critic", "batch", "engine", "median ms", "20 %", "80 %", "ratio", "peak MB", "launches", "GFLOP"]
    lines = [head + (["was", "change"] if against is not None else [])]
    earlier = {(r.critic, r.batch, r.engine): r.ratio for r in against or []}
    for row in rows:
        if row.note:
            cells = [row.critic, str(row.batch), row.engine] + ["-"] * 7
        else:
            cells = [row.critic, str(row.batch), row.engine, *map(_digits, (row.median_ms, row.p20_ms, row.p80_ms))]
            cells += [f"{row.ratio:.2f}", *_counts(row)]
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


def _counts(row: Row) -> list[str]:
    if row.peak_bytes is None:
        return ["-"] * 3
    return [_digits(row.peak_bytes / 1e6), str(row.launches), _digits(row.flop / 1e9)]


def _digits(x: float) -> str:
    return f"{x:.0f}" if x >= 99.95 else f"{x:.1f}" if x >= 9.995 else f"{x:.2f}" if x >= 0.095 else f"{x:.2g}"


def _change(now: float | None, then: float | None) -> list[str]:
    if now is None or then is None:
        return ["-" if then is None else f"{then:.2f}", "new" if then is None and now is not None else "-"]
    return [f"{then:.2f}", f"{100 * (now / then - 1):+.1f} %"]
