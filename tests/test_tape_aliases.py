"""In-place operations, views and their aliases mean to the tape what they mean in PyTorch."""

import pytest
import torch
from tape_critics import ENGINES, Critic, agrees, data, outcome, refuses, same
from torch import nn
from torch.nn import functional as F

VERSION = "modified by an inplace operation"


def body(h):
    return torch.tanh(h) * h


def a_view_is_written_and_the_base_is_used(m, x):
    h = m.first(x)
    h[:, :2].mul_(m.scale[:2]).tanh_()
    return m.last(body(h))


def the_base_is_written_and_a_view_is_used(m, x):
    h = m.first(x)
    view = h.view(-1, 5)[:, 1:4]
    h.mul_(m.scale).sigmoid_()
    return m.last(h) + body(view).sum(1, keepdim=True)


def a_view_of_a_view_is_written_and_both_are_used(m, x):
    h = m.first(x)
    half = h.t()[:3]
    half[1].mul_(2).tanh_()
    return m.last(h) + body(half.t()).sum(1, keepdim=True)


def a_view_is_written_with_what_another_view_holds(m, x):
    h = m.first(x) * 1
    h[:, 0].add_(h[:, 1], alpha=2).mul_(torch.exp(h[:, 2]))
    return m.last(body(h))


def a_slice_goes_through_relu_in_place(m, x):
    h = m.first(x)
    F.relu(h[:, :3], inplace=True)
    return m.last(h)


def two_in_place_calls_in_a_row(m, x):
    h = m.first(x)
    return m.last(F.leaky_relu_(h.add_(x[:, :5]).mul_(m.scale), 0.2))


def three_activations_in_place(m, x):
    return m.last(F.elu_(F.mish(F.silu(m.first(x), inplace=True), inplace=True).mul_(2)))


def in_place_residual_blocks(m, x):
    h = m.first(x)
    for _ in range(3):
        update = F.relu(h) * m.scale
        update += h
        h = F.leaky_relu(update, 0.2, inplace=True)
    return m.last(h)


def a_residual_that_writes_into_the_skip(m, x):
    h = m.first(x)
    skip = h * 1
    skip += m.first.weight.sum(1) * F.silu(h)
    skip -= F.relu_(h * m.scale)
    skip *= skip.clone()
    return m.last(skip)


def items_are_set(m, x):
    h = m.first(x)
    out = torch.zeros(len(x), 5, dtype=x.dtype)
    out[:, :2] = body(h[:, 3:])
    out[0] = h[1]
    out[:, 4] = 3.0
    out[torch.tensor([1, 2]), torch.tensor([3, 3])] = h[2:, 0].exp()
    return m.last(out)


def an_empty_tensor_is_filled(m, x):
    h = m.first(x)
    out = torch.empty_like(h).copy_(h)
    out.masked_fill_(h > 0.5, 0.0).index_add_(1, torch.tensor([0, 0]), h[:, 1:3].sigmoid())
    return m.last(body(out))


def the_points_themselves_are_written(m, x):
    x.mul_(2).add_(1)
    x[:, :2] *= x[:, 2:4].sigmoid()
    x[:, 3].tanh_()
    return m.last(m.first(x))


def an_expanded_parameter_is_copied_and_written(m, x):
    h = m.scale.expand(len(x), 5).clone()
    h.mul_(torch.sigmoid(m.first(x)))
    return m.last(h.pow_(2))


def a_detached_alias_is_read(m, x):
    h = m.first(x)
    return m.last(h * h.detach() + h.data.exp())


def an_alias_is_written_behind_autograd(m, x):
    """PyTorch differentiates at what memory holds when it looks."""
    h = m.first(x)
    y = torch.tanh(h) * h
    h.data.mul_(2)
    return m.last(y)


def both_halves_of_a_split_are_used(m, x):
    a, b = m.first(x)[:, :4].chunk(2, 1)
    return (a * b.exp()).sum(1) + m.last(m.first(x)).squeeze(1)


def a_complex_view_is_written(m, x):
    h = torch.view_as_complex(m.first(x)[:, :4].reshape(-1, 2, 2).contiguous())
    h.mul_(h.conj() + 1)
    return torch.view_as_real(h).pow(2).sum((1, 2)) + m.last(m.first(x)).squeeze(1)


@pytest.mark.parametrize(
    "forward",
    [
        a_view_is_written_and_the_base_is_used,
        the_base_is_written_and_a_view_is_used,
        a_view_of_a_view_is_written_and_both_are_used,
        a_view_is_written_with_what_another_view_holds,
        a_slice_goes_through_relu_in_place,
        two_in_place_calls_in_a_row,
        three_activations_in_place,
        in_place_residual_blocks,
        a_residual_that_writes_into_the_skip,
        items_are_set,
        an_empty_tensor_is_filled,
        an_expanded_parameter_is_copied_and_written,
        a_detached_alias_is_read,
        an_alias_is_written_behind_autograd,
        both_halves_of_a_split_are_used,
        a_complex_view_is_written,
    ],
    ids=lambda f: f.__name__,
)
def test_exact_where(forward):
    agrees(forward)
    agrees(forward, reduction="none", at="real")


