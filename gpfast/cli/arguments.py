"""Kinds of command-line arguments that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def positive(kind: type, *, finite: bool = False) -> Callable:
    """A `type=` for argparse: a `kind` above 0, and with `finite` below infinity."""

    def parse(text: str):
        value = kind(text)
        if not value > 0 or finite and value == math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse names it in its error
    return parse
