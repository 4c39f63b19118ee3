"""The PTX of Triton's captured launches, executed on the CPU by tests/emulator."""

from contextlib import contextmanager

from device_memory import copy_in, copy_out
from emulator import Counters, Kernel
from offline import Launch, capture


class Emulated:
    """Runs launches in place on CPU tensors; `counters` has what each did, with the kernel's name."""

    def __init__(self):
        self._parsed: dict[str, Kernel] = {}
        self.counters: list[tuple[str, Counters]] = []

    def run(self, launch: Launch):
        ptx = launch.kernel.asm["ptx"]
        if ptx not in self._parsed:
            self._parsed[ptx] = Kernel(ptx)
        kernel = self._parsed[ptx]
        memory, buffers, arguments = copy_in(launch.arguments)
        arguments += [0] * (len(kernel.parameters) - len(arguments))  # Triton's scratch pointers, unused here
        threads = launch.kernel.metadata.num_warps * 32
        counters = kernel.launch(launch.grid, (threads,), arguments, launch.kernel.metadata.shared, memory)
        assert not counters.warnings, counters.warnings
        self.counters.append((launch.name, counters))
        copy_out(buffers)

    @contextmanager
    def running(self, target: str = "sm_90"):
        """Inside the context Triton launches on CPU tensors run in the emulator."""
        self.counters.clear()
        with capture(target, self.run):
            yield self
