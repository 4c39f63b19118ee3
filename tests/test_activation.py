"""Smooth activations on the tape: first and second derivative, from what the activation saved."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS, every_dense_layout, numbers, plain, weights
from tape_checks import agree, agree_low, autograd_gradients, penalty_loss, tape_gradients

from gpfast import input_gradient_loss

OPS = torch.ops.gpfast

ANYWHERE = {
    "tanh": torch.tanh,
    "tanh_": lambda h: (h * 1).tanh_(),
    "sigmoid": torch.sigmoid,
    "sigmoid_": lambda h: (h * 1).sigmoid_(),
    "softplus": F.softplus,
    "softplus, beta and threshold": lambda h: F.softplus(h, beta=2.5, threshold=1.0),
    "logsigmoid": F.logsigmoid,
    "elu": lambda h: F.elu(h, 0.7),
    "elu_": lambda h: F.elu_(h * 1, 0.7),
    "selu": F.selu,
    "selu_": lambda h: F.selu_(h * 1),
    "celu": lambda h: F.celu(h, 0.7),
    "celu_": lambda h: F.celu_(h * 1, 0.7),
    "silu": F.silu,
    "silu_": lambda h: F.silu(h * 1, inplace=True),
    "gelu": F.gelu,
    "gelu, tanh": lambda h: F.gelu(h, approximate="tanh"),
    "mish": F.mish,
    "mish_": lambda h: F.mish(h * 1, inplace=True),
    "hardswish": lambda h: F.hardswish(3 * h),
    "exp": torch.exp,
    "exp_": lambda h: (h * 1).exp_(),
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "square": torch.square,
    "pow 2": lambda h: h**2,
    "pow 3": lambda h: h**3,
    "pow 4": lambda h: h**4,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "atan": torch.atan,
    "erf": torch.erf,
}
POSITIVE = {
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "pow 0.5": lambda h: h**0.5,
    "pow -1.5": lambda h: h**-1.5,
}
# In the order of ops/activation.h: parameters, and the ends of what the operator is given.
KINDS = {
    "tanh": ((), (-0.99, 0.99)),
    "sigmoid": ((), (0.01, 0.99)),
    "softplus": ((2.5, 1.0), (-4, 4)),
    "elu": ((0.7, 1.3, 1.1), (-4, 4)),
    "elu of result": ((0.7, 1.3, 1.1), (-0.6, 4)),
    "silu": ((), (-9, 9)),
    "gelu": ((), (-9, 9)),
    "gelu tanh": ((), (-9, 9)),
    "mish": ((), (-25, 60)),
    "hardswish": ((), (-5, 5)),
    "exponential": ((0.7, 1.0), (-1, 4)),
    "logarithm": ((1.3, 0.5), (0.1, 4)),
    "sqrt": ((), (0.1, 4)),
    "rsqrt": ((), (0.1, 4)),
    "reciprocal": ((), (0.1, 4)),
    "square": ((), (-4, 4)),
    "cube": ((), (-4, 4)),
    "tan": ((), (-4, 4)),
    "atan": ((), (-4, 4)),
    "erf": ((), (-4, 4)),
    "power": ((2.5,), (0.1, 4)),
    "sin": ((), (-4, 4)),
    "cos": ((), (-4, 4)),
    "sinh": ((), (-4, 4)),
    "cosh": ((), (-4, 4)),
}


def of_positive(f):
    return lambda h: f(h.abs() + 0.3)


CURVES = ANYWHERE | {name: of_positive(f) for name, f in POSITIVE.items()}


@pytest.mark.parametrize("name", CURVES)
def test_between_layers_with_and_without_curvature_above(name):
    activation = CURVES[name]
    u, w = weights(5, 6), weights(6, 3, seed=2)
    x = numbers(4, 5) / 3
    done = agree(lambda x: activation(x @ u) @ w, x, [u, w], rule="activation")
    assert any(bends for _, rule, bends, _ in done if rule == "activation")
    agree(lambda x: torch.tanh(activation(x @ u) @ w), x, [u, w], rule="activation")


@pytest.mark.parametrize("name", CURVES)
def test_first_last_and_with_frozen_parameters(name):
    activation = CURVES[name]
    w = weights(5)
    x = numbers(4, 5)
    agree(activation, x, rule="activation")
    agree(lambda x: activation(x) * w, x, [w], rule="activation")
    agree(lambda x: activation(x * w), x, [w], rule="activation")
    agree(lambda x: activation(x * w.detach()) * w.detach(), x, rule="activation")


def test_far_from_zero():
    x = torch.tensor([[-700.0, -60.0, -20.0, -1e-300], [1e-300, 20.0, 60.0, 700.0]], dtype=torch.float64)
    for activation in (F.softplus, F.silu, F.gelu, F.mish, F.elu, torch.sigmoid, torch.tanh, F.logsigmoid, torch.erf):
        agree(lambda x, f=activation: f(x) + x, x, rule="activation")


@pytest.mark.parametrize("sizes", [(1,), (7,), (1, 513), (3, 5, 43)], ids=str)
def test_any_number_of_elements(sizes):
    w = weights(*sizes)
    agree(lambda x: F.silu(x * w) * w, numbers(*sizes), [w], rule="activation")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(40_001,), (5, 130, 9, 8)], ids=str)
@pytest.mark.parametrize(
    "function", [torch.sin, torch.cosh, lambda z: (z * z + 1) ** 1.7], ids=["sin", "cosh", "power"]
)
def test_pieces(function, sizes, threads):
    w, before = torch.linspace(0.5, 1, sizes[-1], dtype=torch.float64).requires_grad_(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agree(lambda x: function(function(x * w) * w), torch.randn(sizes, dtype=torch.float64), [w], rule="activation")
    finally:
        torch.set_num_threads(before)


def test_no_elements_and_no_dimensions():
    agree(lambda x: torch.tanh(x[:, :0] * 2).sum(1) + x.sum(1), numbers(4, 3), rule="activation")
    w = weights(())
    agree(lambda x: torch.tanh(x.sum() * w) * w, numbers(3), [w], rule="activation")


def test_the_adjoint_is_a_broadcast_one():
    w = weights(4, 5)
    agree(lambda x: F.silu(x @ w).mean(1), numbers(3, 4), [w], rule="activation")
    agree(lambda x: torch.tanh(x @ w).sum(), numbers(3, 4), [w], rule="activation")


@pytest.mark.parametrize("activation", [F.silu, torch.tanh], ids=["silu", "tanh"])
@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", ["same", "channels_last", "transposed", "slice"])
def test_layouts_that_differ_between_forward_and_sweeps(before, after, activation):
    w = weights(1, 5, 1, 1)
    x = numbers(2, 5, 6, 4)
    agree(lambda x: LAYOUTS[after](activation(LAYOUTS[before](x * w))) * 1.5, x, [w], rule="activation")
    agree(lambda x: torch.sin(LAYOUTS[after](activation(LAYOUTS[before](x * w)))), x, [w], rule="activation")


def test_only_one_chunk_is_used():
    w = weights(5, 6)
    agree(lambda x: torch.tanh(x @ w).chunk(2, 1)[1] * 2, numbers(3, 5), [w], rule="activation")


def test_one_result_goes_two_ways():
    w = weights(5, 5)

    def function(x):
        h = F.silu(x @ w)
        return torch.tanh(h @ w + h) + h

    agree(function, numbers(3, 5), [w], rule="activation")


def test_again_after_the_graph_was_kept():
    w, x = weights(5, 5), numbers(3, 5)
    for function in (lambda x: torch.tanh(F.silu(x @ w) @ w), lambda x: F.prelu(F.elu(x @ w), w[0, :1]) @ w):
        value = input_gradient_loss(function, x, penalty_loss, engine="tape")
        first = torch.autograd.grad(value, w, retain_graph=True)[0]
        again = torch.autograd.grad(value, w)[0]
        expected = autograd_gradients(function, x, [w], penalty_loss)[1][0]
        torch.testing.assert_close(first, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exponent", [0, 1, 0.0, 1.0])
def test_powers_without_curvature_run_alone(exponent):
    agree(lambda x: x**exponent + x, numbers(3, 5), alone="PowBackward0")


def test_a_saved_tensor_that_was_written_to_is_refused():
    def function(x):
        y = torch.tanh(x * 2)
        z = y * 3
        y.add_(1)
        return z

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(function, numbers(3, 5), [], penalty_loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in ANYWHERE if name not in ("tan", "pow 4")])
def test_low_precision(name, dtype):
    activation = CURVES[name]

    def make(dtype):
        u, w = (weights(16, 16, seed=s).detach().div(4).to(dtype).requires_grad_() for s in (1, 2))
        return lambda x: activation(activation(x @ u) @ w), [u, w]

    agree_low(make, numbers(19, 16), dtype)


# The operators themselves.


def domain(name, dtype, count=1300):
    low, high = KINDS[name][1]
    return torch.linspace(low, high, count, dtype=torch.float64).to(dtype)


def parameters(name):
    given = KINDS[name][0]
    return [float(p) for p in given] + [0.0] * (3 - len(given))


def derivatives(op, name, saved):
    """(s, c) of an operator, from ones."""
    ones = torch.ones_like(saved)
    return op(ones, ones, saved, list(KINDS).index(name), *parameters(name))


@pytest.mark.parametrize("name", KINDS)
def test_kernel_and_formula_agree(name):
    """In float64 to the last digits; in lower precision, where the kernel computes in float32, to its digits."""
    kernel = OPS.slope_and_curve.default
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        saved = domain(name, dtype)
        exact = derivatives(partial(plain, kernel), name, saved.double())
        found = derivatives(kernel, name, saved)
        formula = derivatives(partial(plain, kernel), name, saved)
        # Beside rounding: cancellation of terms of size 1 in s and c, at arguments of up to 9 (mish: 60).
        noise = 2e-15 if dtype == torch.float64 else 4e-6
        for f, p, e in zip(found, formula, exact, strict=True):
            allowed = torch.finfo(dtype).eps * e.abs() + noise * e.abs().clamp(min=1)
            allowed += torch.finfo(dtype).smallest_normal
            assert ((f.double() - e).abs() <= allowed).all()
            assert ((p.double() - e).abs() <= allowed).all()


def test_float32_is_as_exact_as_pytorch():
    """Largest error of s over a dense grid, beside that of PyTorch's own backward."""
    h = torch.linspace(-12, 12, 200_001)
    ones = torch.ones_like(h)
    aten = torch.ops.aten
    cases = {
        "silu": aten.silu_backward(ones, h),
        "gelu": aten.gelu_backward(ones, h),
        "gelu tanh": aten.gelu_backward(ones, h, approximate="tanh"),
        "mish": aten.mish_backward(ones, h),
    }
    cases["softplus"] = aten.softplus_backward(ones, h, 1.0, 20.0)
    for name, theirs in cases.items():
        given = [1.0, 20.0, 0.0] if name == "softplus" else [0.0] * 3
        kind = list(KINDS).index(name)
        exact = plain(OPS.slope.default, ones.double(), h.double(), kind, *given)
        mine = OPS.slope(ones, h, kind, *given)
        error, bound = (mine - exact).abs().max(), (theirs - exact).abs().max()
        assert error <= 2 * bound + torch.finfo(torch.float32).eps, name


