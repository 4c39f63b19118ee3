"""The CUDA kernels once more on the CPU, under AddressSanitizer and UBSan, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from simt import CSRC, REPOSITORY, SANITIZED, build, missing, sanitized_environment

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(SANITIZED, reason="this process is the one that is sanitized")
@pytest.mark.parametrize("stem", ["interpolate", "gate", "activation", "normalize"])
def test_every_access_is_the_kernels_own(stem):
    if missing():
        pytest.skip(missing())
    build(CSRC / "ops" / f"{stem}.cu", sanitized=True)  # before the sanitizers are preloaded into everything
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE / f"test_{stem}_simt.py"]
    done = subprocess.run(command, cwd=REPOSITORY, env=sanitized_environment(), capture_output=True, text=True)
    said = done.stdout[-4000:] + done.stderr[-4000:]
    assert done.returncode == 0 and " passed" in done.stdout, said
