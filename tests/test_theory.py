"""examples/theory.py: what it prints is what the theory says."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "examples" / "theory.py"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    pytest.importorskip("scipy")
    out = tmp_path_factory.mktemp("theory") / "theory.png"
    command = [sys.executable, PROGRAM, "--quick", "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert out.stat().st_size > 10_000
    return ended.stdout


def numbers(line, printed):
    """The numbers after the words that a line begins with."""
    (found,) = re.findall(rf"^{line}(.*)$", printed, flags=re.M)
    return [float(x) for x in re.findall(r"\d+\.?\d*(?:e[+-]?\d+)?", found)]


def test_divergences_of_gaussians(printed):
    """N(0, 1) and N(20, 4): KL in closed form, either way."""
    _, forth, back, js = numbers("shift", printed)
    assert forth == pytest.approx(math.log(2) + (1 + 400) / 8 - 0.5, abs=1e-4)
    assert back == pytest.approx(-math.log(2) + (4 + 400) / 2 - 0.5, abs=1e-4)
    assert js == pytest.approx(math.log(2), abs=1e-4), "it ends there"


def test_two_lines(printed):
    (error, *_) = numbers("two lines: W1 is .theta. within", printed)
    assert error < 1e-12
    assert numbers("two lines:.*JS off theta = 0 is", printed) == [pytest.approx(math.log(2), abs=1e-4)]


def test_the_game_circles_outwards(printed):
    """Each simultaneous step multiplies the radius by sqrt(1 + rate^2)."""
    start, end, steps = numbers("game: radius", printed)
    assert start == 1 and end == pytest.approx(math.sqrt(1 + 0.1**2) ** steps, abs=1e-4)


def test_only_the_penalised_critic_leaves_a_gradient(printed):
    first, _, last, _ = numbers("discriminator: gradient", printed)
    assert last < first / 100
    _, _, steady, _ = numbers("critic with penalty: gradient", printed)
    assert 0.7 < steady < 1.5
