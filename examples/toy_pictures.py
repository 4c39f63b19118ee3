"""The pictures of the toy distributions: value surfaces with points, gradients by layer, weights.

They are drawn by examples/toy.py:

    python examples/toy.py --steps 8000 --out out/toy
"""

import torch
from pictures import ACCENT, BLUE, GREY, INK, plt, save

REACH, CELLS = 2.0, 120


@torch.no_grad()
def draw_surface(axis, critic, points, device="cpu"):
    """Points, over the critic's value, darker where it is higher; no value where critic is None."""
    if critic is not None:
        line = torch.linspace(-REACH, REACH, CELLS)
        x, y = torch.meshgrid(line, line, indexing="xy")
        value = critic(torch.stack([x, y], -1).reshape(-1, 2).to(device)).reshape(CELLS, CELLS).cpu()
        axis.contourf(x, y, value, levels=20, cmap="Blues", alpha=0.75)
        axis.contour(x, y, value, levels=20, colors=INK, linewidths=0.4, linestyles="solid")
    axis.scatter(*points.cpu().T, s=2, color=ACCENT, linewidths=0)
    axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")


def draw_samples(path, rows, count=1000):
    """rows: {title: {title: (critic, points, device)}}, a panel each."""
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.6 * columns, 2.75 * len(rows)), squeeze=False)
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(title)
        for axis, (name, (critic, points, device)) in zip(line, row.items(), strict=False):
            draw_surface(axis, critic, points[:count], device)
            axis.set_title(name, fontsize=9)
        for axis in line[len(row) :]:
            axis.set_axis_off()
    figure.tight_layout()
    save(figure, path)


def draw_critics(path, gradients, weights):
    """gradients: {name: [a norm each layer]}; weights: {name: (values, the largest they may be)}."""
    figure, axes = plt.subplots(1, 1 + len(weights), figsize=(5 * (1 + len(weights)), 4))
    first, *others = axes
    for color, (name, norms) in zip((GREY, BLUE, INK, ACCENT), gradients.items(), strict=True):
        first.plot(range(1, len(norms) + 1), norms, color=color, marker="o", markersize=3, label=name)
    first.set(yscale="log", xlabel="hidden layer (1 is the nearest to the data)", title="Gradient of the critic's loss")
    first.legend(frameon=False)
    for axis, (name, (values, end)) in zip(others, weights.items(), strict=True):
        axis.hist(values.numpy(), bins=80, range=(-end, end), color=INK)
        axis.set(yscale="log", xlabel="weight", title=f"Weights, {name}")
        axis.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    save(figure, path)
