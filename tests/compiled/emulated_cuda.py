"""The launchers of .cu files, their kernels executed on the CPU by tests/emulator.

What is launched is up to the file's host code, compiled by g++ as in tests/simt; what is executed is nvcc's PTX.
"""

import ctypes
from functools import cache
from math import prod
from typing import NamedTuple

import cuda
import simt
from device_memory import copy_in, copy_out
from emulator import Counters, Kernel


class Ran(NamedTuple):
    """kernel: as in the source, with its template arguments."""

    kernel: str
    ctas: int
    counters: Counters


class EmulatedLibrary:
    """Runs launchers as simt.Library does; `ran` has every kernel that was executed.

    source: of cuda.SOURCES, or a path.
    """

    def __init__(self, source: str, target: str = "sm_90"):
        self._source, self._target = source, target
        self.ran: list[Ran] = []

    def run(self, launcher: str, *arguments, seed: int | None = None):
        """Raises Fault where a kernel does what it must not: races, accesses out of bounds, divergent barriers ...

        A structure names the tensors that its pointers mean in `tensors`, by field. seed: not used; the emulator's one
        order of threads finds the races of every order.
        """
        pointed = [getattr(argument, "tensors", {}) for argument in arguments]
        memory, buffers, values = copy_in([*arguments, *(tensor for each in pointed for tensor in each.values())])
        given, addresses = values[: len(arguments)], iter(values[len(arguments) :])
        for k, fields in enumerate(pointed):
            if fields:
                given[k] = _pointing(given[k], {field: next(addresses) for field in fields})
        symbols = cuda.entries(self._source, self._target)
        for launch in _host(self._source).launches(launcher, *given):
            name = cuda.source_name(launch.kernel)
            kernel = _parsed(self._source, self._target, symbols[name])
            counters = kernel.launch(launch.grid, launch.block, launch.arguments, launch.shared_bytes, memory)
            # What an unwritten register holds is NaN: where it matters, the values show it.
            warned = {warning for warning in counters.warnings if "never written" not in warning}
            assert not warned, warned
            self.ran.append(Ran(name, prod(launch.grid), counters))
        copy_out(buffers)

    def ask(self, function: str, *arguments):
        """Calls a function that launches nothing, on the CPU."""
        _host(self._source).ask(function, *arguments)


@cache
def _host(source: str) -> simt.Library:
    return simt.Library(cuda.CSRC / source)


@cache
def _parsed(source: str, target: str, entry: str) -> Kernel:
    return Kernel(cuda.ptx(source, target), entry)


def _pointing(structure: ctypes.Structure, addresses: dict[str, int]) -> ctypes.Structure:
    """A copy whose pointers are to the emulated device's memory."""
    copied = type(structure).from_buffer_copy(structure)
    for field, address in addresses.items():
        setattr(copied, field, address)
    return copied
