"""examples/architectures.py: random architectures, their penalties checked, and what either method makes of them."""

import csv
import math
import re
import sys

import architectures
import pytest
import random_networks
import torch
from conftest import numbers, run
from random_networks import DEPTHS, FILTERS, LATENT, NONLINEARITIES, Architecture, Side, build, random_architecture
from torch import nn

SMALL = ("--n", 1, "--seed", 36, "--steps", 2, "--batch", 4, "--filters-scale", 0.05)


def scores_of(printed):
    return [tuple(map(float, pair)) for pair in re.findall(r"^seed .*: gan (\S+), wgan-gp (\S+)$", printed, re.M)]


# -- as a user runs it


def test_the_penalty_trains_both_architectures_better(quick_run):
    ran = quick_run("architectures")
    scores = scores_of(ran.printed)
    assert len(scores) == 2
    assert all(penalised > gan for gan, penalised in scores), "at equal steps"
    assert sum(penalised for _, penalised in scores) / 2 > 2.5, "noise would have less than 2"


def test_every_row_of_the_table_counts_every_architecture(quick_run):
    ran = quick_run("architectures")
    best, count, steps = ran.numbers("real digits score")
    assert 9 < best < 10 and count == 2 and steps == 40
    scores = scores_of(ran.printed)
    for threshold in (1, 2, 3, 4, 5, 7, 9):
        only_gan, only_penalised, both, neither = row = ran.numbers(f" +{threshold} ")
        assert sum(row) == 2
        assert only_gan + both == sum(gan > threshold for gan, _ in scores)
        assert only_penalised + both == sum(penalised > threshold for _, penalised in scores)


def test_what_it_writes(quick_run):
    ran = quick_run("architectures")
    assert (ran.folder / "architectures.png").read_bytes().startswith(b"\x89PNG")
    with open(ran.folder / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(round(float(r["gan"]), 2), round(float(r["wgan-gp"]), 2)) for r in rows] == scores_of(ran.printed)
    for row in rows:
        for method in ("gan", "wgan-gp"):
            assert (ran.folder / f"{row['architecture']}-{row['seed']}" / method / "samples.png").exists()


