"""The tables of a memory study, for people and as CSV."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from gpfast.columns import columns, digits
from gpfast.memory import MOST, Peak

PARTS = ("inputs", "parameters", "gradients", "activations", "adjoints", "workspace")


@dataclass(frozen=True)
class Way:
    """One way to compute a penalty, and its peak; `note` says in words why there is none."""

    critic: str
    batch: int
    engine: str
    chunks: int
    peak: Peak | None
    note: str = ""


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits in a memory of `gigabytes` (10^9 bytes)."""

    critic: str
    engine: str
    chunks: int
    gigabytes: float
    batch: int


def label(engine: str, chunks: int) -> str:
    """An engine as a reader knows it."""
    name = "eager" if engine == "reference" else engine
    return f"{name}, chunks={chunks}" if chunks > 1 else name


def rendered(how: str, ways: list[Way], fits: list[Fit]) -> str:
    """Both tables in even columns, each under a title that says how its figures came about."""
    blocks = []
    eager = {(w.critic, w.batch): w.peak for w in ways if w.engine == "reference"}
    lines = [["critic", "batch", "engine", f"{how} peak MB", "/ eager", *(f"{part} MB" for part in PARTS)]]
    for way in ways:
        if way.peak is None:
            continue
        other = eager.get((way.critic, way.batch))
        share = f"{way.peak.total / other.total:.2f}" if other else "-"
        parts = [_mb(getattr(way.peak, part)) for part in PARTS]
        lines.append([way.critic, str(way.batch), label(way.engine, way.chunks), _mb(way.peak.total), share, *parts])
    if len(lines) > 1:
        right = [name not in ("critic", "engine") for name in lines[0]]
        blocks.append(f"Peak memory of one penalty and its gradients, {how}\n\n{columns(lines, right)}")
    notes = [f"{way.critic}, {label(way.engine, way.chunks)}: {way.note}" for way in ways if way.note]
    if notes:
        blocks.append("\n".join(notes))
    if fits:
        memories = sorted({fit.gigabytes for fit in fits})
        lines = [["critic", "engine", *(f"{how} in {m:g} GB" for m in memories)]]
        for kind in dict.fromkeys((f.critic, f.engine, f.chunks) for f in fits):
            found = {f.gigabytes: f.batch for f in fits if (f.critic, f.engine, f.chunks) == kind}
            cells = [_batch(found[m]) if m in found else "-" for m in memories]
            lines.append([kind[0], label(*kind[1:]), *cells])
        right = [False, False, *(True for _ in memories)]
        blocks.append(f"Largest batch that fits, {how}\n\n{columns(lines, right)}")
    return "\n\n".join(blocks)


def write_csv(folder: Path, how: str, ways: list[Way], fits: list[Fit]) -> None:
    """Writes both tables, in bytes and samples; the names of files and columns say how the figures came about."""
    with (folder / f"{how}-peaks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["critic", "batch", "engine", "chunks", f"{how}_peak_bytes", *(f"{how}_{p}_bytes" for p in PARTS), "note"]
        )
        for way in ways:
            parts = [getattr(way.peak, part, None) for part in PARTS]
            cells = ["unknown" if x is None and way.peak else x for x in (getattr(way.peak, "total", None), *parts)]
            writer.writerow([way.critic, way.batch or "", way.engine, way.chunks, *cells, way.note])
    with (folder / f"{how}-largest-batch.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["critic", "engine", "chunks", "memory_gb", f"{how}_largest_batch"])
        writer.writerows([f.critic, f.engine, f.chunks, f"{f.gigabytes:g}", f.batch] for f in fits)


def _mb(size: int | None) -> str:
    return "unknown" if size is None else digits(size / 1e6)


def _batch(batch: int) -> str:
    return f">= {MOST:,}" if batch >= MOST else f"{batch:,}"
