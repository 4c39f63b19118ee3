"""How long a step takes: by the wall clock, or on a CUDA device by its events, with nothing left in its L2."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]
Clock = Callable[[Step, int], float]

TIMES_L2 = 2  # what is written between two steps, in sizes of the L2


def clock_of(device: torch.device | str) -> Clock:
    """The clock for steps on `device`: clock(step, number) is the mean of the seconds of so many."""
    return EventClock(device) if torch.device(device).type == "cuda" else wall


def wall(step: Step, number: int) -> float:
    """Of steps one after the other, by the wall clock."""
    start = time.perf_counter()
    for _ in range(number):
        step()
    return (time.perf_counter() - start) / number


class EventClock:
    """Of steps each between two CUDA events; before each, memory of twice the L2's size is written.

    The events are those of the device, so what the CPU does counts as far as the device waits for it: at the first
    kernel of a step the CPU is ahead by the time that the writing takes.
    """

    def __init__(self, device: torch.device | str, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = torch.device(device), cuda
        size = TIMES_L2 * cuda.get_device_properties(self._device).L2_cache_size
        self.scratch = torch.empty(size, dtype=torch.int8, device=self._device)

    def __call__(self, step: Step, number: int) -> float:
        cuda, events = self._cuda, []
        with cuda.device(self._device):
            cuda.synchronize()
            for _ in range(number):
                start, end = (cuda.Event(enable_timing=True) for _ in range(2))
                self.scratch.zero_()
                start.record()
                step()
                end.record()
                events.append((start, end))
            cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / 1e3 / number
