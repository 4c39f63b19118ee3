"""The threads that run at once: their registers, operands and accesses to memory."""

import re

import numpy as np

from .counters import Counters
from .faults import Fault
from .memory import GlobalRaces, LocalMemory, Memory, SharedMemory
from .parser import Instruction, Program
from .values import FLOAT, SIGNED, UNSIGNED, typed, untyped, width

WARP = 32
POISON = (1 << 64) - 1  # in registers that nobody wrote: NaN


class Launch:
    """What all CTAs of a launch share. symbols: the address of each symbol in its state space."""

    def __init__(self, program: Program, grid, block, parameters: bytes, symbols: dict[str, int], memory: Memory):
        self.program, self.grid, self.block, self.symbols, self.memory = program, grid, block, symbols, memory
        self.parameters = np.frombuffer(parameters + bytes(-len(parameters) % 8), np.uint8)
        self.counters = Counters(len(memory.bytes))
        self.races = GlobalRaces(len(memory.bytes), program.smallest_access("global"))


class Threads:
    """Whole CTAs, each padded to whole warps. "lanes" below: the numbers of the threads that execute an instruction."""

    def __init__(self, launch: Launch, ctas: np.ndarray, shared_bytes: int):
        threads = int(np.prod(launch.block))
        padded = -(-threads // WARP) * WARP
        self.launch, self.program, self.counters = launch, launch.program, launch.counters
        self.count = len(ctas) * padded
        self.cta = np.repeat(ctas, padded)
        self.cta_here = np.arange(self.count) // padded  # its number among those that run at once
        self.exists = np.arange(self.count) % padded < threads
        self.exited = ~self.exists
        self.carry = np.zeros(self.count, bool)
        self.local = LocalMemory(self.count, self.program.local_bytes)
        self.shared = SharedMemory(len(ctas), shared_bytes, self.program.smallest_access("shared"))
        self._registers: dict[str, np.ndarray] = {}
        self._special = self._special_registers(np.arange(self.count) % padded)

    def _special_registers(self, thread: np.ndarray) -> dict[str, np.ndarray]:
        (bx, by, _), (gx, gy, _) = self.launch.block, self.launch.grid
        values = {
            "%tid.x": thread % bx,
            "%tid.y": thread // bx % by,
            "%tid.z": thread // (bx * by),
            "%ctaid.x": self.cta % gx,
            "%ctaid.y": self.cta // gx % gy,
            "%ctaid.z": self.cta // (gx * gy),
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
        }
        for axis, threads, ctas in zip("xyz", self.launch.block, self.launch.grid, strict=True):
            values[f"%ntid.{axis}"] = np.full(self.count, threads)
            values[f"%nctaid.{axis}"] = np.full(self.count, ctas)
        return {name: value.astype(np.uint32) for name, value in values.items()}

    # operands

    def read(self, operand: str, ptx_type: str, lanes: np.ndarray) -> np.ndarray:
        """An operand's values: a register, a special register, a number or an address."""
        if operand in self._registers:
            register = self._registers[operand]
            return typed(register if len(lanes) == self.count else register[lanes], ptx_type)
        size = width(ptx_type)
        if operand in self._special:
            return typed(self._special[operand][lanes].astype(UNSIGNED[size]), ptx_type)
        if operand in self.program.registers or operand == "_":
            if operand != "_":
                self.counters.warnings.add(f"read of a register that was never written: {operand}")
            bits = max(self.program.registers.get(operand, 32), 8)
            return typed(np.full(len(lanes), POISON, np.uint64).astype(UNSIGNED[bits]), ptx_type)
        if operand in self.launch.symbols:
            return np.full(len(lanes), self.launch.symbols[operand], UNSIGNED[size])
        if operand == "WARP_SZ":
            return np.full(len(lanes), WARP, UNSIGNED[size])
        if operand in ("%clock", "%clock64", "%globaltimer"):
            return np.zeros(len(lanes), UNSIGNED[size])
        return _number(operand, ptx_type, len(lanes))

    def write(self, register: str, values: np.ndarray, ptx_type: str, lanes: np.ndarray):
        """Bits of a value narrower than the register are extended, by its sign where it has one."""
        if register == "_":
            return
        size, bits = self.program.registers[register], untyped(values, ptx_type)
        if size == 1:
            bits = bits.astype(bool)
        elif width(ptx_type) < size and ptx_type[0] == "s":
            bits = bits.astype(SIGNED[width(ptx_type)]).astype(SIGNED[size]).view(UNSIGNED[size])
        elif width(ptx_type) != size:
            bits = bits.astype(UNSIGNED[size])
        if len(lanes) == self.count:
            self._registers[register] = np.array(bits)
            return
        if register not in self._registers:
            poison = np.full(self.count, POISON, np.uint64)
            self._registers[register] = poison.astype(bool if size == 1 else UNSIGNED[size])
        self._registers[register][lanes] = bits

    def predicate(self, operand: str, lanes: np.ndarray) -> np.ndarray:
        values = self.read(operand.lstrip("!"), "pred", lanes)
        return ~values if operand.startswith("!") else values

    # memory

    def address(self, operand: str, lanes: np.ndarray) -> np.ndarray:
        """The value of [register + number] or [symbol + number]."""
        base, offset = self._address_parts(operand)
        if base in self.launch.symbols:
            return np.full(len(lanes), self.launch.symbols[base] + offset, np.int64)
        return self.read(base, f"u{self.program.registers[base]}", lanes).astype(np.int64) + offset

    def parameter(self, operand: str, size: int) -> np.ndarray | None:
        """The bytes of [parameter + number]; None where the operand is another address."""
        base, offset = self._address_parts(operand)
        if base not in self.program.parameters:
            return None
        start = self.program.parameters[base].offset + offset
        return self.launch.parameters[start : start + size]

    def _address_parts(self, operand: str) -> tuple[str, int]:
        base, offset = re.fullmatch(r"\[\s*([%\w$#.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand).groups()
        return base, int(offset or "0", 0)

    def access(self, op: Instruction, addresses, size: int, lanes, *, writes: bool, ordered: bool = False, space=None):
        """(bytes of the space, where the accesses lie in it), checked and counted; ordered ones race with nobody."""
        space = space or op.space
        if space == "shared":
            cta = self.cta_here[lanes]
            offsets = self.shared.offsets(addresses, size, cta)
            if not ordered:
                self.shared.access(offsets, size, lanes >> 5, cta, writes)
            self.counters.shared_access(addresses, size, lanes)
            return self.shared.bytes, offsets
        if space == "param":
            if ((addresses < 0) | (addresses + size > len(self.launch.parameters))).any():
                raise Fault("out-of-bounds access of the parameters")
            return self.launch.parameters, addresses
        if space == "local":
            return self.local.bytes, self.local.offsets(addresses, size, lanes)
        if space != "global":
            raise Fault(f"{space} memory is not modelled")
        offsets, outside = self.launch.memory.offsets(addresses, size)
        if outside.any():
            lane = lanes[outside.argmax()]
            where = f"CTA {self.cta[lane]}, thread {int(self._special['%tid.x'][lane])}"
            raise Fault(f"out-of-bounds {'write' if writes else 'read'} of {size} bytes of global memory by {where}")
        self.counters.global_access(offsets, size, lanes, writes)
        if not ordered:
            self.launch.races.access(offsets, size, self.cta[lanes].astype(np.int32), writes)
        return self.launch.memory.bytes, offsets


def vector(operand: str) -> list[str]:
    """The registers of {a, b, ...}, or the one."""
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def _number(text: str, ptx_type: str, count: int) -> np.ndarray:
    size = width(ptx_type)
    for prefix, digits, bits in (("0[fF]", 8, 32), ("0[dD]", 16, 64)):
        if re.fullmatch(prefix + f"[0-9a-fA-F]{{{digits}}}", text):
            value = UNSIGNED[bits](int(text[2:], 16))
            same_size = typed(np.full(count, value), ptx_type) if size == bits else None
            return np.full(count, value.view(FLOAT[bits])).astype(FLOAT[size]) if same_size is None else same_size
    if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        raise Fault(f"the operand {text} is not modelled")
    value = int(text.rstrip("U"), 0)
    if ptx_type == "pred":
        return np.full(count, bool(value))
    return typed(np.full(count, value & ((1 << size) - 1), UNSIGNED[size]), ptx_type)
