"""Predicates and what is chosen by them."""

import numpy as np

from ..parser import Instruction
from ..threads import Threads

COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
OF_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def compare(how: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of floats with NaN every comparison is false, except those that end in u."""
    if a.dtype.kind != "f":
        return COMPARE[OF_UNSIGNED.get(how, how)](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if how in ("num", "nan"):
        return unordered if how == "nan" else ~unordered
    if how in COMPARE:
        return COMPARE[how](a, b) & ~unordered
    return COMPARE[how[:-1]](a, b) | unordered


def set_predicate(threads: Threads, op: Instruction, lanes: np.ndarray):
    a, b = (threads.read(operand, op.type, lanes) for operand in op.operands[1:3])
    result = compare(op.parts[1], a, b)
    opposite = ~result
    combined = next((part for part in op.parts[2:-1] if part in COMBINE), None)
    if combined:
        other = threads.predicate(op.operands[3], lanes)
        result, opposite = (COMBINE[combined](p, other) for p in (result, opposite))
    for register, value in zip(op.operands[0].split("|"), (result, opposite), strict=False):
        threads.write(register.strip(), value, "pred", lanes)


def select(threads: Threads, op: Instruction, lanes: np.ndarray):
    chosen, other = (threads.read(operand, op.type, lanes) for operand in op.operands[1:3])
    predicate = threads.read(op.operands[3], "pred", lanes)
    threads.write(op.operands[0], np.where(predicate, chosen, other), op.type, lanes)


OPERATIONS = {"setp": set_predicate, "selp": select}
