"""What the benchmark suites share: the machine in a line, what is skipped and why, and how a step is timed.

    pytest benchmarks --benchmark-only         compile takes up to a minute a critic
    pytest benchmarks --benchmark-only -k "dcgan32 and not compile"

Each benchmark is one engine on one critic, run on its own, after its gate; `python -m gpfast bench` interleaves the
engines, and its ratios are the ones to quote. glibc's malloc is put into a fixed state as there: pytest starts anew.
"""

import pytest
import torch

from gpfast.cli import machine
from gpfast.machine import machine_line


def pytest_configure(config):
    machine.fix_malloc()  # pytest does not hold the output at this point


def pytest_report_header():
    return [machine_line("cpu"), machine.malloc_line()]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def run(benchmark):
    """`run(step, group, device)` times a step, waiting for the device at its end; two steps of warm-up."""

    def run(step, group, device="cpu"):
        benchmark.group = group

        def waited():
            step()
            torch.cuda.synchronize()

        timed = step if torch.device(device).type == "cpu" else waited
        for _ in range(2):
            timed()
        benchmark(timed)

    return run
