"""The state of the memory allocator that a measurement is taken in."""

from __future__ import annotations

import os
import platform
import sys

# Nothing is mapped afresh and nothing goes back to the system, so that after the warm-up no step waits for page faults.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def fix_malloc() -> None:
    """Starts this program anew with glibc's allocator in a fixed state, unless it is in one, or there is no glibc."""
    if not _has_glibc() or all(name in os.environ for name in MALLOC):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], MALLOC | os.environ)


def malloc_line() -> str:
    """One line on the allocator's state."""
    if not _has_glibc():
        return "malloc as the platform has it: no glibc"
    if not all(name in os.environ for name in MALLOC):
        return "glibc malloc not fixed (the times of small critics move by up to a third with its state)"
    return "glibc malloc fixed alike for all: " + " ".join(f"{name}={os.environ[name]}" for name in MALLOC)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
