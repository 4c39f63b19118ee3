"""The example programs, run with --quick as a user runs them: once each, and what they printed is read.

--pictures FOLDER keeps what they wrote, in place of what an earlier run left there.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))  # as Python does for `python examples/NAME.py`


def pytest_addoption(parser):
    parser.addoption("--pictures", type=Path, help="folder in which the example programs leave their pictures")


@dataclass
class Run:
    printed: str
    folder: Path

    def numbers(self, line):
        """The numbers on the one printed line that begins with `line` (a regular expression), after that."""
        return numbers(line, self.printed)


def numbers(line, printed):
    found = re.findall(rf"^{line}(.*)$", printed, flags=re.M)
    assert len(found) == 1, f"{len(found)} lines begin with {line!r} in\n{printed}"
    return [float(x) for x in re.findall(r"[-+]?\d+\.?\d*(?:e[+-]?\d+)?", found[0])]


def run(name, *words):
    """The finished process of `python examples/NAME.py`, on one thread."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def quick_run(request, tmp_path_factory):
    """quick_run("toy"): what `python examples/toy.py --quick` printed, and the folder it wrote to. Each runs once."""
    kept, runs = request.config.getoption("--pictures"), {}

    def quick(name):
        if name not in runs:
            folder = (kept or tmp_path_factory.mktemp("examples")) / name
            shutil.rmtree(folder, ignore_errors=True)
            ended = run(name, "--quick", "--out", folder)
            assert ended.returncode == 0, ended.stderr
            runs[name] = Run(ended.stdout, folder)
        return runs[name]

    return quick


@pytest.fixture(autouse=True)
def every_test_leaves_all_as_before(as_before):
    pass
