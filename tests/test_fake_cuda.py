"""A penalty on CUDA tensors that have no data: whatever looked at a value would raise.

The tensors are PyTorch's fake ones, labelled CUDA, so Python, the sweeps in C++ and every fused operator take the way
that they take on a GPU; no kernel runs. It needs no GPU: autograd's engine is given a device that has streams and no
memory (fake_cuda/device.cpp), in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpfast import _extension

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "fake_cuda" / "penalties.py"


def device_without_memory(out):
    """device.cpp, compiled; its symbols come before PyTorch's."""
    if shutil.which("g++") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and g++")
    home = Path(torch.__file__).parent
    flags = [
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    paths = [f"-I{home / 'include'}", f"-L{home / 'lib'}", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    source = PROGRAM.with_name("device.cpp")
    subprocess.run(["g++", *flags, str(source), *paths, "-o", str(out)], check=True)
    return str(out)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if not _extension.available:
        pytest.skip("needs the C++ extension")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    if not torch.cuda.is_available() and (torch.version.cuda or torch.version.hip):
        pytest.skip("needs a GPU, or a PyTorch that is built for the CPU only: this one asks the driver")
    if not torch.cuda.is_available():
        env["LD_PRELOAD"] = device_without_memory(tmp_path_factory.mktemp("device") / "device.so")
    done = subprocess.run([sys.executable, str(PROGRAM)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_penalty_looks_at_a_value(outcomes):
    wrong = {name: outcome for name, outcome in outcomes["ran"].items() if outcome}
    assert len(outcomes["ran"]) > 100 and not wrong


def test_whoever_looks_is_caught(outcomes):
    assert all(outcomes["looked"].values()), outcomes["looked"]
    assert "data" in outcomes["looked"]["a loop in C++"] and "Waits" not in outcomes["looked"]["a loop in C++"]
