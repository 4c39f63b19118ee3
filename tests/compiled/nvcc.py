"""The CUDA sources as nvcc compiles them: what ptxas says of each kernel, and its PTX."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NVCC = shutil.which("nvcc")
TARGETS = ("sm_80", "sm_90", "sm_100")
MANGLED = {torch.float16: "6__half", torch.bfloat16: "13__nv_bfloat16", torch.float32: "f", torch.float64: "d"}
WIDE = r"\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]16|b128)"


class Usage(NamedTuple):
    """Of one thread: registers, and bytes of stack and of spills."""

    registers: int
    stack: int
    spills: int


@cache
def compiled(stem: str, kind: str, target: str) -> tuple[str, str]:
    """What ptxas says of csrc/ops/<stem>.cu, and the PTX where kind is "ptx"; nothing where it is "cubin"."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / f"{stem}.{kind}"
        command = [NVCC, f"--{kind}", f"-arch={target}", "-O3", "-Xptxas=-v", f"-I{CSRC}", CSRC / "ops" / f"{stem}.cu"]
        done = subprocess.run([*command, "-o", out], capture_output=True, text=True, check=True)
        return done.stderr, out.read_text() if kind == "ptx" else ""


def usage(stem: str, target: str) -> dict[str, Usage]:
    """By the mangled name of each kernel."""
    said = compiled(stem, "cubin", target)[0]
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        said,
        flags=re.DOTALL,
    )
    return {name: Usage(int(used), int(stack), int(out) + int(back)) for name, stack, out, back, used in found}


def wide_accesses(ptx: str, entry: str) -> tuple[int, int]:
    """16-byte loads and stores of global memory in a kernel."""
    body = body_of(ptx, entry)
    return tuple(len(re.findall(rf"{access}\.global[\w.]*{WIDE}", body)) for access in ("ld", "st"))


def body_of(ptx: str, entry: str) -> str:
    start = ptx.index(f".entry {entry}(")
    return ptx[start : ptx.find(".entry", start + 1)]


def entries(ptx: str, pattern: str) -> list[str]:
    """The mangled names of kernels in which the pattern is found."""
    return [name for name in re.findall(r"\.entry (\w+)\(", ptx) if re.search(pattern, name)]
