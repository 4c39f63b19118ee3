"""csrc/ops/gate.cu on the CPU against the formula and the CPU kernel: bits, slopes, slopes of channels, in place."""

import itertools

import pytest
import torch
from gate_kernel_checks import (
    ABOVE,
    BELOW,
    BETWEEN,
    EDGES,
    GATES,
    WITHIN,
    Gate,
    OffSlopes,
    Slopes,
    check_channels,
    check_gate,
    check_in_place,
    check_limits,
    check_zero_slopes,
    numbers,
    packed,
    run_gate,
    run_gated,
    same,
    wide,
)  # fmt: skip
from simt import CSRC, DTYPES, Library, SimtError, needs_extension

OPS = torch.ops.gpfast
LENGTHS = [0, 1, 7, 31, 32, 33, 255, 256, 257, 1000, 4097]


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "gate.cu")


@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_and_slopes(library, dtype, n, start):
    for gate in GATES:
        check_gate(library, dtype, n, start, gate)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_and_slopes_are_the_cpu_kernels(library, dtype):
    z, h = numbers(4097, dtype, 1), numbers(4097, dtype, 2)
    for test, lower, upper, on, off in GATES:
        out, bits = run_gate(library, z, h, (test, lower, upper, on, off))
        cpu_out, cpu_bits = OPS.gate(z, h, None, test, lower, upper, on, off)
        assert torch.equal(bits, cpu_bits) and torch.equal(out, cpu_out)
        assert torch.equal(run_gated(library, z, bits, (on, off)), OPS.gated(z, bits, None, on, off))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("test", [ABOVE, BETWEEN, WITHIN, BELOW])
def test_limits_infinities_and_nan(library, dtype, test):
    """Each of the numbers against each of them as a limit."""
    check_limits(library, dtype, test, itertools.product(EDGES, EDGES))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slope_of_zero_is_zero_whatever_comes(library, dtype):
    check_zero_slopes(library, dtype)


# channels, elements from one slope to the next: per channel in NCHW, channels_last, one slope for all
@pytest.mark.parametrize(("channels", "inner"), [(5, 35), (5, 1), (3, 2), (66, 7), (1, 2**62)], ids=str)
@pytest.mark.parametrize("n", [1, 7, 33, 1000, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slope_for_each_channel(library, dtype, n, channels, inner):
    check_channels(library, dtype, n, channels, inner)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(library, dtype):
    check_in_place(library, dtype, 1001)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_beyond_32_bits(library, dtype):
    """The last block of 2^33 elements and a few, over buffers that hold only its part."""
    n, size, width = 2**33 + 3, dtype.itemsize, 16 // dtype.itemsize
    blocks = -(-n // (256 * width))
    first = (blocks - 1) * 256 * width
    part = n - first
    z, h = numbers(part, dtype, 1), numbers(part, dtype, 2)
    weight = numbers(3, wide(dtype), 3)
    out, bits = torch.full_like(z, torch.nan), torch.zeros((part + 7) // 8, dtype=torch.uint8)
    z_at, h_at, out_at = (tensor.data_ptr() - first * size for tensor in (z, h, out))
    bits_at = bits.data_ptr() - first // 8
    off = OffSlopes(weight, 5)
    gate, slopes = Gate(ABOVE, 0.0, 0.0, 1.0, 0.0), Slopes(1.0, 0.0)
    where = (torch.arange(part) + first) // 5 % 3
    expected = torch.where(h > 0, z, (weight[where] * z.to(wide(dtype))).to(dtype))
    ran = library.run(
        "gpfast_gate_cuda", dtype, z_at, h_at, out_at, bits_at, n, gate, off,
        blocks=(blocks - 1, blocks),
    )  # fmt: skip
    assert ran == blocks
    same(out, expected)
    assert torch.equal(bits, packed(h > 0))
    out.fill_(torch.nan)
    library.run(
        "gpfast_gated_cuda", dtype, z_at, bits_at, out_at, n, slopes, off,
        blocks=(blocks - 1, blocks),
    )  # fmt: skip
    same(out, expected)


def test_more_blocks_than_a_grid_has(library):
    arguments = torch.float64, None, None, None, 2**41, Slopes(), OffSlopes()
    with pytest.raises(SimtError, match="cudaErrorInvalidConfiguration"):
        library.run("gpfast_gated_cuda", *arguments, blocks=(0, 0))
