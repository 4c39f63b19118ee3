"""Kinds of command-line arguments that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from gpfast.columns import first_line

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def positive(kind: type, *, finite: bool = False) -> Callable:
    """A `type=` for argparse: a `kind` above 0, and with `finite` below infinity."""

    def parse(text: str):
        value = kind(text)
        if not value > 0 or finite and value == math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse names it in its error
    return parse


def shape(text: str) -> tuple[int, ...]:
    """A `type=` for argparse: sizes between commas, the batch first."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"must be sizes between commas, the batch first, as in 64,3,32,32; got {text!r}"
        )
    return sizes


def device(text: str) -> torch.device:
    """A `type=` for argparse: a device that PyTorch knows of."""
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device of PyTorch") from error


def absent(device: torch.device) -> str:
    """Why `device` cannot be used here, or ""."""
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "PyTorch finds no GPU" if built else f"this PyTorch ({torch.__version__}) is built for the CPU only"
        return f"--device {device} cannot be used: {why}"
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way to say that it is absent
        return f"--device {device} cannot be used: {first_line(error)}"
    return ""
