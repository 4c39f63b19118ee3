"""Threads that part and meet, barriers, shuffles and votes; bugs of these that must be caught."""

import numpy as np
import pytest

from . import Fault
from .short_programs import run

WORDS = np.arange(64, dtype=np.uint32)
AT = "mad.wide.u32 at, k, 4, in; "
STORE = "st.global.u32 [at], x;"


def result(body: str, block: int = 32) -> np.ndarray:
    """The register x of each thread."""
    out, counters = run(AT + body + STORE, np.zeros(block, np.uint32), block=block)
    assert not counters.warnings, counters.warnings
    return out


def test_loops_of_different_lengths_meet_again():
    out = result("mov.u32 x, 0; LOOP: add.u32 x, x, 2; setp.le.u32 p, x, k; @p bra LOOP; add.u32 x, x, 100;")
    np.testing.assert_array_equal(out, 100 + 2 * (np.arange(32) // 2 + 1))


def test_branches_meet_again():
    body = "setp.lt.u32 p, k, 5; @p bra LOW; mov.u32 x, 1; bra END; LOW: mov.u32 x, 2; END: bar.warp.sync -1;"
    np.testing.assert_array_equal(result(body), np.where(np.arange(32) < 5, 2, 1))


def test_special_registers():
    body = "mov.u32 x, %ctaid.x; mov.u32 y, %ntid.x; mad.lo.u32 x, x, y, k; mad.wide.u32 at, x, 4, in; " + STORE
    out, counters = run(body, np.zeros(60, np.uint32), grid=3, block=20)
    np.testing.assert_array_equal(out, np.arange(60))
    assert counters.thread_instructions == 60 * 8 and counters.warp_instructions == 3 * 8
    np.testing.assert_array_equal(result("mov.u32 x, %laneid;", 64), np.arange(64) % 32)


LANE = np.arange(32)
SHUFFLES = {
    "up.b32 x, k, 3, 0x0": np.where(LANE < 3, LANE, LANE - 3),
    "down.b32 x, k, 3, 0x1f": np.where(LANE + 3 > 31, LANE, LANE + 3),
    "bfly.b32 x, k, 5, 0x1f": LANE ^ 5,
    "idx.b32 x, k, 7, 0x1f": np.full(32, 7),
    "idx.b32 x, k, 2, 0x181f": LANE // 8 * 8 + 2,  # segments of eight
    "down.b32 x, k, 1, 0x181f": np.where(LANE % 8 == 7, LANE, LANE + 1),
}


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_shuffles(shuffle):
    np.testing.assert_array_equal(result(f"shfl.sync.{shuffle}, -1;"), SHUFFLES[shuffle])


def test_a_shuffle_says_which_lanes_it_served():
    body = "shfl.sync.down.b32 y|p, k, 3, 0x1f, -1; selp.u32 x, 1, 0, p;"
    np.testing.assert_array_equal(result(body), LANE < 29)


def test_votes():
    even = "and.b32 y, k, 1; setp.eq.u32 p, y, 0; "
    assert (result(even + "vote.sync.ballot.b32 x, p, -1;") == 0x55555555).all()
    assert (result(even + "vote.sync.any.pred q, p, -1; selp.u32 x, 1, 0, q;") == 1).all()
    assert (result(even + "vote.sync.all.pred q, p, -1; selp.u32 x, 1, 0, q;") == 0).all()
    assert (result(even + "vote.sync.any.pred q, !p, -1; selp.u32 x, 1, 0, q;") == 1).all()
    body = "mov.u32 x, 0; setp.lt.u32 p, k, 4; @!p bra END; activemask.b32 x; END: bar.warp.sync -1;"
    np.testing.assert_array_equal(result(body), np.where(LANE < 4, 15, 0))


def test_a_sum_of_a_warp():
    steps = [f"shfl.sync.bfly.b32 y, x, {k}, 0x1f, -1; add.u32 x, x, y;" for k in (16, 8, 4, 2, 1)]
    assert (result("mov.u32 x, k;" + "".join(steps)) == 496).all()


def test_a_sum_with_a_wrong_step_is_another_number():
    steps = [f"shfl.sync.bfly.b32 y, x, {k}, 0x1f, -1; add.u32 x, x, y;" for k in (16, 8, 4, 2, 2)]
    assert (result("mov.u32 x, k;" + "".join(steps)) != 496).all()


HALF = "setp.lt.u32 p, k, 16; @!p bra END; {} END: bar.warp.sync -1;"


def test_a_shuffle_by_half_a_warp_that_names_all_is_caught():
    with pytest.raises(Fault, match="lanes that the member mask names are not here"):
        run(HALF.format("shfl.sync.bfly.b32 x, k, 1, 0x1f, -1;"), WORDS)


def test_lanes_that_come_late_are_waited_for():
    """The upper half of the second warp goes by way of instructions behind the shuffle; the first warp is whole."""
    body = """setp.gt.u32 p, k, 47; @p bra LATE; mov.u32 x, k;
        SHUFFLE: shfl.sync.bfly.b32 x, x, 16, 0x1f, -1; mad.wide.u32 at, k, 4, in; st.global.u32 [at], x; bra END;
        LATE: mov.u32 x, k; bra SHUFFLE; END: bar.sync 0;"""
    out, _ = run(body, np.zeros(64, np.uint32), block=64)
    np.testing.assert_array_equal(out, np.arange(64) ^ 16)


def test_registers_that_nobody_wrote_are_nan():
    body = "setp.lt.u32 p, k, 1; @p mov.f32 v, 0f00000000; mad.wide.u32 at, k, 4, in; {} st.global.f32 [at], {};"
    out, counters = run(body.format("", "v"), np.zeros(4, np.float32), block=4)
    assert np.isnan(out).tolist() == [False, True, True, True] and not counters.warnings
    out, counters = run(body.format("", "w"), np.zeros(4, np.float32), block=4)
    assert np.isnan(out).all() and counters.warnings == {"read of a register that was never written: w"}


def test_a_shuffle_from_a_lane_that_is_not_there_is_caught():
    with pytest.raises(Fault, match="shuffle from a lane that is not here"):
        run(HALF.format("shfl.sync.bfly.b32 x, k, 16, 0x1f, 0xffff;"), WORDS)


def test_a_lane_outside_of_its_own_mask_is_caught():
    with pytest.raises(Fault, match="a lane is not in its own member mask"):
        run("vote.sync.ballot.b32 x, 1, 0xffff;", WORDS)


def test_lanes_of_one_mask_that_have_another_are_caught():
    masks = "setp.lt.u32 p, k, 16; selp.b32 x, 0xffff, {}, p; vote.sync.ballot.b32 y, 1, x;"
    with pytest.raises(Fault, match="lanes of one member mask have another"):
        run(masks.format("-1"), WORDS)
    run(masks.format("0xffff0000"), WORDS)


def test_a_mask_that_names_exited_lanes_is_a_warning():
    _, counters = run("setp.lt.u32 p, k, 16; @!p exit; vote.sync.ballot.b32 x, 1, -1;", WORDS)
    assert counters.warnings == {"a member mask names lanes that exited"}


def test_a_register_that_nobody_wrote_is_a_warning():
    _, counters = run("add.u32 x, y, 1;", WORDS)
    assert counters.warnings == {"read of a register that was never written: y"}


def test_a_barrier_that_half_of_the_threads_meet_is_caught():
    with pytest.raises(Fault, match="divergent barrier: reached after some threads of the CTA exited"):
        run("setp.lt.u32 p, k, 16; @!p exit; bar.sync 0;", WORDS, block=64)


def test_two_barriers_in_two_branches_are_caught():
    with pytest.raises(Fault, match="divergent barrier: threads of one CTA wait at different barriers"):
        run("setp.lt.u32 p, k, 32; @p bra LOW; bar.sync 0; bra END; LOW: bar.sync 0; END:", WORDS, block=64)


def test_a_trap_is_a_fault():
    with pytest.raises(Fault, match=r"trap \| @p trap"):
        run("setp.eq.u32 p, k, 9; @p trap;", WORDS)
