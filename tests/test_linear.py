"""The rule of linear layers: one live factor, and a weight that is a parameter, a constant or an expression."""

import collections
import contextlib

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low, autograd_gradients, penalty_loss, tape_gradients
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gpfast


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(11)


def points(*sizes):
    return torch.randn(sizes, dtype=torch.float64)


def parameter(*sizes):
    return points(*sizes).div(2).requires_grad_()


def critic(*layers):
    module = nn.Sequential(*layers).double()
    return module, list(module.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 4])
def test_single_layer_is_first_and_last(bias, batch, width):
    module, parameters = critic(nn.Linear(3, width, bias=bias))
    agree(module, points(batch, 3), parameters, rule="linear")


def test_empty_batch_inside():
    module, parameters = critic(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    agree(lambda x: module(x[:0]).sum() + x.square().sum(), points(2, 3), parameters, rule="linear")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus])
@pytest.mark.parametrize("bias", [True, False])
def test_critic_with_and_without_second_adjoints(activation, bias):
    module, parameters = critic(
        nn.Linear(3, 5, bias=bias), activation(), nn.Linear(5, 4, bias=bias), activation(), nn.Linear(4, 1, bias=bias)
    )
    agree(module, points(6, 3), parameters, rule="linear")


def test_second_adjoint_of_a_wide_layer_waits_for_the_last_sweep():
    module, parameters = critic(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 1))
    agree(module, points(2, 3), parameters, rule="linear")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(
    "frozen", [["0.weight"], ["2.weight", "0.bias"], ["2.bias", "4.weight"], ["0.weight", "0.bias"]]
)
def test_frozen_parameters(activation, frozen):
    module, parameters = critic(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 1))
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    agree(module, points(4, 3), parameters, rule="linear")


