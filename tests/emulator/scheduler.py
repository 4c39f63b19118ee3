"""Which threads run next: those at the lowest instruction, so that threads which part meet again as on hardware.

A group runs until it branches, waits, or meets others. A barrier opens when every thread of its CTA that has not
exited waits. At a shuffle or vote lanes wait for those that their member mask names.
"""

import numpy as np

from .faults import Fault
from .instructions import OPERATIONS, check_modelled
from .instructions.warp import MEMBERS, waits_for_others
from .parser import Instruction, Program
from .threads import Threads

NOT_WAITING = -1
_BARRIERS = 16  # of a CTA
_NOWHERE = 1 << 30


def is_barrier(op: Instruction) -> bool:
    """Of a CTA; bar.warp.sync is an ordinary instruction."""
    return op.parts[0] in ("bar", "barrier") and "warp" not in op.parts


def blocks_start(program: Program) -> set[int]:
    """Where threads may meet: labels, and what follows a branch or a barrier."""
    ends = ("bra", "ret", "exit", "bar", "barrier")
    after = {k + 1 for k, op in enumerate(program.instructions) if op.parts[0] in ends}
    return {0} | set(program.labels.values()) | after


class _State:
    """Where each thread is: the number of its next instruction, the barrier it waits at, whether it waits for lanes of
    its warp; and how many instructions were executed, of which those that only wait are none."""

    def __init__(self, threads: Threads):
        self.end = len(threads.program.instructions)
        self.next = np.where(threads.exists, 0, self.end).astype(np.int32)
        self.waits = np.full(threads.count, NOT_WAITING, np.int32)
        self.for_lanes = np.zeros(threads.count, bool)
        self.executed, self.released_at = 0, -1


def run(threads: Threads, block_starts: set[int]):
    """All threads, to their end."""
    state = _State(threads)
    while True:
        ready = (state.next < state.end) & (state.waits == NOT_WAITING) & ~state.for_lanes
        if not ready.any() and state.for_lanes.any():
            _release_lanes(threads, state)
            continue
        if not ready.any():
            if not (state.waits != NOT_WAITING).any():
                return
            _open_barriers(threads, state)
            continue
        places = np.unique(state.next[ready])
        group = np.nonzero(ready & (state.next == places[0]))[0]
        meeting = int(places[1]) if len(places) > 1 else _NOWHERE
        _run_group(threads, state, group, int(places[0]), meeting, block_starts)


def _release_lanes(threads: Threads, state: _State):
    """Lets lanes look again, as those that they waited for may have exited."""
    if state.executed == state.released_at:
        op = threads.program.instructions[state.next[state.for_lanes][0]]
        raise Fault(f"lanes that the member mask names are not here | {op.text}")
    state.released_at = state.executed
    state.for_lanes[:] = False


def _open_barriers(threads: Threads, state: _State):
    waiting = state.waits != NOT_WAITING
    ctas = len(threads.shared.epoch)
    alive = np.bincount(threads.cta_here[state.next < state.end], minlength=ctas)
    waiting_of_cta = np.bincount(threads.cta_here[waiting], minlength=ctas)
    complete = (waiting_of_cta == alive) & (waiting_of_cta > 0)
    opened = waiting & complete[threads.cta_here]
    cta, places = threads.cta_here[opened], state.waits[opened]
    lowest = np.full(ctas, _NOWHERE)
    np.minimum.at(lowest, cta, places)
    if (places != lowest[cta]).any():
        raise Fault("divergent barrier: threads of one CTA wait at different barriers")
    existing = np.bincount(threads.cta_here[threads.exists], minlength=ctas)
    if (complete & (waiting_of_cta != existing)).any():
        raise Fault("divergent barrier: reached after some threads of the CTA exited")
    state.waits[opened] = NOT_WAITING
    threads.shared.epoch[complete] += 1


def _run_group(threads: Threads, state: _State, group: np.ndarray, at: int, meeting: int, block_starts: set[int]):
    """The threads in `group`, all at instruction `at`; `meeting`: where the next others stand."""
    program = threads.program
    while True:
        op = program.instructions[at]
        in_warp = op.parts[0] in MEMBERS and not is_barrier(op)
        if in_warp:
            group = _with_those_that_wait(state, group, at)
        lanes = group
        if op.guard is not None:
            taken = threads.read(op.guard, "pred", group)
            lanes = group[~taken if op.negated else taken]
        if in_warp and len(lanes):
            waiting = _that_must_wait(threads, op, lanes)
            state.next[waiting], state.for_lanes[waiting] = at, True
            group, lanes = (np.setdiff1d(some, waiting) for some in (group, lanes))
            if not len(group):
                return
        state.executed += 1
        name = op.parts[0]
        threads.counters.instruction(name, lanes, group)
        if name == "bra" or name in ("ret", "exit") or is_barrier(op):
            state.next[group] = at + 1
            if name == "bra":
                state.next[lanes] = program.labels[op.operands[0]]
            elif is_barrier(op):
                _check_barrier(threads, op)
                named = op.operands and not op.operands[0].startswith("%")
                state.waits[lanes] = at * _BARRIERS + (int(op.operands[0], 0) if named else 0)
            else:
                state.next[lanes] = state.end
                threads.exited[lanes] = True
            return
        if len(lanes):
            _execute(threads, op, lanes)
        at += 1
        if at >= min(meeting, state.end) or at in block_starts:
            state.next[group] = at
            return


def _with_those_that_wait(state: _State, group: np.ndarray, at: int) -> np.ndarray:
    waiting = np.nonzero(state.for_lanes & (state.next == at))[0]
    state.for_lanes[waiting] = False
    return np.union1d(group, waiting)


def _that_must_wait(threads: Threads, op: Instruction, lanes: np.ndarray) -> np.ndarray:
    """Lanes that wait for others of their warp."""
    try:
        return lanes[waits_for_others(threads, op, lanes)]
    except Fault as fault:
        raise Fault(f"{fault} | {op.text}") from None


def _check_barrier(threads: Threads, op: Instruction):
    """All threads of the CTA, or whole warps of it, may be awaited; only the first is modelled."""
    check_modelled(op)
    if len(op.operands) > 1 and op.operands[1] != str(int(np.prod(threads.launch.block))):
        raise Fault(f"a barrier of a part of the CTA is not modelled | {op.text}")


def _execute(threads: Threads, op: Instruction, lanes: np.ndarray):
    if op.parts[0] not in OPERATIONS:
        raise Fault(f"not modelled | {op.text}")
    try:
        check_modelled(op)
        OPERATIONS[op.parts[0]](threads, op, lanes)
    except Fault as fault:
        raise Fault(f"{fault} | {op.text}") from None
