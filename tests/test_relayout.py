"""Copies between layouts."""

import itertools

import pytest
import torch
from layouts import numbers, weights
from tape_checks import agree
from torch.utils._python_dispatch import TorchDispatchMode

import gpfast
from gpfast import _extension

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


class Copies(TorchDispatchMode):
    """The shapes of what is copied into another layout."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.gpfast.relayout:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 8, 8, 8), (3, 17, 9, 11), (2, 64, 33, 31), (0, 3, 2, 2), (2, 1, 3, 1)]
)
def test_relayout(shape, dtype):
    x = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    for start in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.expand(*x.shape)[..., ::2],
    ):
        for order in itertools.permutations(range(4)):
            y = torch.ops.gpfast.relayout(start, order)
            assert torch.equal(y, start) and y.permute(order).is_contiguous()


def test_large_and_shared_out():
    """More than one thread's worth, and sides that no tile divides."""
    x = torch.randn(3, 70, 61, 53, generator=torch.Generator().manual_seed(0))
    y = torch.ops.gpfast.relayout(x, (0, 2, 3, 1))
    assert torch.equal(y, x) and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.ops.gpfast.relayout(y, (0, 1, 2, 3)), x)


def test_a_lazily_negated_view_has_other_values_than_its_base():
    """Both were saved, in the same memory, and are wanted in another layout."""
    w, scale = weights(6), weights(6, 1, seed=3)

    def function(x):
        y = (x * w).sin().t()
        rows = x.t().contiguous() * scale
        return (rows * y).cos() + (rows.exp() * torch._neg_view(y)).sin()

    agree(function, numbers(4, 6), [w, scale], rule="product")


def test_what_two_nodes_saved_is_copied_once():
    """By a smooth activation and the convolution above it; the last to ask has it alone by then."""
    torch.manual_seed(0)
    below, above = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3)
    real, fake = numbers(4, 3, 20, 20).float(), numbers(4, 3, 20, 20, seed=1).float()
    with Copies() as copies:
        gpfast.gradient_penalty(lambda x: above(below(x).tanh()).sin(), real, fake, engine="tape")
    assert copies.shapes.count((4, 16, 18, 18)) == 1
