"""CUDA sources run on the CPU: g++ compiles a .cu file with the headers of shim/, and its launchers are called here.

Threads run one at a time, in random order, each until it waits; shared memory is poisoned. With GPFAST_SIMT_SANITIZE=1
the kernels are compiled with AddressSanitizer and UBSan, which the process must have preloaded (see test_sanitized.py).
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gpfast import _extension

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CSRC = REPOSITORY / "csrc"
CACHE = REPOSITORY / "build" / "simt"
SHIM = HERE / "shim"
SEEDED = HERE / "seeded.cu"
# In the order of seeded.cu.
MISTAKES = (
    "none", "missing barrier", "missing second barrier", "divergent barrier", "skipped barrier", "wrong mask",
    "other mask", "exited lane", "stale lane", "one beyond", "one beyond shared", "misaligned",
)  # fmt: skip

SANITIZED = os.environ.get("GPFAST_SIMT_SANITIZE", "0") == "1"
FLAGS = "-std=c++20 -O1 -g1 -fPIC -shared -ffp-contract=off -fno-strict-aliasing -DGPFAST_SIMT -w".split()
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]  # in the order of gpfast::Dtype
ERRORS = {1: "cudaErrorInvalidValue", 9: "cudaErrorInvalidConfiguration"}
EVERY_BLOCK = (0, 2**63 - 1)


needs_extension = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


class SimtError(RuntimeError):
    """A kernel that did what no kernel may do, or a launch that a device would refuse."""


@cache
def cuda_headers() -> Path | None:
    """The folder with the headers of nvcc; Triton's are not all of them."""
    if shutil.which("nvcc") is None:
        return None
    # The nvcc on PATH may be a wrapper script: it says itself where it lives.
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    return Path(re.search(r"TOP=(\S+)", said)[1]) / "include"


def missing() -> str | None:
    """What this machine lacks to run CUDA sources, in words."""
    if shutil.which("g++") is None:
        return "needs g++"
    return None if cuda_headers() else "needs nvcc, for CUDA's headers"


def build(source: Path, sanitized: bool = SANITIZED) -> Path:
    """The shared library of one .cu file, compiled anew where anything it may include has changed."""
    flags = FLAGS + SANITIZERS * sanitized
    digest = hashlib.sha256(" ".join([*flags, str(source)]).encode())
    for path in sorted([source, *SHIM.iterdir(), *CSRC.rglob("*.h")]):
        digest.update(path.read_bytes())
    library = CACHE / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        folders = [f"-I{SHIM}", f"-I{CSRC}", "-isystem", cuda_headers()]
        command = ["g++", *flags, *folders, "-x", "c++", *SHIM.glob("*.cpp"), source, "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SimtError(f"g++ does not compile {source}:\n{done.stderr}")
        partial.rename(library)
    return library


def sanitized_environment() -> dict[str, str]:
    """The environment of a process whose kernels are compiled with sanitizers."""
    named = ["g++", "-print-file-name=libasan.so"], ["g++", "-print-file-name=libubsan.so"]
    preload = " ".join(subprocess.run(command, capture_output=True, text=True).stdout.strip() for command in named)
    # Python keeps memory until the process ends, and PyTorch starts threads before ASan knows of them.
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return os.environ | options | {"LD_PRELOAD": preload, "GPFAST_SIMT_SANITIZE": "1"}


class Launched(NamedTuple):
    """What a launcher asked of a device; kernel: its symbol; arguments: their bytes."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    arguments: list[bytes]


_WORDS, _SIZES = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t)
_TAKER = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, _WORDS, _SIZES, ctypes.c_size_t
)


class Library:
    """The launchers of one .cu file. Skips the test where the machine cannot compile it."""

    def __init__(self, source: Path):
        lacking = missing()
        if lacking:
            pytest.skip(lacking)
        self._path = build(Path(source))
        self._loaded = ctypes.CDLL(str(self._path))
        self._loaded.simt_error.restype = ctypes.c_char_p
        self._loaded.simt_blocks.restype = ctypes.c_int64

    def run(self, launcher: str, *arguments, seed: int = 1, blocks: tuple[int, int] = EVERY_BLOCK) -> int:
        """Calls a launcher, its stream left out, and returns how many blocks its last launch had.

        Tensors, structures and None go as pointers, dtypes as gpfast::Dtype, floats as double, integers as int64_t.
        seed 0 runs threads in order. Only the blocks [first, last) of `blocks` are run. Raises SimtError where a kernel
        fails, or where a device would refuse the launch.
        """
        self._loaded.simt_configure(ctypes.c_uint64(seed), *map(ctypes.c_int64, blocks))
        error = getattr(self._loaded, launcher)(*map(_argument, arguments), None)
        if error:
            raise SimtError(ERRORS.get(error) or self._loaded.simt_error().decode())
        return self._loaded.simt_blocks()

    def ask(self, function: str, *arguments):
        """Calls a function that launches nothing, and answers through a tensor."""
        self.run(function, *arguments)

    def launches(self, launcher: str, *arguments) -> list[Launched]:
        """What a launcher launches, in order; no kernel runs, and no pointer is followed. Otherwise as `run`."""
        taken: list[Launched] = []

        @_TAKER
        def take(kernel, shape, shared_bytes, values, sizes, count):
            each = [ctypes.string_at(values[k], sizes[k]) for k in range(count)]
            taken.append(Launched(self._symbols[kernel], tuple(shape[:3]), tuple(shape[3:6]), shared_bytes, each))

        self._loaded.simt_take(take)
        try:
            self.run(launcher, *arguments)
        finally:
            self._loaded.simt_take(None)
        return taken

    @cached_property
    def _symbols(self) -> dict[int, str]:
        """The functions of the library, those of this file alone too, by their addresses."""
        listed = subprocess.run(["nm", self._path], capture_output=True, text=True, check=True).stdout
        at = {name: int(place, 16) for place, kind, name in re.findall(r"^(\w+) ([tTwW]) (\S+)$", listed, re.M)}
        base = ctypes.cast(self._loaded.simt_take, ctypes.c_void_p).value - at["simt_take"]
        return {base + place: name for name, place in at.items()}


def _argument(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, torch.dtype):
        return ctypes.c_int(DTYPES.index(value))
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return None if value is None else ctypes.c_int64(value)
