"""python -m gpfast, and its doctor."""

import os
import subprocess
import sys

import pytest
import torch

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
        assert "extension       yes: " in printed and "engine auto     tape: " in printed
        built = bool(_extension.build_info()["cuda_targets"])
        assert ("CUDA kernels    of the sweeps: " if built else "CUDA kernels    none of the sweeps'") in printed
    else:
        assert "engine auto     autograd: " in printed and "extension, gpfast._C, is not built" in printed
    assert torch.cuda.is_available() or "eager / gpfast" not in printed


def test_doctor_reports_a_disagreement(monkeypatch, capsys):
    class Disagrees:
        def __init__(self, *_):
            pass

        def failures(self, engine):
            return [f"{engine} is off"]

    monkeypatch.setattr(doctor, "Gate", Disagrees)
    assert command_line.main(["doctor", "--speed"]) == 1
    printed = capsys.readouterr().out
    assert "auto is off" in printed and "eager / gpfast" not in printed


def test_doctor_measures_speed_where_it_is_asked_to(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CRITICS", ())
    tiny = ["--speed", "--critics", "toy-mlp", "mlp-64", "--batch", "4", "--seconds", "0.1"]
    assert command_line.main(["doctor", *tiny]) == 0
    lines = capsys.readouterr().out.splitlines()
    (head,) = [i for i, line in enumerate(lines) if "eager / gpfast" in line]
    assert [line.split()[:2] for line in lines[head + 1 : head + 3]] == [["toy-mlp", "4"], ["mlp-64", "4"]]
    eager, ours = (float(figure) for figure in lines[head + 1].split()[-2:])
    assert eager > ours > 0 or not _extension.available, "the peaks are those of different engines"


def test_doctor_names_a_critic_that_cannot_be_measured(monkeypatch, capsys):
    def short(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(doctor, "CRITICS", ())
    monkeypatch.setattr(doctor.speed, "look", short)
    assert command_line.main(["doctor", "--speed", "--critics", "toy-mlp"]) == 2
    assert "gpfast doctor: toy-mlp: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("registered", [frozenset(), frozenset({"gate", "gate_", "slope"})], ids=["none", "some"])
def test_doctor_names_the_cuda_kernels_of_this_build(registered, monkeypatch):
    monkeypatch.setattr(doctor.cuda_kernels, "registered", lambda: registered)
    said = doctor.facts()["CUDA kernels"]
    assert said.endswith(": gate, slope") if registered else "PyTorch's own operators" in said


@pytest.mark.gpu
def test_doctor_on_a_gpu(capsys):
    assert command_line.main(["doctor", "--critics", "dcgan64", "--seconds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "self-check on cuda" in printed and "all agree" in printed
    assert "dcgan64" in printed and "eager / gpfast" in printed


def test_doctor_does_without_the_extras(tmp_path):
    """tqdm, matplotlib and scikit-learn belong to other commands."""
    blocked = "".join(f"sys.modules['{module}'] = None; " for module in command_line.PACKAGES)
    code = f"import sys; {blocked}from gpfast.__main__ import main; sys.exit(main(['doctor', '--no-check']))"
    env = os.environ | {"GPFAST_NO_EXT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no: GPFAST_NO_EXT switches the extension off" in done.stdout
