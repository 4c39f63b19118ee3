"""examples/ruler.py: exact answers are exact, the penalised critic reads them, the clipped one does not."""

import re
from types import SimpleNamespace

import known_distances
import numpy as np
import pytest
import ruler
import torch
from conftest import numbers
from known_distances import Gaussian, Points, digits, even, gaussians, lines, piles, transport

PAIRS = {"lines 1": 1.0, "piles": 5.0, "gaussians 1": 2.0, "gaussians 2": 2.0}


@pytest.fixture
def ran(quick_run):
    return quick_run("ruler")


def turning_at_three(x):
    """A best critic between the piles: it falls to the third place, and rises from there."""
    return (x - 3).abs()


class TestQuickRun:
    @pytest.mark.parametrize("name", PAIRS)
    def test_the_penalised_critic_reads_w1_and_the_clipped_one_does_not(self, ran, name):
        exact, estimate, error, clipped, off, *_ = ran.numbers(f"{name} +(?:linear programme|closed form)")
        assert exact == PAIRS[name]
        assert abs(error) < 5 and error == pytest.approx(100 * (estimate / exact - 1), abs=0.06)
        assert off < -50 and clipped < exact / 2

    @pytest.mark.parametrize("name", PAIRS)
    def test_the_gradient_has_norm_one_on_lines_of_the_plan_and_points_along_them(self, ran, name):
        norm, *_, cosine = ran.numbers(f"wgan-gp on {name}, lines of the plan: norm")
        *_, of_random_pairs = ran.numbers(f"wgan-gp on {name}, lines of random pairs: norm")
        assert norm == pytest.approx(1, abs=0.05)
        assert cosine > 0.97 and cosine > of_random_pairs

    def test_it_draws_and_leaves_each_training(self, ran):
        assert (ran.folder / "ruler.png").stat().st_size > 10_000
        for folder in ("lines-1", "piles", "gaussians-2"):
            assert (ran.folder / folder / "wgan-gp" / "checkpoint.pt").exists()


class TestKnownDistances:
    @pytest.mark.parametrize("theta", [0.1, 0.25, 1.0, 3.0])
    def test_lines(self, theta):
        pair = lines(theta)
        assert pair.exact == pytest.approx(theta, rel=1e-12)
        real, fake = pair.couples
        assert torch.equal(real[:, 1], fake[:, 1]), "straight across"

    def test_piles(self):
        pair = piles([3, 2, 1, 4], [1, 2, 4, 3])
        assert pair.exact == 5
        real, fake = pair.couples
        assert torch.equal(turning_at_three(real) - turning_at_three(fake), (real - fake).abs())
        assert (real != fake).all(), "sand that stays has no way"

    def test_any_piles_agree_with_the_formula_on_the_line(self):
        """There W1 is the sum of differences of what lies to the left."""
        random = np.random.default_rng(0)
        before, after = random.multinomial(30, np.ones(6) / 6, size=2).astype(float)
        assert piles(before, after).exact == pytest.approx(np.abs(np.cumsum(before - after)).sum(), rel=1e-12)

    def test_unequal_masses_are_refused(self):
        with pytest.raises(ValueError, match="hold 10 and 9, and W1 is between equal masses"):
            piles([3, 2, 1, 4], [1, 2, 3, 3])

    def test_moved_points(self):
        points, way = torch.randn(50, 3), torch.tensor([2.0, -1.0, 2.0])
        assert transport(even(points), even(points + way))[0] == pytest.approx(3, rel=1e-6)

    @pytest.mark.parametrize("dimension", [1, 2, 64])
    def test_gaussians(self, dimension):
        pair = gaussians(dimension)
        assert pair.exact == 2 and pair.real.mean.norm().item() == pytest.approx(2)
        assert pair.real.draw(7).shape == (7, dimension)

    def test_digits_lie_between_bounds(self):
        """The distance of the means, which a linear critic finds, and the cost of pairing anyhow."""
        pair = digits()
        real, fake = pair.real.points, pair.fake.points
        assert len(real) == len(fake) == 1797
        assert (real.mean(0) - fake.mean(0)).norm() < pair.exact < (real - fake).norm(dim=1).mean()

    def test_sums_are_expectations(self, monkeypatch):
        monkeypatch.setattr(known_distances, "FRESH", 1_000_000)
        held = Points(torch.tensor([[1.0], [2.0]]).double(), torch.tensor([3.0, 4.0]).double())
        assert held.sum(lambda x: 10 * x) == 110
        torch.manual_seed(0)
        assert Gaussian(torch.tensor([1.0, 2.0])).sum(lambda x: x.sum(1, keepdim=True)) == pytest.approx(3, abs=0.01)


class Known(torch.nn.Module):
    def __init__(self, function, scale=1.0):
        super().__init__()
        self.function, self.scale = function, scale

    def forward(self, x):
        return self.scale * self.function(x)


