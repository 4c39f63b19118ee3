"""Softmax, its logarithm and logsumexp on the tape."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from layouts import numbers, plain, weights
from tape_checks import agree, agree_low

OPS = torch.ops.gpfast
ALONG = {"softmax": F.softmax, "log_softmax": F.log_softmax, "logsumexp": lambda h, dim: torch.logsumexp(h, dim, True)}


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("name", ALONG)
def test_between_layers_with_and_without_curvature_above(name, dim):
    u, w = weights(4, 5), weights(3, 4, 5, seed=2)
    x = numbers(3, 4, 4)
    agree(lambda x: ALONG[name](x @ u, dim) * w, x, [u, w], rule=name)
    agree(lambda x: torch.sin(ALONG[name](x @ u, dim) * w), x, [u, w], rule=name)


@pytest.mark.parametrize("name", ALONG)
def test_first_last_and_with_frozen_parameters(name):
    w = weights(5)
    x = numbers(4, 5)
    f = ALONG[name]
    agree(lambda x: f(x, 1), x, rule=name)
    agree(lambda x: f(x, 1) * w, x, [w], rule=name)
    agree(lambda x: f(x * w, 1), x, [w], rule=name)
    agree(lambda x: f(x * w.detach(), 1) * w.detach(), x, rule=name)
    agree(lambda x: f(x[:1] * w, 1), x, [w], rule=name)
    agree(lambda x: f(x[:, :1] * w[:1], 1) * w, x, [w], rule=name)  # one class
    agree(lambda x: f(x.sum() * w[0], 0) * w, x, [w], rule=None if name == "logsumexp" else name)  # no dimensions


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("dim", [1, 3])
def test_layouts(name, dim):
    w = weights(1, 5, 1, 1)
    x = numbers(2, 5, 3, 4)
    channels_last = {"memory_format": torch.channels_last}
    agree(lambda x: ALONG[name]((x * w).contiguous(**channels_last), dim) * w, x, [w], rule=name)
    agree(lambda x: ALONG[name](x * w, dim).contiguous(**channels_last).sin(), x, [w], rule=name)
    agree(lambda x: ALONG[name]((x * w)[:, 1:], dim).transpose(0, 2).sin(), x, [w], rule=name)


def test_the_adjoint_is_a_broadcast_one():
    w = weights(4, 5)
    agree(lambda x: F.log_softmax(x @ w, 1).mean(1), numbers(3, 4), [w], rule="log_softmax")
    agree(lambda x: (F.softmax(x @ w, 1) * w[0]).sum(1), numbers(3, 4), [w], rule="softmax")


def test_attention_weights():
    q, k, v = (weights(6, 4, seed=s) for s in (1, 2, 3))

    def function(x):
        scores = (x @ q) @ (x @ k).transpose(1, 2) / 2
        return F.softmax(scores, -1) @ (x @ v)

    agree(function, numbers(2, 5, 6), [q, k, v], rule="softmax")
    agree(lambda x: torch.tanh(function(x)), numbers(2, 5, 6), [q, k, v], rule="softmax")


@pytest.mark.parametrize("dims", [0, -1, (0, 2), (2, 1)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp(dims, keepdim):
    u = weights(4, 5)
    x = numbers(3, 4, 4)
    agree(lambda x: torch.logsumexp(x @ u, dims, keepdim), x, [u], rule="logsumexp")
    agree(lambda x: torch.logsumexp(x @ u, dims, keepdim).sin(), x, [u], rule="logsumexp")


def test_a_dtype_given():
    w = weights(5)
    agree(lambda x: F.softmax(x * w, 1, dtype=torch.float64).sin(), numbers(3, 5), [w], rule="softmax")
    agree(
        lambda x: F.softmax((x * w).float(), 1, dtype=torch.float64), numbers(3, 5), [w], rule="softmax", tolerance=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALONG)
def test_low_precision(name, dtype):
    def make(dtype):
        u, w = (weights(8, 8, seed=s).detach().to(dtype).requires_grad_() for s in (1, 2))
        return lambda x: torch.tanh(ALONG[name](x @ u, 1) * w[0]), [u, w]

    agree_low(make, numbers(9, 8), dtype)


# The operator itself.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(0, 3), (1,), (3, 1), (7, 130), (3, 70, 67)], ids=str)
def test_kernel_and_formula_agree(sizes, dtype):
    for dim in range(len(sizes)):
        for turned in (False, True):
            y, t, a = (numbers(*sizes, seed=seed) for seed in range(3))
            y = F.softmax(y, dim)
            if turned:
                y, t, a = (z.transpose(0, -1).contiguous().transpose(0, -1) for z in (y, t, a))
            rest_t, rest_a = (z - (y * z).sum(dim, keepdim=True) for z in (t, a))
            tolerance = {"rtol": 0, "atol": 40 * torch.finfo(dtype).eps}
            kernel = OPS.softmax_tangent.default
            for op in (kernel, partial(plain, kernel)):
                out, bend = op(t.to(dtype), a.to(dtype), y.to(dtype), dim)
                torch.testing.assert_close(out, (y * rest_t).to(dtype), **tolerance)
                torch.testing.assert_close(bend, (rest_t * rest_a).to(dtype), **tolerance)
            out, bend = kernel(t.to(dtype), a.to(dtype), y.to(dtype), dim)
            in_a = a.to(dtype, copy=True)
            assert torch.equal(OPS.softmax_tangent_(t.to(dtype), in_a, y.to(dtype), dim), out)
            assert torch.equal(in_a, bend)


def test_operators_are_registered_as_pytorch_asks():
    t, a, y = numbers(3, 5), numbers(3, 5, seed=1), F.softmax(numbers(3, 5, seed=2), 1)
    for op in (OPS.softmax_tangent.default, OPS.softmax_tangent_.default):
        torch.library.opcheck(op, (t.clone(), a.clone(), y, 1), test_utils=("test_schema", "test_faketensor"))
