"""Which fused operators have a kernel for NVIDIA GPUs: in the sources, whatever this build holds, and in this build."""

from __future__ import annotations

import torch

import gpfast.gradient_norm  # noqa: F401  registers its operators
import gpfast.interpolate  # noqa: F401

# The two ends, in Triton (kernels/): registered from Python.
ENDS = frozenset({"interpolate", "gradient_norm", "gradient_norm_seed"})
# The sweeps, in CUDA (csrc/ops/*.cu): registered where the extension was built with nvcc.
SWEEPS = frozenset({"gate", "gate_", "gated", "gated_", "slope", "slope_", "slope_and_curve", "slope_and_curve_"})
SWEEPS |= {"add_slope_", "normalize_adjoint", "normalize_tangent"}


def has_plain_formula(name: str) -> bool:
    """Whether gpfast::name runs on every device, in PyTorch's own operators."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"gpfast::{name}", "CompositeExplicitAutograd")


def registered() -> frozenset[str]:
    """The operators of the sweeps whose CUDA kernel is in this build."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    known = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gpfast::")}
    return frozenset(name for name in SWEEPS if name in known and has_kernel(f"gpfast::{name}", "CUDA"))
