"""A kernel, and its launch over a grid."""

import numpy as np

from .counters import Counters
from .memory import Memory, Pointer
from .parser import Parameter, parse
from .scheduler import blocks_start, run
from .threads import WARP, Launch, Threads
from .values import FLOAT, UNSIGNED, width

THREADS_AT_ONCE = 1 << 20


class Kernel:
    """One entry of a PTX module: the one named, or the first."""

    def __init__(self, ptx: str, entry: str | None = None):
        self._program = parse(ptx, entry)
        self._block_starts = blocks_start(self._program)

    @property
    def parameters(self) -> list[Parameter]:
        return list(self._program.parameters.values())

    def launch(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: list, shared_bytes: int, memory: Memory
    ) -> Counters:
        """Runs every CTA of the grid; what it wrote is in `memory`.

        grid, block: one to three numbers; arguments: a Pointer, an address, a number or the bytes of each parameter;
        shared_bytes: of dynamic shared memory. Raises Fault where the code is wrong or not modelled.
        """
        grid, block = ((*shape, 1, 1)[:3] for shape in (grid, block))
        symbols, shared_bytes = self._lay_out_shared(shared_bytes)
        symbols |= self._program.local
        symbols |= {name: parameter.offset for name, parameter in self._program.parameters.items()}
        symbols |= {t.name: memory.put(np.frombuffer(t.values, np.uint8)).address for t in self._program.tables}
        launch = Launch(self._program, grid, block, self._pack(arguments), symbols, memory)
        launch.counters.shared_bytes = shared_bytes
        padded = -(-int(np.prod(block)) // WARP) * WARP
        ctas, at_once = int(np.prod(grid)), max(1, THREADS_AT_ONCE // padded)
        with np.errstate(all="ignore"):
            for first in range(0, ctas, at_once):
                numbers = np.arange(first, min(first + at_once, ctas))
                run(Threads(launch, numbers, shared_bytes), self._block_starts)
        return launch.counters

    def _lay_out_shared(self, dynamic_bytes: int) -> tuple[dict[str, int], int]:
        symbols, end = {}, 0
        for symbol in self._program.shared:
            symbols[symbol.name] = -(-end // symbol.alignment) * symbol.alignment
            end = symbols[symbol.name] + (dynamic_bytes if symbol.dynamic else symbol.size)
        return symbols, end

    def _pack(self, arguments: list) -> bytes:
        if len(arguments) != len(self.parameters):
            raise ValueError(f"the kernel has {len(self.parameters)} parameters, {len(arguments)} arguments were given")
        packed = bytearray(self._program.parameter_bytes)
        for parameter, argument in zip(self.parameters, arguments, strict=True):
            value = argument.address if isinstance(argument, Pointer) else argument
            bits = width(parameter.type)
            if isinstance(value, bytes):
                if len(value) != parameter.size:
                    raise ValueError(f"{len(value)} bytes were given for a parameter of {parameter.size}")
                stored = np.frombuffer(value, np.uint8)
            elif parameter.type[0] == "f" or isinstance(value, float):
                stored = np.array([value], FLOAT[bits])
            else:
                stored = np.array([int(value) & ((1 << 8 * parameter.size) - 1)], UNSIGNED[8 * parameter.size])
            packed[parameter.offset : parameter.offset + parameter.size] = stored.tobytes()
        return bytes(packed)
