"""python -m gpfast, and its doctor."""

import os
import subprocess
import sys

import pytest

import gpfast
from gpfast import __main__ as command_line
from gpfast import _extension
from gpfast.cli import doctor


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in printed for name in command_line.COMMANDS)


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_has_its_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main([command, "--help"])
    assert stop.value.code == 0 and f"python -m gpfast {command}" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["cure"])
    assert stop.value.code == 2 and "cure" in capsys.readouterr().err


@pytest.mark.parametrize("module, package", command_line.PACKAGES.items())
def test_a_command_without_its_package_names_the_pip_line(module, package, monkeypatch, capsys):
    def missing(command):
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(command_line, "_module", missing)
    assert command_line.main(["demo"]) == 2
    assert capsys.readouterr().err == f"python -m gpfast demo needs {package}: python -m pip install {package}\n"


def test_doctor_says_what_is_there_and_checks_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CRITICS", ("toy-mlp",))
    assert command_line.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for fact in ("gpfast", gpfast.__version__, "PyTorch", "Triton", "GPU", "extension", "engine auto", "gradient_norm"):
        assert fact in printed
    assert "toy-mlp                 ok" in printed and "all agree" in printed
    if _extension.available:
        assert "extension       yes: " in printed


def test_doctor_reports_a_disagreement(monkeypatch, capsys):
    class Disagrees:
        def __init__(self, *_):
            pass

        def failures(self, engine):
            return [f"{engine} is off"]

    monkeypatch.setattr(doctor, "Gate", Disagrees)
    assert command_line.main(["doctor"]) == 1
    assert "auto is off" in capsys.readouterr().out


def test_doctor_does_without_the_extras(tmp_path):
    """tqdm, matplotlib and scikit-learn belong to other commands."""
    blocked = "".join(f"sys.modules['{module}'] = None; " for module in command_line.PACKAGES)
    code = f"import sys; {blocked}from gpfast.__main__ import main; sys.exit(main(['doctor', '--no-check']))"
    env = os.environ | {"GPFAST_NO_EXT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no: GPFAST_NO_EXT switches the extension off" in done.stdout
