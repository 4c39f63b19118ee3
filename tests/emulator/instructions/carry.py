"""Sums, differences and products of 32-bit numbers that leave a carry (.cc) or take the one that was left (addc)."""

import numpy as np

from ..faults import Fault
from ..parser import Instruction
from ..threads import Threads

SHIFT, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def _read(threads: Threads, op: Instruction, lanes: np.ndarray) -> list[np.ndarray]:
    if op.type not in ("u32", "b32") and not (op.type == "s32" and "hi" not in op.parts):
        raise Fault(f"a carry of {op.type} is not modelled")
    return [threads.read(operand, "u32", lanes).astype(np.uint64) for operand in op.operands[1:]]


def _carried(threads: Threads, op: Instruction, lanes: np.ndarray) -> np.ndarray:
    return threads.carry[lanes].astype(np.uint64) if op.parts[0].endswith("c") else np.uint64(0)


def _leave(threads: Threads, op: Instruction, lanes: np.ndarray, total: np.ndarray):
    """The low half of a total; the bit above it, of a difference its borrow, is the carry."""
    threads.write(op.operands[0], (total & LOW).astype(np.uint32), "u32", lanes)
    if "cc" in op.parts:
        threads.carry[lanes] = (total >> SHIFT) & np.uint64(1) == 1


def add(threads: Threads, op: Instruction, lanes: np.ndarray):
    a, b = _read(threads, op, lanes)
    _leave(threads, op, lanes, a + b + _carried(threads, op, lanes))


def subtract(threads: Threads, op: Instruction, lanes: np.ndarray):
    a, b = _read(threads, op, lanes)
    _leave(threads, op, lanes, a - b - _carried(threads, op, lanes))


def multiply_add(threads: Threads, op: Instruction, lanes: np.ndarray):
    a, b, c = _read(threads, op, lanes)
    half = a * b >> SHIFT if "hi" in op.parts else a * b & LOW
    _leave(threads, op, lanes, half + c + _carried(threads, op, lanes))


OPERATIONS = {"addc": add, "subc": subtract, "madc": multiply_add}


def or_carry(with_carry, plain):
    """The operation without .cc, or the one with it."""
    return lambda threads, op, lanes: (with_carry if "cc" in op.parts else plain)(threads, op, lanes)
