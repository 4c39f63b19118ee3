"""A quick look at speed and peak memory beside the eager lines: a few critics, a few seconds each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpfast import cost, zoo
from gpfast.cli import timing
from gpfast.cli.clock import Clock
from gpfast.cli.competitors import EAGER, penalty_function, step_function
from gpfast.columns import columns, digits

CRITICS = ("motion-prior", "dcgan64", "layernorm-dcgan", "resnet32")
ROUNDS = 25
GPFAST = "auto"


@dataclass(frozen=True)
class Look:
    """One critic with the eager lines and with gpfast: median milliseconds a step, and most bytes alive in it.

    ratio: eager's time over gpfast's in the same round, median over the rounds.
    """

    critic: str
    batch: int
    milliseconds: dict[str, float]
    ratio: float
    peak_bytes: dict[str, int]


def look(
    name: str,
    device: torch.device | str,
    *,
    batch: int | None = None,
    seconds: float = 5.0,
    clock: Clock | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> Look:
    """The critic `name` at real size, `batch` samples (the zoo's where None), for about so many seconds."""
    entry = zoo.ZOO[name]
    batch = batch or entry.batch
    critic = zoo.build(name, device=device)
    case = entry.inputs(batch, False, device=device, generator=torch.Generator().manual_seed(0))
    steps, peaks = {}, {}
    for engine in (EAGER, GPFAST):
        twin = copy.deepcopy(critic)
        steps[engine] = step_function(penalty_function(engine, twin, case), twin)
        steps[engine]()  # compiles kernels, and picks algorithms
        twin.zero_grad(set_to_none=True)
        peaks[engine] = cost.peak_bytes_raw(steps[engine], device)
    times = timing.interleaved(steps, rounds=ROUNDS, seconds=seconds, device=device, on_round=on_round, clock=clock)
    medians = {engine: timing.percentiles(measured)[1] for engine, measured in times.items()}
    return Look(name, batch, medians, timing.ratio(times[EAGER], times[GPFAST]), peaks)


def rendered(looks: Sequence[Look]) -> str:
    """A table, with what it says in words."""
    lines = [["critic", "batch", "eager ms", "gpfast ms", "eager / gpfast", "eager peak MB", "gpfast peak MB"]]
    for one in looks:
        times = [digits(one.milliseconds[engine]) for engine in (EAGER, GPFAST)]
        peaks = [digits(one.peak_bytes[engine] / 1e6) for engine in (EAGER, GPFAST)]
        lines.append([one.critic, str(one.batch), *times, f"{one.ratio:.2f}", *peaks])
    return (
        columns(lines, [False, *[True] * 6])
        + "\nPenalty and the gradient of every parameter, float32; medians over rounds in which both ran. Peak: 10^6"
        "\nbytes alive beyond inputs and parameters. python -m gpfast bench measures with more care."
    )
