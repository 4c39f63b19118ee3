"""Piecewise-linear activations on the tape: one bit an element, two slopes."""

import math

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS, every_dense_layout, every_layout, numbers, plain, weights
from tape_checks import LOSSES, agree, agree_low, autograd_gradients, penalty_loss, tape_gradients

from gpfast import input_gradient_loss

OPS = torch.ops.gpfast
ABOVE, BETWEEN, WITHIN, BELOW = range(4)

GATES = {
    "relu": F.relu,
    "relu_": lambda h: F.relu_(h * 1),
    "leaky_relu": lambda h: F.leaky_relu(h, 0.2),
    "leaky_relu_": lambda h: F.leaky_relu_(h * 1, 0.2),
    "leaky_relu, slope 0": lambda h: F.leaky_relu(h, 0.0),
    "leaky_relu, negative slope": lambda h: F.leaky_relu(h, -0.5),
    "threshold": lambda h: F.threshold(h, 0.1, -3.0),
    "threshold_": lambda h: F.threshold_(h * 1, 0.1, -3.0),
    "hardtanh": lambda h: F.hardtanh(h, -0.7, 0.4),
    "hardtanh_": lambda h: F.hardtanh_(h * 1, -0.7, 0.4),
    "relu6": lambda h: F.relu6(3 * h),
    "clamp": lambda h: h.clamp(-0.5, 0.6),
    "clamp from below": lambda h: h.clamp(min=0.1),
    "clamp from above": lambda h: h.clamp(max=0.1),
    "clamp_min": lambda h: torch.clamp_min(h, -0.1),
    "clamp_max": lambda h: torch.clamp_max(h, 0.1),
    "clamp to nothing": lambda h: h.clamp(0.5, -0.5),
    "softshrink": lambda h: F.softshrink(h, 0.3),
    "hardshrink": lambda h: F.hardshrink(h, 0.3),
    "rrelu in evaluation": F.rrelu,
    "rrelu_ in evaluation": lambda h: F.rrelu_(h * 1),
}
OTHERS = {
    "abs": ("abs", torch.abs),
    "rrelu": ("rrelu", lambda h: F.rrelu(h, training=True)),
    "rrelu_": ("rrelu", lambda h: F.rrelu_(h * 1, training=True)),
}
RULES = {name: ("gate", function) for name, function in GATES.items()} | OTHERS


@pytest.mark.parametrize("name", RULES)
def test_between_layers_with_and_without_curvature_above(name):
    rule, activation = RULES[name]
    u, w = weights(5, 6), weights(6, 3, seed=2)
    x = numbers(4, 5)
    agree(lambda x: activation(x @ u) @ w, x, [u, w], rule=rule)
    agree(lambda x: torch.tanh(activation(x @ u) @ w), x, [u, w], rule=rule)


@pytest.mark.parametrize("name", RULES)
def test_first_last_and_with_frozen_parameters(name):
    rule, activation = RULES[name]
    w = weights(5)
    x = numbers(4, 5)
    agree(activation, x, rule=rule)
    agree(lambda x: activation(x) * w, x, [w], rule=rule)
    agree(lambda x: activation(x * w), x, [w], rule=rule)
    agree(lambda x: activation(x * w.detach()) * w.detach(), x, rule=rule)


@pytest.mark.parametrize("loss", LOSSES)
def test_hardsigmoid_which_pytorch_differentiates_only_once(loss):
    w, x = weights(5, 6), 3 * numbers(4, 5)
    value, ours, steps = tape_gradients(lambda x: F.hardsigmoid(x @ w), x, [w], loss)
    same, theirs = autograd_gradients(lambda x: (F.hardtanh(x @ w, -3.0, 3.0) + 3) / 6, x, [w], loss)
    assert ("HardsigmoidBackward0", "gate") in [step[:2] for step in steps]
    torch.testing.assert_close(value, same, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1,), (7,), (8, 8), (1, 65), (3, 5, 43)], ids=str)
def test_any_number_of_elements(sizes):
    w = weights(*sizes)
    agree(lambda x: F.leaky_relu(x * w, 0.2) * w, numbers(*sizes), [w], rule="gate")


def test_no_elements_and_no_dimensions():
    agree(lambda x: F.relu(x[:, :0] * 2).sum(1) + x.sum(1), numbers(4, 3), rule="gate")
    w = weights(())
    agree(lambda x: F.relu(x.sum() * w) * w, numbers(3), [w], rule="gate")


def test_the_adjoint_is_a_broadcast_one():
    w = weights(4, 5)
    agree(lambda x: F.relu(x @ w).mean(1), numbers(3, 4), [w], rule="gate")
    agree(lambda x: F.relu(x @ w).sum(), numbers(3, 4), [w], rule="gate")


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", ["same", "channels_last", "transposed", "slice"])
@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
def test_layouts_that_differ_between_forward_and_sweeps(before, after, bent):
    w = weights(1, 5, 1, 1)

    def function(x):
        y = LAYOUTS[after](F.leaky_relu(LAYOUTS[before](x * w), 0.2))
        return (torch.sin(y) if bent else y) * 1.5

    agree(function, numbers(2, 5, 6, 4), [w], rule="gate")