def test_exact_where_the_points_themselves_are_written():
    """The eager lines may not write to their leaf: there the critic begins with a copy."""
    real, fake = data()
    expected = agrees(lambda m, x: the_points_themselves_are_written(m, x.clone()), real, fake)["autograd"]
    for engine in ENGINES:
        same(outcome(engine, Critic(the_points_themselves_are_written), real, fake, {}), expected, engine)


def what_tanh_saved_is_overwritten(m, x):
    h = torch.tanh(m.first(x))
    h.mul_(2)
    return m.last(h)


def what_a_product_saved_is_overwritten_through_a_view(m, x):
    h = m.first(x)
    y = h * h
    h[:, 0].zero_()
    return m.last(y)


def a_residual_overwrites_what_it_saved(m, x):
    h = m.first(x)
    h += torch.exp(h).mul(h)
    h *= h
    return m.last(h)


def a_second_activation_overwrites_the_first(m, x):
    return m.last(F.leaky_relu_(m.first(x).relu_(), 0.2))


def dropout_overwrites_an_activation(m, x):
    return m.last(F.dropout(F.relu_(m.first(x)), 0.4, True, True))


def a_slice_overwrites_an_activation(m, x):
    h = torch.sigmoid(m.first(x))
    h[:, :2].mul_(h[:, 2:4])
    return m.last(h)


def the_weight_is_overwritten(m, x):
    y = m.last(torch.tanh(m.first(x)))
    with torch.no_grad():
        m.last.weight.mul_(2)
    return y


@pytest.mark.parametrize(
    "forward",
    [
        what_tanh_saved_is_overwritten,
        what_a_product_saved_is_overwritten_through_a_view,
        a_residual_overwrites_what_it_saved,
        a_second_activation_overwrites_the_first,
        dropout_overwrites_an_activation,
        a_slice_overwrites_an_activation,
        the_weight_is_overwritten,
    ],
    ids=lambda f: f.__name__,
)
def test_an_error_as_in_eager_where(forward):
    refuses(forward, RuntimeError, VERSION)


def one_of_several_views_is_written(m, x):
    a, b = m.first(x)[:, :4].chunk(2, 1)
    a.mul_(2)
    return (a + b).sum(1)


def one_of_the_rows_is_written(m, x):
    rows = m.first(x).unbind(0)
    rows[0].mul_(2)
    return m.last(torch.stack(rows))


@pytest.mark.parametrize(
    "forward", [one_of_several_views_is_written, one_of_the_rows_is_written], ids=lambda f: f.__name__
)
def test_views_of_several_outputs_may_not_be_written(forward):
    refuses(forward, RuntimeError, "multiple views")


class Doubles(torch.autograd.Function):
    """Writes to its input, and says so."""

    @staticmethod
    def forward(ctx, h):
        ctx.mark_dirty(h)
        return h.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class SquaresInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, scale):
        ctx.save_for_backward(h.clone(), scale)
        ctx.mark_dirty(h)
        return h.mul_(h).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        h, scale = ctx.saved_tensors
        return 2 * h * scale * grad, (grad * h * h).sum(0)


class Cubes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return 3 * h * h * grad


def test_a_custom_function_that_writes_to_its_input():
    agrees(lambda m, x: m.last(torch.tanh(Doubles.apply(m.first(x) * 1))))
    agrees(lambda m, x: m.last(SquaresInPlace.apply(m.first(x) * 1, m.scale)))
    agrees(lambda m, x: m.last(SquaresInPlace.apply(torch.tanh(m.first(x)) * 1, m.scale).relu_()))

    def through_a_view(m, x):
        h = m.first(x)
        SquaresInPlace.apply(h[:, :3], m.scale[:3])
        return m.last(h)

    agrees(through_a_view)


def test_in_place_before_a_custom_function():
    agrees(lambda m, x: m.last(Cubes.apply(m.first(x).mul_(m.scale).tanh_())))

    def after_a_view_was_written(m, x):
        h = m.first(x)
        h[:, 1:3].sigmoid_()
        return m.last(Cubes.apply(h).mul_(2))

    agrees(after_a_view_was_written)
    refuses(lambda m, x: m.last(Cubes.apply(h := m.first(x)) + 0 * h.mul_(2)), RuntimeError, VERSION)


def test_in_place_modules_in_a_row():
    layers = nn.Sequential(nn.SiLU(True), nn.Hardtanh(-2, 2, True), nn.Mish(True), nn.ELU(1.0, True))
    agrees(Critic(lambda m, x: m.last(m.layers(m.first(x))), layers=layers))
    convolutions = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.Dropout(0.3, True), nn.ReLU(True), nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2, True)
    )
    agrees(Critic(lambda m, x: m.layers(x).flatten(1).sum(1), layers=convolutions), *data(3, 2, 7, 7))
