"""examples/compare.py: engines train alike, the penalty learns where clipping has not yet, ratios are ratios."""

import re
import time
from types import SimpleNamespace

import pytest

for package in ("sklearn", "ot", "matplotlib", "tqdm"):
    pytest.importorskip(package)

import compare  # noqa: E402
import torch  # noqa: E402


@pytest.fixture
def ran(quick_run):
    return quick_run("compare")


def test_the_penalty_learns_sooner_than_clipping(ran):
    (real,) = ran.numbers("real digits: score")
    penalty, *_ = ran.numbers("penalty, RMSProp ")
    clipping, *_ = ran.numbers("weight clipping, RMSProp")
    assert 1 <= clipping < penalty - 0.3 < real <= 10


@pytest.mark.parametrize("optimiser", ["RMSProp", "Adam"])
def test_the_engine_does_not_change_what_is_learned(ran, optimiser):
    """The same seed and 200 critic steps by gpfast and by the eager lines: rounding apart."""
    ours, _, distance, _ = ran.numbers(f"penalty, {optimiser} ")
    eager, _, eager_distance, _ = ran.numbers(f"penalty, {optimiser}, eager")
    assert ours == pytest.approx(eager, rel=0.1) and distance == pytest.approx(eager_distance, rel=0.1)


def test_the_penalty_holds_the_norm_wherever_it_is_taken(ran):
    rows = re.findall(r"^interpolates +(one|two)-sided +(yes|no) +(.*)$", ran.printed, flags=re.M)
    assert len(rows) == 4
    for sided, _, figures in rows:
        norm = float(figures.split()[-1])
        assert (0.5 if sided == "two" else 0) < norm < 2


def test_whole_trainings_begin_alike(ran):
    for name in ("toy", "images", "text"):
        ratio, *_, steps = ran.numbers(f"whole training, {name}: eager / gpfast")
        assert ratio > 0 and steps == 14
        (apart,) = re.findall(rf"^whole training, {name}.*losses of the first two (\S+) apart", ran.printed, flags=re.M)
        assert float(apart) < 1e-2


def test_pictures(ran):
    for part in compare.PARTS:
        assert (ran.folder / f"{part}.png").read_bytes().startswith(b"\x89PNG")


def test_trainings_of_the_programs_are_left_alone(tmp_path):
    """Those that toy.py left below the same folder are neither refused nor touched."""
    held = tmp_path / "toy" / "8gaussians" / "wgan-gp" / "checkpoint.pt"
    held.parent.mkdir(parents=True)
    held.write_bytes(b"theirs")
    chosen = SimpleNamespace(seed=0, device="cpu", quick=True, out=tmp_path)
    assert set(compare.programs(chosen, "auto")) == {"toy", "images", "text"} and held.read_bytes() == b"theirs"


class Slow:
    """A training whose step takes its time."""

    device, history = torch.device("cpu"), {"critic": [2.0]}

    def __init__(self, seconds):
        self.seconds = seconds

    def step(self):
        time.sleep(self.seconds)


def test_the_ratio_is_that_of_the_times(monkeypatch, tmp_path, capsys):
    """Eager steps of 30 ms, ours of 10: 3, with room for a sleep that lasts longer than asked."""
    monkeypatch.setattr(compare, "programs", lambda options, engine: {"x": Slow(0.01 if engine == "auto" else 0.03)})
    compare.main(["--part", "engines", "--turns", 5, "--turn", 2, "--out", tmp_path])
    (ratio,) = re.findall(r"^whole training, x: eager / gpfast (\S+)", capsys.readouterr().out, flags=re.M)
    assert 2 < float(ratio) < 4


@pytest.mark.parametrize(
    "words", [["--turns", 1], ["--turn", 0], ["--filters", 0], ["--part", "all"], ["--places", "x"]]
)
def test_options_that_cannot_be_meant(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main([*words, "--out", tmp_path])
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err
