"""The demo, as a user starts it, with a few steps: its files, its table, its exit status."""

import argparse
import re
import sys

import pytest
import torch

pytest.importorskip("sklearn", reason="needs scikit-learn")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("tqdm", reason="needs tqdm")

from gpfast.__main__ import main  # noqa: E402
from gpfast.cli import demo, timing  # noqa: E402
from gpfast.cli.digits import Digits, Training, eager_gradient_penalty, gpfast_penalty  # noqa: E402

PNG = b"\x89PNG\r\n"
pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture
def few_rounds(monkeypatch):
    def interleaved(steps, *, rounds, **options):
        return measured(steps, rounds=3, **options)

    measured = timing.interleaved
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(timing, "interleaved", interleaved)


def arguments(*words):
    parser = argparse.ArgumentParser()
    demo.add_parser(parser.add_subparsers())
    return parser.parse_args(["demo", *map(str, words)])


def test_demo_writes_its_pictures_and_ends_with_the_table(tmp_path, capsys, few_rounds):
    assert main(["demo", "--steps", "12", "--batch", "16", "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    for name in ("samples.png", "curves.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(PNG)
        assert str(tmp_path / "new" / name) in printed
    assert "After 12 critic steps" in printed
    assert re.search(r"gpfast +eager lines +eager / gpfast\n", printed)
    for row in ("critic step, ms", "its penalty and gradients, ms", "peak of a critic step, kB"):
        assert re.search(rf"^{row} +[\d.,]+ +[\d.,]+ +[\d.]+$", printed, re.MULTILINE), row
    single, double = re.search(r"^(\S+) in float32 and (\S+) in float64", printed, re.MULTILINE).groups()
    assert float(single) < 1e-4 and float(double) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_the_first_losses_are_the_eager_lines_losses(digits, engine, dtype, tolerance):
    """Tolerance: rounding at losses of about 10, which twenty steps of Adam may amplify some ten times."""
    difference, largest = demo.largest_difference(digits, arguments("--engine", engine, "--batch", 16), dtype)
    assert difference < tolerance
    assert 1 < largest < 100
    assert torch.get_default_dtype() == torch.float32


def test_eager_lines_and_gpfast_draw_the_same_alpha(digits, engine):
    training = Training(digits, seed=3, batch=16)
    batch = training.draw()
    values = []
    for penalty in (gpfast_penalty(engine), eager_gradient_penalty):
        torch.manual_seed(5)
        values.append(penalty(training.critic, *batch))
    torch.testing.assert_close(*values)


def test_steps_and_seed_fix_the_digits(digits):
    labels = torch.arange(20) % 10
    runs = []
    for seed in (0, 0, 1):
        training = Training(digits, seed, batch=16)
        history = demo.train(training, digits, "auto", steps=11, seconds=None)
        assert history.steps == [5, 10, 11] and history.done == 11
        assert len(history.wasserstein) == len(history.norms) == 3
        runs.append(training.samples(labels))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_time_ends_the_training(digits):
    history = demo.train(Training(digits, 0, batch=16), digits, "auto", steps=None, seconds=0.05)
    assert history.done > 0 and not history.interrupted


@pytest.mark.parametrize("finished", [0, 2])
def test_ctrl_c_still_writes_the_pictures(tmp_path, capsys, monkeypatch, finished):
    taken, generator_step = [], Training.generator_step

    def interrupted(self):
        if len(taken) == finished:
            raise KeyboardInterrupt
        taken.append(generator_step(self))

    monkeypatch.setattr(Training, "generator_step", interrupted)
    assert demo.run(arguments("--steps", 1000, "--batch", 8, "--out", tmp_path)) == 130
    printed = capsys.readouterr().out
    assert f"After {5 * finished} critic steps" in printed and "Stopped by Ctrl-C" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"samples.png", "curves.png"}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.run(arguments("--out", tmp_path / "file" / "below")) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--steps", "0"], ["--seconds", "-1"], ["--seconds", "inf"], ["--steps", "5", "--seconds", "5"]]
)
def test_lengths_that_cannot_be_meant_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        arguments(*words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("package, pip", [("matplotlib", "matplotlib"), ("sklearn", "scikit-learn"), ("tqdm", "tqdm")])
def test_a_missing_package_is_one_sentence_with_its_remedy(package, pip, capsys, monkeypatch):
    class Missing:
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=package)

    ours = {"gpfast.cli.demo", "gpfast.cli.digits", "gpfast.cli.pictures"}
    for name in [name for name in sys.modules if name in ours or name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    assert main(["demo", "--steps", "1"]) == 2
    assert f"pip install {pip}" in capsys.readouterr().err
