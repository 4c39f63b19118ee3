"""Which kernels a device takes, and why."""

from __future__ import annotations

import functools
import importlib.util

import torch

from gpfast import _extension


def choose(device: torch.device | str, *, cuda_kernel: bool = False) -> tuple[str, str]:
    """("triton" | "cuda" | "c++" | "pytorch", reason) for one of the two ends on `device`.

    `cuda_kernel`: whether the extension may hold a CUDA kernel of it, for where Triton is not installed.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if triton_is_installed():
            return "triton", "Triton is installed"
        if cuda_kernel and _extension.available and _extension.build_info()["cuda_targets"]:
            return "cuda", "Triton is not installed; the extension holds a CUDA kernel"
        return "pytorch", "Triton is not installed"
    if kind != "cpu":
        return "pytorch", f"no kernel of ours is for {kind}"
    return ("c++", "the extension is built") if _extension.available else ("pytorch", _extension.absence())


@functools.cache
def triton_is_installed() -> bool:
    """Whether `import triton` would find it; it is not imported for that."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a stand-in without a spec
        return False


def under_functions() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active()


def under_transform() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: the fused ends then give way to plain PyTorch."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
