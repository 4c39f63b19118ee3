"""The compiled kernels, gpfast._C, where they are there: importing it registers them with torch.library."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os

import torch


def switched_off() -> bool:
    """Whether GPFAST_NO_EXT asks for plain PyTorch, at import as at build: any value but 0."""
    return os.environ.get("GPFAST_NO_EXT", "0") not in ("", "0")


def load() -> bool:
    """True once the compiled kernels are registered, False where there are none or GPFAST_NO_EXT is set.

    Raises ImportError where gpfast._C is there but cannot be loaded: a broken build never falls back in silence.
    """
    if switched_off():
        return False
    spec = importlib.util.find_spec("gpfast._C")
    if spec is None:
        return False
    try:
        importlib.import_module("gpfast._C")
    except ImportError as cause:
        raise ImportError(
            f"{spec.origin} is there but cannot be loaded under torch {torch.__version__}: {cause}. Build it again for "
            "this torch (in its sources: pip install --no-build-isolation .), or set GPFAST_NO_EXT=1 to do without."
        ) from cause
    return True


def absence() -> str:
    """Why the extension is not there."""
    return "GPFAST_NO_EXT switches the extension off" if switched_off() else "the extension, gpfast._C, is not built"


@functools.cache
def build_info() -> dict[str, str]:
    """What the loaded extension was built with: its CUDA targets ("" without CUDA), compiler and torch version."""
    return json.loads(torch.ops.gpfast.build_info())


available: bool = load()
