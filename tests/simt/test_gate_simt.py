"""csrc/ops/gate.cu on the CPU against the formula and the CPU kernel: bits, slopes, slopes of channels, in place."""

import ctypes
import math

import pytest
import torch
from simt import CSRC, DTYPES, Library, SimtError, needs_extension

OPS = torch.ops.gpfast
ABOVE, BETWEEN, WITHIN, BELOW = range(4)
LENGTHS = [0, 1, 7, 31, 32, 33, 255, 256, 257, 1000, 4097]
GATES = [
    (ABOVE, -0.5, 0.0, 1.0, 0.2),
    (ABOVE, 0.0, 0.0, 1.0, 0.0),
    (BETWEEN, -0.5, 0.75, 0.5, 0.0),
    (WITHIN, -0.5, 0.75, 0.0, 1.0),
    (BELOW, 0.0, 0.75, -1.0, 0.3),
]
EDGES = [-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-300, 0.5, 1.0, math.inf, math.nan]


class Gate(ctypes.Structure):
    """gpfast::Gate."""

    _fields_ = [("test", ctypes.c_int64)] + [(name, ctypes.c_double) for name in ("lower", "upper", "on", "off")]


class Slopes(ctypes.Structure):
    """gpfast::Slopes."""

    _fields_ = [("on", ctypes.c_double), ("off", ctypes.c_double)]


class OffSlopes(ctypes.Structure):
    """gpfast::OffSlopes."""

    _fields_ = [("slopes", ctypes.c_void_p), ("channels", ctypes.c_int64), ("inner", ctypes.c_int64)]


@pytest.fixture(scope="module")
def library():
    return Library(CSRC / "ops" / "gate.cu")


def numbers(n, dtype, seed, start=0):
    """n numbers that begin `start` elements behind a 16-byte bound."""
    return torch.randn(n + start, generator=torch.Generator().manual_seed(seed)).to(dtype)[start:]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def off_slopes(weight=None, inner=1):
    return OffSlopes(weight.data_ptr(), weight.numel(), inner) if weight is not None else OffSlopes(None, 0, 0)


def run_gate(library, z, h, gate, weight=None, inner=1, out=None):
    out = torch.full_like(z, torch.nan) if out is None else out
    bits = torch.full(((z.numel() + 7) // 8,), 0xAA, dtype=torch.uint8)
    off = off_slopes(weight, inner)
    library.run("gpfast_gate_cuda", z.dtype, z, h, out, bits, z.numel(), Gate(*gate), off, seed=7)
    return out, bits


def run_gated(library, z, bits, slopes, weight=None, inner=1, out=None):
    out = torch.full_like(z, torch.nan) if out is None else out
    off = off_slopes(weight, inner)
    library.run("gpfast_gated_cuda", z.dtype, z, bits, out, z.numel(), Slopes(*slopes), off, seed=7)
    return out


def held(h, test, lower, upper):
    h, lower, upper = h.to(wide(h.dtype)), *torch.tensor([lower, upper], dtype=wide(h.dtype))
    return {
        ABOVE: h > lower,
        BETWEEN: (h > lower) & (h < upper),
        WITHIN: (h >= lower) & (h <= upper),
        BELOW: h < upper,
    }[test]


def packed(mask):
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).reshape(-1, 8).long()
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


def passed(z, mask, on, off, weight=None, inner=1):
    x = z.to(wide(z.dtype))
    low = off * x if off else torch.zeros_like(x)
    if weight is not None:
        low = weight[torch.arange(z.numel()) // inner % weight.numel()] * x
    return torch.where(mask, on * x if on else torch.zeros_like(x), low).to(z.dtype)


def same(found, expected):
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_and_slopes(library, dtype, n, start):
    for gate in GATES:
        z, h = numbers(n, dtype, 1, start), numbers(n, dtype, 2, start)
        mask = held(h, *gate[:3])
        expected = passed(z, mask, *gate[3:])
        out, bits = run_gate(library, z, h, gate)
        same(out, expected)
        assert torch.equal(bits, packed(mask))
        same(run_gated(library, z, bits, gate[3:]), expected)


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
    h = torch.tensor(EDGES).to(dtype).repeat(3)
    z = numbers(h.numel(), dtype, 1)
    for lower in EDGES:
        for upper in EDGES:
            _, bits = run_gate(library, z, h, (test, lower, upper, 1.0, 0.5))
            assert torch.equal(bits, packed(held(h, test, lower, upper))), (lower, upper)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slope_of_zero_is_zero_whatever_comes(library, dtype):
    z = torch.tensor([math.inf, math.nan, -math.inf, 1.0] * 9).to(dtype)
    h = torch.tensor([-1.0, 1.0]).to(dtype).repeat(18)
    out, bits = run_gate(library, z, h, (ABOVE, 0.0, 0.0, 2.0, 0.0))
    expected = torch.where(h > 0, 2 * z, torch.zeros_like(z))
    same(out, expected)
    same(run_gated(library, z, bits, (2.0, 0.0)), expected)


# channels, elements from one slope to the next: per channel in NCHW, channels_last, one slope for all
@pytest.mark.parametrize(("channels", "inner"), [(5, 35), (5, 1), (3, 2), (66, 7), (1, 2**62)], ids=str)
@pytest.mark.parametrize("n", [1, 7, 33, 1000, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slope_for_each_channel(library, dtype, n, channels, inner):
    z, h = numbers(n, dtype, 1), numbers(n, dtype, 2)
    weight = numbers(channels, wide(dtype), 3)
    mask = h > 0
    expected = passed(z, mask, 1.0, 0.0, weight, inner)
    out, bits = run_gate(library, z, h, (ABOVE, 0.0, 0.0, 1.0, 0.0), weight, inner)
    same(out, expected)
    same(run_gated(library, z, bits, (1.0, 0.0), weight, inner), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(library, dtype):
    z, h = numbers(1001, dtype, 1), numbers(1001, dtype, 2)
    expected = passed(z, h > 0, 1.0, 0.2)
    into = z.clone()
    out, bits = run_gate(library, into, h, (ABOVE, 0.0, 0.0, 1.0, 0.2), out=into)
    same(out, expected)
    run_gated(library, into, bits, (3.0, 3.0), out=into)
    same(into, passed(expected, h > 0, 3.0, 3.0))


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
    off = off_slopes(weight, 5)
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
