"""PTX around a few lines of a test, and a launch of it."""

import numpy as np

from . import Counters, Kernel, Memory

KINDS = {"u": "u", "i": "s", "f": "f"}

PROLOGUE = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry short({parameters})
{{
    .reg .pred p, q;
    .reg .b32 n, k, x, y;
    .reg .b64 wide, in, out, at;
    .reg .f32 v, w;
    mov.u32 k, %tid.x;
{body}
    ret;
}}
"""


def kind(dtype) -> str:
    """u32 for numpy.uint32."""
    dtype = np.dtype(dtype)
    return f"{KINDS[dtype.kind]}{8 * dtype.itemsize}"


def run_elementwise(body: str, inputs: list[np.ndarray], dtype) -> np.ndarray:
    """Thread k finds element k of each input in a, b, c, and leaves `result`, of a dtype, in p and q its predicates."""
    memory, lines = Memory(1 << 16), []
    out = memory.put(np.zeros(inputs[0].shape, dtype))
    for k, (name, array) in enumerate(zip("abc", inputs, strict=False)):
        lines += [
            f".reg .b{8 * array.itemsize} {name};",
            f"ld.param.u64 in, [in{k}]; mad.wide.u32 at, k, {array.itemsize}, in;",
            f"ld.global.{kind(array.dtype)} {name}, [at];",
        ]
    lines += [f".reg .b{8 * np.dtype(dtype).itemsize} result;", body]
    lines += [
        "ld.param.u64 out, [out0];",
        f"mad.wide.u32 at, k, {np.dtype(dtype).itemsize}, out; st.global.{kind(dtype)} [at], result;",
    ]
    parameters = [f".param .u64 in{k}" for k in range(len(inputs))] + [".param .u64 out0"]
    ptx = PROLOGUE.format(parameters=", ".join(parameters), body="\n".join(lines))
    pointers = [memory.put(array) for array in inputs]
    counters = Kernel(ptx).launch((1,), (len(inputs[0]),), [*pointers, out], 0, memory)
    assert not counters.warnings, counters.warnings
    return out.get()


def run(
    body: str, array: np.ndarray, *, grid: int = 1, block: int = 32, shared_bytes: int = 0
) -> tuple[np.ndarray, Counters]:
    """One buffer, whose address is in `in`; k is the thread's number in its CTA. Returns the buffer, the counters."""
    memory = Memory(1 << 16)
    pointer = memory.put(array)
    ptx = PROLOGUE.format(parameters=".param .u64 in0", body="    ld.param.u64 in, [in0];\n" + body)
    counters = Kernel(ptx, "short").launch((grid,), (block,), [pointer], shared_bytes, memory)
    return pointer.get(), counters
