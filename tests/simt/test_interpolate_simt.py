"""csrc/ops/interpolate.cu on the CPU against plain PyTorch, at the lengths where its vectors end."""

import pytest
import torch
from interpolate_kernel_checks import check_interpolation
from simt import CSRC, DTYPES, Library, SimtError

SHAPES = [(1, 1), (1, 7), (3, 5), (31, 1), (1, 33), (5, 255), (4, 256), (2, 257), (3, 1000), (1, 4097)]


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "interpolate.cu")


@pytest.mark.parametrize("shared", [False, True], ids=["alpha-per-row", "alpha-shared"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value(library, dtype, aligned, shape, shared):
    check_interpolation(library, dtype, shape, shared, start=0 if aligned else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_elements(library, dtype):
    library.run("gpfast_interpolate_cuda", dtype, None, None, None, None, 0, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_beyond_32_bits(library, dtype):
    """The last block of 2^33 elements and a few, over buffers that hold only its part."""
    n, size, part = 2**33 + 3, dtype.itemsize, 4096
    real, fake, out = (torch.full((part,), value, dtype=dtype) for value in (1.0, 3.0, torch.nan))
    alpha = torch.full((1,), 0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    width = 16 // size
    blocks = -(-n // (256 * width))
    first = (blocks - 1) * 256 * width
    starts = [tensor.data_ptr() - first * size for tensor in (real, fake)]
    ran = library.run(
        "gpfast_interpolate_cuda",
        dtype,
        *starts,
        alpha,
        out.data_ptr() - first * size,
        1,
        n,
        blocks=(blocks - 1, blocks),
    )
    assert ran == blocks
    assert (out[: n - first] == 2).all() and out[n - first :].isnan().all()


def test_more_blocks_than_a_grid_has(library):
    with pytest.raises(SimtError, match="cudaErrorInvalidConfiguration"):
        library.run("gpfast_interpolate_cuda", torch.float64, None, None, None, None, 1, 2**41, blocks=(0, 0))
