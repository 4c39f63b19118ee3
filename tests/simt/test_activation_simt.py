"""csrc/ops/activation.cu on the CPU: each activation's derivatives applied, against autograd in float64."""

import pytest
import torch
from activation_kernel_checks import (
    FAR,
    KINDS,
    check_activation,
    check_far_from_zero,
    check_in_place,
    close,
    curve,
    largest,
    numbers,
    parameters,
    saved_numbers,
)  # fmt: skip
from simt import CSRC, DTYPES, Library, SimtError, needs_extension

OPS = torch.ops.gpfast
LENGTHS = [0, 1, 7, 31, 32, 33, 255, 256, 257, 1000, 4097]


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "activation.cu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_every_activation(library, name, dtype):
    check_activation(library, name, dtype, 1000)


@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_elements(library, dtype, n, start):
    check_in_place(library, "silu", dtype, n, start)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_as_the_cpu_kernel(library, name, dtype):
    saved, slope, bend = saved_numbers(name, 4097, dtype)
    z, a = numbers(4097, dtype, 1), numbers(4097, dtype, 2)
    out, second = torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)
    library.run("gpfast_slope_and_curve_cuda", dtype, z, a, saved, out, second, 4097, curve(name))
    cpu = OPS.slope_and_curve(z, a, saved, KINDS.index(name), *parameters(name))
    scale = largest(slope, bend)
    close(out, cpu[0].double(), scale * z.double().abs())
    close(second, cpu[1].double(), scale * (a.double() * z.double()).abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAR)
def test_far_from_zero(library, name, dtype):
    check_far_from_zero(library, name, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_beyond_32_bits(library, dtype):
    """The last block of 2^33 elements and a few, over buffers that hold only its part."""
    n, size, width = 2**33 + 3, dtype.itemsize, 16 // dtype.itemsize
    blocks = -(-n // (256 * width))
    first = (blocks - 1) * 256 * width
    saved, slope, _ = saved_numbers("tanh", n - first, dtype)
    z = numbers(n - first, dtype, 1)
    out = torch.full_like(z, torch.nan)
    pointers = [tensor.data_ptr() - first * size for tensor in (z, saved, out)]
    assert library.run("gpfast_slope_cuda", dtype, *pointers, n, curve("tanh"), blocks=(blocks - 1, blocks)) == blocks
    close(out, slope * z.double(), z.double().abs())


def test_more_blocks_than_a_grid_has(library):
    with pytest.raises(SimtError, match="cudaErrorInvalidConfiguration"):
        library.run("gpfast_slope_cuda", torch.float64, None, None, None, 2**41, curve("tanh"), blocks=(0, 0))
