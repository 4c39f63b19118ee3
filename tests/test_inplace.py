"""Operations that overwrite a view of what another operation made."""

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS, numbers, weights
from tape_checks import agree, penalty_loss, tape_gradients

OVERWRITES = {
    "leaky_relu_": lambda y, w: F.leaky_relu_(y, 0.2),
    "relu_": lambda y, w: y.relu_(),
    "tanh_": lambda y, w: y.tanh_(),
    "clamp_": lambda y, w: y.clamp_(-0.5, 0.75),
    "mul_ by a parameter": lambda y, w: y.mul_(w),
    "add_ of a parameter": lambda y, w: y.add_(w),
    "mul_ by a number": lambda y, w: y.mul_(3),
    "dropout_": lambda y, w: F.dropout(y, 0.0, inplace=True),
}


@pytest.mark.parametrize("name", OVERWRITES)
@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
def test_a_view_of_all_of_it(name, bent):
    w, scale = weights(1, 6), weights(2, 3)

    def function(x):
        y = (x * w).sin() if bent else x * w
        view = OVERWRITES[name](y.view(4, 2, 3), scale)
        return view.flatten(1).cos() if bent else view.flatten(1) * 2

    agree(function, numbers(4, 6), [w, scale])


def test_a_negative_view_is_no_view_of_all_of_it():
    w = weights(1, 6)

    def function(x):
        y = (x * w).sin()
        F.leaky_relu_(torch._neg_view(y), 0.2)
        return y.cos()

    agree(function, numbers(4, 6), [w])


@pytest.mark.parametrize("name", ["leaky_relu_", "mul_ by a parameter"])
def test_the_base_goes_on_as_well(name):
    w, scale = weights(1, 6), weights(2, 3)

    def function(x):
        y = x * w
        view = OVERWRITES[name](y.view(4, 2, 3), scale)
        return view.flatten(1).tanh() + y.sin()

    agree(function, numbers(4, 6), [w, scale])


def test_the_base_is_a_constant():
    w = weights(4, 2, 3)

    def function(x):
        y = torch.zeros(4, 6, dtype=x.dtype)
        y.view(4, 2, 3).add_(x.view(4, 2, 3).sin() * w)
        return y.cos()

    agree(function, numbers(4, 6), [w])


def test_an_activation_behind_an_instance_norm_has_a_rule():
    first, second = weights(5, 3, 3, 3), weights(4, 5, 3, 3)

    def critic(x):
        y = F.leaky_relu_(F.instance_norm(F.conv2d(x, first)), 0.2)
        return F.conv2d(F.relu_(F.instance_norm(y)), second).flatten(1).sum(1)

    x = numbers(2, 3, 8, 8)
    agree(critic, x, [first, second])
    steps = {step[:2] for step in tape_gradients(critic, x, [first, second], penalty_loss)[2]}
    assert ("torch::autograd::CopySlices", "gate") in steps and ("AsStridedBackward0", "view") in steps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolution_s_result_in_any_layout(layout):
    kernel, w = weights(4, 3, 3, 3), weights(1, 4, 1, 1)

    def critic(x):
        y = LAYOUTS[layout](F.conv2d(x, kernel) * w) * 1.5
        F.leaky_relu_(y.view_as(y), 0.2)
        return y.square().flatten(1).sum(1)

    agree(critic, numbers(2, 3, 6, 7), [kernel, w])


@pytest.mark.parametrize(
    "view", [lambda y: y[:, 1:4], lambda y: y.t(), lambda y: y[:, ::2], lambda y: y[0], torch._neg_view], ids="scteN"
)
@pytest.mark.parametrize("name", ["leaky_relu_", "tanh_"])
def test_other_views_run_alone(view, name):
    w = weights(6)

    def function(x):
        y = x * w
        OVERWRITES[name](view(y), w)
        return y.cos()

    agree(function, numbers(4, 6), [w])
