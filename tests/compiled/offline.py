"""Triton's launches captured on a machine without a GPU: compiled for a named target, not run.

Calling a launcher of gpfast.kernels on CPU tensors inside `capture` compiles exactly what it would launch on that
target: dtypes, divisible pointers and lengths specialise as they do on the device.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Launch(NamedTuple):
    """A compiled kernel, its grid and its runtime arguments in the kernel's order."""

    kernel: CompiledKernel
    grid: tuple[int, ...]
    arguments: list

    @property
    def name(self) -> str:
        return self.kernel.metadata.name


class OfflineDriver(DriverBase):
    """What Triton asks a driver before it compiles; there is no device to launch on."""

    def __init__(self, target: GPUTarget, device: int):
        self.target, self.device = target, device

    @classmethod
    def is_active(cls):
        return False

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.device  # one number a target: Triton keeps what it compiled by device, not by target

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError("nothing can be timed without a GPU")


@contextmanager
def capture(target: str, on_launch):
    """Inside the context every Triton launch compiles for `target`, and on_launch(Launch) stands in for running it."""
    compile_and_run = JITFunction.run

    def compile_only(function, *arguments, grid, warmup, **keywords):
        kernel = compile_and_run(function, *arguments, grid=grid, warmup=True, **keywords)
        values = dict(zip(function.arg_names, arguments, strict=False)) | keywords
        runtime = [values[name] for name, ty in kernel.src.signature.items() if ty != "constexpr"]
        on_launch(Launch(kernel, grid, runtime))
        return kernel

    triton.runtime.driver.set_active(OfflineDriver(TARGETS[target], list(TARGETS).index(target)))
    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = compile_and_run


def launches(target: str, launcher, *arguments) -> list[Launch]:
    """What launcher(*arguments) launches on `target`, compiled for it."""
    found = []
    with capture(target, found.append):
        launcher(*arguments)
    return found
