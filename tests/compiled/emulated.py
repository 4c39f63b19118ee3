"""The PTX of captured launches, executed on the CPU by a PTX emulator, where one is at hand.

The emulator is a module `ptxemu` with `Mem` and `Kernel`. It is looked for at the path in GPFAST_PTXEMU, then in the
folder shared/tools beside the repository.
"""

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from offline import Launch, capture

REPOSITORY = Path(__file__).resolve().parents[2]
PTXEMU = Path(os.environ.get("GPFAST_PTXEMU", REPOSITORY.parent / "shared" / "tools" / "ptxemu.py"))
MISSING = f"needs a PTX emulator: set GPFAST_PTXEMU to its file (there is none at {PTXEMU})"


def load():
    """The emulator's module, or None where there is none."""
    if not PTXEMU.exists():
        return None
    spec = importlib.util.spec_from_file_location("ptxemu", PTXEMU)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Kernel.i_ldmatrix = _ldmatrix
    module.Kernel._grace = _check_global_race
    return module


def _ldmatrix(kernel, opcode, operands, threads):
    """ldmatrix.m8n8.xN.b16, which Triton also uses to move small tensors between layouts.

    Lane 8 j + r of a warp holds the address of row r of matrix j, 16 bytes; lane i receives word i % 4 of row i // 4.
    """
    assert "trans" not in opcode and len(threads) % 32 == 0
    addresses = kernel.addr(operands[1], threads).reshape(-1, 32)
    lane = numpy.arange(32)
    for matrix, register in enumerate(kernel.vec(operands[0])):
        source = addresses[:, 8 * matrix + lane // 4] + 4 * (lane % 4)
        checked = kernel._schk(source.reshape(-1), 4, threads, False)
        kernel.put(register, kernel.sm.view(numpy.uint32)[checked // 4], "b32", threads)


def _check_global_race(kernel, offsets, width, threads, writes):
    """A location of two bytes, the smallest element here, is one program's: neighbours may share a 4-byte word."""
    halves = len(kernel.mem.a) // 2
    if len(kernel.gw) != halves:  # a new launch
        kernel.gw = numpy.full(halves, -1, numpy.int32)
        kernel.gr = numpy.full(halves, -1, numpy.int32)
    several = -2
    program = kernel.cta[threads].astype(numpy.int32)
    for byte in range(0, width, 2):
        at = (offsets + byte) // 2
        writer, reader = kernel.gw[at], kernel.gr[at]
        if ((writer != -1) & (writer != program)).any():
            kernel.warn("race: another program wrote this address")
        if not writes:
            kernel.gr[at] = numpy.where((reader == -1) | (reader == program), program, several)
            continue
        if ((reader != -1) & (reader != program)).any():
            kernel.warn("race: another program read this address")
        kernel.gw[at] = program
        if (kernel.gw[at] != program).any():
            kernel.warn("race: two programs write this address")


class Emulator:
    """Runs launches in place on CPU tensors; `counters` has what each did, by kernel name."""

    def __init__(self, ptxemu):
        self.ptxemu = ptxemu
        self.parsed = {}
        self.counters = []

    def run(self, launch: Launch):
        ptx = launch.kernel.asm["ptx"]
        if ptx not in self.parsed:
            self.parsed[ptx] = self.ptxemu.Kernel(ptx)
        kernel = self.parsed[ptx]
        memory, buffers, arguments = self._copy_in(launch.arguments)
        arguments += [0] * (len(kernel.params) - len(arguments))  # Triton's scratch pointers, unused here
        threads = launch.kernel.metadata.num_warps * 32
        counters = kernel.launch(launch.grid, (threads,), arguments, launch.kernel.metadata.shared, memory)
        assert not counters["warns"], counters["warns"]
        self.counters.append((launch.name, counters))
        for stored, pointer in buffers.values():
            stored.copy_(torch.from_numpy(pointer.get()))

    def _copy_in(self, arguments):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        bytes_needed = sum(t.untyped_storage().nbytes() + 2048 for t in tensors)
        memory = self.ptxemu.Mem(max(1 << 20, 1 << bytes_needed.bit_length()))
        buffers, values = {}, []
        for argument in arguments:
            if not isinstance(argument, torch.Tensor):
                values.append(argument)
                continue
            storage = argument.untyped_storage()
            if storage.data_ptr() not in buffers:
                stored = torch.empty(0, dtype=torch.uint8).set_(storage)
                buffers[storage.data_ptr()] = stored, memory.put(stored.numpy())
            start = argument.storage_offset() * argument.element_size()
            values.append(buffers[storage.data_ptr()][1].addr + start)
        return memory, buffers, values

    @contextmanager
    def running(self, target: str = "sm_90"):
        """Inside the context Triton launches on CPU tensors run in the emulator."""
        self.counters.clear()
        with capture(target, self.run):
            yield self
