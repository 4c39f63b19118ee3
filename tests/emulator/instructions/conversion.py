"""cvt: between integers and floats of all sizes."""

import numpy as np

from ..faults import Fault
from ..parser import Instruction
from ..threads import Threads
from ..values import PACKED, SIGNED, UNSIGNED, is_float, untyped, width

ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(threads: Threads, op: Instruction, lanes: np.ndarray):
    to, source = op.parts[-2], op.parts[-1]
    if source == "f32" and to in ("bf16x2", "f16x2"):
        return _pack(threads, op, to, lanes)
    if "sat" in op.parts and not is_float(to) and not is_float(source):
        raise Fault("saturating conversion between integers is not modelled")
    values = threads.read(op.operands[1], source, lanes)
    rounding = next((ROUND_TO_INTEGER[part] for part in op.parts if part in ROUND_TO_INTEGER), None)
    if is_float(source) and not is_float(to):
        values = _saturated(np.asarray((rounding or np.trunc)(values.astype(np.float64))), to)
    elif is_float(source) and rounding:
        values = rounding(values)
    elif is_float(to) and not is_float(source):
        values = values.astype({"f64": np.float64, "f16": np.float16}.get(to, np.float32))
    if "sat" in op.parts and is_float(to):
        values = np.clip(np.where(np.isnan(values), 0, values), 0, 1).astype(values.dtype)
    if "relu" in op.parts:
        values = np.maximum(values, 0)
    threads.write(op.operands[0], values, to, lanes)


def _pack(threads: Threads, op: Instruction, to: str, lanes: np.ndarray):
    """Two float32 to a pair; the first is its upper half."""
    values = [threads.read(operand, "f32", lanes) for operand in op.operands[1:3]]
    if "relu" in op.parts:
        values = [np.maximum(v, 0) for v in values]
    upper, lower = (untyped(v, PACKED[to]).astype(np.uint32) for v in values)
    threads.write(op.operands[0], upper << np.uint32(16) | lower, "b32", lanes)


def _saturated(whole: np.ndarray, to: str) -> np.ndarray:
    """Whole floats as integers; those out of range become its ends, NaN 0."""
    size = width(to)
    signed = to[0] == "s"
    low, high = (-(1 << size - 1), (1 << size - 1) - 1) if signed else (0, (1 << size) - 1)
    integers = [0 if np.isnan(x) else low if x <= low else high if x >= high else int(x) for x in whole]
    return np.array(integers, object).astype((SIGNED if signed else UNSIGNED)[size])


OPERATIONS = {"cvt": convert}
