"""The bare matrix passes: which they are, on hand-counted critics. And the deadline of the compiler."""

import time

import pytest
import torch
from torch import nn

from gpfast import cost, zoo
from gpfast.cli import bare
from gpfast.cli.deadline import TookTooLong, deadline


class Critic(nn.Module):
    """Linear layers with a function between them."""

    def __init__(self, between, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.between = between

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.between(layer(x))
        return self.layers[-1](x)


def leaky(x):
    return torch.maximum(x, 0.2 * x)


def case_of(*shape):
    return zoo.Case(torch.randn(shape), torch.randn(shape))


def counted(critic, case):
    plan = bare.plan_of(critic, case)
    passes = bare.bare_passes(plan)
    step = cost.measure(bare.bare_step(passes))
    with torch.no_grad():
        forward = cost.measure(lambda: bare.scores_of(critic, case), existing=critic)
    return bare.traits_of(plan), passes, step.flop, forward.flop


def test_a_piecewise_linear_critic_has_four_passes():
    traits, passes, flop, forward = counted(Critic(leaky, 6, 5, 4, 1), case_of(3, 6))
    assert traits == ["piecewise-linear"]
    assert len(passes) == 4 + 4 + 3  # nobody reads the last layer's tangent
    assert flop == 4 * forward - 2 * 3 * 4


def test_a_curved_critic_has_six_where_second_adjoints_are():
    traits, passes, flop, forward = counted(Critic(lambda x: x * x, 6, 5, 4, 1), case_of(3, 6))
    assert traits == ["curved"]
    assert len(passes) == 5 + 6 + 3  # the first layer has none below, and above the last bend there is no b
    assert flop == 6 * forward - 2 * 3 * 6 * 5 - 3 * 2 * 3 * 4


def test_convolutions_run_as_they_are():
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 6, 4, groups=2), nn.Conv2d(6, 1, 5)
    traits, passes, flop, forward = counted(nn.Sequential(*layers), case_of(2, 3, 8, 8))
    assert traits == ["piecewise-linear", "convolutional"] and len(passes) == 4 + 4 + 3
    shapes = [tuple(run().shape) for run in passes]
    assert shapes[:4] == [(2, 4, 4, 4), (2, 3, 8, 8), (2, 4, 4, 4), (4, 3, 3, 3)]
    assert shapes[4:8] == [(2, 6, 7, 7), (2, 4, 4, 4), (2, 6, 7, 7), (4, 3, 4, 4)]
    assert shapes[8:] == [(2, 1, 3, 3), (2, 6, 7, 7), (1, 6, 5, 5)]


def test_a_product_of_two_values_of_the_points():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.bmm(self.a(x), self.b(x).mT).sum((1, 2))

    traits, passes, *_ = counted(Product(), case_of(2, 3, 4))
    # two layers, the first of all: forward, data gradient, tangent, weight gradient, and of b the weight's;
    # the product: forward, two adjoints, and what a and the other's tangent give each; its tangent is not read
    assert traits == ["curved"] and len(passes) == 2 * 5 + 1 + 2 + 2


def test_frozen_weights_need_no_gradient_and_vectors_are_matrices():
    critic = Critic(leaky, 6, 5, 1).requires_grad_(False)
    critic.layers[1].requires_grad_(True)
    assert len(counted(critic, case_of(3, 6))[1]) == 3 + 3

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.randn(5))

        def forward(self, x):
            return torch.mv(x, self.v)

    assert len(counted(Vector(), case_of(3, 5))[1]) == 3


def test_nothing_of_the_critic_is_changed():
    critic, entry = zoo.build("spectral-norm", small=True), zoo.ZOO["spectral-norm"]
    case, state = entry.inputs(2, True), torch.get_rng_state()
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    plan = bare.plan_of(critic, case)
    assert {p.node.name() for p in plan} >= {"ConvolutionBackward0"}
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_critic_of_the_zoo_has_bare_passes(name):
    critic, case = zoo.build(name, small=True), zoo.ZOO[name].inputs(zoo.ZOO[name].small_batch, True)
    traits, passes, flop, forward = counted(critic, case)
    assert passes and 3 * forward < flop < 7.5 * forward  # 9 where both factors of a product are of the points
    assert ("norms" in traits) == ("norm-dcgan" in name or name in NORMED)


NORMED = ("resnet101", "tanh-everywhere", "gated-multiplicative", "layernorm-dcgan", "patch")


def test_why_there_are_no_passes():
    with pytest.raises(RuntimeError, match="no convolution and no matrix product"):
        bare.bare_passes(bare.plan_of(nn.Flatten(), case_of(2, 3)))
    hooked = Critic(leaky, 6, 5, 1)
    hooked.layers[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="the tape does not run: .* has a backward hook"):
        bare.plan_of(hooked, case_of(3, 6))


def test_the_deadline_interrupts_and_is_lifted():
    with pytest.raises(TookTooLong), deadline(0.05):
        time.sleep(30)
    with deadline(0.05):
        pass
    time.sleep(0.1)
