"""The CUDA kernels of csrc/, compiled by nvcc for a named target without a GPU."""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from resources import Resources, access_widths, count_wide

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NVCC = shutil.which("nvcc")
TARGETS = ("sm_80", "sm_90", "sm_100")

# Every file of csrc/ with kernels; a new one is added here, then `python tests/compiled/budgets.py` writes its budget.
SOURCES = ("ops/activation.cu", "ops/gate.cu", "ops/interpolate.cu", "ops/normalize.cu")


class CudaKernel(NamedTuple):
    """name: as in the source, with its template arguments; entry: in the PTX; threads: of a block, by launch bounds."""

    name: str
    entry: str
    threads: int
    needs: Resources


def sources_with_kernels() -> set[str]:
    return {str(f.relative_to(CSRC)) for f in CSRC.rglob("*.cu") if "__global__" in f.read_text()}


@cache
def ptx(source: str, target: str) -> str:
    return _compile(source, target, "ptx")[1]


@cache
def kernels(source: str, target: str) -> list[CudaKernel]:
    """Every kernel of a file, and what ptxas says that it needs."""
    report, _ = _compile(source, target, "cubin")
    return [_kernel(name, entry, report, ptx(source, target)) for name, entry in entries(source, target).items()]


@cache
def entries(source: str, target: str) -> dict[str, str]:
    """The entry of every kernel of a file, by its name with template arguments."""
    return {source_name(entry): entry for entry in re.findall(r"\.entry (\w+)\(", ptx(source, target))}


def find(source: str, target: str, name: str) -> CudaKernel:
    """The kernel of that name, template arguments included."""
    found = {kernel.name: kernel for kernel in kernels(source, target)}
    assert name in found, f"no kernel {name} in {source}; it has {', '.join(found)}"
    return found[name]


def _compile(source: str, target: str, kind: str) -> tuple[str, str]:
    """(what ptxas says, the text of the file); kind is "ptx" or "cubin", of which there is no text."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out.{kind}"
        command = [NVCC, f"--{kind}", f"-arch={target}", "-O3", "-Xptxas=-v", f"-I{CSRC}", CSRC / source, "-o", out]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr, out.read_text() if kind == "ptx" else ""


def _kernel(name: str, entry: str, report: str, module: str) -> CudaKernel:
    said = report[report.index(f"Compiling entry function '{entry}'") :]
    frame, stores, loads = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", said).groups()
    used = said[said.index("Used ") :].splitlines()[0]
    shared = re.search(r"(\d+) bytes smem", used)
    body = module[module.index(f".entry {entry}(") :]
    body = body[: body.index("\n}")]
    threads = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", body)
    assert threads, f"{entry} has no __launch_bounds__, from which its threads are known"
    x, y, z = (int(n or 1) for n in threads.groups())
    needs = Resources(
        registers=int(re.search(r"Used (\d+) registers", used)[1]),
        local_bytes=int(frame),
        spills=(int(stores) + int(loads)) // 4,
        shared_bytes=int(shared[1]) if shared else 0,
        **access_widths(body),
        **count_wide(body),
    )
    return CudaKernel(name, entry, x * y * z, needs)


def source_name(entry: str) -> str:
    """interpolate<float, float, 4> from its mangled name; namespaces and casts of template arguments are left out."""
    whole = subprocess.run(["c++filt", entry], capture_output=True, text=True, check=True).stdout.strip()
    whole = whole.replace("(anonymous namespace)::", "").replace("gpfast::", "").removeprefix("void ")
    whole = re.sub(r"\([\w:* ]+\)(?=-?\d)", "", whole)
    depth = 0
    for k, character in enumerate(whole):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return whole[:k]
    return whole
