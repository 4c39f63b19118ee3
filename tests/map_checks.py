"""What the tests of pooling and resampling share: a linear map at every place of a critic, in every layout."""

import torch
from tape_checks import agree
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def points(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(20170331), dtype=torch.float64).to(dtype)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def everywhere(op, x, rule):
    """The rule agrees first and last in a critic, between bends, and where no second adjoint reaches it."""
    agree(lambda x: op(x).sin(), x, rule=rule)
    agree(lambda x: op(x + x * x), x, rule=rule)
    in_the_middle(op, x, rule)
    scale = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype).requires_grad_()

    def straight(x):
        return F.leaky_relu(op(F.leaky_relu(scale * x, 0.2)), 0.2) * scale.sum()

    agree(straight, x, [scale], rule=rule)
    scale.requires_grad_(False)
    agree(straight, x, [scale], rule=rule)


def in_the_middle(op, x, rule):
    scale = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype).requires_grad_()
    agree(lambda x: op((scale * x).tanh()).tanh() * scale.sum(), x, [scale], rule=rule)


def everywhere_and_laid_out(op, x, rule):
    """The same on strided points, on one sample, and channels_last where there is such a layout."""
    everywhere(op, x, rule)
    in_the_middle(op, x[:1], rule)
    in_the_middle(op, x.transpose(-1, -2).contiguous().transpose(-1, -2), rule)
    if x.ndim in (4, 5):
        in_the_middle(op, channels_last(x), rule)
        # The sweeps may run in another layout than the forward did, and one sweep in another than the next.
        in_the_middle(lambda x: channels_last(op(x)), x, rule)
        in_the_middle(lambda x: op(channels_last(x)), x, rule)
        in_the_middle(lambda x: op(x.transpose(-1, -2)).transpose(-1, -2), x, rule)


def nodes_of(op, x):
    """The names of the nodes that op leaves between its result and x."""
    names, pending = [], [op(x.requires_grad_()).grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and "AccumulateGrad" not in node.name():
            names.append(node.name())
            pending += [below for below, _ in node.next_functions]
    return names


class Operators(TorchDispatchMode):
    """Notes every operator that runs, with its first result."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) else result
        self.ran.append((function.name().split("::")[1].split(".")[0], first))
        return result


def sweeps_of(op, x):
    """[(operator, first result)] of the sweeps over a critic that is op between two bends."""
    point = x.detach().requires_grad_()
    y = op(point * point).square()
    with Operators() as operators:
        (g,), *_ = torch.ops.gpfast.input_gradient.default(y, [point], True, True, False)
        torch.autograd.grad(g.pow(3).sum(), point)
    return operators.ran


def stays_channels_last(op, x, names):
    """The operators of these names run in the three sweeps, with channels_last results, and nothing is rearranged."""
    ran = sweeps_of(op, channels_last(x))
    assert not {"clone", "copy_", "contiguous", "_to_copy"} & {name for name, _ in ran}, ran
    assert {name for name, _ in ran} >= set(names), [name for name, _ in ran]
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    assert all(made.is_contiguous(memory_format=layout) for name, made in ran if name in names)
