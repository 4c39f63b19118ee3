"""Fused multiply-add, rounded once, to nearest or in a direction."""

from fractions import Fraction

import numpy as np

from ..faults import Fault

SPLIT = 2.0**27 + 1  # parts a float64 into halves whose products are exact
TOO_LARGE, TOO_SMALL = 2.0**990, 2.0**-960  # beyond these the halves overflow, or their products lose bits


def _sum(x, y):
    """(x + y rounded, what is missing of it)"""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _product(x, y):
    """(x y rounded, what is missing of it)"""
    product = x * y
    x_high = x * SPLIT - (x * SPLIT - x)
    y_high = y * SPLIT - (y * SPLIT - y)
    x_low, y_low = x - x_high, y - y_high
    return product, x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)


def sum_rounded_to_odd(x, y):
    """x + y; where it is not exact, the one of its neighbours that is odd. To round it again is to round x + y."""
    total, missing = _sum(x, y)
    even = total.view(np.uint64) & np.uint64(1) == 0
    moved = np.nextafter(total, np.copysign(np.inf, missing))
    return np.where(np.isfinite(total) & (missing != 0) & even, moved, total)


def _fused_double(a, b, c):
    """Boldo and Melquiond, Emulation of FMA and correctly rounded sums (2008); extreme numbers by fractions."""
    plain = a * b + c
    high, low = _product(a, b)
    kept, rest = _sum(c, low)
    most, more = _sum(high, kept)
    result = most + sum_rounded_to_odd(rest, more)
    size = np.abs(a * b)
    extreme = (np.maximum(np.maximum(np.abs(a), np.abs(b)), np.maximum(np.abs(c), size)) > TOO_LARGE) | (
        size < TOO_SMALL
    )
    simple = ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)) | (a == 0) | (b == 0)
    result = np.where(simple | (most == 0), plain, result)
    for k in np.nonzero(extreme & ~simple)[0]:
        exact = Fraction(float(a[k])) * Fraction(float(b[k])) + Fraction(float(c[k]))
        try:
            result[k] = float(exact) if exact else plain[k]
        except OverflowError:
            result[k] = np.inf if exact > 0 else -np.inf
    return result


def fused(a, b, c):
    """a b + c, rounded once to nearest, ties to even."""
    if a.dtype == np.float64:
        return _fused_double(a, b, c)
    a64, b64, c64 = (x.astype(np.float64) for x in (a, b, c))
    return sum_rounded_to_odd(a64 * b64, c64).astype(a.dtype)


def fused_downwards(a, b, c):
    """a b + c of float32, rounded towards minus infinity (.rm)."""
    if a.dtype != np.float32:
        raise Fault("fma.rm is modelled for f32 alone")
    exact = sum_rounded_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