def test_check_agrees_on_all_that_the_set_has(tmp_path):
    ended = run("architectures", "--check", "--quick", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "\n8 of 8 agree\n" in ended.stdout
    for field, choices in (("nonlinearity", NONLINEARITIES), ("depth", DEPTHS), ("filters", FILTERS), ("norm", (0, 1))):
        (line,) = re.findall(rf"^{field}: (.*)$", ended.stdout, re.M)
        assert len(line.split(",")) == len(choices), "each choice was met"
    assert numbers("float64: at most", ended.stdout)[0] < 1e-10
    assert 0 < numbers("float32: at most", ended.stdout)[0] < 1
    assert len((tmp_path / "check.csv").read_text().splitlines()) == 9


# -- in process


@pytest.fixture
def one_gradient_is_off(monkeypatch):
    """Every engine but the reference adds a millionth of the largest entry to one entry of one gradient, in float64."""
    module = sys.modules["gpfast.check"]
    right = module.gradient_penalty

    def wrong(critic, *data, engine, **options):
        value, stats = right(critic, *data, engine=engine, **options)
        weight = critic[0].weight
        if engine == "reference" or value.dtype != torch.float64:
            return value, stats
        gradients = torch.autograd.grad(value, list(critic.parameters()), retain_graph=True, allow_unused=True)
        off = 1e-6 * max(g.abs().max() for g in gradients if g is not None)
        return value + off * (weight - weight.detach())[0, 0, 0, 0], stats

    monkeypatch.setattr(module, "gradient_penalty", wrong)


def test_a_mistake_is_noticed_and_can_be_found_again(one_gradient_is_off, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        architectures.main(["--check", "--n", 1, "--seed", 36, "--filters-scale", 0.25, "--out", tmp_path])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "0 of 1 agree" in printed
    assert "seed 36, G-softplus-4x32_D-softplus-4x32, batch 3: float64: the gradient of 0.weight is off by" in printed
    assert printed.count("the gradient of") == 1, "the others are right, and float32 is"
    again = "--check --n 1 --seed 36 --filters-scale 0.25 --batch 3 --engine auto"
    assert f"again: python examples/architectures.py {again}" in printed
    assert numbers("float64: at most", printed)[0] == pytest.approx(1e-6, rel=0.1)


def test_gradients_that_are_missing_are_noticed(monkeypatch, tmp_path, capsys):
    module = sys.modules["gpfast.check"]
    right = module.gradient_penalty

    def none(*arguments, engine, **options):
        value, stats = right(*arguments, engine=engine, **options)
        return value if engine == "reference" else value.detach().requires_grad_(), stats

    monkeypatch.setattr(module, "gradient_penalty", none)
    with pytest.raises(SystemExit) as ended:
        architectures.main(["--check", "--n", 1, "--seed", 36, "--filters-scale", 0.25, "--out", tmp_path])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "0.weight has no gradient" in printed and "0 of 1 agree" in printed


def test_a_seed_has_its_architecture():
    assert random_architecture(36) == random_architecture(36)
    assert random_architecture(36).name == "G-softplus-4x32_D-softplus-4x32"
    assert random_architecture(37).name == "G-relu-4x128_D-tanh-4x128-norm"
    assert len({random_architecture(seed) for seed in range(200)}) > 190, "of 9,216"


@pytest.mark.parametrize("side", ["generator", "critic"])
def test_the_whole_set_is_drawn_from(side):
    sides = [getattr(random_architecture(seed), side) for seed in range(200)]
    for field, choices in (("nonlinearity", NONLINEARITIES), ("depth", DEPTHS), ("filters", FILTERS), ("norm", (0, 1))):
        drawn = [getattr(side, field) for side in sides]
        assert set(drawn) == set(choices)
        assert min(map(drawn.count, choices)) > 0.6 * len(sides) / len(choices), "each about as often"


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("size", [8, 16])
def test_networks_are_what_the_name_says(depth, penalised, size):
    side = Side("leakyrelu", depth, 32, norm=True)
    networks = build(Architecture(side, side), penalised, size, filters_scale=0.125)
    kinds = [[type(module) for module in network] for network in networks]
    for found in kinds:
        assert sum(kind in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) for kind in found) == depth
        assert found.count(nn.LeakyReLU) == depth - 1
    generator, critic = networks
    assert kinds[0].count(nn.BatchNorm2d) == depth - 1 and kinds[0][-1] is nn.Tanh
    assert kinds[1].count(nn.BatchNorm2d) == (0 if penalised else depth - 2), "the image is not normalised"
    assert kinds[1].count(nn.GroupNorm) == (depth - 2 if penalised else 0)
    assert critic[0].out_channels == 4 and critic[-2].in_features == 16 * (size // 4) ** 2
    images = generator(torch.randn(3, LATENT))
    assert images.shape == (3, 1, size, size) and images.abs().max() <= 1 and critic(images).shape == (3,)


def test_without_a_norm_there_is_none():
    side = Side("relu", 8, 32, norm=False)
    for network in build(Architecture(side, side), penalised=False, filters_scale=0.125):
        assert not any(isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for module in network)


def test_depth_does_not_silence_a_network():
    torch.manual_seed(0)
    for nonlinearity in NONLINEARITIES:
        side = Side(nonlinearity, 20, 64, norm=False)
        _, critic = build(Architecture(side, side), penalised=True)
        scores = critic(torch.rand(32, 1, 8, 8) * 2 - 1)
        assert 1e-3 < scores.std() < 1e3, nonlinearity


def test_the_shifted_softplus():
    x = torch.tensor([-1.0, 0.0, 30.0, -30.0], dtype=torch.float64)
    expected = [math.log(2) / 2 - 1, math.log1p(math.exp(2)) / 2 - 1, 30, -1]
    assert random_networks.ShiftedSoftplus()(x).tolist() == pytest.approx(expected, abs=1e-9)


def test_outcomes():
    found = {0: {"gan": 3.2, "wgan-gp": 1.0}, 1: {"gan": 1.004, "wgan-gp": 3.1}, 2: {"gan": 4.0, "wgan-gp": 4.0}}
    table = architectures.outcomes(found, [1, 3, 4])
    assert table[1] == {"only GAN": 1, "only WGAN-GP": 1, "both": 1}, "1.004 is 1.00"
    assert table[3] == {"only GAN": 1, "only WGAN-GP": 1, "both": 1}
    assert table[4] == {"neither": 3}, "4 is not above 4"


def test_a_training_that_explodes_scores_1(tmp_path, capsys):
    words = ["--n", 1, "--seed", 2932, "--steps", 20, "--batch", 4, "--filters-scale", 0.05, "--rate", 1e30]
    architectures.main([*words, "--out", tmp_path])
    printed, complained = capsys.readouterr()
    assert "loss is nan" in complained or "loss is inf" in complained
    assert scores_of(printed) == [(1, 1)]
    assert numbers(" +1 ", printed) == [0, 0, 0, 1]


def test_what_is_finished_is_read_and_more_is_trained(tmp_path, capsys, monkeypatch):
    architectures.main([*SMALL, "--out", tmp_path])
    first = capsys.readouterr().out
    monkeypatch.setattr(architectures.Trainer, "step", None)  # which may not be called
    architectures.main([*SMALL, "--resume", "--out", tmp_path])
    assert capsys.readouterr().out == first
    monkeypatch.undo()
    architectures.main([*SMALL, "--n", 2, "--resume", "--out", tmp_path])
    both = scores_of(capsys.readouterr().out)
    assert both[:1] == scores_of(first) and len(both) == 2


def test_an_interruption_is_handed_on(monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise SystemExit(130)

    monkeypatch.setattr(architectures, "fit", interrupted)
    with pytest.raises(SystemExit) as ended:
        architectures.main([*SMALL, "--out", tmp_path])
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "argument --n: must be a whole number of at least 1; got 0"),
        (["--n", "few"], "argument --n: must be a whole number of at least 1; got few"),
        (["--check", "--n", "-3"], "argument --n: must be a whole number of at least 1; got -3"),
        (["--filters-scale", "0"], "argument --filters-scale: must be a number above 0; got 0"),
        (["--rate", "nan"], "argument --rate: must be a number above 0; got nan"),
        (["--thresholds", "3", "x"], "argument --thresholds: must be a number above 0; got x"),
        (["--check", "--engine", "reference"], "--engine reference is what --check compares with; choose auto"),
        (["--depth", "8"], "unrecognized arguments: --depth 8"),
        (["--batch", "0"], "--batch must be at least 1; got 0"),
    ],
)
def test_bad_input(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        architectures.main([*words, "--out", tmp_path])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
