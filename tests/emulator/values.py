"""PTX types as numpy arrays: a register holds raw bits in an unsigned array, predicates in a bool array."""

import re
from functools import cache

import numpy as np

from .faults import Fault

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}  # two values side by side


@cache
def width(ptx_type: str) -> int:
    """The bits of a value."""
    if ptx_type == "pred":
        return 1
    if ptx_type in PACKED:
        return 2 * width(PACKED[ptx_type])
    return int(re.search(r"\d+", ptx_type)[0])


def is_float(ptx_type: str) -> bool:
    return ptx_type == "bf16" or ptx_type[0] == "f"


def typed(bits: np.ndarray, ptx_type: str) -> np.ndarray:
    """The values that raw bits mean; bf16 becomes float32."""
    if ptx_type == "pred":
        return bits.astype(bool)
    if ptx_type in PACKED:
        raise Fault(f"this operation on {ptx_type} is not modelled")
    size = width(ptx_type)
    bits = bits.astype(UNSIGNED[size], copy=False)
    if ptx_type == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if ptx_type[0] == "f":
        return bits.view(FLOAT[size])
    return bits.view(SIGNED[size]) if ptx_type[0] == "s" else bits


def untyped(values: np.ndarray, ptx_type: str) -> np.ndarray:
    """The raw bits of values, rounded to nearest, ties to even."""
    values = np.asarray(values)
    if ptx_type == "pred":
        return values.astype(bool)
    if ptx_type == "bf16":
        return _bf16_bits(values)
    size = width(ptx_type)
    if ptx_type[0] == "f":
        return np.ascontiguousarray(values.astype(FLOAT[size])).view(UNSIGNED[size])
    if values.dtype.kind == "f":
        return values.astype(np.int64).astype(UNSIGNED[size])
    integers = SIGNED if ptx_type[0] == "s" else UNSIGNED
    return values.astype(integers[size], copy=False).view(UNSIGNED[size])


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))
