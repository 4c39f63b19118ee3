"""The extension: its build, its loading, its threads, and what only compiled code can get wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpfast
from gpfast import _extension

PACKAGE = Path(gpfast.__file__).parent
REPOSITORY = PACKAGE.parent
HALVES = [torch.float16, torch.bfloat16]

needs_extension = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


# An editable install finds the extension of this checkout also for a copy of the package that has none.
NO_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
"""


def python(code: str, folder: Path, **environment) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh interpreter that looks for packages in `folder` first."""
    env = {name: value for name, value in os.environ.items() if name != "GPFAST_NO_EXT"}
    env |= {"PYTHONPATH": str(folder)} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package without its extension."""
    shutil.copytree(PACKAGE, tmp_path / "gpfast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def norm_of(gradient, keep=1, with_seed=True):
    return torch.ops.gpfast.gradient_norm(gradient, keep, 1.0, False, 1e-12, "mean", with_seed)


PENALTY = """
import torch, gpfast
gpfast.gradient_penalty(torch.nn.Linear(3, 1), torch.rand(4, 3), torch.rand(4, 3)).backward()
assert not gpfast._extension.available
"""


def test_without_the_extension_the_package_works(copy):
    done = python(NO_EDITABLE_INSTALL + PENALTY, copy)
    assert done.returncode == 0, done.stderr


@needs_extension
def test_gpfast_no_ext_does_without_a_built_extension(tmp_path):
    done = python(PENALTY, tmp_path, GPFAST_NO_EXT="1")
    assert done.returncode == 0, done.stderr


def test_a_broken_extension_raises_with_its_cause_and_the_remedy(copy):
    broken = copy / "gpfast" / "_C.abi3.so"
    broken.write_bytes(b"not a shared object")
    done = python("import gpfast", copy)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: {broken} is there but cannot be loaded")
    assert message.count(str(broken)) == 2  # once more in what the loader says
    assert "--no-build-isolation" in message and "GPFAST_NO_EXT=1" in message


def test_a_build_without_torch_names_the_flag():
    if not (REPOSITORY / "setup.py").exists():
        pytest.skip("needs a source checkout")
    code = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py']; runpy.run_path('setup.py')"
    done = python(code, REPOSITORY)
    assert done.returncode == 1 and "--no-build-isolation" in done.stderr and "Traceback" not in done.stderr


@needs_extension
def test_build_info_names_targets_compiler_and_torch():
    info = json.loads(torch.ops.gpfast.build_info())
    assert info == _extension.build_info() and set(info) == {"cuda_targets", "compiler", "torch"}
    assert info["torch"].startswith("2.")


@needs_extension
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_is_no_error():
    assert torch.ops.gpfast.cuda_device_count() == 0


@needs_extension
@needs_linux
def test_no_second_openmp_runtime_and_the_threads_are_torchs(tmp_path):
    code = """
import os, numpy, torch, gpfast
torch.set_num_threads({threads})
data, alpha = torch.from_numpy(numpy.ones((64, 12288), numpy.float32)), torch.zeros(64)
before = len(os.listdir("/proc/self/task"))
torch.ops.gpfast.gradient_norm(data, 1, 1.0, False, 1e-12, "mean", True)
torch.ops.gpfast.interpolate(data, data, alpha)
after = len(os.listdir("/proc/self/task"))
names = "libgomp", "libomp", "libiomp"
runtimes = {{line.split()[-1] for line in open("/proc/self/maps") if any(name in line for name in names)}}
print(after - before, len(runtimes))
"""
    for threads in (1, 3):
        done = python(code.format(threads=threads), tmp_path)
        assert done.returncode == 0, done.stderr
        started, runtimes = map(int, done.stdout.split())
        assert (started, runtimes) == (threads - 1, 1)


@needs_extension
@pytest.mark.parametrize(
    "shape, keep", [((64, 4097), 1), ((1, 300_001), 1), ((3, 100_003), 1), ((70_001, 3), 1), ((5, 50_021), 0)]
)
def test_any_number_of_threads_gives_the_same_bits(shape, keep, generator):
    gradient = torch.randn(shape, generator=generator)
    alpha = torch.rand(shape[0], generator=generator)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            value, norms, seed = norm_of(gradient, keep)
            again = torch.ops.gpfast.gradient_norm_seed(gradient, norms, value, keep, 1.0, False, 0.5)
            results.append((value, norms, seed, again, torch.ops.gpfast.interpolate(gradient, gradient + 1, alpha)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_extension
def test_whole_rows_and_shared_rows_give_the_same_bits(generator):
    row = torch.randn(1, 70_001, generator=generator)
    few, many = norm_of(row), norm_of(row.repeat(64, 1))
    assert torch.equal(few[1].expand(64), many[1])


@needs_extension
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_bit_pattern_is_widened_exactly(dtype):
    pattern = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    mixed = torch.ops.gpfast.interpolate(pattern, pattern, torch.tensor(0.5))
    assert torch.equal(mixed.isnan(), pattern.isnan())
    assert torch.equal(mixed.nan_to_num(0), pattern.nan_to_num(0))


@needs_extension
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 3e-5, 0.3, 1.0, 3e4, 1e6, 1e38], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_rounded_as_pytorch_rounds(dtype, scale, generator):
    gradient = torch.randn(1, 20_001, generator=generator).to(dtype)
    norm, one = torch.ones(1), torch.ones(())
    seed = torch.ops.gpfast.gradient_norm_seed(gradient, norm, one, 1, 0.0, False, scale)
    factor = torch.tensor(2 * scale, dtype=torch.float64).float()
    assert torch.equal(seed, (factor * gradient.float()).to(dtype))


@needs_extension
def test_the_compiled_ops_refuse_what_has_no_dense_rows():
    rows = torch.rand(4, 6)
    for gradient in (rows[:, ::2], rows.T):
        with pytest.raises(RuntimeError, match="has no dense rows"):
            norm_of(gradient)
    with pytest.raises(RuntimeError, match="real has strides"):
        torch.ops.gpfast.interpolate(torch.rand(2, 3, 4), torch.rand(2, 4, 3).mT, torch.rand(2))
    with pytest.raises(RuntimeError, match="alpha must be"):
        torch.ops.gpfast.interpolate(rows, rows, torch.rand(3))
    with pytest.raises(RuntimeError, match="cotangent is"):
        torch.ops.gpfast.gradient_norm_seed(rows, torch.ones(4), torch.ones(3), 1, 1.0, False, 1.0)


@needs_extension
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_the_cuda_kernel_agrees_with_the_cpu(dtype, generator):
    if not _extension.build_info()["cuda_targets"]:
        pytest.skip("needs an extension built with CUDA")
    real, fake = (torch.randn(5, 2049, generator=generator).to(dtype) for _ in range(2))
    alpha = torch.rand(5, generator=generator, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    mixed = torch.ops.gpfast.interpolate_cuda(real.cuda(), fake.cuda(), alpha.cuda())
    torch.testing.assert_close(mixed.cpu(), torch.ops.gpfast.interpolate(real, fake, alpha))