class TestReading:
    def test_a_best_critic_reads_the_exact_answer(self):
        reading = ruler.read(Known(turning_at_three), piles([3, 2, 1, 4], [1, 2, 4, 3]), seed=0)
        assert reading.estimate == 5 and reading.steepest() == 1
        norm, cosine = reading.coupled
        assert (norm == 1).all() and torch.allclose(cosine, torch.ones(()))
        assert reading.random[1].mean() < 0.5

    def test_dividing_by_the_slope_undoes_a_scale(self):
        pair = piles([3, 2, 1, 4], [1, 2, 4, 3])
        found = ruler.estimates({"wgan": ruler.read(Known(turning_at_three, 0.01), pair, seed=0)})
        assert found == {"wgan": pytest.approx(0.05), "wgan / slope": pytest.approx(5)}

    def test_slopes_of_a_linear_critic(self):
        critic = Known(lambda x: x @ torch.tensor([[3.0], [4.0]]))
        norms, cosines = ruler.slopes(critic, torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        torch.testing.assert_close(norms, torch.full((20, 1), 5.0))
        torch.testing.assert_close(cosines, torch.full((20, 1), 0.6))


class TestRuler:
    def test_the_weight_rises_geometrically(self):
        trainer = ruler.Ruler(lines(1.0), ruler.make_method("wgan-gp", 100.0), 0.01, batch=4)
        for progress, weight in ((0, 0.01), (0.1, 0.01), (0.35, 1.0), (0.6, 100.0), (0.9, 100.0)):
            trainer.step(progress)
            assert trainer.method.penalty["weight"] == pytest.approx(weight)

    @pytest.mark.parametrize("name", ruler.HELD)
    def test_methods_differ_only_in_what_holds_the_critic(self, name):
        method, wgan = ruler.make_method(name, 7.0), ruler.make_method("wgan", 7.0)
        for field in ("critic_loss", "critic_steps", "decay"):
            assert getattr(method, field) == getattr(wgan, field)
        assert method.optimiser.keywords == wgan.optimiser.keywords
        held = (method.penalty is not None, method.clip is not None, method.spectral)
        assert sum(held) == 1 and (method.penalty or {"weight": 7.0})["weight"] == 7.0

    def test_without_the_rise_the_two_sided_penalty_keeps_a_wrong_slope(self, tmp_path, capsys):
        words = "--pairs piles --methods wgan-gp wgan-lp --steps 400 --first-weight 100 --out".split()
        ruler.main([*words, tmp_path / "out"])
        _, _, two_sided, _, one_sided = numbers("piles +linear programme", capsys.readouterr().out)
        assert two_sided < -20 and abs(one_sided) < 10


class TestCommandLine:
    def test_resumed_trainings_are_read_and_others_refused(self, tmp_path, capsys):
        words = ["--pairs", "piles", "--steps", 4, "--out", tmp_path / "out"]
        ruler.main(words)
        first = capsys.readouterr().out
        held = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")}
        assert len(held) == 4
        ruler.main([*words, "--resume"])
        assert capsys.readouterr().out == first
        for other in (["--weight", 10], ["--first-weight", 1], ["--piles", "4,1,2,3/3,4,2,1"]):
            with pytest.raises(SystemExit) as left:
                ruler.main([*words, "--resume", *other])
            assert left.value.code == 2 and "is of another training" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in held} == held

    @pytest.mark.parametrize(
        "words, said",
        [
            ("--piles 3,2,1,4/1,2,3,3", "--piles: .*the two hold 10 and 9, and W1 is between equal masses: add to one"),
            ("--piles 3,2,1/1,2,3,0", "--piles: .*two rows of as many heaps look like 3,2,1,4/1,2,4,3"),
            ("--piles 1,2", "--piles: .*two rows of as many heaps"),
            ("--piles 1,x/2,1", "--piles: .*could not convert.*'x'"),
            ("--piles 1,2/1,2", "--piles: .*there is nothing to move"),
            ("--piles=-1,2/1,0", "--piles: .*0 or more"),
            ("--piles nan,2/1,0", "--piles: .*0 or more"),
            ("--thetas 1 0", "--thetas: must be above 0 and finite; got 0"),
            ("--thetas inf", "--thetas: must be above 0 and finite; got inf"),
            ("--dimensions 0", "--dimensions: must be above 0"),
            ("--dimensions 1.5", "--dimensions: invalid positive int value: '1.5'"),
            ("--weight 0", "--weight: must be above 0"),
            ("--first-weight nan", "--first-weight: must be above 0"),
            ("--pairs circles", "--pairs: invalid choice: 'circles'"),
            ("--methods gan", "--methods: invalid choice: 'gan'"),
            ("--steps 0", "--steps must be at least 1"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, words, said, tmp_path, capsys):
        with pytest.raises(SystemExit) as left:
            ruler.main([*words.split(), "--out", tmp_path / "out"])
        assert left.value.code == 2 and re.search(said, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()

    def test_what_is_chosen_is_measured_once_and_in_order(self):
        options = SimpleNamespace(pairs=["gaussians", "lines"], thetas=[2, 1, 1.0], dimensions=[2], piles=[[1], [1]])
        assert [make().name for make in ruler.makers(options)] == ["lines 1", "lines 2", "gaussians 2"]

    def test_piles_may_be_fractions(self):
        assert ruler.two_piles("1.5,0/0.5,1") == [[1.5, 0], [0.5, 1]]
