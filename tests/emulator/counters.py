"""What a launch did, counted."""

from dataclasses import dataclass, field

import numpy as np

SECTOR = 32  # bytes, the unit of DRAM and of the caches' traffic
BANKS = 32  # of shared memory, 4 bytes wide
_WARP_SHIFT = 40  # a warp's number above any address, to count pairs


@dataclass
class Counters:
    """Of one launch over all its threads.

    instructions: threads that executed it, by opcode; a request is one warp's access; sectors are counted a request, so
    what two requests share counts twice, and DRAM bytes a launch: each sector once. shared_wavefronts: one a request
    where no two lanes meet in a bank. warnings: what is odd but allowed.
    """

    memory_bytes: int
    instructions: dict[str, int] = field(default_factory=dict)
    thread_instructions: int = 0
    warp_instructions: int = 0
    load_requests: int = 0
    load_sectors: int = 0
    load_bytes: int = 0
    store_requests: int = 0
    store_sectors: int = 0
    store_bytes: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_bytes: int = 0
    atomics: int = 0
    warnings: set[str] = field(default_factory=set)

    def __post_init__(self):
        self._read = np.zeros(self.memory_bytes // SECTOR, bool)
        self._written = np.zeros(self.memory_bytes // SECTOR, bool)

    @property
    def dram_read(self) -> int:
        return int(self._read.sum()) * SECTOR

    @property
    def dram_write(self) -> int:
        return int(self._written.sum()) * SECTOR

    @property
    def dram_bytes(self) -> int:
        return self.dram_read + self.dram_write

    @property
    def sector_bytes(self) -> int:
        return SECTOR * (self.load_sectors + self.store_sectors)

    def instruction(self, opcode: str, lanes: np.ndarray, issued: np.ndarray):
        """lanes: the threads that execute it; issued: those of the warps that meet it."""
        self.instructions[opcode] = self.instructions.get(opcode, 0) + len(lanes)
        self.thread_instructions += len(lanes)
        self.warp_instructions += len(np.unique(issued >> 5))

    def global_access(self, offsets: np.ndarray, size: int, lanes: np.ndarray, writes: bool):
        """Accesses are aligned, so one lies in one sector."""
        warp, sector = lanes >> 5, offsets // SECTOR
        requests, sectors = len(np.unique(warp)), len(np.unique(warp << _WARP_SHIFT | sector))
        if writes:
            self.store_requests += requests
            self.store_sectors += sectors
            self.store_bytes += size * len(lanes)
            self._written[sector] = True
        else:
            self.load_requests += requests
            self.load_sectors += sectors
            self.load_bytes += size * len(lanes)
            self._read[sector] = True

    def shared_access(self, addresses: np.ndarray, size: int, lanes: np.ndarray):
        """Lanes that name one word share it; the wavefronts of a request are the words of its busiest bank."""
        warp = lanes >> 5
        self.shared_requests += len(np.unique(warp))
        words = np.unique(warp << _WARP_SHIFT | addresses // 4)
        bank_of_warp = (words >> _WARP_SHIFT) * BANKS + words % BANKS
        banks, words_of_bank = np.unique(bank_of_warp, return_counts=True)
        first_of_warp = np.nonzero(np.diff(banks // BANKS, prepend=-1) > 0)[0]
        if len(first_of_warp):
            wavefronts = np.maximum.reduceat(words_of_bank, first_of_warp).sum()
            self.shared_wavefronts += int(wavefronts) * max(1, size // 4)
