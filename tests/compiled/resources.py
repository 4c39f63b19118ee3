"""What a compiled kernel needs of a GPU, read from its binary and its assembly."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

# Accesses of global memory: PTX names how many values of what type, AMD's assembly a size.
PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.(?!v\d)[a-zA-Z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\b")
AMD_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(dwordx4|dwordx3|dwordx2|dword|u?short|[su]?byte)")
AMD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2}
WIDEST = 16


class Resources(NamedTuple):
    """Of one thread: registers, bytes of local memory (stack and spills), spilled registers; of a block: shared memory.

    load_bytes, store_bytes: the widest access of global memory; wide_loads, wide_stores: how many take 16 bytes.
    """

    registers: int
    local_bytes: int
    spills: int
    shared_bytes: int
    load_bytes: int
    store_bytes: int
    wide_loads: int
    wide_stores: int


def resources(kernel) -> Resources:
    """The resources of a kernel that Triton compiled for NVIDIA or AMD."""
    if kernel.hash not in _known:
        _known[kernel.hash] = _read(kernel)
    return _known[kernel.hash]


_known: dict[str, Resources] = {}


def accesses(assembly: str) -> list[tuple[bool, int]]:
    """(whether it loads, its bytes) of each access of global memory."""
    found = [(kind == "ld", int(many or 1) * int(bits) // 8) for kind, many, bits in PTX_ACCESS.findall(assembly)]
    return found or [(kind == "load", AMD_BYTES.get(size, 1)) for kind, size in AMD_ACCESS.findall(assembly)]


def access_widths(assembly: str) -> dict[str, int]:
    found = accesses(assembly)
    return {
        "load_bytes": max((size for loads, size in found if loads), default=0),
        "store_bytes": max((size for loads, size in found if not loads), default=0),
    }


def count_wide(assembly: str) -> dict[str, int]:
    wide = [loads for loads, size in accesses(assembly) if size >= WIDEST]
    return {"wide_loads": sum(wide), "wide_stores": len(wide) - sum(wide)}


def _read(kernel) -> Resources:
    shared = kernel.metadata.shared
    if "cubin" in kernel.asm:
        usage = _cubin_usage(kernel.asm["cubin"])
        registers, local_bytes = usage["REG"], usage["STACK"] + usage["LOCAL"]
        spills = local_bytes // 4  # nothing else of ours lives in local memory
        text = kernel.asm["ptx"]
    else:
        text = kernel.asm["amdgcn"]
        registers = _amd_field(text, "vgpr_count")
        local_bytes = _amd_field(text, "private_segment_fixed_size")
        spills = _amd_field(text, "vgpr_spill_count") + _amd_field(text, "sgpr_spill_count")
    return Resources(registers, local_bytes, spills, shared, **access_widths(text), **count_wide(text))


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


def _amd_field(text: str, name: str) -> int:
    return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
