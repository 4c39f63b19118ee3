"""Moves, loads, stores and atomics."""

import numpy as np

from ..faults import Fault
from ..parser import Instruction
from ..threads import WARP, Threads, vector
from ..values import UNSIGNED, typed, untyped, width

ORDERED = {"volatile", "acquire", "relaxed"}
ATOMIC = {
    "add": lambda old, x, compared: old + x,
    "min": lambda old, x, compared: np.minimum(old, x),
    "max": lambda old, x, compared: np.maximum(old, x),
    "and": lambda old, x, compared: old & x,
    "or": lambda old, x, compared: old | x,
    "xor": lambda old, x, compared: old ^ x,
    "exch": lambda old, x, compared: x,
    "cas": lambda old, x, compared: np.where(old == compared, x, old),
    "inc": lambda old, x, compared: np.where(old >= x, old * 0, old + old.dtype.type(1)),
    "dec": lambda old, x, compared: np.where((old == 0) | (old > x), x, old - old.dtype.type(1)),
}


def move(threads: Threads, op: Instruction, lanes: np.ndarray):
    """A value, or one taken apart or put together: mov.b64 {low, high}, value."""
    to, source = op.operands
    size = width(op.type)
    whole = UNSIGNED.get(size)
    if to.startswith("{"):
        parts = vector(to)
        bits, value = size // len(parts), threads.read(source, f"b{size}", lanes)
        for k, register in enumerate(parts):
            threads.write(register, (value >> whole(bits * k)).astype(UNSIGNED[bits]), f"b{bits}", lanes)
    elif source.startswith("{"):
        parts = vector(source)
        bits, value = size // len(parts), np.zeros(len(lanes), whole)
        for k, operand in enumerate(parts):
            value |= threads.read(operand, f"b{bits}", lanes).astype(whole) << whole(bits * k)
        threads.write(to, value, f"b{size}", lanes)
    else:
        threads.write(to, threads.read(source, op.type, lanes), op.type, lanes)


def load(threads: Threads, op: Instruction, lanes: np.ndarray):
    registers, bits = vector(op.operands[0]), UNSIGNED[width(op.type)]
    each = width(op.type) // 8
    stored = threads.parameter(op.operands[1], each * len(registers))
    if stored is not None:
        for register, value in zip(registers, stored.view(bits), strict=True):
            threads.write(register, typed(np.full(len(lanes), value, bits), op.type), op.type, lanes)
        return
    addresses = threads.address(op.operands[1], lanes)
    ordered = op.space == "global" and not ORDERED.isdisjoint(op.parts)
    memory, offsets = threads.access(op, addresses, each * len(registers), lanes, writes=False, ordered=ordered)
    for k, register in enumerate(registers):
        threads.write(register, typed(memory.view(bits)[offsets // each + k], op.type), op.type, lanes)


def store(threads: Threads, op: Instruction, lanes: np.ndarray):
    operands, bits = vector(op.operands[1]), UNSIGNED[width(op.type)]
    each = width(op.type) // 8
    addresses = threads.address(op.operands[0], lanes)
    memory, offsets = threads.access(op, addresses, each * len(operands), lanes, writes=True)
    for k, operand in enumerate(operands):
        memory.view(bits)[offsets // each + k] = untyped(threads.read(operand, op.type, lanes), op.type)


def _atomic(threads: Threads, op: Instruction, addresses, operands: list[str], lanes) -> np.ndarray:
    """What was there before, thread by thread. operands: the value; for cas what to compare with, and the value."""
    function = next(ATOMIC[part] for part in op.parts[1:] if part in ATOMIC)
    values = [threads.read(operand, op.type, lanes) for operand in operands]
    each, bits = width(op.type) // 8, UNSIGNED[width(op.type)]
    memory, offsets = threads.access(op, addresses, each, lanes, writes=True, ordered=True)
    threads.counters.atomics += len(lanes)
    memory, before = memory.view(bits), np.empty(len(lanes), bits)
    for k, at in enumerate(offsets // each):
        before[k] = memory[at]
        old = typed(memory[at : at + 1].copy(), op.type)
        memory[at] = untyped(function(old, values[-1][k : k + 1], values[0][k : k + 1]), op.type)[0]
    return typed(before, op.type)


def atomic(threads: Threads, op: Instruction, lanes: np.ndarray):
    before = _atomic(threads, op, threads.address(op.operands[1], lanes), op.operands[2:], lanes)
    threads.write(op.operands[0], before, op.type, lanes)


def reduce_in_memory(threads: Threads, op: Instruction, lanes: np.ndarray):
    if "async" in op.parts:
        raise Fault("red.async is not modelled")
    _atomic(threads, op, threads.address(op.operands[0], lanes), op.operands[1:], lanes)


def copy_to_shared(threads: Threads, op: Instruction, lanes: np.ndarray):
    """cp.async, done at once: its commit and wait do nothing. Bytes past the given size are zeros."""
    if len(op.operands) < 2:
        return
    if "bulk" in op.parts:
        raise Fault("cp.async.bulk is not modelled")
    size = int(op.operands[2], 0)
    wanted = threads.read(op.operands[3], "u32", lanes) if len(op.operands) > 3 else np.full(len(lanes), size)
    taken = wanted > 0
    to, at = threads.access(op, threads.address(op.operands[0], lanes), size, lanes, writes=True, space="shared")
    addresses = threads.address(op.operands[1], lanes)[taken]
    source, start = threads.access(op, addresses, size, lanes[taken], writes=False, space="global")
    for byte in range(size):
        to[at + byte] = 0
        to[at[taken] + byte] = np.where(byte < wanted[taken], source[start + byte], 0)


def load_matrix(threads: Threads, op: Instruction, lanes: np.ndarray):
    """ldmatrix.m8n8.xN.b16, with which Triton also moves small tensors between layouts.

    Lane 8 j + r of a warp holds the address of row r of matrix j, 16 bytes; lane i receives word i % 4 of row i // 4.
    """
    if "trans" in op.parts or len(lanes) % WARP:
        raise Fault("ldmatrix with .trans or of a part of a warp is not modelled")
    rows, lane = threads.address(op.operands[1], lanes).reshape(-1, WARP), np.arange(WARP)
    for matrix, register in enumerate(vector(op.operands[0])):
        words = (rows[:, 8 * matrix + lane // 4] + 4 * (lane % 4)).reshape(-1)
        memory, offsets = threads.access(op, words, 4, lanes, writes=False)
        threads.write(register, memory.view(np.uint32)[offsets // 4], "b32", lanes)


OPERATIONS = {
    "mov": move,
    "cvta": move,
    "ld": load,
    "st": store,
    "atom": atomic,
    "red": reduce_in_memory,
    "cp": copy_to_shared,
    "ldmatrix": load_matrix,
}
