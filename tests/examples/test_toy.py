"""examples/toy.py: what it prints of samples and critics is what the paper says of them, and its measures are right."""

import math

import pytest
import torch
import toy
from methods import METHODS
from remedies import REMEDIES
from torch import nn
from toy_critics import DEEP_LAYERS, at_the_ends, layer_gradients, mlp, told_apart, weights
from toy_data import DATA, GOOD, coverage, wasserstein


@pytest.fixture
def ran(quick_run):
    return quick_run("toy")


def test_it_leaves_its_pictures_and_trainings(ran):
    for name in ("samples.png", "surfaces.png", "critics.png"):
        assert (ran.folder / name).stat().st_size > 10_000
    assert (ran.folder / "8gaussians" / "wgan-gp" / "history.csv").exists()


def test_samples_of_wgan_gp_have_every_mode(ran):
    _, _, modes, of, good = ran.numbers("8gaussians wgan-gp: ")
    assert (modes, of) == (8, 8) and good > 50


def test_fresh_data_is_the_best_there_can_be(ran):
    """In two dimensions 1 - exp(-GOOD^2 / 2) of a Gaussian lies within GOOD standard deviations."""
    _, floor, modes, of, good = ran.numbers("8gaussians fresh")
    _, w1, *_ = ran.numbers("8gaussians wgan-gp: ")
    assert modes == of == 8 and good == pytest.approx(100 * (1 - math.exp(-(GOOD**2) / 2)), abs=0.4)
    assert floor < w1 < 10 * floor


def test_only_the_penalised_critic_tells_more_than_the_outline(ran):
    (clipping, penalty) = ran.numbers("8gaussians pairs told apart by a critic alone:")
    assert 50 < clipping < 85 and penalty > 90


def test_clipping_pushes_weights_to_the_ends(ran):
    clipping, _, _ = ran.numbers("weights, clipping:")
    penalty, _, _ = ran.numbers("weights, penalty:")
    assert clipping > 40 and penalty < 1


@pytest.mark.parametrize(
    "name, low, high",
    [("clip 0.001", 0, 1e-12), ("clip 0.01", 0, 1e-6), ("clip 0.1", 10, math.inf), ("penalty", 0.2, 5)],
)
def test_gradients_vanish_or_explode_but_for_the_penalty(ran, name, low, high):
    last, layer, first, one, ratio = ran.numbers(f"gradient, {name}:".replace(".", r"\."))
    assert (layer, one) == (DEEP_LAYERS - 1, 1)
    assert low < ratio < high and first / last == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("name, modes", [("8gaussians", 8), ("25gaussians", 25)])
def test_coverage_of_the_data_itself(name, modes):
    torch.manual_seed(0)
    found, good = coverage(DATA[name].draw(10_000), DATA[name])
    assert found == modes and good == pytest.approx(1 - math.exp(-(GOOD**2) / 2), abs=0.005)


def test_coverage_of_a_generator_that_collapsed():
    """Three modes exactly, a fourth by fewer samples than count, and as many points between modes as on them."""
    ring = DATA["8gaussians"]
    points = torch.cat([ring.modes[:3].repeat(20, 1), ring.modes[3:4], torch.zeros(61, 2)])
    assert coverage(points, ring) == (3, 0.5)
    assert coverage(ring.modes + 2.9 * ring.deviation * torch.tensor([1.0, 0.0]), ring) == (8, 1.0)
    assert coverage(ring.modes + 3.1 * ring.deviation * torch.tensor([1.0, 0.0]), ring) == (0, 0.0)


@pytest.mark.parametrize("name", DATA)
def test_w1_is_the_distance_of_a_shift(name):
    torch.manual_seed(0)
    points = DATA[name].draw(200)
    assert points.abs().max() < 2.2 and points.std() > 0.5
    assert wasserstein(points, points) == pytest.approx(0, abs=1e-6)
    assert wasserstein(points, points.flip(0) + torch.tensor([3.0, 4.0])) == pytest.approx(5, rel=1e-5)


def test_gradients_by_layer_of_a_critic_of_powers_of_two():
    """All is positive and each layer doubles: by the last hidden layer the gradient is 2 for fake and -2 for real."""
    critic = mlp(1, 1, 4, 1)
    for layer in critic:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 2.0), nn.init.zeros_(layer.bias)
    found = layer_gradients(critic, METHODS["wgan"], torch.ones(1, 1), torch.full((1, 1), 3.0))
    assert found == pytest.approx([8 * math.sqrt(2), 4 * math.sqrt(2), 2 * math.sqrt(2)])


def test_gradients_below_the_smallest_float_are_told():
    torch.manual_seed(0)
    critic = mlp(2, 1, DEEP_LAYERS, 8)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.fill_(1e-5)
    found = layer_gradients(critic, METHODS["wgan"], torch.ones(4, 2), torch.ones(4, 2))
    assert 0 < found[0] < 1e-38 < found[-1]


def test_pairs_told_apart():
    critic = nn.Linear(1, 1)
    nn.init.ones_(critic.weight)
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]])
    assert told_apart(critic, real, fake) == 0.75
    assert told_apart(critic, real, real) == 0.5


def test_weights_at_the_ends():
    assert at_the_ends(torch.tensor([0.1, -0.096, 0.094, 0.0]), 0.1) == 0.5
    assert sorted(weights(nn.Linear(3, 2)).shape) == [8]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--remedy", "label-smoothing"], "--remedy is for --methods gan alone; got wgan-gp"),
        (["--remedy", "label-smoothing", "--methods", "gan", "sn"], "--remedy is for --methods gan alone; got gan sn"),
        (["--remedy", "prayer", "--methods", "gan"], "invalid choice: 'prayer'"),
        (["--data", "9gaussians"], "invalid choice: '9gaussians'"),
        (["--width", "0"], "--width must be at least 1; got 0"),
        (["--deep-steps", "-3"], "--deep-steps must be at least 1; got -3"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        toy.main(["--quick", *words, "--out", tmp_path / "new"])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


FEW = ["--data", "swissroll", "--methods", "gan", "--steps", 4, "--width", 8, "--batch", 8]
FEW += ["--surface-steps", 2, "--deep-steps", 2, "--out"]


def test_remedies_are_compared_and_a_finished_run_is_read_again(tmp_path, capsys, monkeypatch):
    """A few steps on data with no modes: a line for each, and the same lines when all is read from its checkpoints."""
    monkeypatch.setattr(toy, "MOVED", 100)
    monkeypatch.setattr(toy, "COUNTED", 200)
    toy.main([*FEW, tmp_path, "--remedies"])
    first = capsys.readouterr().out
    assert (tmp_path / "remedies.png").stat().st_size > 10_000
    names = ["fresh data", "gan", "fresh data", "no remedy", *REMEDIES, "penalty", "pairs told apart"]
    found = [line for line in first.splitlines() if line.startswith("swissroll")]
    assert [line.startswith(f"swissroll {name}") for line, name in zip(found, names, strict=True)] == [True] * 12
    toy.main([*FEW, tmp_path, "--remedies", "--resume"])
    assert capsys.readouterr().out == first


def test_remedies_join_the_gan(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy, "MOVED", 100)
    monkeypatch.setattr(toy, "COUNTED", 200)
    toy.main([*FEW, tmp_path, "--remedy", "label-smoothing", "instance-noise"])
    assert "swissroll gan with label-smoothing with instance-noise: W1" in capsys.readouterr().out
    assert (tmp_path / "swissroll" / "gan-label-smoothing-instance-noise" / "checkpoint.pt").exists()
