"""examples/remedies.py: each remedy does what its paper says, on cases that can be computed by hand."""

import math

import pytest
import torch
from methods import METHODS
from remedies import (
    REMEDIES,
    FeatureMatching,
    HistoricalAveraging,
    InstanceNoise,
    LabelSmoothing,
    MinibatchDiscrimination,
    MinibatchFeatures,
    Remedy,
    VirtualBatchNorm,
    VirtualBatchNormalisation,
)
from torch import nn
from torch.nn import functional as F
from train import Trainer, fit, make_parser, parse


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


def noise(count):
    return torch.randn(count, 2)


def make_trainer(*names, seed=0):
    torch.manual_seed(seed)
    remedies = [REMEDIES[name]() for name in names]
    return Trainer(mlp(2, 2), mlp(2, 1), METHODS["gan"], lambda n: noise(n) + 3, noise, batch=8, remedies=remedies)


def losses(trainer):
    return {name: values for name, values in trainer.history.items() if name != "seconds"}


class Interrupted(Exception):
    pass


def power_cut(trainer):
    if trainer.step_count == 3:
        raise Interrupted
    return {}


@pytest.mark.parametrize("names", [[name] for name in REMEDIES] + [list(REMEDIES)], ids="+".join)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(names, tmp_path):
    """3 steps, a crash, and 3 more: each loss of the 6 to the bit, also where the remedy changes over the training."""
    parser = make_parser("test", steps=6, batch=8, out=tmp_path, quick={})
    words = ["--save-every", "3", "--out"]
    whole = make_trainer(*names)
    fit(whole, parse(parser, [*words, tmp_path / "whole"]), tmp_path / "whole", watch=lambda trainer: {})
    with pytest.raises(Interrupted):
        fit(make_trainer(*names), parse(parser, [*words, tmp_path / "parts"]), tmp_path / "parts", watch=power_cut)
    resumed = make_trainer(*names, seed=7)
    fit(resumed, parse(parser, [*words, tmp_path / "parts", "--resume"]), tmp_path / "parts")
    assert len(losses(whole)["critic"]) == 6
    assert losses(resumed) == losses(whole)
    assert torch.equal(resumed.samples(5), whole.samples(5))


@pytest.mark.parametrize("name", REMEDIES)
def test_each_changes_the_training(name):
    plain, other = make_trainer(), make_trainer(name)
    for step in range(40):
        plain.step(step / 40), other.step(step / 40)
    assert losses(plain) != losses(other)


def test_one_that_overrides_nothing_changes_nothing():
    torch.manual_seed(0)
    idle = Trainer(
        mlp(2, 2), mlp(2, 1), METHODS["gan"], lambda n: noise(n) + 3, noise, batch=8, remedies=[Remedy(), Remedy()]
    )
    plain = make_trainer()
    plain.step(), idle.step()
    assert losses(plain) == losses(idle)


def test_smoothed_labels():
    """Logits ln 3 and 0 are probabilities 3/4 and 1/2; the real one counts 0.9 as real, the other is generated."""
    real, fake = torch.tensor([[math.log(3)]]), torch.tensor([[0.0]])
    loss = LabelSmoothing().critic_loss(METHODS["gan"], real, fake)
    assert loss.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25) - math.log(0.5), rel=1e-6)
    unsmoothed = LabelSmoothing(label=1.0).critic_loss(METHODS["gan"], real, fake)
    assert unsmoothed.item() == pytest.approx(METHODS["gan"].critic_loss(real, fake).item(), rel=1e-6)


def test_historical_average_of_three_steps():
    """Parameters 1, 3 and 8 average to 4; from 6 that is weight * (6 - 4)^2 away, with gradient 2 weight (6 - 4)."""
    remedy, network = HistoricalAveraging(weight=0.5), nn.Linear(1, 1, bias=False)
    assert remedy.extra("critic", network) is None
    for value in (1.0, 3.0, 8.0):
        nn.init.constant_(network.weight, value)
        remedy.after("critic", network)
    nn.init.constant_(network.weight, 6.0)
    term = remedy.extra("critic", network)
    term.backward()
    assert term.item() == pytest.approx(2.0) and network.weight.grad.item() == pytest.approx(2.0)
    assert remedy.extra("generator", network) is None, "each side has its own"
    again = HistoricalAveraging(weight=0.5)
    again.load(remedy.state())
    assert again.extra("critic", network).item() == pytest.approx(2.0)


