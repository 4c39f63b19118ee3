"""What a compiled kernel needs of a GPU, read from its binary and its assembly."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.compiler import CompiledKernel

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# 16-byte accesses of global memory
WIDE_PTX = re.compile(r"\b(ld|st)\.global(?:\.\w+)*\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]16|b128)\b")
WIDE_AMD = re.compile(r"\b(?:global|buffer)_(load|store)_dwordx4\b")


class Resources(NamedTuple):
    """Of one thread: registers, bytes of local memory (stack and spills), spilled registers. Wide: how many."""

    registers: int
    local_bytes: int
    spills: int
    wide_loads: int
    wide_stores: int


def resources(kernel: CompiledKernel) -> Resources:
    """The resources of a kernel compiled for NVIDIA or AMD."""
    if kernel.hash not in _known:
        _known[kernel.hash] = _read(kernel)
    return _known[kernel.hash]


_known: dict[str, Resources] = {}


def _read(kernel: CompiledKernel) -> Resources:
    if "cubin" in kernel.asm:
        usage = _cubin_usage(kernel.asm["cubin"])
        registers, local_bytes = usage["REG"], usage["STACK"] + usage["LOCAL"]
        spills = local_bytes // 4  # nothing else of ours lives in local memory
        wide = WIDE_PTX.findall(kernel.asm["ptx"])
    else:
        text = kernel.asm["amdgcn"]
        registers = _amd_field(text, "vgpr_count")
        local_bytes = _amd_field(text, "private_segment_fixed_size")
        spills = _amd_field(text, "vgpr_spill_count") + _amd_field(text, "sgpr_spill_count")
        wide = WIDE_AMD.findall(text)
    loads = sum(access in ("ld", "load") for access in wide)
    return Resources(registers, local_bytes, spills, loads, len(wide) - loads)


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [NVIDIA_TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


def _amd_field(text: str, name: str) -> int:
    return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
