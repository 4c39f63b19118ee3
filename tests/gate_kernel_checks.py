"""What the kernels of csrc/ops/gate.cu must give; `library` runs their launchers, as simt.Library does."""

import ctypes
import math

import torch

ABOVE, BETWEEN, WITHIN, BELOW = range(4)
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

    def __init__(self, weight=None, inner=1):
        super().__init__(*(0, 0, 0) if weight is None else (weight.data_ptr(), weight.numel(), inner))
        self.tensors = {} if weight is None else {"slopes": weight}  # what its pointers mean


def numbers(n, dtype, seed, start=0):
    """n numbers that begin `start` elements behind a 16-byte bound."""
    return torch.randn(n + start, generator=torch.Generator().manual_seed(seed)).to(dtype)[start:]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def run_gate(library, z, h, gate, weight=None, inner=1, out=None):
    out = torch.full_like(z, torch.nan) if out is None else out
    bits = torch.full(((z.numel() + 7) // 8,), 0xAA, dtype=torch.uint8)
    off = OffSlopes(weight, inner)
    library.run("gpfast_gate_cuda", z.dtype, z, h, out, bits, z.numel(), Gate(*gate), off, seed=7)
    return out, bits


def run_gated(library, z, bits, slopes, weight=None, inner=1, out=None):
    out = torch.full_like(z, torch.nan) if out is None else out
    off = OffSlopes(weight, inner)
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


def check_gate(library, dtype, n, start, gate, weight=None, inner=1):
    """Bits and slopes of `gate`, then the same by `gated`; bit for bit."""
    z, h = numbers(n, dtype, 1, start), numbers(n, dtype, 2, start)
    mask = held(h, *gate[:3])
    expected = passed(z, mask, *gate[3:], weight, inner)
    out, bits = run_gate(library, z, h, gate, weight, inner)
    same(out, expected)
    assert torch.equal(bits, packed(mask))
    same(run_gated(library, z, bits, gate[3:], weight, inner), expected)


def check_channels(library, dtype, n, channels, inner, start=0):
    check_gate(library, dtype, n, start, (ABOVE, 0.0, 0.0, 1.0, 0.0), numbers(channels, wide(dtype), 3), inner)


def check_in_place(library, dtype, n):
    z, h = numbers(n, dtype, 1), numbers(n, dtype, 2)
    expected = passed(z, h > 0, 1.0, 0.2)
    into = z.clone()
    out, bits = run_gate(library, into, h, (ABOVE, 0.0, 0.0, 1.0, 0.2), out=into)
    same(out, expected)
    run_gated(library, into, bits, (3.0, 3.0), out=into)
    same(into, passed(expected, h > 0, 3.0, 3.0))


def check_zero_slopes(library, dtype):
    """A slope of zero is zero, whatever comes."""
    z = torch.tensor([math.inf, math.nan, -math.inf, 1.0] * 9).to(dtype)
    h = torch.tensor([-1.0, 1.0]).to(dtype).repeat(18)
    out, bits = run_gate(library, z, h, (ABOVE, 0.0, 0.0, 2.0, 0.0))
    expected = torch.where(h > 0, 2 * z, torch.zeros_like(z))
    same(out, expected)
    same(run_gated(library, z, bits, (2.0, 0.0)), expected)


def check_limits(library, dtype, test, limits):
    """Infinities, NaN and zeros of both signs against each pair of limits."""
    h = torch.tensor(EDGES).to(dtype).repeat(3)
    z = numbers(h.numel(), dtype, 1)
    for lower, upper in limits:
        _, bits = run_gate(library, z, h, (test, lower, upper, 1.0, 0.5))
        assert torch.equal(bits, packed(held(h, test, lower, upper))), (lower, upper)
