"""The trainer that the example programs share: exact resume, files that are whole, and what is refused."""

import csv
import dataclasses
import os
import signal
import threading

import pytest
import torch
import train
from methods import METHODS
from torch import nn
from train import CheckpointError, Trainer, fit, make_parser, parse


def mlp(inputs, outputs, width=16, norm=False):
    hidden = [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class Fixed(nn.Module):
    def forward(self, noise):
        return noise + 1


def make_trainer(method="wgan-gp", *, seed=0, width=16, batch=8, generator=None, remedies=(), engine="auto"):
    torch.manual_seed(seed)
    method = METHODS[method] if isinstance(method, str) else method
    noise = lambda count: torch.randn(count, 2)  # noqa: E731
    return Trainer(
        mlp(2, 2, norm=True) if generator is None else generator,
        mlp(2, 1, width),
        dataclasses.replace(method, critic_steps=2),
        lambda count: torch.randn(count, 2) + 3,
        noise,
        batch=batch,
        engine=engine,
        remedies=remedies,
    )


def options(folder, steps, *words):
    parser = make_parser("test", steps=steps, batch=8, out=folder, quick={"steps": 2})
    return parse(parser, ["--out", folder, "--steps", steps, *words])


def losses(trainer):
    return {name: values for name, values in trainer.history.items() if name != "seconds"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stopped", [1, 5, 21])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(name, stopped, tmp_path):
    """Every loss of every step, bit for bit: batch norm, dropout, both optimisers and the data are in the middle."""
    whole = make_trainer(name)
    fit(whole, options(tmp_path / "whole", 24), tmp_path / "whole")
    parts = make_trainer(name)
    fit(parts, options(tmp_path / "parts", stopped), tmp_path / "parts")
    torch.manual_seed(99), torch.rand(3)  # whatever else the process draws
    resumed = make_trainer(name, seed=0)
    fit(resumed, options(tmp_path / "parts", 24, "--resume"), tmp_path / "parts")
    assert len(losses(whole)["critic"]) == 24
    assert losses(resumed) == losses(whole)
    for ours, theirs in zip(resumed.critic.parameters(), whole.critic.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(resumed.samples(4), whole.samples(4), rtol=0, atol=0)


def test_a_decaying_rate_goes_on_where_it_was(tmp_path):
    method = dataclasses.replace(METHODS["wgan-gp"], decay=True)
    whole = make_trainer(method)
    fit(whole, options(tmp_path / "whole", 9), tmp_path / "whole")
    interrupted = make_trainer(method)
    with pytest.raises(SystemExit):
        fit(interrupted, options(tmp_path / "parts", 9), tmp_path / "parts", watch=ctrl_c_at(4))
    resumed = make_trainer(method)
    fit(resumed, options(tmp_path / "parts", 9, "--resume"), tmp_path / "parts", watch=ctrl_c_at(None))
    assert losses(resumed)["critic"] == losses(whole)["critic"]
    with pytest.raises(SystemExit):
        fit(make_trainer(method), options(tmp_path / "parts", 12, "--resume"), tmp_path / "parts")


def ctrl_c_at(step):
    """A `watch` that presses Ctrl-C in the middle of a step."""

    def watch(trainer):
        if trainer.step_count == step:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    return watch


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, capsys):
    trainer, before = make_trainer(), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        fit(trainer, options(tmp_path, 50), tmp_path, title="this one", watch=ctrl_c_at(6))
    assert ended.value.code == 130 and trainer.step_count == 7
    assert "this one: stopped at step 7 of 50; --resume" in capsys.readouterr().err
    assert {"checkpoint.pt", "history.csv", "curves.png"} <= {path.name for path in tmp_path.iterdir()}
    assert signal.getsignal(signal.SIGINT) is before
    resumed = make_trainer()
    fit(resumed, options(tmp_path, 7, "--resume"), tmp_path)
    assert losses(resumed) == losses(trainer)


def test_a_killed_training_has_its_last_checkpoint(tmp_path):
    """Whatever ends a process between two saves: the file of the first is whole."""

    def killed(trainer):
        if trainer.step_count == 7:
            raise RuntimeError("power cut")
        return {}

    with pytest.raises(RuntimeError, match="power cut"):
        fit(make_trainer(), options(tmp_path, 50, "--save-every", 3), tmp_path, watch=killed)
    resumed = make_trainer()
    fit(resumed, options(tmp_path, 6, "--resume"), tmp_path)
    assert len(resumed.history["critic"]) == 6


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    make_trainer().save(path)
    before = path.read_bytes()

    def full(state, target):
        target.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(train.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        make_trainer(seed=1).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    """The save of step 3 succeeds, that of step 6 does not."""
    written = []

    def full(state, target):
        if written:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 0 vs 1\nframe #0: ...")
        written.append(torch_save(state, target))

    torch_save = train.torch.save
    monkeypatch.setattr(train.torch, "save", full)
    with pytest.raises(SystemExit) as ended:
        fit(make_trainer(), options(tmp_path, 9, "--save-every", 3), tmp_path)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "could not be written" in said and "frame" not in said
    monkeypatch.undo()
    resumed = make_trainer()
    fit(resumed, options(tmp_path, 3, "--resume"), tmp_path)
    assert len(resumed.history["critic"]) == 3


@pytest.mark.parametrize(
    "other, word",
    [
        ({"width": 17}, r"critic 0.weight is \[16, 2\] there and \[17, 2\] here"),
        ({"method": "wgan"}, "method name is wgan-gp there and wgan here"),
        ({"batch": 9}, "batch is 8 there and 9 here"),
    ],
)
def test_another_trainings_checkpoint_is_refused(other, word, tmp_path):
    make_trainer().save(tmp_path / "checkpoint.pt")
    trainer = make_trainer(**other)
    before = [p.clone() for p in trainer.critic.parameters()]
    with pytest.raises(CheckpointError, match=word):
        trainer.load(tmp_path / "checkpoint.pt")
    assert all(map(torch.equal, before, trainer.critic.parameters()))


def test_another_seed_is_refused_with_status_2(tmp_path, capsys):
    fit(make_trainer(), options(tmp_path, 2), tmp_path)
    with pytest.raises(SystemExit) as ended:
        fit(make_trainer(seed=1), options(tmp_path, 3, "--resume", "--seed", 1), tmp_path)
    assert ended.value.code == 2 and "seed is 0 there and 1 here" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half of a zip"])
def test_a_broken_checkpoint_is_named(content, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint.pt is not a checkpoint that can be read"):
        make_trainer().load(path)
    assert path.read_bytes() == content


def test_engines_can_change_in_the_middle(tmp_path):
    begun, other = make_trainer(engine="auto"), make_trainer(engine="reference")
    begun.step()
    begun.save(tmp_path / "checkpoint.pt")
    other.load(tmp_path / "checkpoint.pt")
    begun.step(), other.step()
    assert losses(other)["critic"] == pytest.approx(losses(begun)["critic"], rel=1e-4)


def test_a_finished_training_is_read_and_not_repeated(tmp_path):
    scored = []

    def score(trainer):
        scored.append(trainer.step_count)
        return {"mean": trainer.samples(10).mean()}

    fit(make_trainer(), options(tmp_path, 6), tmp_path, score=score, score_every=2)
    assert scored == [0, 2, 4, 6]
    again = make_trainer()
    fit(again, options(tmp_path, 6, "--resume"), tmp_path, score=score, score_every=2)
    assert scored == [0, 2, 4, 6] and [s["step"] for s in again.scores] == scored


def test_scores_draw_what_they_like(tmp_path):
    """Neither training nor later scores notice."""
    plain, noisy = make_trainer(), make_trainer()
    fit(plain, options(tmp_path / "a", 5), tmp_path / "a")
    fit(noisy, options(tmp_path / "b", 5), tmp_path / "b", score=lambda t: {"x": torch.rand(()), "y": 1}, score_every=1)
    assert losses(plain) == losses(noisy)
    assert len({s["x"] for s in noisy.scores}) == 6


def test_what_it_leaves(tmp_path):
    trainer = make_trainer()
    fit(trainer, options(tmp_path, 25), tmp_path, watch=lambda t: {"step again": float(t.step_count)})
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 26))
    assert [float(row["critic"]) for row in rows] == trainer.history["critic"]
    assert [float(row["step again"]) for row in rows] == list(range(25))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_every_step(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    trainer = make_trainer()
    with pytest.raises(SystemExit):
        fit(trainer, options(tmp_path, 30), tmp_path, watch=ctrl_c_at(22))
    trainer = make_trainer()
    fit(trainer, options(tmp_path, 30, "--resume"), tmp_path, score=lambda t: {"x": 1}, watch=ctrl_c_at(None))
    log = events.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    written = {event.step: event.value for event in log.Scalars("critic")}
    assert written == {i + 1: pytest.approx(x) for i, x in enumerate(trainer.history["critic"])}
    assert [event.step for event in log.Scalars("score/x")] == [30]


def test_a_generator_without_parameters_stays(tmp_path):
    trainer = make_trainer(generator=Fixed())
    before = trainer.samples(5)
    fit(trainer, options(tmp_path, 4), tmp_path)
    assert torch.equal(trainer.samples(5), before) and "generator" not in trainer.history


def test_clipping_clips_and_spectral_norm_is_one():
    clipped = make_trainer("wgan")
    clipped.step()
    assert max(p.abs().max() for p in clipped.critic.parameters()) <= 0.01
    spectral = make_trainer("sn")
    for _ in range(200):  # power iterations
        spectral.step()
    assert torch.linalg.matrix_norm(spectral.critic[-1].weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_engines_train_alike():
    """Five steps from the same seed, by the tape and by the eager lines: rounding apart."""
    trainers = [make_trainer(engine=engine) for engine in ("auto", "reference")]
    for trainer in trainers:
        for _ in range(5):
            trainer.step()
    first, second = (losses(trainer) for trainer in trainers)
    for name in first:
        assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-4), name


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, capsys):
    broken = dataclasses.replace(METHODS["gan"], critic_loss=lambda real, fake: (real - fake).mean() * float("nan"))
    with pytest.raises(SystemExit) as ended:
        fit(make_trainer(broken), options(tmp_path, 60), tmp_path)
    assert ended.value.code == 1 and "loss is nan at step 20" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--steps", "0"], "--steps must be at least 1; got 0"),
        (["--batch", "-1"], "--batch must be at least 1"),
        (["--engine", "eager"], "--engine"),
        (["--device", "abacus"], "--device abacus"),
        (["--device", "meta"], "--device meta"),
        (["--seed", str(10**30)], "--seed must be a number of 64 bits"),
        (["--resume"], "holds no checkpoint"),
        (["--resume", "--overwrite"], "choose one"),
    ],
)
def test_options_that_cannot_be_meant(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        options(tmp_path, 5, *words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_training_that_is_there_is_not_overwritten_unasked(tmp_path, capsys):
    fit(make_trainer(), options(tmp_path, 2), tmp_path / "one")
    with pytest.raises(SystemExit) as ended:
        options(tmp_path, 2)
    assert ended.value.code == 2 and "--resume goes on" in capsys.readouterr().err
    anew = make_trainer()
    fit(anew, options(tmp_path, 3, "--overwrite"), tmp_path / "another")
    assert not (tmp_path / "one" / "checkpoint.pt").exists(), "which a later --resume would take for one of these"
    assert anew.step_count == 3


def test_quick_sets_what_is_not_given(tmp_path):
    parser = make_parser("test", steps=100, batch=8, out=tmp_path, quick={"steps": 2, "batch": 3})
    chosen = parse(parser, ["--quick", "--batch", "5"])
    assert (chosen.steps, chosen.batch) == (2, 5)
    assert parse(parser, ["--quick"]).batch == 3


def test_another_thread_can_train(tmp_path):
    """Where signals cannot be caught."""
    chosen, trainer = options(tmp_path, 2), make_trainer()
    thread = threading.Thread(target=fit, args=(trainer, chosen, tmp_path))
    thread.start()
    thread.join()
    assert trainer.step_count == 2


@pytest.mark.parametrize("when", ["the last step", "the last score", "the last save"])
def test_ctrl_c_at_the_end_saves_and_is_not_forgotten(when, tmp_path, monkeypatch, capsys):
    """No training may follow, and none is lost."""

    def ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)

    def score(trainer):
        if when == "the last score" and trainer.step_count == 10:
            ctrl_c()
        return {"x": 1}

    def saved(state, path, right=torch.save):
        right(state, path)
        if when == "the last save":
            ctrl_c()

    monkeypatch.setattr(train.torch, "save", saved)
    watch = ctrl_c_at(9 if when == "the last step" else None)
    with pytest.raises(SystemExit) as ended:
        fit(make_trainer(), options(tmp_path, 10), tmp_path, score=score, watch=watch)
    assert ended.value.code == 130 and "stopped at step 10 of 10" in capsys.readouterr().err
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 10
    assert (tmp_path / "history.csv").exists() and (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("steps, kept", [(60, 12), (19, 12), (14, 12)])
def test_what_is_not_finite_is_never_saved(steps, kept, tmp_path, capsys):
    """A weight breaks in step 13: neither the next checkpoint nor the last one may replace that of step 12."""

    def broken(trainer):
        if trainer.step_count == 12:
            nn.init.constant_(trainer.critic[0].weight, float("nan"))
        return {}

    with pytest.raises(SystemExit) as ended:
        fit(make_trainer(), options(tmp_path, steps, "--save-every", 3), tmp_path, watch=broken)
    assert ended.value.code == 1 and "an earlier checkpoint is kept" in capsys.readouterr().err
    held = torch.load(tmp_path / "checkpoint.pt")
    assert held["step"] == kept and held["critic"]["0.weight"].isfinite().all()


def test_what_was_overwritten_is_not_taken_for_what_came_after(tmp_path):
    """Killed after --overwrite, and resumed to as many steps as were saved: no file is of the first training."""

    def killed(trainer):
        if trainer.step_count == 7:
            raise RuntimeError("power cut")
        return {}

    fit(make_trainer(), options(tmp_path, 10), tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        chosen = options(tmp_path, 50, "--overwrite", "--save-every", 6)
        fit(make_trainer(), chosen, tmp_path, watch=killed)
    assert not (tmp_path / "history.csv").exists() and not (tmp_path / "curves.png").exists()
    fit(make_trainer(), options(tmp_path, 6, "--resume"), tmp_path)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 7
    assert (tmp_path / "curves.png").exists()


def test_pictures_that_a_crash_kept_from_being_written_are_made_up_for(tmp_path, monkeypatch):
    """Where an earlier, shorter training left its own."""
    fit(make_trainer(), options(tmp_path, 4), tmp_path)
    monkeypatch.setattr(train, "write_history", None)
    with pytest.raises(TypeError):
        fit(make_trainer(), options(tmp_path, 8, "--resume"), tmp_path)
    monkeypatch.undo()
    fit(make_trainer(), options(tmp_path, 8, "--resume"), tmp_path)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 9


def test_overwriting_spares_what_others_wrote(tmp_path):
    """A checkpoint.pt of another program, with its logs, below --out."""
    for name, content in (("theirs", {"model": torch.ones(2)}), ("text", None)):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
        torch.save(content, tmp_path / name / "checkpoint.pt")
    fit(make_trainer(), options(tmp_path, 2, "--overwrite"), tmp_path / "ours")
    for name in ("theirs", "text"):
        assert (tmp_path / name / "checkpoint.pt").exists() and (tmp_path / name / "tensorboard").is_dir()


def test_a_checkpoint_with_a_flipped_bit_is_named(tmp_path):
    """In a name within it, that is no longer UTF-8."""
    path = tmp_path / "checkpoint.pt"
    make_trainer().save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"identity", b"identit\xff"))
    with pytest.raises(CheckpointError, match="checkpoint.pt is not a checkpoint that can be read"):
        make_trainer().load(path)


def test_fewer_steps_than_were_made_are_told(tmp_path, capsys):
    """What is read then is not what --steps says."""
    fit(make_trainer(), options(tmp_path, 4), tmp_path)
    fit(make_trainer(), options(tmp_path, 2, "--resume"), tmp_path, title="this one")
    assert "this one: has 4 steps, more than --steps 2" in capsys.readouterr().err
