"""Shuffles, votes and synchronisation of a warp; what orders memory, which does nothing here."""

import numpy as np

from ..faults import Fault
from ..parser import Instruction
from ..threads import WARP, Threads


def _masks(active: np.ndarray) -> np.ndarray:
    """One bit a lane, for each warp."""
    return (active.reshape(-1, WARP) * (1 << np.arange(WARP, dtype=np.int64))).sum(1)


def _active(threads: Threads, lanes: np.ndarray) -> np.ndarray:
    active = np.zeros(threads.count, bool)
    active[lanes] = True
    return active


MEMBERS = {"shfl": 4, "vote": 2, "bar": 0}  # which operand is the member mask


def _members(threads: Threads, op: Instruction, lanes: np.ndarray) -> np.ndarray:
    return threads.read(op.operands[MEMBERS[op.parts[0]]], "u32", lanes).astype(np.int64)


def waits_for_others(threads: Threads, op: Instruction, lanes: np.ndarray) -> np.ndarray:
    """Which of the lanes have one in their member mask that is not here, and has not exited."""
    here, alive = (_masks(there)[lanes >> 5] for there in (_active(threads, lanes), ~threads.exited))
    return (_members(threads, op, lanes) & alive & ~here) != 0


def _check_members(threads: Threads, op: Instruction, lanes: np.ndarray) -> np.ndarray:
    """Which threads are here: the scheduler has waited for all that the masks name, except those that exited."""
    members, alive = _members(threads, op, lanes), _masks(~threads.exited)[lanes >> 5]
    if ((members >> (lanes & 31)) & 1 == 0).any():
        raise Fault("a lane is not in its own member mask")
    if (members != members[0]).any():
        _check_that_members_agree(threads, members, lanes)
    if (members & ~alive).any():
        threads.counters.warnings.add("a member mask names lanes that exited")
    return _active(threads, lanes)


def _check_that_members_agree(threads: Threads, members: np.ndarray, lanes: np.ndarray):
    masks = np.zeros(threads.count, np.int64)  # 0: not here
    masks[lanes] = members
    masks = masks.reshape(-1, WARP)
    named = (masks[:, :, None] >> np.arange(WARP)) & 1 == 1
    other = (masks[:, :, None] != masks[:, None, :]) & (masks[:, None, :] != 0)
    if (named & other).any():
        raise Fault("lanes of one member mask have another")


def shuffle(threads: Threads, op: Instruction, lanes: np.ndarray):
    active = _check_members(threads, op, lanes)
    value, by, limits = (threads.read(o, "u32", lanes) for o in op.operands[1:4])
    by, limits, lane = (by & 31).astype(np.int64), limits.astype(np.int64), lanes & 31
    segment, clamp = (limits >> 8) & 31, limits & 31
    last, first = (lane & segment) | (clamp & ~segment), lane & segment
    kind = op.parts[2]
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment)}[kind]
    valid = source >= last if kind == "up" else source <= last
    source = (lanes & ~31) + np.where(valid, source, lane)
    if (~active[source]).any():
        raise Fault("shuffle from a lane that is not here")
    everyone = np.zeros(threads.count, np.uint32)
    everyone[lanes] = value
    results = zip(op.operands[0].split("|"), (everyone[source], valid), ("u32", "pred"), strict=False)
    for register, result, ptx_type in results:
        threads.write(register.strip(), result, ptx_type, lanes)


def vote(threads: Threads, op: Instruction, lanes: np.ndarray):
    active = _check_members(threads, op, lanes)
    yes = np.zeros(threads.count, bool)
    yes[lanes] = threads.predicate(op.operands[1], lanes)
    warp = lanes >> 5
    if op.parts[2] == "ballot":
        return threads.write(op.operands[0], _masks(yes)[warp].astype(np.uint32), "u32", lanes)
    if op.parts[2] == "uni":
        raise Fault("vote.uni is not modelled")
    any_yes = yes.reshape(-1, WARP).any(1)
    all_yes = (yes | ~active).reshape(-1, WARP).all(1)
    threads.write(op.operands[0], (any_yes if op.parts[2] == "any" else all_yes)[warp], "pred", lanes)


def active_mask(threads: Threads, op: Instruction, lanes: np.ndarray):
    threads.write(op.operands[0], _masks(_active(threads, lanes))[lanes >> 5].astype(np.uint32), "u32", lanes)


def warp_barrier(threads: Threads, op: Instruction, lanes: np.ndarray):
    _check_members(threads, op, lanes)


def nothing(threads: Threads, op: Instruction, lanes: np.ndarray):
    """Hints, and fences: here a write is seen at once."""


def trap(threads: Threads, op: Instruction, lanes: np.ndarray):
    raise Fault("trap")


OPERATIONS = {
    "shfl": shuffle,
    "vote": vote,
    "activemask": active_mask,
    "bar": warp_barrier,
    "trap": trap,
    **dict.fromkeys(("membar", "fence", "prefetch", "discard", "nanosleep", "griddepcontrol", "createpolicy"), nothing),
}
