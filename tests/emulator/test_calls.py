"""Functions of a module, the local memory of threads, and tables in global memory."""

import numpy as np
import pytest

from . import Fault, Kernel, Memory

MODULE = """
.version 8.0
.target sm_80
.address_size 64
.func (.param .align 8 .b8 func_retval0[16]) halved(.param .b64 halved_param_0)
;
.global .align 4 .b8 table[16] = {1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0xFF, 255, 255, -1};
.visible .entry main(.param .u64 main_param_0, .param .align 4 .b8 main_param_1[8])
{
    .local .align 8 .b8 depot[16];
    .reg .pred %p;
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [main_param_0];
    mov.u32 %r1, %tid.x;
    ld.param.u32 %r6, [main_param_1+4];
    mov.u64 %rd2, depot;
    cvta.local.u64 %rd3, %rd2;
    cvta.to.local.u64 %rd2, %rd3;
    st.local.u32 [%rd2+LOCAL], %r1;
    { // callseq 0
    .reg .b32 temp_param_reg;
    .param .b64 param0;
    st.param.b32 [param0+0], %r1;
    .param .align 8 .b8 retval0[16];
    call.uni (retval0),
    halved,
    (
    param0
    );
    ld.param.b32 %r2, [retval0+0];
    ld.param.b32 %r3, [retval0+8];
    }
    { // callseq 1
    .param .b64 param0;
    st.param.b32 [param0+0], %r2;
    .param .align 8 .b8 retval0[16];
    call.uni (retval0), halved, (param0);
    ld.param.b32 %r2, [retval0+0];
    }
    ld.local.u32 %r4, [%rd2+LOCAL];
    and.b32 %r4, %r4, 3;
    mov.u64 %rd4, table;
    mad.wide.u32 %rd4, %r4, 4, %rd4;
    ld.global.u32 %r5, [%rd4];
    mul.wide.u32 %rd5, %r1, 16;
    add.s64 %rd5, %rd5, %rd1;
    st.global.v4.u32 [%rd5], {%r2, %r3, %r5, %r6};
    ret;
}
.func (.param .align 8 .b8 func_retval0[16]) halved(
    .param .b64 halved_param_0
)
{
    .local .align 4 .b8 depot[8];
    .reg .pred %p;
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.b32 %r1, [halved_param_0];
    mov.u64 %rd1, depot;
    st.local.u32 [%rd1+4], %r1;
    mov.u32 %r2, 0;
    setp.lt.u32 %p, %r1, 8;
    @%p bra $L_small;
    mov.u32 %r2, 1;
    st.param.b32 [func_retval0+0], %r1;
    st.param.b32 [func_retval0+8], %r2;
    ret;
$L_small:
    ld.local.u32 %r3, [%rd1+4];
    shr.u32 %r3, %r3, 1;
    st.param.b32 [func_retval0+0], %r3;
    st.param.b32 [func_retval0+8], %r2;
    ret;
}
"""


def run(module: str) -> np.ndarray:
    memory = Memory(1 << 14)
    out = memory.put(np.zeros((16, 4), np.uint32))
    given = np.array([7, 9], np.uint32).tobytes()
    counters = Kernel(module, "main").launch((1,), (16,), [out, given], 0, memory)
    assert not counters.warnings, counters.warnings
    return out.get()


def test_calls_local_memory_and_tables():
    """Twice halved where it is below 8; its threads part in the function and meet again."""
    found, k = run(MODULE.replace("LOCAL", "12")), np.arange(16)
    np.testing.assert_array_equal(found[:, 0], np.where(k < 8, k // 4, k))
    np.testing.assert_array_equal(found[:, 1], k >= 8)
    np.testing.assert_array_equal(found[:, 2], np.array([1, 2, 3, 2**32 - 1])[k % 4])
    np.testing.assert_array_equal(found[:, 3], 9)


def test_parameters_have_addresses():
    module = MODULE.replace("LOCAL", "0").replace(
        "ld.param.u32 %r6, [main_param_1+4];",
        "mov.b64 %rd6, main_param_1; and.b32 %r6, %r1, 1; mad.wide.u32 %rd6, %r6, 4, %rd6; ld.param.u32 %r6, [%rd6];",
    )
    np.testing.assert_array_equal(run(module)[:, 3], np.where(np.arange(16) % 2, 9, 7))
    with pytest.raises(Fault, match="out-of-bounds access of the parameters"):
        run(module.replace("[%rd6]", "[%rd6+16]"))


def test_local_memory_is_bounded():
    with pytest.raises(Fault, match="out-of-bounds access of local memory: 24 \\+ 4 of"):
        run(MODULE.replace("depot[8]", "depot[4]").replace("LOCAL", "0").replace("%rd1+4", "%rd1+8"))
    with pytest.raises(Fault, match="misaligned 4-byte access of local memory"):
        run(MODULE.replace("LOCAL", "2"))


def test_what_calls_are_not_modelled_is_said():
    again = MODULE.replace("    mov.u32 %r2, 0;", "    call.uni (func_retval0), halved, (halved_param_0);")
    with pytest.raises(Fault, match="of itself, is not modelled"):
        run(again)
    with pytest.raises(Fault, match="read otherwise than written"):
        run(MODULE.replace("ld.param.b32 %r3, [retval0+8]", "ld.param.b64 %rd6, [retval0+8]"))


def test_the_bytes_of_a_parameter_must_be_its_size():
    with pytest.raises(ValueError, match="4 bytes were given for a parameter of 8"):
        Kernel(MODULE, "main").launch((1,), (16,), [0, b"1234"], 0, Memory(1 << 14))
