"""One critic, measured: gate, counts, memory and interleaved times of every competitor."""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable

import torch
from torch import nn

from gpfast import cost, zoo
from gpfast.cli import bare, table, timing
from gpfast.cli.arguments import DTYPES
from gpfast.cli.competitors import (
    BARE,
    CHUNKS,
    COMPILE,
    COMPILE_SLACK,
    EAGER,
    chunks_of,
    compiled_penalty,
    options_of,
    penalty_function,
    step_function,
)
from gpfast.cli.deadline import TookTooLong, deadline
from gpfast.cli.gate import Gate, draws
from gpfast.columns import first_line
from gpfast.operators import count_step

GATE_BATCH = 2
COMPILE_SECONDS = 120.0

Step = Callable[[], None]


def measure_critic(
    name: str, engines: list[str], args: argparse.Namespace, on_round: Callable[[], None]
) -> tuple[list[table.Row], list[str]]:
    """(rows, failures of the gate) of one critic; no rows where an engine of gpfast failed it."""
    entry, dtype = zoo.ZOO[name], DTYPES[args.dtype]
    batch = args.batch or entry.batch
    critic = zoo.build(name, dtype=dtype, device=args.device)

    def case_of(samples: int) -> zoo.Case:
        generator = torch.Generator().manual_seed(1)
        return entry.inputs(samples, False, device=args.device, dtype=dtype, generator=generator)

    rows = {engine: table.Row(name, batch, engine) for engine in engines}
    gate_case = case_of(batch if COMPILE in engines else min(batch, GATE_BATCH))
    gate, failures = _gated(entry, critic, gate_case, rows)
    if failures:
        return [], failures
    case, steps = case_of(batch), {}
    plan = _plan(critic, case, list(rows.values()))
    for engine, row in rows.items():
        if engine == BARE:
            step = _bare_step(plan, row)
        elif engine == COMPILE:
            step = _compiled_step(gate, copy.deepcopy(critic), row)
        else:
            step = None if row.note else _step(engine, copy.deepcopy(critic), case, row)
        if step is not None:
            steps[engine] = step
    times = timing.interleaved(steps, rounds=args.repeats, seconds=args.seconds, device=args.device, on_round=on_round)
    for engine, measured in times.items():
        row = rows[engine]
        row.times_ms = measured
        row.p20_ms, row.median_ms, row.p80_ms = timing.percentiles(measured)
        row.ratio = timing.ratio(times[EAGER], measured)
        row.over_bare = timing.ratio(measured, times[BARE]) if BARE in times else None
    return list(rows.values()), []


def _gated(entry: zoo.Entry, critic: nn.Module, case: zoo.Case, rows: dict[str, table.Row]) -> tuple[Gate, list[str]]:
    """(the gate, its failures); a batch that cannot be cut is no failure, and is noted in its row."""
    gate, failures = Gate(entry, critic, case), []
    for engine, row in rows.items():
        if engine in (BARE, COMPILE):
            continue
        its_gate = gate
        if engine.startswith(CHUNKS) and draws(critic, case):
            its_gate = Gate(entry, critic, case, parts=chunks_of(engine))
        try:
            failures += [f"engine {engine}: {failure}" for failure in its_gate.failures(engine)]
        except (ValueError, RuntimeError) as error:
            if not engine.startswith(CHUNKS) or "chunks" not in str(error):
                raise
            row.note = f"cannot be cut: {first_line(error)}"
    return gate, failures


def _plan(critic: nn.Module, case: zoo.Case, rows: list[table.Row]) -> list[bare.Place] | str:
    """The tape's plan, or why there is none; into all rows what the critic is and how large its forward."""
    try:
        plan = bare.plan_of(critic, case)
    except RuntimeError as error:
        return first_line(error)
    copied = copy.deepcopy(critic)
    activations = cost.peak_bytes_raw(lambda: bare.scores_of(copied, case), bare.case_device(case))
    for row in rows:
        row.traits, row.activation_bytes = bare.traits_of(plan), activations
    return plan


def _step(engine: str, critic: nn.Module, case: zoo.Case, row: table.Row) -> Step:
    """The step of an engine of gpfast, with its counts in the row."""
    step = step_function(penalty_function(engine, critic, case), critic)
    step()  # what happens in the first call only, say a trial whether the batch can be cut, costs a step nothing
    critic.zero_grad(set_to_none=True)
    counted = cost.measure(step, existing=(critic, case.real, case.fake, case.args))
    row.peak_bytes, row.launches = counted.peak_bytes, counted.launches
    row.flop, row.bytes_moved = counted.flop, counted.bytes_moved
    device = bare.case_device(case)
    _measure_memory(step, critic, device, row)
    if device.type == "cpu":  # elsewhere `launches` is a GPU's already
        _count_as_on_gpu(engine, critic, case, row)
    return step


def _count_as_on_gpu(engine: str, critic: nn.Module, case: zoo.Case, row: table.Row) -> None:
    """The launches of the same step as a GPU would be given it; where they cannot be counted so, a note why."""
    data = {"args": case.args, "kwargs": case.kwargs, "output": case.output}
    try:
        counted = count_step(critic, case.real, case.fake, **data, **options_of(engine))
    except Exception as error:  # the step itself has run: its other figures stand
        row.note = f"not counted as on a GPU: {first_line(error)}"
        return
    row.launches_as_on_gpu = counted.launches
    if counted.refused:
        row.note = f"counted as on a GPU on real tensors, for on fake ones it raised {counted.refused}"


def _measure_memory(step: Step, critic: nn.Module, device: torch.device, row: table.Row) -> None:
    """Of a step that has run before, from gradients that are None."""
    critic.zero_grad(set_to_none=True)
    gc.collect()
    row.raw_peak_bytes = cost.peak_bytes_raw(step, device)
    row.gradient_bytes = sum(p.grad.nbytes for p in critic.parameters() if p.grad is not None)


def _bare_step(plan: list[bare.Place] | str, row: table.Row) -> Step | None:
    try:
        step = bare.bare_step(bare.bare_passes(plan)) if isinstance(plan, list) else None
    except RuntimeError as error:
        step, plan = None, first_line(error)
    if step is None:
        row.note = f"no bare passes: {plan}"
        return None
    counted = cost.measure(step)
    row.launches, row.flop = counted.launches, counted.flop
    return step


def _compiled_step(gate: Gate, critic: nn.Module, row: table.Row) -> Step | None:
    """The step of the competitor "compile" on the gate's case; None, and a note why, where there is none."""
    try:
        with deadline(COMPILE_SECONDS):
            penalty = compiled_penalty(critic, gate.case)
            failures = gate.real_failures(penalty, critic, COMPILE_SLACK)
    except TookTooLong:
        end_compilers()
        row.note = f"took longer than {COMPILE_SECONDS:g} s to compile"
        return None
    except Exception as error:  # whatever the compiler raises is the answer
        row.note = f"does not compile: {first_line(error)}"
        return None
    if failures:
        row.note = f"fails the gate: {failures[0]}"
        return None
    step = step_function(penalty, critic)
    _measure_memory(step, critic, bare.case_device(gate.case), row)
    return step


def end_compilers() -> None:
    """Waits until no compiler that was started runs any more: it would take time from what is measured next."""
    torch.compiler.reset()
    try:
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.utils import clear_caches

        AsyncCompile.pool().shutdown(wait=True, cancel_futures=True)
        AsyncCompile.pool.cache_clear()
        clear_caches()  # the next critic may wait for a kernel that was cancelled
    except (ImportError, AttributeError):  # private names: without them it ends on its own, some seconds later
        pass
