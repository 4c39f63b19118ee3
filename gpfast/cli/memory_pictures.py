"""The pictures of a memory study: what is alive at the peak, and the largest batch that fits."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from gpfast.cli.memory_table import PARTS, Fit, Way, label  # noqa: E402

INK = "#16324f"
SHADES = {
    "inputs": "#8d99ae",
    "parameters": "#5c677d",
    "gradients": "#e9b44c",
    "activations": "#3a86a8",
    "adjoints": "#d1495b",
    "workspace": "#cfd6e0",
}
ENGINES = ("#8d99ae", "#3a86a8", "#16324f", "#e9b44c", "#d1495b", "#5c677d")


def save_peaks(path: Path, how: str, ways: list[Way]) -> None:
    """Writes, for the largest batch of each critic, a bar an engine, stacked by what is alive at its peak."""
    shown = {}
    for critic in dict.fromkeys(w.critic for w in ways if w.peak):
        most = max(w.batch for w in ways if w.critic == critic and w.peak)
        shown[critic, most] = [w for w in ways if w.critic == critic and w.batch == most and w.peak]
    if not shown:
        return
    figure, axes = _panels(len(shown))
    for axis, ((critic, batch), rows) in zip(axes, shown.items(), strict=False):
        base = rows[0].peak.total
        for row, way in enumerate(rows):
            left = 0.0
            for part in PARTS:
                size = (getattr(way.peak, part) or 0) / 1e9
                axis.barh(row, size, left=left, color=SHADES[part], height=0.62)
                left += size
            share = f"  {left:.3g} GB" + (f", {way.peak.total / base:.0%}" if row else "")
            axis.text(left, row, share, va="center", fontsize=9, color=INK)
        axis.set_yticks(range(len(rows)), [label(w.engine, w.chunks) for w in rows])
        axis.invert_yaxis()
        axis.set_xlim(0, max(w.peak.total for w in rows) / 1e9 * 1.3)
        axis.set_title(f"{critic}, batch {batch:,}", fontsize=11, color=INK, loc="left")
        axis.set_xlabel(f"{how} GB at the peak", fontsize=9)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    parts = [p for p in PARTS if p != "workspace" or how == "measured"]
    handles = [plt.Rectangle((0, 0), 1, 1, color=SHADES[part]) for part in parts]
    _finish(figure, path, f"What is alive at the peak of one penalty and its gradients ({how})", handles, parts)


def save_fits(path: Path, how: str, fits: list[Fit]) -> None:
    """Writes, for each critic, the largest batch in each memory, a bar an engine."""
    critics = list(dict.fromkeys(f.critic for f in fits))
    kinds = list(dict.fromkeys((f.engine, f.chunks) for f in fits))
    memories = sorted({f.gigabytes for f in fits})
    width = 0.84 / len(kinds)
    figure, axes = _panels(len(critics))
    for axis, critic in zip(axes, critics, strict=False):
        for k, kind in enumerate(kinds):
            found = {f.gigabytes: f.batch for f in fits if f.critic == critic and (f.engine, f.chunks) == kind}
            places = [i + (k - (len(kinds) - 1) / 2) * width for i, m in enumerate(memories) if m in found]
            bars = axis.bar(places, [found[m] for m in memories if m in found], width, color=_shade(k))
            axis.bar_label(bars, fmt=lambda n: _short(n), fontsize=7, color=INK, padding=1)
        axis.set_xticks(range(len(memories)), [f"{m:g} GB" for m in memories])
        axis.set_title(critic, fontsize=11, color=INK, loc="left")
        axis.set_ylabel(f"{how} largest batch", fontsize=9)
        axis.yaxis.set_major_formatter(lambda n, _: _short(n))
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=_shade(k)) for k in range(len(kinds))]
    title = f"The largest batch whose penalty and gradients fit ({how})"
    _finish(figure, path, title, handles, [label(*kind) for kind in kinds])


def _panels(count: int):
    columns = min(2, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.2 * columns, 2.7 * rows + 0.9), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def _finish(figure, path: Path, title: str, handles: list, names: list[str]) -> None:
    height = figure.get_figheight()
    figure.text(0.01, 1 - 0.12 / height, title, fontsize=13, color=INK, va="top")
    box = (0.005, 1 - 0.38 / height)
    figure.legend(handles, names, ncols=len(names), loc="upper left", bbox_to_anchor=box, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.68 / height), w_pad=2.5)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _shade(k: int) -> str:
    return ENGINES[k % len(ENGINES)]


def _short(n: float) -> str:
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k" if n >= 1e3 else f"{n:.0f}"
