"""Loads, stores, shared memory and atomics; what is counted of them; bugs that must be caught."""

import numpy as np
import pytest

from . import Fault, Kernel, Memory
from .short_programs import run

WORDS = np.arange(64, dtype=np.uint32)
AT = "mad.wide.u32 at, k, 4, in; "
SHARED = "mul.lo.u32 x, k, 4; mov.u32 y, dynamic; add.u32 x, x, y; "


def test_vectors_and_offsets():
    out, counters = run(
        "mad.wide.u32 at, k, 8, in; ld.global.v2.u32 {x, y}, [at]; st.global.v2.u32 [at], {y, x};", WORDS
    )
    np.testing.assert_array_equal(out, WORDS.reshape(-1, 2)[:, ::-1].reshape(-1))
    assert (counters.load_bytes, counters.load_requests, counters.load_sectors) == (256, 1, 8)
    assert counters.dram_read == counters.dram_write == 256
    out, _ = run(AT + "ld.global.u32 x, [at+128]; st.global.u32 [at], x;", WORDS)
    np.testing.assert_array_equal(out[:32], WORDS[32:])


def test_bytes_are_extended():
    out, _ = run(AT + "ld.global.s8 x, [at]; st.global.u32 [at], x;", np.full(32, 0x180, np.uint32))
    assert (out == 0xFFFFFF80).all()
    out, _ = run(AT + "ld.global.u8 x, [at]; st.global.u32 [at], x;", np.full(32, 0x180, np.uint32))
    assert (out == 0x80).all()


def test_requests_that_start_between_sectors_take_one_more():
    _, counters = run("add.u64 in, in, 4; " + AT + "ld.global.u32 x, [at];", WORDS)
    assert counters.load_sectors == 5 and counters.dram_read == 5 * 32
    _, counters = run("mad.wide.u32 at, k, 0, in; ld.global.u32 x, [at];", WORDS)
    assert counters.load_sectors == 1
    _, counters = run("and.b32 x, k, 1; mad.wide.u32 at, x, 128, in; ld.global.u32 x, [at];", WORDS)
    assert counters.load_sectors == 2


def test_sectors_read_twice_are_one_of_dram():
    _, counters = run(AT + "ld.global.u32 x, [at]; ld.global.u32 y, [at];", WORDS)
    assert counters.load_sectors == 8 and counters.dram_read == 4 * 32


@pytest.mark.parametrize("stride, wavefronts", [(1, 1), (2, 2), (32, 32), (33, 1), (0, 1)])
def test_bank_conflicts(stride, wavefronts):
    body = f"mul.lo.u32 x, k, {4 * stride}; mov.u32 y, dynamic; add.u32 x, x, y; ld.shared.u32 y, [x];"
    _, counters = run(body, WORDS, shared_bytes=4 * 33 * 32)
    assert counters.shared_requests == 1 and counters.shared_wavefronts == wavefronts


REVERSE = """ld.global.u32 v, [at]; st.shared.u32 [x], v; {barrier}
    sub.u32 y, 252, x; ld.shared.u32 w, [y]; st.global.u32 [at], w;"""


def test_exchange_through_shared_memory():
    out, _ = run(AT + SHARED + REVERSE.format(barrier="bar.sync 0;"), WORDS, block=64, shared_bytes=256)
    np.testing.assert_array_equal(out, WORDS[::-1])


def test_missing_barrier_is_caught():
    with pytest.raises(Fault, match="race in shared memory: another warp wrote"):
        run(AT + SHARED + REVERSE.format(barrier=""), WORDS, block=64, shared_bytes=256)


def test_writing_too_early_what_another_warp_reads_is_caught():
    body = SHARED + "st.shared.u32 [x], k; bar.sync 0; sub.u32 y, 252, x; ld.shared.u32 w, [y]; st.shared.u32 [x], w;"
    with pytest.raises(Fault, match="race in shared memory: another warp read"):
        run(body, WORDS, block=64, shared_bytes=256)