def test_everything_is_frozen_but_the_points_lead_on():
    module, parameters = critic(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    module.requires_grad_(False)
    agree(module, points(4, 3), parameters, rule="linear")


@pytest.mark.parametrize("sizes", [(3,), (2, 4, 3), (2, 1, 4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_points_of_any_rank(sizes, bias):
    module, parameters = critic(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias))
    agree(module, points(*sizes), parameters, rule="linear")


def test_points_that_are_not_contiguous():
    module, parameters = critic(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    agree(lambda x: module(x.t()), points(3, 4), parameters, rule="linear")
    agree(lambda x: module(x[:, ::2]), points(4, 6), parameters, rule="linear")
    agree(lambda x: module(x.transpose(0, 1)), points(2, 4, 3), parameters, rule="linear")


@pytest.mark.parametrize("activation", [F.relu, torch.tanh])
def test_weight_shared_between_layers(activation):
    weight, bias = parameter(4, 4), parameter(4)

    def function(x):
        return F.linear(activation(F.linear(activation(F.linear(x, weight, bias)), weight, bias)), weight)

    agree(function, points(5, 4), [weight, bias], rule="linear")


@pytest.mark.parametrize("activation", [F.relu, torch.tanh])
def test_weight_of_a_layer_and_of_its_transpose(activation):
    weight = parameter(4, 3)
    agree(lambda x: activation(x @ weight.t()) @ weight, points(5, 3), [weight], rule="linear")


def test_weight_is_an_expression_of_parameters():
    direction, length = parameter(4, 3), parameter(4, 1)
    agree(lambda x: torch.tanh(F.linear(x, length * direction / direction.norm())), points(5, 3), [direction, length])
    module, parameters = critic(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1))
    module.eval()
    agree(module, points(5, 3), parameters, rule="linear")


def test_bias_is_broadcast_or_an_expression():
    for sizes in [(4,), (1, 4), (5, 1), (1, 1), (1,), (), (5, 4)]:
        bias, weight = parameter(*sizes), parameter(3, 4)
        function = lambda x, bias=bias, weight=weight: torch.tanh(torch.addmm(bias.sin(), x, weight))  # noqa: E731
        agree(function, points(5, 3), [bias, weight], rule="linear")


@pytest.mark.parametrize("alpha, beta", [(0.5, -2), (1, 0), (0, 1), (-1, 0.25)])
def test_scaled_products(alpha, beta):
    bias, weight = parameter(4), parameter(3, 4)

    def function(x):
        return torch.tanh(torch.addmm(bias, torch.tanh(x), weight, alpha=alpha, beta=beta))

    agree(function, points(5, 3), [bias, weight], rule="linear")


def test_parameter_on_the_left():
    left, right = parameter(4, 5), parameter(3, 2)
    agree(lambda x: torch.tanh(left @ x) @ right, points(5, 3), [left, right], rule="linear")
    agree(lambda x: torch.tanh(left.detach() @ x) @ right, points(5, 3), [right], rule="linear")
    agree(lambda x: torch.tanh(left.t().contiguous().t() @ x), points(5, 3), [left], rule="linear")
    agree(lambda x: torch.tanh(torch.addmm(right[0], left.t(), x, alpha=3)), points(4, 2), [left, right], rule="linear")


def test_weight_made_of_the_points_by_a_hyper_network():
    make, constant = parameter(3, 12), points(5, 3)

    def function(x):
        weight = torch.tanh(x @ make).sum(0).view(3, 4)
        return torch.tanh(constant @ weight)

    agree(function, points(2, 3), [make], rule="linear")


@pytest.mark.parametrize("live", ["addend", "addend left", "addend right", "addend left right", "left", "right"])
@pytest.mark.parametrize("grad", [True, False])
def test_every_combination_of_live_inputs_of_addmm(live, grad):
    tensors = {"addend": points(5, 4), "left": points(5, 3), "right": points(3, 4)}
    parameters = [t.requires_grad_(grad) for t in tensors.values()]
    mixes = {name: points(6, t.numel()) for name, t in tensors.items()}

    def function(x):
        made = {
            name: torch.tanh(x @ mixes[name]).view(t.shape) + t if name in live.split() else t
            for name, t in tensors.items()
        }
        return torch.tanh(torch.addmm(made["addend"], made["left"], made["right"], alpha=0.5, beta=2))

    agree(function, points(6), parameters)


def test_residual_addend_is_passed_through_or_stretched():
    left, right = parameter(4, 2), parameter(2, 3)
    agree(lambda x: torch.tanh(torch.addmm(x, left, right)), points(4, 3), [left, right], rule="linear")
    agree(lambda x: torch.tanh(torch.addmm(x.sin(), left, right, beta=3)), points(4, 3), [left, right], rule="linear")
    agree(lambda x: torch.tanh(torch.addmm(x.sin(), left, right, beta=3)), points(3), [left, right], rule="linear")
    agree(lambda x: torch.tanh(torch.addmm(x.sin(), left, right)), points(4, 1), [left, right], rule="linear")
    agree(lambda x: torch.tanh(torch.addmm(x.sum(), left, right, beta=2)), points(4, 3), [left, right], rule="linear")


def test_in_place():
    weight = parameter(3, 3)
    agree(lambda x: torch.tanh(x.sin().addmm_(x, weight, alpha=2)), points(3, 3), [weight], rule="linear")


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_layer_input_that_is_overwritten_later(activation):
    """An error, as in PyTorch, even where only a second adjoint would have read it."""
    first, second = parameter(3, 4), parameter(4, 5)

    def function(x):
        h = x @ first
        y = activation(h @ second)
        h.mul_(2)
        return y

    for gradients_of in (autograd_gradients, tape_gradients):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients_of(function, points(6, 3), [first, second], penalty_loss)
    second.requires_grad_(False)
    agree(function, points(6, 3), [first], rule="linear")


def test_bilinear_runs_alone():
    module = nn.Bilinear(3, 3, 2).double()
    agree(lambda x: module(x, x.sin()), points(4, 3), list(module.parameters()), rule="trilinear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_low_precision(dtype, activation):
    module, _ = critic(nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))
    state = {name: value.to(dtype).double() for name, value in module.state_dict().items()}

    def make(at):
        copy, parameters = critic(nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))
        copy.load_state_dict(state)
        return copy.to(at), parameters

    agree_low(make, points(16, 8), dtype)


class Products(TorchDispatchMode):
    """Counts products, and refuses copies."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("clone", "copy_", "_to_copy", "contiguous")
        self.counts[name] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("mode", [contextlib.nullcontext, FakeTensorMode])
def test_three_products_a_layer(mode):
    """Adjoint, tangent and weight gradient; the adjoint of one score is an outer product. Where layers are apart."""
    onednn = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    try:
        with mode():
            module = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1))
            x = torch.randn(5, 3, requires_grad=True)
            scores = module(x)
            with Products() as seen:
                penalty = gpfast.gradient_penalty_from(scores, x, engine="tape")
    finally:
        torch.backends.mkldnn.set_flags(onednn, _fp32_precision=None)
    assert seen.counts["mm"] == 2 + 2 + 3 and not seen.counts["addmm"] and not seen.counts["sum"]
    assert penalty.shape == ()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_gradients_lie_like_their_weights(activation):
    """So that .grad takes them as they are."""
    module, parameters = critic(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 2))
    weight = parameter(2, 3)
    _, gradients, _ = tape_gradients(
        lambda x: module(x) @ weight, points(6, 3), [*parameters, weight], lambda y, g: (y * g[:, :1]).sum()
    )
    for value, gradient in zip([*parameters, weight], gradients, strict=False):
        assert gradient.stride() == value.stride()


@pytest.mark.parametrize("features, width", [(6, 16), (5, 64), (24, 8)])
def test_few_features_of_many_rows_in_float32(features, width):
    """MKL adds up the terms of a product of few columns one by one."""

    def make(dtype):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))
        layers = layers.to(dtype)
        return lambda x: layers(x).mean(1), list(layers.parameters())

    agree_low(make, points(4, 4096, features), torch.float32)
