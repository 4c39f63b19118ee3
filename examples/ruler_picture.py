"""The picture of ruler.py: estimates beside what is exact, and the critic's gradient on lines from fake to real."""

import numpy as np
from pictures import ACCENT, BLUE, GREY, INK, plt, save

STYLES = {
    "sn": ("s-", INK, 5),
    "wgan-lp": ("D-", BLUE, 6),
    "wgan-gp": ("o-", ACCENT, 3),
    "wgan": ("v-", GREY, 5),
    "wgan / slope": ("v:", GREY, 5),
}
KIND_COLORS = {"lines": INK, "piles": ACCENT, "gaussians": BLUE, "digits": GREY}


def draw(path, pairs, columns, readings, method):
    """columns[pair.name] is {column of the table: estimate}, readings[pair.name] what `method` made of the pair."""
    panels = []
    for kind, panel in (("lines", over_theta), ("gaussians", over_dimensions)):
        chosen = [pair for pair in pairs if pair.kind == kind]
        if chosen:
            panels.append((panel, (chosen, [columns[pair.name] for pair in chosen])))
    held = [readings[pair.name] for pair in pairs]
    panels += [(norms, (pairs, held, method)), (cosines, (pairs, held, method))]
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.6))
    for (panel, arguments), axis in zip(panels, axes, strict=True):
        panel(axis, *arguments)
    figure.tight_layout()
    save(figure, path)


def over_theta(axis, pairs, columns):
    thetas = [pair.parameter for pair in pairs]
    axis.plot(thetas, thetas, color=GREY, linewidth=6, alpha=0.4, label="exact")
    against(axis, thetas, columns)
    axis.set(xlabel="theta", title="Two lines: W1", ylim=(axis.get_ylim()[0] / 4, None))


def over_dimensions(axis, pairs, columns):
    axis.axhline(5, color=GREY, linewidth=0.8, linestyle="--")
    errors = [{n: 100 * abs(e / p.exact - 1) for n, e in c.items()} for p, c in zip(pairs, columns, strict=True)]
    against(axis, [pair.parameter for pair in pairs], errors)
    axis.set(xlabel="dimensions", title="Two Gaussians: error of W1 in %", ylim=(axis.get_ylim()[0] / 10, None))


def against(axis, over, columns):
    for name in (name for name in STYLES if name in columns[0]):
        style, color, size = STYLES[name]
        axis.plot(over, [c[name] for c in columns], style, color=color, markersize=size, linewidth=1, label=name)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(over, [f"{x:g}" for x in over])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8, loc="lower center", ncols=3)


def norms(axis, pairs, readings, method):
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    last = {pair.kind: (pair.name, reading) for pair, reading in zip(pairs, readings, strict=True)}
    for kind, (name, reading) in last.items():
        for style, (found, _) in (("-", reading.coupled), (":", reading.random)):
            share = (np.arange(len(found)) + 0.5) / len(found)
            axis.plot(share, found.mean(1), style, color=KIND_COLORS[kind], label=name if style == "-" else None)
    low, high = axis.get_ylim()
    axis.set(xlabel="share of the way from fake to real", ylim=(min(low, 0.8), max(high, 1.2)))
    axis.set_title(f"{method}: gradient norm on lines\nof the plan (full), of random pairs (dotted)", fontsize=11)
    axis.legend(frameon=False, fontsize=8)


def cosines(axis, pairs, readings, method):
    for which, color, label in (("random", GREY, "random pairs"), ("coupled", ACCENT, "the optimal plan")):
        found = [getattr(reading, which)[1].mean() for reading in readings]
        axis.plot(found, range(len(pairs)), "o", color=color, label=label)
    axis.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.05))
    axis.set_title(f"{method}: cosine between gradient\nand way from fake to real", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
