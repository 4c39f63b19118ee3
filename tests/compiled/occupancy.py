"""How much of a multiprocessor a kernel can fill, in the arithmetic of the vendors.

NVIDIA: cuda_occupancy.h, with the limits of the CUDA programming guide for compute capability 8.0, 9.0 and 10.0. AMD:
the limits of LLVM's AMDGPUBaseInfo for gfx942, but for scalar registers, which never bind there.
"""

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """Registers are of 32 bits; each quarter of it runs a quarter of the warps from registers of its own.

    register_unit: how many registers a warp is given at once; reserved_bytes: of shared memory, for each block.
    """

    warp: int
    warps: int
    blocks: int
    registers: int
    register_unit: int
    shared_bytes: int
    shared_unit: int
    reserved_bytes: int


QUARTERS = 4
_NVIDIA = {"warp": 32, "warps": 64, "blocks": 32, "registers": 65536, "register_unit": 256, "shared_unit": 128}
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(**_NVIDIA, shared_bytes=164 * 1024, reserved_bytes=1024),
    "sm_90": Multiprocessor(**_NVIDIA, shared_bytes=228 * 1024, reserved_bytes=1024),
    "sm_100": Multiprocessor(**_NVIDIA, shared_bytes=228 * 1024, reserved_bytes=1024),
    # 512 registers a lane in each of four SIMDs, given eight at a time; one barrier for each block of several warps
    "gfx942": Multiprocessor(
        warp=64,
        warps=32,
        blocks=16,
        registers=4 * 512 * 64,
        register_unit=8 * 64,
        shared_bytes=64 * 1024,
        shared_unit=512,
        reserved_bytes=0,
    ),  # fmt: skip
}


def resident_blocks(target: str, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks of a kernel fit at once; registers: of a thread, shared_bytes: of a block."""
    chip = MULTIPROCESSORS[target]
    warps = -(-threads // chip.warp)
    of_a_warp = _round_up(max(registers, 1) * chip.warp, chip.register_unit)
    by_registers = chip.registers // QUARTERS // of_a_warp * QUARTERS // warps
    shared = _round_up(shared_bytes + chip.reserved_bytes, chip.shared_unit)
    by_shared = chip.shared_bytes // shared if shared else chip.warps
    barriers = chip.warps if target.startswith("gfx") and warps == 1 else chip.blocks
    return min(barriers, chip.warps // warps, by_registers, by_shared)


def occupancy(target: str, threads: int, registers: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that fit at once, 0 to 1."""
    chip = MULTIPROCESSORS[target]
    return resident_blocks(target, threads, registers, shared_bytes) * -(-threads // chip.warp) / chip.warps


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
