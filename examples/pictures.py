"""What the programs' pictures share: colours, a sheet of images, the curves of a training."""

import math

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

INK, ACCENT, BLUE, GREY = "#16324f", "#d1495b", "#3b82a6", "#8d99ae"


def save(figure, path, dpi=110):
    """Writes the figure, making its folder where there is none, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


def sheet(images, columns=10):
    """(rows * h, columns * w, c) in [0, 1], for imshow: images (n, c, h, w) in [-1, 1] side by side, c 1 or 3."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = images.new_full((rows * columns, channels, height, width), 1.0)
    grid[:count] = images
    grid = grid.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return (grid.reshape(rows * height, columns * width, channels).clamp(-1, 1) / 2 + 0.5).cpu().numpy()


def curves(history, scores, title):
    """A figure with a panel for each quantity of a training: `history` and `scores` as `train.Trainer` has them."""
    panels = {name: (range(1, len(values) + 1), values) for name, values in history.items() if name != "seconds"}
    for name in scores[0] if scores else ():
        if name not in ("step", "seconds"):
            panels[name] = ([s["step"] for s in scores], [s[name] for s in scores])
    columns = min(4, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False)
    for axis, (name, (steps, values)) in zip(axes.flat, panels.items(), strict=False):
        axis.plot(steps, values, color=INK, linewidth=0.8)
        axis.set(title=name, xlabel="step")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    figure.tight_layout()
    return figure
