"""The demo's pictures: generated digits beside real ones, and the curves of the training."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import PercentFormatter, StrMethodFormatter  # noqa: E402

INK, ACCENT, GREY = "#16324f", "#d1495b", "#8d99ae"


def save_samples(path: Path, real: np.ndarray, fake: np.ndarray, title: str) -> None:
    """Writes two sheets of digits: `real` and `fake` are (rows, columns, 8, 8) in [-1, 1], a column for each class."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 6))
    for axis, images, name in ((axes[0], real, "Real digits"), (axes[1], fake, title)):
        rows, columns = images.shape[:2]
        framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
        axis.imshow(framed.swapaxes(1, 2).reshape(rows * 10, columns * 10), cmap="gray_r", vmin=-1, vmax=1)
        axis.set_xticks(np.arange(columns) * 10 + 4.5, [str(i) for i in range(columns)])
        axis.set_yticks([])
        axis.tick_params(length=0, labelsize=11, labelcolor=GREY)
        axis.set_title(name, fontsize=13, color=INK, pad=10)
        for spine in axis.spines.values():
            spine.set_color("#d8dde5")
    figure.tight_layout(w_pad=3)
    _save(figure, path)


def save_curves(path: Path, history, real_accuracy: float) -> None:
    """Writes Wasserstein estimate, mean gradient norm and sample quality over the critic steps of a `demo.History`."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for axis, values, name in (
        (axes[0], history.wasserstein, "Wasserstein estimate"),
        (axes[1], history.norms, "Mean gradient norm at the interpolates"),
    ):
        axis.plot(history.steps, values, color=INK, alpha=0.2, linewidth=0.8)
        if values:
            axis.plot(*_smoothed(history.steps, values), color=INK, linewidth=1.8)
        axis.set_ylabel(name)
    axes[0].set_ylim(bottom=0)
    _reference(axes[1], 1.0, "the penalty's aim", offset=-13)
    axes[2].plot(history.judged_steps, history.accuracy, color=INK, linewidth=1.8, marker="o", markersize=3.5)
    _reference(axes[2], real_accuracy, f"unseen real digits: {real_accuracy:.1%}")
    axes[2].set_ylabel("Samples read as the digit asked for")
    axes[2].set_ylim(0, 1.1)
    axes[2].yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes:
        axis.set_xlabel("Critic steps")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_major_locator(plt.MaxNLocator(5, integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e9ef", linewidth=0.8)
    figure.tight_layout(w_pad=2.5)
    _save(figure, path)


def _reference(axis, height: float, text: str, offset: int = 4) -> None:
    axis.axhline(height, color=ACCENT, linewidth=1.2, linestyle="--")
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    axis.annotate(text, (1, height), (0, offset), color=ACCENT, **where)


def _smoothed(steps: list, values: list) -> tuple[np.ndarray, np.ndarray]:
    """A moving mean over a fiftieth of the curve, at the middles of its windows."""
    window = max(1, len(values) // 50)
    kernel = np.full(window, 1 / window)
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
