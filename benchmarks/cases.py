"""Critics, inputs and gates of the benchmarks, each made once."""

import functools

import pytest
import torch

from gpfast import zoo
from gpfast.cli.competitors import BARE, DEFAULT
from gpfast.cli.gate import Gate
from gpfast.cli.measure import GATE_BATCH

ENGINES = [engine for engine in DEFAULT if engine != BARE]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def case_of(name, device, batch=None):
    """The inputs of a critic at its real size, the same every time; the zoo's batch, or another."""
    entry = zoo.ZOO[name]
    return entry.inputs(batch or entry.batch, False, device=device, generator=torch.Generator().manual_seed(1))


def gate_of(name, device, batch=None):
    """The gate of a critic at its real size."""
    return Gate(zoo.ZOO[name], zoo.build(name, device=device), case_of(name, device, batch))


@functools.lru_cache(maxsize=2)  # a gate holds three copies of its critic
def _gate_of(name, device):
    return gate_of(name, device, min(zoo.ZOO[name].batch, GATE_BATCH))


@functools.cache
def failures_of(name, engine, device):
    """What the gate holds against an engine; nothing is timed before this is empty."""
    return _gate_of(name, device).failures(engine)
