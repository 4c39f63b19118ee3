"""What a result was taken on: the machine in a line, and the versions."""

from __future__ import annotations

import os
import platform

import torch

from gpfast._version import __version__


def machine_line(device: torch.device | str) -> str:
    """One line on the processor, its cores and threads in use, and the GPU where `device` is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads, {platform.system()} {platform.machine()}"
    return f"{torch.cuda.get_device_name(device)}; {line}" if torch.device(device).type == "cuda" else line


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"gpfast": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
