"""csrc/ops/interpolate.cu as nvcc compiles it: spills, width of accesses."""

import cuda
import pytest
import torch

SOURCE = "ops/interpolate.cu"
NAMES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float", torch.float64: "double"}

pytestmark = pytest.mark.skipif(cuda.NVCC is None, reason="needs nvcc")


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """That of the weights and of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def kernel_of(dtype: torch.dtype, width: int, target: str = "sm_90") -> cuda.CudaKernel:
    return cuda.find(SOURCE, target, f"interpolate<{NAMES[dtype]}, {NAMES[wide_type(dtype)]}, {width}>")


@pytest.mark.parametrize("target", cuda.TARGETS)
def test_no_kernel_spills(target):
    found = cuda.kernels(SOURCE, target)
    assert len(found) == 2 * len(NAMES)
    assert all(kernel.needs.spills == kernel.needs.local_bytes == 0 for kernel in found)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_accesses_are_16_bytes_wide_whatever_the_length(dtype):
    needs = kernel_of(dtype, 16 // dtype.itemsize).needs
    assert needs.wide_loads == 2 and needs.wide_stores == 1
