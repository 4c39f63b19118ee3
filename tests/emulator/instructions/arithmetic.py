"""Sums, products, quotients and functions, of integers, floats and pairs of floats.

Approximate functions are computed in float64 and rounded once.
"""

import numpy as np

from ..faults import Fault
from ..parser import Instruction
from ..threads import Threads
from ..values import PACKED, SIGNED, UNSIGNED, is_float, typed, untyped, width
from . import carry
from .rounding import fused, fused_downwards


def map_operands(threads: Threads, op: Instruction, lanes: np.ndarray, function):
    """The first operand is function(the others), for pairs in each half."""
    if op.type not in PACKED:
        values = [threads.read(operand, op.type, lanes) for operand in op.operands[1:]]
        threads.write(op.operands[0], function(*values), op.type, lanes)
        return
    half, pair = PACKED[op.type], f"b{width(op.type)}"
    bits = width(half)
    unsigned = UNSIGNED[2 * bits]
    operands = [threads.read(operand, pair, lanes) for operand in op.operands[1:]]
    result = np.zeros(len(lanes), unsigned)
    for shift in (unsigned(0), unsigned(bits)):
        halves = [typed((o >> shift).astype(UNSIGNED[bits]), half) for o in operands]
        result |= untyped(function(*halves), half).astype(unsigned) << shift
    threads.write(op.operands[0], result, pair, lanes)


def elementwise(function):
    return lambda threads, op, lanes: map_operands(threads, op, lanes, function)


def in_float64(function):
    return elementwise(lambda a: function(a.astype(np.float64)).astype(a.dtype))


def logical(of_bits, of_predicates):
    def operation(threads, op, lanes):
        map_operands(threads, op, lanes, of_predicates if op.type == "pred" else of_bits)

    return operation


def extreme(number_wins, nan_wins):
    def operation(threads, op, lanes):
        map_operands(threads, op, lanes, nan_wins if "NaN" in op.parts else number_wins)

    return operation


def fused_multiply_add(threads, op, lanes):
    map_operands(threads, op, lanes, fused_downwards if "rm" in op.parts else fused)


def _integer_product(op: Instruction, a, b) -> tuple[np.ndarray, str]:
    """(product, its type): its lower half, its upper half (.hi), or both (.wide)."""
    size = width(op.type)
    integers = SIGNED if op.type[0] == "s" else UNSIGNED
    if "wide" in op.parts:
        return a.astype(integers[2 * size]) * b.astype(integers[2 * size]), f"{op.type[0]}{2 * size}"
    if "hi" not in op.parts:
        return a * b, op.type
    if size == 64:
        upper = [(int(x) * int(y)) >> 64 & ((1 << 64) - 1) for x, y in zip(a, b, strict=True)]
        return np.array(upper, np.uint64), "u64"
    wide = integers[2 * size]
    return ((a.astype(wide) * b.astype(wide)) >> wide(size)).astype(a.dtype), op.type


def multiply(threads: Threads, op: Instruction, lanes: np.ndarray):
    if is_float(op.type):
        return map_operands(threads, op, lanes, np.multiply)
    a, b = (threads.read(operand, op.type, lanes) for operand in op.operands[1:3])
    product, product_type = _integer_product(op, a, b)
    threads.write(op.operands[0], product, product_type, lanes)


def multiply_add(threads: Threads, op: Instruction, lanes: np.ndarray):
    if is_float(op.type):
        return map_operands(threads, op, lanes, fused)
    a, b = (threads.read(operand, op.type, lanes) for operand in op.operands[1:3])
    product, product_type = _integer_product(op, a, b)
    addend = threads.read(op.operands[3], product_type, lanes)
    threads.write(op.operands[0], product + addend, product_type, lanes)


def reciprocal(threads, op, lanes):
    """rcp.approx.ftz.f64 takes and gives the upper halves of float64 only, for a first guess."""
    if op.type != "f64" or "approx" not in op.parts:
        return in_float64(lambda a: 1 / a)(threads, op, lanes)
    if "ftz" not in op.parts:
        raise Fault("rcp.approx.f64 without .ftz is not modelled")
    a = _upper_half(threads.read(op.operands[1], "f64", lanes))
    flushed = np.where(np.abs(a) < np.finfo(np.float64).tiny, np.copysign(0, a), a)
    result = _upper_half(1 / flushed)
    result = np.where(np.abs(result) < np.finfo(np.float64).tiny, np.copysign(0, result), result)
    threads.write(op.operands[0], result, "f64", lanes)


def _upper_half(a):
    return (a.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def quotient(a, b):
    if a.dtype.kind == "f":
        return a / b
    if a.dtype.kind == "i":
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)
    return a // b


OPERATIONS = {
    "add": carry.or_carry(carry.add, elementwise(np.add)),
    "sub": carry.or_carry(carry.subtract, elementwise(np.subtract)),
    "mul": multiply,
    "mad": carry.or_carry(carry.multiply_add, multiply_add),
    "fma": fused_multiply_add,
    "div": elementwise(quotient),
    "rem": elementwise(np.fmod),
    "neg": elementwise(np.negative),
    "abs": elementwise(np.abs),
    "copysign": elementwise(lambda sign, magnitude: np.copysign(magnitude, sign)),
    "min": extreme(np.fmin, np.minimum),
    "max": extreme(np.fmax, np.maximum),
    "and": logical(np.bitwise_and, np.logical_and),
    "or": logical(np.bitwise_or, np.logical_or),
    "xor": logical(np.bitwise_xor, np.logical_xor),
    "not": logical(np.invert, np.logical_not),
    "sqrt": in_float64(np.sqrt),
    "rsqrt": in_float64(lambda a: 1 / np.sqrt(a)),
    "rcp": reciprocal,
    "ex2": in_float64(np.exp2),
    "lg2": in_float64(np.log2),
    "sin": in_float64(np.sin),
    "cos": in_float64(np.cos),
    "tanh": in_float64(np.tanh),
}
