"""n, phi(n) and phi'(n)/n of one row or of many at once, with square roots and quotients rounded to nearest."""

import triton
import triton.language as tl


@triton.jit
def _sqrt(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _divide(x, y):
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def penalty(total, center, eps, AT_ZERO: tl.constexpr, ONE_SIDED: tl.constexpr):
    """(n, phi(n)) of a row's sum of squares; AT_ZERO says that center is 0."""
    squared_norm = total + tl.full((), eps, total.dtype)
    norm = _sqrt(squared_norm)
    if AT_ZERO:
        phi = squared_norm
    else:
        excess = norm - tl.full((), center, norm.dtype)
        if ONE_SIDED:  # not a maximum, which would drop NaN
            excess = tl.where(excess <= 0.0, 0.0, excess)
        phi = excess * excess
    return norm, phi


@triton.jit
def seed_factor(norm, center, weight, AT_ZERO: tl.constexpr, ONE_SIDED: tl.constexpr):
    """weight * phi'(n)/n: phi'(n)/n is 2 where center is 0; else the product is exactly 0 where n or phi' is."""
    if AT_ZERO:
        factor = weight * 2.0
    else:
        excess = norm - tl.full((), center, norm.dtype)
        flat = norm == 0.0
        if ONE_SIDED:
            flat = flat | (excess <= 0.0)
        factor = tl.where(flat, 0.0, weight * _divide(2.0 * excess, norm))
    return factor
