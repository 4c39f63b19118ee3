"""What the tape did: its plans, and which node is at work. For `explain` and `check`."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from gpfast import _extension

_one_at_a_time = threading.RLock()


class Step(NamedTuple):
    """One live node of autograd's graph in a tape's plan, after the adjoint sweep."""

    tape: int  # a batch in chunks has a tape for each
    index: int  # from the points to the scores
    sequence: int  # autograd's number of the node
    node: str
    rule: str  # "alone" where PyTorch runs it
    bends: bool
    bent: bool  # second adjoints reach it
    proportional: bool  # second adjoints are the adjoints times a number for each sample: no sweep brings them
    kept: int  # bytes that the rule holds for the other sweeps


class Now(NamedTuple):
    """Where the sweeps are; outside of them `sweep` is 0, and `sequence` is the last node that autograd made here."""

    tape: int
    sweep: int
    step: int
    sequence: int


class Watch:
    """While entered, sees the tapes of this thread; then `steps` and, where a graph was refused, `refused` say why.

    Without the extension there is nothing to see. One thread watches at a time; others wait.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.refused = ""

    def __enter__(self) -> Watch:
        _one_at_a_time.acquire()
        if _extension.available:
            torch.ops.gpfast.watch(True)
        return self

    def __exit__(self, *_) -> None:
        try:
            if _extension.available:
                lines, self.refused = torch.ops.gpfast.watched()
                self.steps = [_step(line) for line in lines]
                torch.ops.gpfast.watch(False)
        finally:
            _one_at_a_time.release()

    def now(self) -> Now:
        """Where the sweeps are at this moment."""
        if not _extension.available:
            return Now(-1, 0, -1, torch.autograd._get_sequence_nr() - 1)
        return Now(*torch.ops.gpfast.watched_now())


def _step(line: str) -> Step:
    tape, index, sequence, node, rule, bends, bent, proportional, kept = line.split("\t")
    flags = [word == "1" for word in (bends, bent, proportional)]
    return Step(int(tape), int(index), int(sequence), node, rule, *flags, int(kept))
