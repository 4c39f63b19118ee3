"""What is said to have a CUDA kernel is what the sources register, and what a build with CUDA holds."""

import re
from pathlib import Path

import pytest
import torch

from gpfast import _extension, cuda_kernels

OPS = Path(__file__).resolve().parent.parent / "csrc" / "ops"
BLOCK = re.compile(r"TORCH_LIBRARY_IMPL\(gpfast, CUDA, m\) \{([^{}]*)\}")
SHARED = re.compile(r"void implement\(torch::Library& m\) \{(.*?)^\}", re.DOTALL | re.MULTILINE)


def registered_in(source):
    """Names of the operators that a file gives a CUDA kernel, in the block itself or in implement<...>(m)."""
    blocks = BLOCK.findall(source)
    parts = blocks + (SHARED.findall(source) if any("implement<" in block for block in blocks) else [])
    return {name.split(".")[0] for part in parts for name in re.findall(r'm\.impl\("([^"]+)"', part)}


def test_the_sources_are_read_right():
    alone = 'TORCH_LIBRARY_IMPL(gpfast, CUDA, m) { m.impl("a", &a); }\n'
    alone += 'TORCH_LIBRARY_IMPL(gpfast, CPU, m) { m.impl("b", &b); }\n'
    assert registered_in(alone) == {"a"}
    several = 'TORCH_LIBRARY_IMPL(gpfast, CUDA, m) {\n  m.impl("a", &a<1>);\n  m.impl("c.out", &c);\n}\n'
    assert registered_in(several) == {"a", "c"}
    assert registered_in('void implement(torch::Library& m) {\n  m.impl("a", &a);\n}\n') == set()


def test_the_table_is_what_the_sources_register():
    if not OPS.is_dir():
        pytest.skip("needs a source checkout")
    found = {name for path in OPS.glob("*.cpp") for name in registered_in(path.read_text())}
    assert found - {"interpolate_cuda"} == cuda_kernels.SWEEPS, "gpfast/cuda_kernels.py names what csrc/ops registers"


def test_the_ends_are_registered_from_python():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert all(has_kernel(f"gpfast::{name}", "CUDA") for name in cuda_kernels.ENDS)


@pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
def test_a_build_holds_all_or_none():
    expected = cuda_kernels.SWEEPS if _extension.build_info()["cuda_targets"] else frozenset()
    assert cuda_kernels.registered() == expected
    assert all(cuda_kernels.has_plain_formula(name) for name in cuda_kernels.ENDS | cuda_kernels.SWEEPS)
