"""Whether the tape agrees with autograd: with rules, with every node alone, for losses with and without curvature."""

from contextlib import contextmanager

import torch

import gpfast
from gpfast import autograd, tape


def penalty_loss(y, g):
    """Second adjoints start where the first node bends."""
    return ((g.flatten(1).square().sum(1) + 1e-3).sqrt() - 1).square().mean() if g.ndim > 1 else (g - 1).square().mean()


def cubic_loss(y, g):
    """Second adjoints arrive at the outputs."""
    of_y = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
    of_g = torch.linspace(0.2, 1, g.numel(), dtype=g.dtype, device=g.device).reshape(g.shape)
    return (g.pow(3) * of_g).sum() + (of_y * y * y).sum()


LOSSES = (penalty_loss, cubic_loss)


@contextmanager
def adjoints_made_again():
    """Small ones too, which are held otherwise."""
    before = torch.ops.gpfast.set_worth_passes(1)
    try:
        yield
    finally:
        torch.ops.gpfast.set_worth_passes(before)


def all_shared():
    """What autograd saves twice is held once, however small."""
    return tape.Sharing(0)


def loss_of_gradient(function, point, loss):
    """loss(y, g) of g alone, by the tape, which is told that no second adjoint will arrive at the outputs."""
    start, target = torch.ops.gpfast.root(point, False)
    with all_shared():
        y = function(start)
    (g,), _, refused = torch.ops.gpfast.input_gradient(y, [target], True, True, False)
    assert not refused, refused
    autograd.check_used({"x": target}, [g])
    return loss(y, g.to(point.dtype))


def gradients_of(value, inputs):
    return torch.autograd.grad(value, inputs, allow_unused=True) if value.requires_grad else (None,) * len(inputs)


def autograd_gradients(function, x, parameters, loss):
    """(value, gradients or None of parameters and x) by PyTorch's double backward, from a fixed random state."""
    torch.manual_seed(3)
    point = x.detach().clone().requires_grad_()
    y = function(point.view_as(point))
    (g,) = torch.autograd.grad(y, point, torch.ones_like(y), create_graph=True, allow_unused=True)
    g = torch.zeros_like(point) if g is None else g
    value = loss(y, g)
    inputs = [p for p in parameters if p.requires_grad] + [point]
    return value.detach(), gradients_of(value, inputs)


def tape_gradients(function, x, parameters, loss, *, rules=True, again=False):
    """The same by the tape, and what it did: [(node, rule, bends, bent)]. again: the last two sweeps run twice."""
    torch.manual_seed(3)
    point = x.detach().clone().requires_grad_()
    seen = []

    def watched(y, g):
        if g.dtype != torch.float16:  # whose tape hands over float32: this is a cast of it
            seen.extend(torch.ops.gpfast.describe(g))
        return loss(y, g)

    torch.ops.gpfast.set_rules_enabled(rules)
    try:
        if loss is penalty_loss:
            value = loss_of_gradient(function, point, watched)
        else:
            value = gpfast.input_gradient_loss(function, point, watched, engine="tape")
        inputs = [p for p in parameters if p.requires_grad] + [point]
        if again and value.requires_grad:
            torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        gradients = gradients_of(value, inputs)
    finally:
        torch.ops.gpfast.set_rules_enabled(True)
    lines = [line.split("\t") for line in seen]
    return value.detach(), gradients, [(node, rule, bends == "1", bent == "1") for node, rule, bends, bent, *_ in lines]


def agree(function, x, parameters=(), *, rule=None, alone=None, tolerance=1e-10):
    """Compares value and every gradient in float64; returns what the tape did for the last loss.

    function: x -> a tensor that depends on x. rule: the name of a rule that must have run; alone: the name of a node
    that must have run without one.
    """
    parameters = list(parameters)
    for loss in LOSSES:
        value, expected = autograd_gradients(function, x, parameters, loss)
        largest = max((g.abs().max().item() for g in expected if g is not None and g.numel()), default=0.0)
        scale = max(largest, value.abs().item(), 1e-30)
        for rules in (True, False):
            ours, gradients, steps = tape_gradients(function, x, parameters, loss, rules=rules)
            words = f"{loss.__name__}, {'rules' if rules else 'alone'}, {steps}"
            assert (ours - value).abs() <= tolerance * scale, f"value: {words}"
            for i, (mine, theirs) in enumerate(zip(gradients, expected, strict=True)):
                if theirs is None:
                    assert mine is None or not mine.any(), f"gradient {i} should be absent or zero: {words}"
                    continue
                assert mine is not None or not theirs.any(), f"gradient {i} is missing: {words}"
                if mine is not None:
                    assert mine.dtype == theirs.dtype, words
                    difference = (mine - theirs).abs().max().item() if mine.numel() else 0.0
                    assert difference <= tolerance * scale, f"gradient {i} is off by {difference:.2g}: {words}"
            if rules:
                done = steps
                assert rule is None or any(name == rule for _, name, *_ in steps), f"no rule {rule!r} ran: {steps}"
                assert alone is None or (alone, "alone") in [s[:2] for s in steps], (
                    f"{alone} did not run alone: {steps}"
                )
    return done


def in_double(gradient):
    return gradient.to(torch.complex128 if gradient.is_complex() else torch.float64)


def agree_low(make, x, dtype, *, draws=3):
    """||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64|| for each gradient, over a few draws of the data.

    make: dtype -> (function, parameters), the same numbers in each dtype. x: float64; it is rounded to `dtype`.
    """
    sides = {"fp64": [], "eager": [], "ours": []}
    for draw in range(draws):
        data = (x * (1 + draw / 8)).to(dtype)
        function, parameters = make(torch.float64)
        sides["fp64"].append(autograd_gradients(function, data.double(), parameters, penalty_loss)[1])
        function, parameters = make(dtype)
        sides["eager"].append(autograd_gradients(function, data, parameters, penalty_loss)[1])
        sides["ours"].append(tape_gradients(function, data, parameters, penalty_loss)[1])
    for i, first in enumerate(sides["fp64"][0]):
        if first is None:
            continue
        exact, eager, ours = (torch.stack([in_double(draw[i]) for draw in sides[side]]) for side in sides)
        allowed = 1.5 * (eager - exact).norm() + 4 * torch.finfo(dtype).eps * exact.norm()
        assert (ours - exact).norm() <= allowed, f"gradient {i}: {(ours - exact).norm():.3g} > {allowed:.3g}"
