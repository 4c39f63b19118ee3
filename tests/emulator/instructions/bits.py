"""Shifts, fields of bits, permuted bytes, counts of bits."""

import numpy as np

from ..parser import Instruction
from ..threads import Threads
from ..values import UNSIGNED, width


def shift_left(threads: Threads, op: Instruction, lanes: np.ndarray):
    size, ptx_type = width(op.type), f"u{width(op.type)}"
    a, by = threads.read(op.operands[1], ptx_type, lanes), threads.read(op.operands[2], "u32", lanes)
    shifted = a << np.minimum(by, size - 1).astype(a.dtype)
    threads.write(op.operands[0], np.where(by >= size, a.dtype.type(0), shifted), ptx_type, lanes)


def shift_right(threads: Threads, op: Instruction, lanes: np.ndarray):
    """By the size and more: all sign bits of a signed number, 0 of another."""
    size = width(op.type)
    a, by = threads.read(op.operands[1], op.type, lanes), threads.read(op.operands[2], "u32", lanes)
    shifted = a >> np.minimum(by, size - 1).astype(a.dtype)
    if op.type[0] != "s":
        shifted = np.where(by >= size, a.dtype.type(0), shifted)
    threads.write(op.operands[0], shifted, op.type, lanes)


def funnel_shift(threads: Threads, op: Instruction, lanes: np.ndarray):
    low, high, by = (threads.read(o, "u32", lanes).astype(np.uint64) for o in op.operands[1:4])
    by = np.minimum(by, 32) if "clamp" in op.parts else by & np.uint64(31)
    both = high << np.uint64(32) | low
    shifted = (both << by) >> np.uint64(32) if op.parts[1] == "l" else both >> by
    threads.write(op.operands[0], shifted.astype(np.uint32), "u32", lanes)


def extract_field(threads: Threads, op: Instruction, lanes: np.ndarray):
    size, signed = width(op.type), op.type[0] == "s"
    a = threads.read(op.operands[1], op.type, lanes)
    a = a.astype(np.int64) if signed else a.astype(np.uint64).view(np.int64)
    start, length = ((threads.read(o, "u32", lanes) & 255).astype(np.int64) for o in op.operands[2:4])
    field = (a >> start) & ((1 << length) - 1)
    if signed:
        negative = (length > 0) & (field >> (length - 1) & 1 == 1)
        field = np.where(negative, field - (1 << length), field)
    threads.write(op.operands[0], field.astype(UNSIGNED[size]), f"u{size}", lanes)


def insert_field(threads: Threads, op: Instruction, lanes: np.ndarray):
    size = width(op.type)
    field, into = (threads.read(o, f"u{size}", lanes).astype(np.uint64) for o in op.operands[1:3])
    start, length = (threads.read(o, "u32", lanes).astype(np.uint64) & np.uint64(255) for o in op.operands[3:5])
    mask = ((np.uint64(1) << length) - np.uint64(1)) << start
    inserted = (into & ~mask) | ((field << start) & mask)
    threads.write(op.operands[0], inserted.astype(UNSIGNED[size]), f"u{size}", lanes)


def permute_bytes(threads: Threads, op: Instruction, lanes: np.ndarray):
    """Each nibble of the selector names a byte of the pair; its highest bit asks for that byte's sign instead."""
    low, high, selector = (threads.read(o, "u32", lanes).astype(np.uint64) for o in op.operands[1:4])
    both = high << np.uint64(32) | low
    result = np.zeros(len(lanes), np.uint64)
    for position in range(4):
        nibble = (selector >> np.uint64(4 * position)) & np.uint64(15)
        byte = (both >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * position)
    threads.write(op.operands[0], result.astype(np.uint32), "u32", lanes)


def logic_of_three(threads: Threads, op: Instruction, lanes: np.ndarray):
    a, b, c = (threads.read(o, "u32", lanes) for o in op.operands[1:4])
    table, result = int(op.operands[4], 0), np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    threads.write(op.operands[0], result, "u32", lanes)


def counted(count):
    """count(a number, its size in bits)"""

    def operation(threads, op, lanes):
        size = width(op.type)
        a = threads.read(op.operands[1], f"u{size}", lanes)
        threads.write(op.operands[0], np.array([count(int(x), size) for x in a], np.uint32), "u32", lanes)

    return operation


OPERATIONS = {
    "shl": shift_left,
    "shr": shift_right,
    "shf": funnel_shift,
    "bfe": extract_field,
    "bfi": insert_field,
    "prmt": permute_bytes,
    "lop3": logic_of_three,
    "popc": counted(lambda x, size: x.bit_count()),
    "clz": counted(lambda x, size: size - x.bit_length()),
}