def test_only_one_chunk_is_used():
    w = weights(5, 6)
    agree(lambda x: F.relu(x @ w).chunk(2, 1)[1] * 2, numbers(3, 5), [w], rule="gate")


def test_one_result_goes_two_ways():
    w = weights(5, 5)

    def function(x):
        h = F.leaky_relu(x @ w, 0.2)
        return (h @ w + h).relu() + h

    agree(function, numbers(3, 5), [w], rule="gate")


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("sizes", [(3, 5), (2, 5, 7), (2, 5, 3, 4), (1, 5, 1, 1)], ids=str)
def test_prelu(sizes, count):
    slope, w = weights(count), weights(*sizes, seed=2)
    x = numbers(*sizes)
    agree(lambda x: F.prelu(x * w, slope) * w, x, [slope, w], rule="prelu")
    agree(lambda x: torch.tanh(F.prelu(x * w, slope)), x, [slope, w], rule="prelu")
    agree(lambda x: F.prelu(x * w, slope.detach()) * w, x, [w], rule="prelu")
    agree(lambda x: F.prelu(x * w.detach(), slope), x, [slope], rule="prelu")
    agree(lambda x: F.prelu(x * w.detach(), slope.exp()).sin(), x, [slope], rule="prelu")
    agree(lambda x: F.prelu(x, slope), x, [slope], rule="prelu")


@pytest.mark.parametrize("after", LAYOUTS)
def test_prelu_in_other_layouts(after):
    slope, w = weights(5), weights(1, 5, 1, 1, seed=2)
    agree(lambda x: torch.sin(LAYOUTS[after](F.prelu(x * w, slope))), numbers(2, 5, 6, 4), [slope, w], rule="prelu")
    agree(
        lambda x: F.prelu(LAYOUTS["channels_last"](x * w), slope).sum((2, 3)),
        numbers(2, 5, 6, 4),
        [slope],
        rule="prelu",
    )


def test_what_has_no_rule_runs_alone():
    x = numbers(3, 5)
    agree(lambda x: F.prelu(x, x.mean(0)), x, alone="PreluKernelBackward0")  # the slope depends on the points
    agree(lambda x: x.clamp(torch.zeros(()), torch.ones(())), x, alone="ClampBackward0")


def test_a_negative_slope_in_place_is_refused_as_in_pytorch():
    with pytest.raises(RuntimeError, match="negative slope"):
        agree(lambda x: F.leaky_relu_(x * 1, -0.2), numbers(3, 5))


def test_a_saved_tensor_that_was_written_to_is_refused():
    def function(x):
        h = x * 2
        y = F.leaky_relu(h, 0.2)
        h.add_(1)
        return y * 3

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(function, numbers(3, 5), [], penalty_loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["leaky", "prelu"])
def test_low_precision(name, dtype):
    def make(dtype):
        u, w = (weights(6, 6, seed=s).detach().to(dtype).requires_grad_() for s in (1, 2))
        slope = torch.full((6,), 0.25, dtype=dtype).requires_grad_()
        if name == "leaky":
            return lambda x: F.leaky_relu(F.leaky_relu(x @ u, 0.2) @ w, 0.2), [u, w]
        return lambda x: F.prelu(F.prelu(x @ u, slope) @ w, slope), [u, w, slope]

    agree_low(make, numbers(9, 6), dtype)


# The operators themselves.

SPECIAL = [-math.inf, -3.0, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1.0, 3.0, math.inf]
# PyTorch's own vector loops and scalar loops differ in what they make of a NaN in the other ones.
TAKES_NAN = ("relu", "relu_", "leaky_relu", "threshold", "clamp", "clamp_min")


def eager(activation, h):
    h = h.clone().requires_grad_()
    return torch.autograd.grad(activation(h), h, torch.ones_like(h))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in GATES if "rrelu" not in name])
def test_ends_infinities_and_nan_as_in_pytorch(name, dtype):
    """At the limits, in their dtype too, and on both sides of them."""
    limits = torch.tensor([0.1, -0.1, 0.3, -0.3, 0.4, -0.5, 0.6, -0.7], dtype=dtype)
    special = SPECIAL + [math.nan] * (name in TAKES_NAN)
    h = torch.cat([torch.tensor(special, dtype=dtype), limits, limits * 1.02, limits * 0.98]).repeat(9)
    seen = []
    input_gradient_loss(GATES[name], h, lambda y, g: seen.append(g.detach()) or g.sum(), engine="tape")
    torch.testing.assert_close(seen[0], eager(GATES[name], h), rtol=0, atol=0, equal_nan=True)


