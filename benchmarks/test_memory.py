"""The memory of a penalty at its peak, by critic, engine and chunks, as `python -m gpfast memory` has it.

    pytest benchmarks/test_memory.py --benchmark-only

What is timed is the study, a step on fake tensors or on a GPU; the peaks are in each benchmark's extra_info, and in
--benchmark-json. Eager's peak is the most that any way of gpfast may take.
"""

import dataclasses
import functools

import pytest

from gpfast import zoo
from gpfast.memory import Study, why_uncut

DEVICES = [pytest.param(None, id="modelled"), pytest.param("cuda", id="measured", marks=pytest.mark.gpu)]


@functools.lru_cache(maxsize=1)
def study_of(name, device):
    return Study(name, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("engine", "chunks"), [("reference", 1), ("auto", 1), ("auto", 4)])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_peak(benchmark, name, engine, chunks, device):
    if chunks > 1 and (why := why_uncut(name)):
        pytest.skip(f"{name} cannot be cut: {why}")
    study, batch = study_of(name, device), zoo.ZOO[name].batch
    benchmark.group = f"{name}, {study.how}"
    peak = benchmark.pedantic(study.peak, (engine, batch, chunks), rounds=1)
    eager = study.peak("reference", batch)
    benchmark.extra_info |= {"how": study.how, "batch": batch, "chunks": chunks, "total": peak.total}
    benchmark.extra_info |= dataclasses.asdict(peak) | {"of_eager": peak.total / eager.total}
    assert 0 < peak.total <= eager.total
