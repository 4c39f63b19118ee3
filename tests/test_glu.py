"""The rule of gated linear units."""

import pytest
import torch
import torch.nn.functional as F
from layouts import every_dense_layout
from tape_checks import LOSSES, agree, agree_low, tape_gradients
from test_arithmetic import everywhere, numbers


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_each_dimension(dim):
    everywhere(lambda h: F.glu(h, dim), numbers(4, 2, 6), rule="glu")


def test_a_gated_critic():
    a, b = numbers(5, 8, seed=1, grad=True), numbers(4, 6, seed=2, grad=True)
    agree(lambda x: F.glu(F.glu(x @ a) @ b).sum(1), numbers(3, 5), [a, b], rule="glu")
    agree(lambda x: F.glu(torch.relu(x @ a)).sum(1), numbers(3, 5), [a], rule="glu")


def test_gated_convolutions():
    a, b = numbers(8, 3, 3, 3, seed=1, grad=True), numbers(2, 4, 3, 3, seed=2, grad=True)
    agree(
        lambda x: F.glu(F.conv2d(F.glu(F.conv2d(x, a, padding=1), 1), b), 1).sum((1, 2, 3)), numbers(2, 3, 5, 5), [a, b]
    )


def test_layouts():
    for x in every_dense_layout((2, 4, 3, 6), torch.float64, seed=0):
        agree(lambda x: F.glu(torch.tanh(x), 1), x, rule="glu")
        agree(lambda x: F.glu(torch.tanh(x)[..., ::3]), x, rule="glu")


def test_large_gates():
    agree(lambda x: F.glu(60 * x), numbers(3, 8), rule="glu")


def test_the_sweeps_run_again():
    w = numbers(6, seed=1, grad=True)
    for loss in LOSSES:
        runs = [tape_gradients(lambda x: F.glu(x * w), numbers(4, 6), [w], loss, again=a)[1] for a in (False, True)]
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_a_value_written_to_since_raises_as_in_autograd():
    def critic(x):
        h = x * 2
        y = F.glu(h)
        h.zero_()
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(critic, numbers(4, 6), [], lambda y, g: (g**2).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    w = numbers(6, 8, seed=1).to(dtype)

    def make(kind):
        own = w.to(kind).requires_grad_()
        return (lambda x: F.glu(x @ own)), [own]

    agree_low(make, numbers(16, 6), dtype)
