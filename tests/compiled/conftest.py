"""Tests of compiled kernels. They need a process in which Triton compiles; it cannot also interpret there."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET", "0") != "0":
    raise pytest.UsageError(
        "tests/compiled compiles kernels: unset TRITON_INTERPRET and run `pytest tests/compiled` alone"
    )


@pytest.fixture(scope="session")
def emulator():
    """The PTX emulator, or a skip."""
    import emulator

    module = emulator.load()
    if module is None:
        pytest.skip(emulator.MISSING)
    return emulator.Emulator(module)
