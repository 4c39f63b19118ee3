"""Tests of compiled kernels. They need a process in which Triton compiles; it cannot also interpret there."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET", "0") != "0":
    raise pytest.UsageError(
        "tests/compiled compiles kernels: unset TRITON_INTERPRET and run `pytest tests/compiled` alone"
    )


@pytest.fixture(scope="session")
def emulator():
    """Runs Triton's launches in the PTX emulator."""
    pytest.importorskip("triton", reason="needs Triton")
    from emulated import Emulated

    return Emulated()