def test_shared_memory_that_nobody_wrote_is_nan():
    out, _ = run(
        AT + SHARED + "ld.shared.f32 v, [x]; st.global.f32 [at], v;", np.zeros(32, np.float32), shared_bytes=128
    )
    assert np.isnan(out).all()


def test_two_warps_may_write_halves_of_a_word():
    body = "mul.lo.u32 x, k, 2; mov.u32 y, dynamic; add.u32 x, x, y; add.u32 x, x, 2; st.shared.u16 [x], k;"
    run(body, WORDS, block=64, shared_bytes=256)


@pytest.mark.parametrize("how, expected", [("add", 496), ("max", 31), ("min", 0), ("or", 31), ("exch", 31)])
def test_atomics(how, expected):
    out, counters = run(f"atom.global.{how}.u32 x, [in], k;", np.zeros(1, np.uint32), grid=2)
    assert out[0] == (2 * expected if how == "add" else expected) and counters.atomics == 64


def test_atomic_reductions_and_compare_and_swap():
    out, _ = run("mov.f32 v, 0f3F000000; red.global.add.f32 [in], v;", np.zeros(1, np.float32), block=64)
    assert out[0] == 32
    out, _ = run("atom.global.cas.b32 x, [in], k, 77;", np.array([5], np.uint32))
    assert out[0] == 77


def test_atomics_of_shared_memory():
    body = SHARED + "st.shared.u32 [x], 0; bar.sync 0; atom.shared.add.u32 y, [dynamic], 1; bar.sync 0; "
    out, _ = run(body + AT + "ld.shared.u32 y, [dynamic]; st.global.u32 [at], y;", WORDS, block=64, shared_bytes=256)
    assert (out == 64).all()


def test_asynchronous_copies():
    body = AT + SHARED + "cp.async.ca.shared.global [x], [at], 4, 0; cp.async.commit_group; cp.async.wait_all; "
    out, _ = run(body + "ld.shared.u32 y, [x]; st.global.u32 [at], y;", WORDS[:32], shared_bytes=128)
    assert (out == 0).all()
    with pytest.raises(Fault, match="out-of-bounds read of 4 bytes of global memory"):
        run(AT + SHARED + "cp.async.ca.shared.global [x], [at+4], 4;", WORDS[:32], shared_bytes=128)


@pytest.mark.parametrize("access, what", [("ld.global.u32 x, [at]", "read"), ("st.global.u32 [at], k", "write")])
@pytest.mark.parametrize("words", [31, 1])
def test_out_of_bounds_is_caught(access, what, words):
    with pytest.raises(Fault, match=f"out-of-bounds {what} of 4 bytes of global memory by CTA 0, thread {words}"):
        run(AT + access + ";", WORDS[:words])


def test_one_byte_past_the_end_is_caught():
    with pytest.raises(Fault, match="out-of-bounds read of 1 bytes"):
        run("mad.wide.u32 at, k, 1, in; ld.global.u8 x, [at];", np.zeros(31, np.uint8))


def test_before_the_start_is_caught():
    with pytest.raises(Fault, match="out-of-bounds"):
        run(AT + "ld.global.u32 x, [at+-4];", WORDS)


def test_out_of_bounds_of_shared_memory_is_caught():
    with pytest.raises(Fault, match="out-of-bounds access of shared memory: 124 \\+ 4 of 124 bytes"):
        run(SHARED + "st.shared.u32 [x], k;", WORDS, shared_bytes=124)


def test_misaligned_vectors_are_caught():
    with pytest.raises(Fault, match="misaligned 16-byte access of global memory"):
        run("ld.global.v4.f32 {v, w, _, _}, [in+4];", WORDS)
    with pytest.raises(Fault, match="misaligned 8-byte access of shared memory"):
        run("ld.shared.v2.f32 {v, w}, [dynamic+4];", WORDS, shared_bytes=64)


