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
