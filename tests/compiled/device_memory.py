"""CPU tensors in the memory of the emulated device, and back."""

import torch
from emulator import Memory, Pointer

Buffers = dict[int, tuple[torch.Tensor, Pointer]]
SPARE = 1 << 14  # bytes, for a module's own tables


def copy_in(arguments: list) -> tuple[Memory, Buffers, list]:
    """(a memory with every tensor's whole storage, these buffers, the arguments with addresses for tensors).

    What begins behind a bound of 16 bytes on the CPU does so there, and what shares a storage shares it there.
    """
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    bytes_needed = SPARE + sum(t.untyped_storage().nbytes() + 2048 for t in tensors)
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


def copy_out(buffers: Buffers):
    for stored, pointer in buffers.values():
        stored.copy_(torch.from_numpy(pointer.get()))
