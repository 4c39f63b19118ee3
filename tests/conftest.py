"""What every test relies on: Triton interprets, fresh memory is NaN, and a skip says what it needs."""

import importlib.util
import os
import types

import interpreter

# Tensors are tiny here: threads that spin between them only slow down whoever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which deterministic algorithms warn on a GPU
interpreter.enable()  # before anything imports Triton, as torch may

import pytest  # noqa: E402
import torch  # noqa: E402

import gpfast  # noqa: E402
from gpfast import _extension  # noqa: E402
from gpfast.gradient_norm import _plain as plain_gradient_norm  # noqa: E402
from gpfast.gradient_norm import _plain_seed as plain_gradient_norm_seed  # noqa: E402
from gpfast.interpolate import _plain as plain_interpolate  # noqa: E402

ENDS = ("interpolate", "gradient_norm", "gradient_norm_seed")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="real sizes take minutes: pytest -m slow"))
        if item.get_closest_marker("gpu"):
            # Deterministic mode is on for its NaN in fresh memory; a kernel that lacks such an algorithm is no fault.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    """Fills what torch.empty returns with NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def as_before():
    """For programs that set threads and random state. One thread: networks this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["pytorch", "c++", "triton", pytest.param("gpu", marks=pytest.mark.gpu)])
def ends(request):
    """The three ops of the two ends on one backend each, and the device they take."""
    if request.param == "c++" and not _extension.available:
        pytest.skip("needs the C++ extension")
    if request.param == "triton":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("needs Triton")
        from gpfast.kernels import gradient_norm, interpolate

        functions = interpolate.interpolate, gradient_norm.gradient_norm, gradient_norm.gradient_norm_seed
    elif request.param == "pytorch":
        functions = plain_interpolate, plain_gradient_norm, plain_gradient_norm_seed
    else:
        functions = tuple(getattr(torch.ops.gpfast, name).default for name in ENDS)
    device = "cuda" if request.param == "gpu" else "cpu"
    return types.SimpleNamespace(name=request.param, device=device, **dict(zip(ENDS, functions, strict=True)))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20170331)


@pytest.fixture(params=["reference", "autograd", "auto", "tape"])
def engine(request):
    assert request.param in gpfast.penalty.ENGINES
    return request.param
