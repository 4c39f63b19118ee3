"""Rules of elementwise functions of several tensors: each slot live, wanted or constant, broadcasting, zeros."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import LOSSES, agree, agree_low, tape_gradients
from test_arithmetic import everywhere, numbers, parameter

SIZES = (4, 3, 5)

# name: (operation, how many operands, rule); each takes operands that are positive.
FUNCTIONS = {
    "addcmul": (lambda a, u, w: torch.addcmul(a, u, w, value=0.7), 3, "addcmul"),
    "addcdiv": (lambda a, u, w: torch.addcdiv(a, u, w, value=-0.7), 3, "addcdiv"),
    "lerp": (torch.lerp, 3, "lerp"),
    "pow": (torch.pow, 2, "power"),
    "atan2": (torch.atan2, 2, "angle"),
    "hypot": (torch.hypot, 2, "hypotenuse"),
    "logaddexp": (torch.logaddexp, 2, "logaddexp"),
    "logaddexp2": (torch.logaddexp2, 2, "logaddexp"),
    "mse": (lambda u, w: F.mse_loss(u, w, reduction="none"), 2, "error"),
    "smooth l1": (lambda u, w: F.smooth_l1_loss(u, 2 * w, reduction="none", beta=0.5), 2, "error"),
    "huber": (lambda u, w: F.huber_loss(u, 2 * w, reduction="none", delta=0.5), 2, "error"),
}
COMBINATIONS = [
    pytest.param(name, live, id=f"{name}-{live:0{count}b}")
    for name, (_, count, _) in FUNCTIONS.items()
    for live in range(1, 2**count)
]
LIVE = (lambda h: h.exp(), lambda h: (2 * h).sigmoid() + 0.2, lambda h: h.square() + 0.3)

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def with_operands(name, live, others):
    """The function of x whose operands are live where a bit of `live` is set, and else one of `others`."""
    operation, count, _ = FUNCTIONS[name]
    return lambda h: operation(*(LIVE[i](h) if live >> i & 1 else others[i] for i in range(count)))


@pytest.mark.parametrize("others", ["parameters", "constants", "one parameter"])
@pytest.mark.parametrize("name, live", COMBINATIONS)
def test_every_slot(name, live, others):
    given = [parameter(*sizes) for sizes in (SIZES, (5,), (3, 1))]
    if others != "parameters":
        given = [p.detach() if others == "constants" or i else p for i, p in enumerate(given)]
    everywhere(with_operands(name, live, given), numbers(*SIZES), given, rule=FUNCTIONS[name][2])


@pytest.mark.parametrize("sizes", [(5,), (3, 1), (1,), (), (4, 1, 5), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_broadcasting(name, sizes):
    operation, count, rule = FUNCTIONS[name]
    for slot in range(count):
        given = [parameter(*(SIZES if i == (slot + 1) % count else sizes)) for i in range(3)]
        function = with_operands(name, 1 << slot, given)
        agree(function, numbers(*SIZES), given, rule=rule)
        agree(function, numbers(4, 1, 5), given, rule=rule)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_tensor_in_two_slots(name):
    operation, count, rule = FUNCTIONS[name]
    everywhere(lambda h: operation(*[h.exp()] * count) * h, numbers(*SIZES), rule=rule)


REDUCED = {
    "mse": F.mse_loss,
    "smooth l1": lambda u, w, **how: F.smooth_l1_loss(2 * u, w, beta=0.5, **how),
    "huber": lambda u, w, **how: F.huber_loss(2 * u, w, delta=0.5, **how),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", REDUCED)
def test_errors_that_are_summed_up(name, reduction):
    def loss(u, w):
        return REDUCED[name](u, w, reduction=reduction)

    v, x = parameter(*SIZES), numbers(*SIZES)
    everywhere(lambda h: loss(h, v), x, [v], rule="error")
    everywhere(lambda h: loss(v, h), x, [v], rule="error")
    everywhere(lambda h: loss(h, h.sin() * v), x, [v], rule="error")
    everywhere(lambda h: loss(h.sum(1, keepdim=True), v.detach()) * h, x, rule="error")


def test_the_error_of_an_autoencoder():
    a, b = numbers(5, 3, seed=1, grad=True), numbers(3, 5, seed=2, grad=True)
    agree(lambda x: F.mse_loss(torch.relu(x @ a) @ b, x, reduction="none").mean((1, 2)), numbers(*SIZES), [a, b])


def test_an_error_at_the_end_of_its_parabola():
    x = torch.tensor([[0.5, -0.5, 0.25, 2.0]], dtype=torch.float64)
    zero, w = torch.zeros_like(x), parameter(4)
    agree(lambda x: F.smooth_l1_loss(x, zero, beta=0.5) * w, x, [w], rule="error")
    agree(lambda x: F.huber_loss(x, zero, delta=0.5) * w, x, [w], rule="error")


def test_powers_of_constants():
    powers = torch.tensor([0, 1, 2, 3, 4])
    everywhere(lambda h: h**powers, numbers(*SIZES), rule="power")
    everywhere(lambda h: h ** powers.double(), numbers(*SIZES), rule="power")
    everywhere(lambda h: h.exp() ** torch.tensor(1.5, dtype=torch.float64), numbers(*SIZES), rule="power")
    everywhere(lambda h: 1.7**h, numbers(*SIZES), rule="activation")
    everywhere(lambda h: 1**h + h.square(), numbers(*SIZES), rule="activation")


def test_zero_to_a_power_has_the_gradient_that_autograd_takes():
    x = numbers(*SIZES)
    x[:, 1] = 0
    powers = torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0], dtype=torch.float64)
    everywhere(lambda h: h**powers, x, rule="power")
    everywhere(lambda h: (h * h) ** powers, x, rule="power")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_sweeps_run_again(name):
    given = [parameter(*sizes) for sizes in (SIZES, (5,), (3, 1))]
    function = with_operands(name, 0b11, given)
    for loss in LOSSES:
        once = tape_gradients(function, numbers(*SIZES), given, loss)[1]
        again = tape_gradients(function, numbers(*SIZES), given, loss, again=True)[1]
        for a, b in zip(once, again, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_other_dtypes_run_alone():
    w = parameter(dtype=torch.float32)
    agree(lambda x: torch.addcmul(x, x, w.detach()), numbers(*SIZES), alone="AddcmulBackward0")
    agree(lambda x: torch.pow(x.exp(), w), numbers(*SIZES), [w], alone="PowBackward1", tolerance=1e-6)
    agree(lambda x: torch.complex(x, x.sin()).pow(torch.tensor([1.5])).real, numbers(*SIZES), alone="PowBackward1")


@pytest.mark.parametrize("name", ["asin", "acos", "asinh", "acosh", "atanh"])
def test_inverses_of_circular_and_hyperbolic_functions(name):
    inside = (lambda h: h.exp() + 1.1) if name == "acosh" else (lambda h: h.sin() * 0.9)
    w = parameter(5)
    everywhere(lambda h: getattr(torch, name)(inside(h)) * w, numbers(*SIZES), [w], rule="inverse")
    everywhere(lambda h: getattr(torch, name)(inside(h * w)), numbers(*SIZES), [w], rule="inverse")


@pytest.mark.parametrize("name", ["fmax", "fmin"])
def test_the_larger_of_two_where_nan_counts_as_absent(name):
    operation, w, x = getattr(torch, name), parameter(5), numbers(*SIZES)
    nan = torch.full((5,), torch.nan, dtype=torch.float64)
    everywhere(lambda h: operation(h, w), x, [w], rule=name)
    everywhere(lambda h: operation(w, h), x, [w], rule=name)
    everywhere(lambda h: operation(h.round(), h.sin().round()) * h, x, rule=name)
    agree(lambda x: operation(x.tanh(), nan), x, rule=name)


@pytest.mark.parametrize("name", ["frac", "fmod", "remainder"])
def test_what_jumps_and_is_a_line_in_between(name):
    operation = {
        "frac": lambda h: (3 * h).frac(),
        "fmod": lambda h: h.fmod(0.7),
        "remainder": lambda h: h.remainder(0.3),
    }
    everywhere(operation[name], numbers(*SIZES), rule="pass")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_low_precision(name, dtype):
    operation, count, _ = FUNCTIONS[name]
    given = [numbers(16, 5, seed=i, low=0.3).to(dtype) for i in range(3)]

    def make(kind):
        own = [p.to(kind).requires_grad_() for p in given[1:count]]
        return (lambda x: operation((x * own[0]).sigmoid(), *own)), own

    agree_low(make, numbers(16, 5), dtype)
