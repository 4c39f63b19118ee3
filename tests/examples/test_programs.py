"""Every program in examples/ has its test here, and says how to start it."""

from pathlib import Path

import pytest
from conftest import EXAMPLES, run

PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_tested_and_explains_itself(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.startswith('"""') and f"python examples/{name}.py --" in text
    assert f'quick_run("{name}")' in (Path(__file__).parent / f"test_{name}.py").read_text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_explains(name):
    ended = run(name, "--help")
    assert ended.returncode == 0 and "--quick" in ended.stdout and "--seed" in ended.stdout


@pytest.mark.parametrize(
    "name, words",
    [
        ("digits_wgan_gp", ["--batch", 1]),
        ("digits_wgan_gp", ["--steps", 0]),
        ("motion_prior_r1", ["--steps", 0]),
        ("motion_prior_r1", ["--frames", 0]),
        ("theory", ["--steps", 0]),
        ("theory", ["--engine", "eager"]),
    ],
)
def test_what_cannot_be_meant_is_refused(name, words, tmp_path):
    ended = run(name, *words, "--out", tmp_path / "out")
    assert ended.returncode == 2 and words[0] in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["digits_wgan_gp", "motion_prior_r1"])
def test_steps_that_are_given_hold_with_quick_too(name, tmp_path):
    ended = run(name, "--quick", "--steps", 701, "--batch", 2, "--out", tmp_path)
    assert "after 701 steps" in ended.stdout
