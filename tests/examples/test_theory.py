"""examples/theory.py: what it prints is what the theory says."""

import math

import pytest
import theory


@pytest.fixture
def ran(quick_run):
    return quick_run("theory")


def test_it_draws_them(ran):
    assert (ran.folder / "theory.png").stat().st_size > 10_000


def test_divergences_of_gaussians(ran):
    """N(0, 1) and N(20, 4): KL in closed form, either way."""
    _, forth, back, js = ran.numbers("shift")
    assert forth == pytest.approx(math.log(2) + (1 + 400) / 8 - 0.5, abs=1e-4)
    assert back == pytest.approx(-math.log(2) + (4 + 400) / 2 - 0.5, abs=1e-4)
    assert js == pytest.approx(math.log(2), abs=1e-4), "it ends there"


def test_two_lines(ran):
    (error, *_) = ran.numbers("two lines: W1 is .theta. within")
    assert error < 1e-12
    assert ran.numbers("two lines:.*JS off theta = 0 is") == [pytest.approx(math.log(2), abs=1e-4)]
    assert "KL inf" in ran.printed


def test_lines_apart_share_no_point():
    """Where they lie on one another all is 0; apart they share no point, however near they are."""
    found = theory.two_lines([0.0, 0.5, -2.0], points=4)
    assert found["KL"].tolist() == [0, math.inf, math.inf]
    assert found["JS"] == pytest.approx([0, math.log(2), math.log(2)]) and found["W1"] == pytest.approx([0, 0.5, 2])


def test_the_game_circles_outwards(ran):
    """Each simultaneous step multiplies the radius by sqrt(1 + rate^2)."""
    start, end, steps = ran.numbers("game: radius")
    assert start == 1 and end == pytest.approx(math.sqrt(1 + 0.1**2) ** steps, abs=1e-4)


def test_only_the_penalised_critic_leaves_a_gradient(ran):
    first, _, last, _ = ran.numbers("discriminator: gradient")
    assert last < first / 100
    _, _, steady, _ = ran.numbers("critic with penalty: gradient")
    assert 0.7 < steady < 1.5