def longest(x):
    return x.numpy().astype(np.longdouble)


# (s, c) in numpy's longest numbers.
OF_EXPONENTIALS = {
    "sin": lambda x: (np.cos(x), -np.sin(x)),
    "cos": lambda x: (-np.sin(x), -np.cos(x)),
    "sinh": lambda x: (np.cosh(x), np.sinh(x)),
    "cosh": lambda x: (np.sinh(x), np.cosh(x)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OF_EXPONENTIALS)
def test_sines_to_the_last_digits(name, dtype):
    """Sines to one unit of 1, however far from zero, and those of hyperbolas to one and a half of their own."""
    ends = (1e-6, 0.1, 1.0, 4.0, 80.0, 89.2) if name.endswith("h") else (1e-6, 0.9, 4.0, 300.0, 11_000.0, 9e5, 1e8)
    for end in ends:
        saved = torch.linspace(-end, end, 20_001, dtype=torch.float64).to(dtype)
        for found, exact in zip(
            derivatives(OPS.slope_and_curve.default, name, saved), OF_EXPONENTIALS[name](longest(saved)), strict=True
        ):
            unit = torch.finfo(dtype).eps * (1.5 * np.abs(exact) if name.endswith("h") else 1.0)
            assert (np.abs(longest(found) - exact) <= unit).all(), end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sines_of_what_has_none(dtype):
    infinity = torch.tensor([math.inf, -math.inf, math.nan, 1.0], dtype=dtype)
    for name in ("sin", "cos"):
        for found in derivatives(OPS.slope_and_curve.default, name, infinity):
            assert found.isnan().tolist() == [True, True, True, False]
    for name in ("sinh", "cosh"):
        s, c = derivatives(
            OPS.slope_and_curve.default, name, torch.tensor([800.0, -800.0, math.inf, math.nan], dtype=dtype)
        )
        even, odd = (s, c) if name == "sinh" else (c, s)
        assert even[:3].tolist() == [math.inf] * 3
        assert odd[:3].tolist() == [math.inf, -math.inf, math.inf]
        assert s.isnan().tolist() == c.isnan().tolist() == [False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(0,), (1,), (5000,), (2, 3, 7, 5), (3, 66, 9, 8), (1, 130, 1, 3)], ids=str)
