"""Global memory, the shared memory of CTAs and the local memory of threads: bounds, alignment, races."""

import numpy as np

from .faults import Fault

NOBODY, SEVERAL = -1, -2


class Memory:
    """Global memory of `capacity` bytes. Between buffers lie guards, so that an access out of bounds is found."""

    BASE = 0x7F0000000000
    GUARD = 512
    NEVER_WRITTEN = 0xCB

    def __init__(self, capacity: int = 1 << 28):
        self.bytes = np.full(capacity, self.NEVER_WRITTEN, np.uint8)
        self.allocated = np.zeros(capacity, bool)
        self._top = self.GUARD

    def put(self, array: np.ndarray) -> "Pointer":
        """A copy of an array, at an address divisible by 512."""
        array = np.ascontiguousarray(array)
        start, end = self._top, self._top + array.nbytes
        if end + self.GUARD > len(self.bytes):
            raise ValueError(f"no room for {array.nbytes} bytes in a memory of {len(self.bytes)}: make a larger Memory")
        self.bytes[start:end] = array.reshape(-1).view(np.uint8)
        self.allocated[start:end] = True
        self._top = (end + self.GUARD + 511) // 512 * 512
        return Pointer(self, start, array.dtype, array.shape, array.nbytes)

    def offsets(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(where in `bytes` accesses of `size` bytes lie, which of them are in no buffer)."""
        offsets = addresses - self.BASE
        if (offsets % size).any():
            raise Fault(f"misaligned {size}-byte access of global memory")
        outside = (offsets < 0) | (offsets + size > len(self.bytes))
        inside = np.where(outside, 0, offsets)
        return offsets, outside | ~self.allocated[inside] | ~self.allocated[inside + size - 1]


class Pointer:
    """A buffer of a Memory; `address` is what a kernel is given."""

    def __init__(self, memory: Memory, start: int, dtype: np.dtype, shape: tuple[int, ...], size: int):
        self._memory, self._start, self._dtype, self._shape, self._size = memory, start, dtype, shape, size

    @property
    def address(self) -> int:
        return Memory.BASE + self._start

    def get(self) -> np.ndarray:
        """A copy of what is there now."""
        stored = self._memory.bytes[self._start : self._start + self._size]
        return stored.view(self._dtype).reshape(self._shape).copy()


class GlobalRaces:
    """Who read and wrote each unit of `unit` bytes in a launch: two CTAs may share one only if neither writes it."""

    def __init__(self, memory_bytes: int, unit: int):
        self._unit = unit
        self._writer = np.full(memory_bytes // unit, NOBODY, np.int32)
        self._reader = np.full(memory_bytes // unit, NOBODY, np.int32)

    def access(self, offsets: np.ndarray, size: int, cta: np.ndarray, writes: bool):
        for byte in range(0, size, self._unit):
            at = (offsets + byte) // self._unit
            writer, reader = self._writer[at], self._reader[at]
            if ((writer != NOBODY) & (writer != cta)).any():
                raise Fault("race in global memory: another CTA wrote this address")
            if not writes:
                self._reader[at] = np.where((reader == NOBODY) | (reader == cta), cta, SEVERAL)
                self._reader[at[self._reader[at] != cta]] = SEVERAL  # at once: the last one's number stood
                continue
            if ((reader != NOBODY) & (reader != cta)).any():
                raise Fault("race in global memory: another CTA read this address")
            self._writer[at] = cta
            if (self._writer[at] != cta).any():
                raise Fault("race in global memory: two CTAs write this address")


class LocalMemory:
    """The memory of each thread alone, one behind the other; all bits set until written."""

    def __init__(self, threads: int, each: int):
        self._each = each
        self._stride = (each + 15) // 16 * 16
        self.bytes = np.full(threads * self._stride, 0xFF, np.uint8)

    def offsets(self, addresses: np.ndarray, size: int, thread: np.ndarray) -> np.ndarray:
        """Where in `bytes` accesses of `size` bytes lie."""
        if (addresses % size).any():
            raise Fault(f"misaligned {size}-byte access of local memory")
        if ((addresses < 0) | (addresses + size > self._each)).any():
            raise Fault(f"out-of-bounds access of local memory: {int(addresses.max())} + {size} of {self._each} bytes")
        return addresses + thread * self._stride


class SharedMemory:
    """The shared memory of the CTAs that run at once, one behind the other; all bits set until written: NaN.

    Between two barriers of a CTA two warps may share a unit only if neither writes it.
    """

    def __init__(self, ctas: int, used: int, unit: int):
        self.used = used
        self._stride = max((used + 15) // 16 * 16, 16)
        self.bytes = np.full(ctas * self._stride, 0xFF, np.uint8)
        self.epoch = np.zeros(ctas, np.int32)  # barriers passed
        self._unit = unit
        units = len(self.bytes) // unit
        self._writer, self._written = np.full(units, NOBODY, np.int64), np.full(units, NOBODY, np.int32)
        self._reader, self._read = np.full(units, NOBODY, np.int64), np.full(units, NOBODY, np.int32)

    def offsets(self, addresses: np.ndarray, size: int, cta: np.ndarray) -> np.ndarray:
        """Where in `bytes` accesses of `size` bytes lie; cta: its number among those that run at once."""
        if (addresses % size).any():
            raise Fault(f"misaligned {size}-byte access of shared memory")
        if ((addresses < 0) | (addresses + size > self.used)).any():
            raise Fault(f"out-of-bounds access of shared memory: {int(addresses.max())} + {size} of {self.used} bytes")
        return addresses + cta * self._stride

    def access(self, offsets: np.ndarray, size: int, warp: np.ndarray, cta: np.ndarray, writes: bool):
        now = self.epoch[cta]
        for byte in range(0, size, self._unit):
            at = (offsets + byte) // self._unit
            if ((self._written[at] == now) & (self._writer[at] != warp)).any():
                raise Fault("race in shared memory: another warp wrote this address since the last barrier")
            others_read = (self._read[at] == now) & (self._reader[at] != warp)
            if not writes:
                self._reader[at] = np.where(others_read, SEVERAL, warp)
                self._reader[at[self._reader[at] != warp]] = SEVERAL
                self._read[at] = now
                continue
            if others_read.any():
                raise Fault("race in shared memory: another warp read this address since the last barrier")
            self._writer[at], self._written[at] = warp, now
            if (self._writer[at] != warp).any():
                raise Fault("race in shared memory: two warps write this address")
