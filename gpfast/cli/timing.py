"""Interleaved timing: each round runs every step, in an order shuffled anew, so that all drift alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable

import torch

from gpfast.cli.clock import Clock, Step, clock_of

SAMPLE_SECONDS = 0.02
MIN_ROUNDS = 3
WARM_UP = 2


def interleaved(
    steps: dict[str, Step],
    *,
    rounds: int,
    seconds: float,
    device: torch.device | str,
    on_round: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Milliseconds a step, by name, one figure a round, after a warm-up of two steps each.

    Steps shorter than 20 ms are run several times a round, as often for all. It ends after `rounds`, or after the round
    in which `seconds` have passed, but not before the third. The garbage collector runs between rounds only. `clock` is
    that of the device where none is given: on a GPU its events, with its L2 emptied before each step.
    """
    clock = clock or clock_of(device)
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    shortest = min(clock(step, 1) for step in steps.values())
    number = max(1, round(SAMPLE_SECONDS / shortest))
    order, shuffled = list(steps), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    collected = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds):
            if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
                break
            shuffled.shuffle(order)
            gc.collect()
            for name in order:
                times[name].append(1e3 * clock(steps[name], number))
            on_round()
    finally:
        if collected:
            gc.enable()
    return times


def percentiles(times: list[float]) -> tuple[float, float, float]:
    """(20th percentile, median, 80th percentile), linearly interpolated."""
    fifths = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
    return fifths[0], statistics.median(times), fifths[3]


def ratio(base: list[float], times: list[float]) -> float:
    """How many times as fast as `base`: the median over the rounds of base's time over this one's in the same round."""
    return statistics.median(b / t for b, t in zip(base, times, strict=True))