SIZES = [(2, 3, 7, 5), (3, 66, 9, 8), (1, 130, 1, 3), (2, 70, 33)]


def slopes_of(h, test, lower, upper, on, off):
    held = {
        ABOVE: h > lower,
        BELOW: h < upper,
        BETWEEN: (h > lower) & (h < upper),
        WITHIN: (h >= lower) & (h <= upper),
    }[test]
    return torch.where(held, on, off), held


def packed(held, order):
    """As numpy packs them, in the memory order of `order`."""
    lying = torch.empty_like(order, dtype=torch.bool).copy_(held).as_strided((order.numel(),), (1,))
    padded = F.pad(lying, (0, -order.numel() % 8)).reshape(-1, 8).long()
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(0,), (1,), (63,), (64,), (65,), (5000,), (2, 3, 7, 5), (3, 66, 9, 8), (1, 130, 1, 3), (2, 70, 33)],
    ids=str,
)
def test_gate_and_gated_in_every_pair_of_layouts(sizes, dtype):
    for test, (on, off) in [(ABOVE, (1.0, 0.25)), (BETWEEN, (0.5, 0.0)), (WITHIN, (0.0, 1.0)), (BELOW, (1.0, 0.0))]:
        for h in every_layout(sizes, dtype, seed=1):
            for z in every_dense_layout(sizes, dtype, seed=2):
                arguments = (None, test, -0.5, 0.75, on, off)
                slope, held = slopes_of(h, test, -0.5, 0.75, on, off)
                out, bits = OPS.gate(z, h, *arguments)
                formula, plain_bits = plain(OPS.gate.default, z, h, *arguments)
                expected = z * slope.to(dtype)
                assert torch.equal(out, expected) and torch.equal(formula, expected)
                assert out.stride() == z.stride() == formula.stride() or z.numel() < 2
                assert torch.equal(bits, packed(held, z)) and torch.equal(plain_bits, bits)
                again = z.clone()
                assert torch.equal(OPS.gate_(again, h, *arguments), bits) and torch.equal(again, expected)
                assert torch.equal(OPS.gated(z, bits, None, on, off), expected)
                assert torch.equal(plain(OPS.gated.default, z, bits, None, on, off), expected)
                OPS.gated_(again, bits, None, 3.0, 3.0)
                assert torch.equal(again, expected * 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 66])
def test_a_slope_for_each_channel(channels, dtype):
    slope = numbers(1, channels, 1, 1, dtype=dtype)
    for h in every_layout((2, 66, 5, 7), dtype, seed=1):
        for z in every_dense_layout((2, 66, 5, 7), dtype, seed=2):
            expected = torch.where(h > 0, z, z * slope)
            out, bits = OPS.gate(z, h, slope, ABOVE, 0.0, 0.0, 1.0, 0.0)
            formula, _ = plain(OPS.gate.default, z, h, slope, ABOVE, 0.0, 0.0, 1.0, 0.0)
            assert torch.equal(out, expected) and torch.equal(formula, expected)
            assert torch.equal(OPS.gated(z, bits, slope, 1.0, 0.0), expected)


def test_a_slope_of_zero_is_zero_whatever_comes():
    z = torch.tensor([math.inf, math.nan, -math.inf, 1.0])
    off = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    out, _ = OPS.gate(z, off, None, WITHIN, -math.inf, 0.0, 0.0, 1.0)
    assert out.tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_bits(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sizes in [(300_001,), (3, 17, 79, 81)]:
            z, h = numbers(*sizes), numbers(*sizes, seed=1)
            if len(sizes) == 4:
                h = h.contiguous(memory_format=torch.channels_last)
            out, bits = OPS.gate(z, h, None, ABOVE, 0.0, 0.0, 1.0, 0.5)
            assert torch.equal(out, torch.where(h > 0, z, z * 0.5)) and torch.equal(bits, packed(h > 0, z))
    finally:
        torch.set_num_threads(before)


def test_operators_are_registered_as_pytorch_asks():
    z, h, slope = numbers(3, 5), numbers(3, 5, seed=1), numbers(1, 5)
    bits = OPS.gate(z, h, None, ABOVE, 0.0, 0.0, 1.0, 0.5)[1]
    utils = ("test_schema", "test_faketensor")
    for weight in (None, slope):
        for op in (OPS.gate.default, OPS.gate_.default):
            torch.library.opcheck(op, (z.clone(), h, weight, ABOVE, 0.0, 0.0, 1.0, 0.5), test_utils=utils)
        for op in (OPS.gated.default, OPS.gated_.default):
            torch.library.opcheck(op, (z.clone(), bits, weight, 1.0, 0.5), test_utils=utils)


def test_bits_of_another_tensor_are_refused():
    with pytest.raises(RuntimeError, match="bytes of bits"):
        OPS.gated(numbers(20), torch.zeros(2, dtype=torch.uint8), None, 1.0, 0.5)
