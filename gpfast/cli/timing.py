"""Interleaved timing: each round runs every step, in an order shuffled anew, so that all drift alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable

import torch

SAMPLE_SECONDS = 0.02
MIN_ROUNDS = 3
WARM_UP = 2

Step = Callable[[], None]


def interleaved(
    steps: dict[str, Step],
    *,
    rounds: int,
    seconds: float,
    device: torch.device | str,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds a step, by name, one figure a round, after a warm-up of two steps each.

    Steps shorter than 20 ms are run several times a round, as often for all. It ends after `rounds`, or after the round
    in which `seconds` have passed, but not before the third. The garbage collector runs between rounds only. On a GPU
    the clock is read after the device has been waited for.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    shortest = min(_timed(step, 1, wait) for step in steps.values())
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
                times[name].append(1e3 * _timed(steps[name], number, wait))
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


def _timed(step: Step, number: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(number):
        step()
    wait()
    return (time.perf_counter() - start) / number