RACES = {
    "two CTAs write": "st.global.u32 [at], k;",
    "another CTA wrote": "st.global.u32 [at], k; ld.global.u32 x, [at];",
    "another CTA read": "ld.global.u32 x, [at]; st.global.u32 [at], x;",
}


@pytest.mark.parametrize("found", RACES)
def test_races_between_ctas_are_caught(found):
    with pytest.raises(Fault, match="race in global memory"):
        run(AT + RACES[found], WORDS, grid=2)


def test_a_cta_that_writes_what_two_others_read_is_caught():
    """Also where the reader that is noted last is the writer itself."""
    body = AT + "ld.global.u32 x, [at]; mov.u32 y, %ctaid.x; setp.eq.u32 p, y, 1; @p st.global.u32 [at], x;"
    with pytest.raises(Fault, match="race in global memory: another CTA read"):
        run(body, WORDS, grid=2)


def test_ctas_may_read_together_and_write_neighbouring_halves():
    run(AT + "ld.global.u32 x, [at];", WORDS, grid=4)
    body = "mov.u32 x, %ctaid.x; mad.wide.u32 at, x, 2, in; st.global.u16 [at], x;"
    out, _ = run(body, np.zeros(8, np.uint16), grid=8, block=1)
    np.testing.assert_array_equal(out, np.arange(8))


def test_a_race_among_packed_bytes_is_caught():
    """Eight threads of one CTA write one byte; another CTA writes it too."""
    body = "shr.u32 x, k, 3; mad.wide.u32 at, x, 1, in; st.global.u8 [at], k;"
    run(body, np.zeros(4, np.uint8))
    with pytest.raises(Fault, match="race in global memory"):
        run(body, np.zeros(4, np.uint8), grid=2)


NOT_MODELLED = {
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {v}, {w}, {w}, {v};": "not modelled \\| mma",
    "ld.const.u32 x, [in];": "const memory is not modelled",
    "add.cc.u64 wide, in, in;": "a carry of u64 is not modelled",
    "fma.rm.f64 wide, in, in, in;": "fma.rm is modelled for f32 alone",
    "fma.rz.f32 v, v, v, v;": "fma with .rz is not modelled",
    "call.uni f, (x);": "a call of what is not in the module",
    "@p call f, (x);": "a call under a guard is not modelled",
    "add.sat.f32 v, v, w;": "add with .sat is not modelled",
    "mul.rz.f32 v, v, w;": "mul with .rz is not modelled",
    "cvt.rz.f32.f64 v, wide;": "cvt with .rz is not modelled",
    "cvt.sat.u8.s32 x, y;": "saturating conversion between integers",
    "prmt.b32.f4e x, x, y, k;": "prmt with .f4e is not modelled",
    "setp.eq.f16x2 p, x, y;": "this operation on f16x2 is not modelled",
    "barrier.red.popc.u32 x, 0, p;": "barrier with .red is not modelled",
    "bar.sync 1, 64;": "a barrier of a part of the CTA",
}


@pytest.mark.parametrize("instruction", NOT_MODELLED)
def test_what_is_not_modelled_is_said(instruction):
    with pytest.raises(Fault, match=NOT_MODELLED[instruction]):
        run(instruction, WORDS)


def test_an_entry_that_is_not_there_is_said():
    with pytest.raises(Fault, match="no entry other; the module has \\['short'\\]"):
        Kernel(".visible .entry short(){ ret; }", "other")


def test_buffers_that_do_not_fit_and_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="no room for 4096 bytes"):
        Memory(4096).put(np.zeros(1024, np.float32))
    with pytest.raises(ValueError, match="1 parameters, 2 arguments"):
        Kernel(".visible .entry short(.param .u64 a){ ret; }").launch((1,), (32,), [0, 0], 0, Memory(1024))
