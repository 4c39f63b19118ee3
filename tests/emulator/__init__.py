"""Runs PTX, as nvcc and Triton make it, on the CPU: all threads of all CTAs at once, in numpy.

    memory = Memory(1 << 20)
    x = memory.put(array)
    counters = Kernel(ptx, "entry").launch(grid=(4,), block=(128,), arguments=[x, 1000], shared_bytes=0, memory=memory)
    x.get()

A launch raises Fault where the code is wrong: an access out of bounds or misaligned, a race between CTAs in global
memory or between warps in shared memory, a barrier that not every thread meets, a shuffle from a lane that is not
there; and where an instruction or a modifier of it is not modelled. Shared memory that nobody wrote is NaN. What is odd
but allowed is in counters.warnings.

Counted: instructions, requests, 32-byte sectors, bytes of DRAM (each sector once a launch, as with a perfect cache),
shared memory's wavefronts (one a request without bank conflicts).

Not counted: accesses of local memory.

Not modelled: tensor cores, TMA, calls of what the module does not define, textures, constant memory; weak memory order
(a write is seen at once); .ftz (denormals are kept); the error of approximate instructions (ex2, rsqrt, div.full and
the like are computed in float64 and rounded once; rcp.approx.ftz.f64 gives the upper half); fused multiply-add of bf16
is rounded twice; asynchronous copies (done at once); barriers of a part of a CTA; time: a loop that never ends is not
noticed.
"""

from .counters import Counters
from .faults import Fault
from .launch import Kernel
from .memory import Memory, Pointer

__all__ = ["Counters", "Fault", "Kernel", "Memory", "Pointer"]
