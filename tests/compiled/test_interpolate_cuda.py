"""csrc/ops/interpolate.cu as nvcc compiles it: spills, width of accesses, its PTX executed against plain PyTorch."""

import cuda
import numpy
import pytest
import torch
from emulator import Counters, Kernel, Memory

SOURCE = "ops/interpolate.cu"
NAMES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float", torch.float64: "double"}
SHAPES = [(1, 1), (1, 37), (3, 5), (7, 1), (5, 256), (2, 2049), (300, 7)]

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


def execute(dtype, width, real, fake, alpha, shift=0) -> tuple[torch.Tensor, Counters]:
    """The kernel's output; `shift` elements are left out at the start of every buffer, so that it is not aligned."""
    rows, cols = (1, real.numel()) if alpha.ndim == 0 else real.shape
    memory = Memory(1 << (4 * real.nbytes + 8192).bit_length())
    bits = torch.int16 if dtype.itemsize == 2 else dtype

    def put(tensor):
        padded = torch.cat([tensor.new_zeros(shift), tensor.reshape(-1)])
        return memory.put(padded.view(bits).numpy())

    out = put(torch.full_like(real, torch.nan))
    r, f, o = (pointer.address + shift * dtype.itemsize for pointer in (put(real), put(fake), out))
    kernel = kernel_of(dtype, width)
    blocks = -(-real.numel() // (kernel.threads * width))
    arguments = [r, f, memory.put(numpy.asarray(alpha.reshape(-1))), o, rows, cols]
    compiled = Kernel(cuda.ptx(SOURCE, "sm_90"), kernel.entry)
    counters = compiled.launch((blocks,), (kernel.threads,), arguments, 0, memory)
    assert not counters.warnings, counters.warnings
    return torch.from_numpy(out.get()).view(dtype)[shift:].reshape(real.shape), counters


@pytest.mark.parametrize("shared", [False, True], ids=["alpha-per-row", "alpha-shared"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_executed_ptx_agrees_with_pytorch(dtype, aligned, shape, shared):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    real.view(-1)[-1], fake.view(-1)[0] = torch.inf, torch.nan
    wide = wide_type(dtype)
    alpha = torch.rand(() if shared else shape[:1], generator=generator, dtype=wide)
    width = 16 // dtype.itemsize if aligned else 1
    mixed, _ = execute(dtype, width, real, fake, alpha, shift=0 if aligned else 1)
    rows = alpha if shared else alpha[:, None]
    expected = rows.double() * real.double() + (1 - rows).double() * fake.double()
    # one rounding to dtype after two or three in `wide`; where the two terms cancel, relative to them
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mixed.double(), expected, rtol=eps, atol=8 * torch.finfo(wide).eps, equal_nan=True)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("cols", [1001, 5001])
def test_it_moves_little_more_than_it_must(dtype, cols):
    """Two elements are read for each written, and each row's weight once."""
    real, fake = (torch.randn(40_000 // cols, cols).to(dtype) for _ in range(2))
    alpha = torch.rand(len(real), dtype=wide_type(dtype))
    _, counters = execute(dtype, 16 // dtype.itemsize, real, fake, alpha)
    least = 3 * real.nbytes + alpha.nbytes
    assert counters.dram_bytes <= 1.05 * least and counters.sector_bytes <= 1.1 * least, (
        counters.dram_bytes / least,
        counters.sector_bytes / least,
    )