def test_virtual_batch_norm_of_reference_and_sample():
    """Reference 0, 2, 4 has mean 2, mean square 20/3; with the sample 6 they are 3 and 14, so its deviation sqrt 5."""
    x = torch.tensor([[0.0], [2.0], [4.0], [6.0], [2.0]])
    found = VirtualBatchNorm(1, reference=3, eps=1e-12)(x)
    deviation = math.sqrt(20 / 3 - 4)
    torch.testing.assert_close(found[:3, 0], torch.tensor([-2 / deviation, 0.0, 2 / deviation]))
    assert found[3, 0].item() == pytest.approx(3 / math.sqrt(5), rel=1e-6)
    assert found[4, 0].item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(found[:3], F.batch_norm(x[:3], None, None, training=True, eps=1e-12))


def test_virtual_batch_norm_makes_no_sample_depend_on_another():
    generator, _ = VirtualBatchNormalisation(reference=5).networks(mlp(2, 2), mlp(2, 1), None, noise)
    assert sum(isinstance(module, VirtualBatchNorm) for module in generator.modules()) == 2
    z = noise(4)
    torch.testing.assert_close(generator(z)[1:2], generator(z[1:2]))
    assert "reference" in generator.state_dict(), "a checkpoint holds the batch"


def test_instance_noise_falls_to_nothing():
    x = torch.zeros(20_000, 2)
    remedy = InstanceNoise(start=0.5)
    for progress in (0.0, 0.5):
        assert remedy.seen(x, progress).std().item() == pytest.approx(0.5 * (1 - progress), rel=0.02)
    assert torch.equal(remedy.seen(x, 1.0), x)


def test_minibatch_features_by_their_formula():
    module = MinibatchFeatures(3, kernels=2, depth=4)
    features = torch.randn(5, 3)
    found = module(features)
    assert found.shape == (5, 3 + 2) and torch.equal(found[:, :3], features)
    for i in range(5):
        for kernel in range(2):
            rows = [features[j] @ module.tensor[:, kernel] for j in range(5)]
            closeness = sum(math.exp(-(rows[i] - row).abs().sum().item()) for row in rows)
            assert found[i, 3 + kernel].item() == pytest.approx(closeness, rel=1e-5)
    same = module(features[:1].expand(5, 3))
    torch.testing.assert_close(same[:, 3:], torch.full((5, 2), 5.0))


def test_minibatch_discrimination_sees_the_batch():
    _, critic = MinibatchDiscrimination().networks(None, mlp(2, 1), None, None)
    x = noise(6)
    assert critic(x).shape == (6, 1)
    assert not torch.allclose(critic(x)[:3], critic(x[:3]))


def test_features_that_agree_cost_nothing():
    critic, remedy = mlp(2, 1), FeatureMatching()
    real = noise(6)
    assert remedy.generator_loss(METHODS["gan"], critic, real, real.flip(0), ()).item() == pytest.approx(0, abs=1e-10)
    identity = nn.Sequential(nn.Identity(), nn.Linear(2, 1))
    fake = (real + torch.tensor([3.0, 4.0])).requires_grad_()
    loss = remedy.generator_loss(METHODS["gan"], identity, real, fake, ())
    assert loss.item() == pytest.approx(25.0, rel=1e-5), "the squared distance of the means"
    loss.backward()
    assert fake.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["minibatch-discrimination", "virtual-batch-norm"])
def test_networks_that_cannot_be_changed_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} needs a .* nn.Sequential of at least two layers; got Bilinear"):
        REMEDIES[name]().networks(nn.Bilinear(1, 1, 1), nn.Bilinear(1, 1, 1), None, noise)


def test_a_critic_without_a_last_linear_layer_is_refused():
    with pytest.raises(ValueError, match="ends in nn.Linear; got ReLU"):
        MinibatchDiscrimination().networks(None, nn.Sequential(nn.Linear(2, 2), nn.ReLU()), None, None)
