"""The PTX of captured launches, executed on the CPU by tests/emulator."""

from contextlib import contextmanager

import torch
from emulator import Counters, Kernel, Memory
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
        memory, buffers, arguments = self._copy_in(launch.arguments)
        arguments += [0] * (len(kernel.parameters) - len(arguments))  # Triton's scratch pointers, unused here
        threads = launch.kernel.metadata.num_warps * 32
        counters = kernel.launch(launch.grid, (threads,), arguments, launch.kernel.metadata.shared, memory)
        assert not counters.warnings, counters.warnings
        self.counters.append((launch.name, counters))
        for stored, pointer in buffers.values():
            stored.copy_(torch.from_numpy(pointer.get()))

    def _copy_in(self, arguments):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        bytes_needed = sum(t.untyped_storage().nbytes() + 2048 for t in tensors)
        memory = Memory(1 << bytes_needed.bit_length())
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
            values.append(buffers[storage.data_ptr()][1].address + start)
        return memory, buffers, values

    @contextmanager
    def running(self, target: str = "sm_90"):
        """Inside the context Triton launches on CPU tensors run in the emulator."""
        self.counters.clear()
        with capture(target, self.run):
            yield self
