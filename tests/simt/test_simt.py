"""The shim itself: what CUDA's names mean on the CPU, and that it catches mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from simt import MISTAKES, REPOSITORY, SEEDED, Library, SimtError, build, missing, sanitized_environment

HERE = Path(__file__).resolve().parent
BLOCKS = 3


@pytest.fixture(scope="module")
def library():
    return Library(SEEDED)


def sums(library, mistake, seed=1):
    x = torch.arange(256.0 * BLOCKS)
    out = torch.full((BLOCKS,), torch.nan)
    library.run("seeded_sums", MISTAKES.index(mistake), x, out, x.numel(), seed=seed)
    return out, x.view(BLOCKS, 256).sum(1)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_sum_over_shared_memory(library, seed):
    found, expected = sums(library, "none", seed)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("divergent barrier", r"divergent barrier: threads wait at seeded.cu:\d+ and at seeded.cu:\d+"),
        ("skipped barrier", r"barrier at seeded.cu:\d+ after 32 threads exited"),
        ("wrong mask", "a lane is not in its own mask"),
        ("other mask", "lanes of one mask wait in another operation, or with another mask"),
        ("exited lane", "the mask names a lane that has exited"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_hardware_leaves_undefined_is_an_error(library, mistake, words, seed):
    with pytest.raises(SimtError, match=words):
        sums(library, mistake, seed)
    found, expected = sums(library, "none", seed)  # and the next launch is none the worse
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mistake", ["missing barrier", "missing second barrier", "stale lane"])
def test_mistakes_show_in_the_values(library, mistake):
    """At one of a few random orders at least: shared memory that nobody wrote, or a lane that gave nothing, is NaN."""
    wrong = [seed for seed in range(1, 5) if not torch.equal(*sums(library, mistake, seed))]
    assert wrong


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("one beyond", "heap-buffer-overflow"),
        ("one beyond shared", "out of bounds for type"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_see_accesses_that_are_not_the_kernels(mistake, words):
    if missing():
        pytest.skip(missing())
    build(SEEDED, sanitized=True)
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import simt, test_simt\n"
        f"for mistake in ('none', {mistake!r}):\n"
        "    print(mistake, flush=True)\n"
        "    test_simt.sums(test_simt.Library(simt.SEEDED), mistake)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=sanitized_environment(), capture_output=True, text=True
    )
    assert done.returncode != 0 and words in done.stderr, done.stderr
    assert done.stdout.split("\n")[1] == mistake  # without a mistake there was none


def test_operations_of_a_warp(library):
    x = torch.randn(128, generator=torch.Generator().manual_seed(0))
    reversed_, above = torch.empty(128), torch.empty(128)
    positive = torch.empty(4, dtype=torch.int32)
    library.run("seeded_warps", x, reversed_, above, positive, 2)
    warps = x.view(4, 32)
    assert torch.equal(reversed_.view(4, 32), warps.flip(1))
    torch.testing.assert_close(above.view(4, 32)[:, 0], warps.sum(1))
    set_ = (positive[:, None] >> torch.arange(32)) & 1
    assert torch.equal(set_.bool(), warps > 0)


def test_three_dimensions_of_blocks_and_threads(library):
    out = torch.full((24 * 30,), -1, dtype=torch.int32)
    assert library.run("seeded_places", out) == 24
    assert torch.equal(out.view(24, 30), torch.arange(24, dtype=torch.int32)[:, None] * 1000 + torch.arange(30).int())


def test_threads_take_turns_in_the_order_told(library):
    orders = []
    for seed in (0, 1, 2):
        turn = torch.empty(64, dtype=torch.int32)
        library.run("seeded_turns", torch.zeros(1, dtype=torch.int32), turn, seed=seed)
        assert torch.equal(turn.sort().values, torch.arange(64, dtype=torch.int32))
        orders.append(turn.tolist())
    assert orders[0] == sorted(orders[0]) and len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("configuration", [(0, 64, 0), (1, 0, 0), (1, 1025, 0), (1, 64, 228 * 1024), (2**31, 1, 0)])
def test_configurations_that_a_device_refuses(library, configuration):
    with pytest.raises(SimtError, match="cudaErrorInvalidConfiguration"):
        library.run("seeded_configuration", *configuration)


def test_only_the_blocks_told_are_run(library):
    x, out = torch.arange(256.0 * BLOCKS), torch.full((BLOCKS,), torch.nan)
    assert library.run("seeded_sums", 0, x, out, x.numel(), blocks=(1, 2)) == BLOCKS
    assert out.isnan().tolist() == [True, False, True]


def test_a_source_that_does_not_compile_says_so(tmp_path):
    if missing():
        pytest.skip(missing())
    (tmp_path / "broken.cu").write_text("not C++")
    with pytest.raises(SimtError, match="g\\+\\+ does not compile .*broken.cu"):
        build(tmp_path / "broken.cu")