def test_operators_in_every_layout(sizes, dtype):
    kind = list(KINDS).index("tanh"), 0.0, 0.0, 0.0
    eps = torch.finfo(dtype).eps
    exact = {"rtol": 8 * eps, "atol": 8 * eps, "check_dtype": False}
    for z in every_dense_layout(sizes, dtype, seed=2):
        y = torch.empty_like(z).copy_(numbers(*sizes, seed=1, dtype=dtype))
        a = torch.empty_like(z).copy_(numbers(*sizes, seed=3, dtype=dtype))
        y64, z64, a64 = y.double(), z.double(), a.double()
        s = 1 - y64 * y64
        c = -2 * y64 * s
        out = OPS.slope(z, y, *kind)
        torch.testing.assert_close(out, s * z64, **exact)
        assert out.stride() == z.stride() or z.numel() < 2
        again = z.clone()
        OPS.slope_(again, y, *kind)
        assert torch.equal(again, out)
        first, bend = OPS.slope_and_curve(z, a, y, *kind)
        assert torch.equal(first, out)
        torch.testing.assert_close(bend, c * a64 * z64, **exact)
        in_a = a.clone()
        assert torch.equal(OPS.slope_and_curve_.a(z, in_a, y, *kind), out) and torch.equal(in_a, bend)
        again, in_a = z.clone(), a.clone()
        OPS.slope_and_curve_.default(again, in_a, y, *kind)
        assert torch.equal(again, out) and torch.equal(in_a, bend)
        OPS.add_slope_(in_a, z, y, *kind)
        torch.testing.assert_close(in_a, bend.double() + s * z64, **exact)


def test_operators_are_registered_as_pytorch_asks():
    z, a, y = numbers(3, 5), numbers(3, 5, seed=1), numbers(3, 5, seed=2)
    for kind in range(len(KINDS)):
        arguments = (y.abs(), kind, 1.5, 0.5, 1.0)
        utils = ("test_schema", "test_faketensor")
        torch.library.opcheck(OPS.slope.default, (z.clone(), *arguments), test_utils=utils)
        torch.library.opcheck(OPS.slope_.default, (z.clone(), *arguments), test_utils=utils)
        torch.library.opcheck(OPS.slope_and_curve.default, (z.clone(), a.clone(), *arguments), test_utils=utils)
        torch.library.opcheck(OPS.slope_and_curve_.a, (z.clone(), a.clone(), *arguments), test_utils=utils)
        torch.library.opcheck(OPS.slope_and_curve_.default, (z.clone(), a.clone(), *arguments), test_utils=utils)
        torch.library.opcheck(OPS.add_slope_.default, (z.clone(), a.clone(), *arguments), test_utils=utils)


def test_exp_is_exact_to_a_unit_in_the_last_place():
    """Through erf'(h) = 2 / sqrt(pi) exp(-h h), where h h is exact."""
    h = (torch.arange(0, 2304, dtype=torch.float64) / 256).to(torch.float32)
    kind = list(KINDS).index("erf"), 0.0, 0.0, 0.0
    for dtype in (torch.float32, torch.float64):
        found = OPS.slope(torch.ones_like(h, dtype=dtype), h.to(dtype), *kind).double()
        exact = 2 / math.sqrt(math.pi) * torch.exp(-(h.double() ** 2))
        assert ((found - exact).abs() <= 3 * torch.finfo(dtype).eps * exact).all()
