"""Operations that write a tensor into a part of another by slices, indices and masks; either may depend on x."""

import math

import pytest
import torch
from layouts import numbers, weights
from tape_checks import agree, agree_low, tape_gradients

import gpfast

SIZES = (3, 4, 5)
ROWS = torch.tensor([2, 0])
TWICE = torch.tensor([1, 3, 1])
PLACES = torch.tensor([[3, 0], [1, 1], [2, 3]])
GRID = torch.tensor([[True, False, True, False], [False, True, True, False], [False, False, False, True]])
MASK = torch.linspace(-1, 1, 60).reshape(SIZES).cos() > 0.8
INDEX = PLACES[:, :, None].expand(3, 2, 5)

# (operation on h and s, the source's sizes, the rule)
WRITES = {
    "slice_scatter": (lambda h, s: h.slice_scatter(s, 1, 1, 4, 2), (3, 2, 5), "slice_scatter"),
    "slice_scatter from the end": (lambda h, s: h.slice_scatter(s, -1, -3, -1), (3, 4, 2), "slice_scatter"),
    "select_scatter": (lambda h, s: h.select_scatter(s, 1, -1), (3, 5), "select_scatter"),
    "diagonal_scatter": (lambda h, s: h.diagonal_scatter(s, 1, 1, 2), (3, 4), "diagonal_scatter"),
    "index_put": (lambda h, s: h.index_put((ROWS,), s), (2, 4, 5), "index_put"),
    "index_put of pairs": (lambda h, s: h.index_put((ROWS, TWICE[:2]), s), (2, 5), "index_put"),
    "index_put that is broadcast": (lambda h, s: h.index_put((ROWS,), s), (4, 1), "index_put"),
    "index_put of one number": (lambda h, s: h.index_put((ROWS,), s), (), "index_put"),
    "index_put twice in a place": (lambda h, s: h.index_put((ROWS[:, None], TWICE), s), (2, 3, 5), "index_put"),
    "index_put that adds": (lambda h, s: h.index_put((ROWS[:, None], TWICE), s, accumulate=True), (3, 5), "index_put"),
    "index_put from a dimension on": (lambda h, s: assigned(h, (slice(None), TWICE[:2]), s), (3, 2, 5), "index_put"),
    "index_put of dimensions apart": (lambda h, s: assigned(h, (ROWS, slice(None), ROWS), s), (2, 4), "index_put"),
    "index_put by 32 bits": (lambda h, s: h.index_put((ROWS.int(),), s), (2, 4, 5), "index_put"),
    "unsafe_index_put": (lambda h, s: torch.ops.aten._unsafe_index_put(h, [ROWS], s), (2, 4, 5), "index_put"),
    "a mask": (lambda h, s: assigned(h, MASK, s), (int(MASK.sum()),), "index_put"),
    "a mask, one number": (lambda h, s: assigned(h, MASK, s), (1,), "index_put"),
    "a mask that adds": (lambda h, s: h.index_put((MASK,), s, accumulate=True), (int(MASK.sum()),), "index_put"),
    "a mask of rows": (lambda h, s: assigned(h, GRID, s), (5, 5), "index_put"),
    "a mask behind a dimension": (lambda h, s: assigned(h, (slice(None), GRID[0]), s), (3, 2, 5), "index_put"),
    "a mask and an index": (lambda h, s: assigned(h, (ROWS, GRID[0]), s), (2, 5), "index_put"),
    "a mask of none": (lambda h, s: assigned(h, MASK & False, s.mean()) + s.mean(), (2,), "index_put"),
    "masked_scatter": (lambda h, s: h.masked_scatter(MASK, s), SIZES, "masked_scatter"),
    "masked_scatter of more": (lambda h, s: h.masked_scatter(GRID[:, :, None], s), (7, 5), "masked_scatter"),
    "masked_scatter of a broadcast value": (lambda h, s: h[:, :1].masked_scatter(MASK, s), (60,), "masked_scatter"),
    "masked_scatter_": (lambda h, s: h.clone().masked_scatter_(MASK, s), SIZES, "masked_scatter"),
    "index_copy": (lambda h, s: h.index_copy(1, TWICE[:2], s), (3, 2, 5), "index_copy"),
    "index_copy twice in a place": (lambda h, s: h.index_copy(1, TWICE, s), (3, 3, 5), "index_copy"),
    "index_copy_": (lambda h, s: h.clone().index_copy_(-1, ROWS, s), (3, 4, 2), "index_copy"),
    "index_add": (lambda h, s: h.index_add(1, TWICE, s, alpha=-1.5), (3, 3, 5), "index_add"),
    "index_add_": (lambda h, s: h.clone().index_add_(0, ROWS, s), (2, 4, 5), "index_add"),
    "scatter": (lambda h, s: h.scatter(1, INDEX, s), (3, 2, 5), "scatter"),
    "scatter_": (lambda h, s: h.clone().scatter_(-2, INDEX, s), (3, 2, 5), "scatter"),
    "scatter_add": (lambda h, s: h.scatter_add(1, INDEX, s), (3, 2, 5), "scatter_add"),
    "scatter_add_": (lambda h, s: h.clone().scatter_add_(1, INDEX, s), (3, 2, 5), "scatter_add"),
    "scatter_reduce": (lambda h, s: h.scatter_reduce(1, INDEX, s, "sum"), (3, 2, 5), "scatter_add"),
    "scatter_reduce over": (
        lambda h, s: h.scatter_reduce(1, INDEX, s, "sum", include_self=False),
        (3, 2, 5),
        "scatter",
    ),
}
FILLS = {
    "index_fill": (lambda h: h.index_fill(1, TWICE, 0.5), "index_fill"),
    "index_fill of a tensor": (lambda h: h.index_fill(1, TWICE, torch.tensor(0.5).double()), "index_fill"),
    "index_fill_": (lambda h: h.clone().index_fill_(-1, ROWS, 2), "index_fill"),
    "scatter of a number": (lambda h: h.scatter(1, INDEX, 0.5), "scatter"),
    "masked_fill": (lambda h: h.masked_fill(MASK, 0.5), "masked_fill"),
    "a mask of a number": (lambda h: assigned(h, MASK, 0.5), "index_put"),
    "rows of a number": (lambda h: assigned(h, ROWS, 0.5), "index_put"),
    "rows of zeros": (lambda h: h.index_put((ROWS,), torch.zeros(4, 5).double()), "index_put"),
}


def assigned(h, index, s):
    y = h.clone()
    y[index] = s
    return y


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
@pytest.mark.parametrize("live", ["both", "tensor", "source"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_agrees(name, live, bent):
    operation, sizes, rule = WRITES[name]
    u = weights(*SIZES)
    w, c = (numbers(math.prod(sizes), seed=seed).view(sizes).requires_grad_() for seed in (2, 3))
    bend = torch.tanh if bent else lambda z: 2 * z

    def function(x):
        h = bend(x * u) if live != "source" else u * 1.5
        s = bend(x.flatten()[: w.numel()].reshape(sizes) * w) + c if live != "tensor" else c * 1.5
        y = operation(h, s)
        return bend(y * torch.linspace(0.5, 1, y.numel(), dtype=y.dtype).view(y.shape))

    agree(function, numbers(*SIZES), [u, w, c], rule=rule)


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
@pytest.mark.parametrize("name", FILLS)
def test_a_number_written_agrees(name, bent):
    operation, rule = FILLS[name]
    w = weights(*SIZES)
    bend = torch.tanh if bent else lambda z: 2 * z
    agree(lambda x: bend(operation(bend(x * w)) * w), numbers(*SIZES), [w], rule=rule)


@pytest.mark.parametrize(
    "name", ["slice_scatter", "index_put", "index_put that adds", "a mask", "masked_scatter", "scatter"]
)
def test_what_is_written_over_goes_on_as_well(name):
    operation, sizes, rule = WRITES[name]
    w, v = weights(*SIZES), weights(*sizes, seed=2)

    def function(x):
        h = (x * w).sin()
        s = h.mean() * v
        return (operation(h, s) * h + operation(h * 2, s.cos())).tanh() + s.sum() * h

    agree(function, numbers(*SIZES), [w, v], rule=rule)


@pytest.mark.parametrize("name", ["slice_scatter", "index_put", "a mask", "masked_scatter", "index_copy", "scatter"])
def test_values_that_are_channels_last(name):
    operation, sizes, rule = WRITES[name]
    w, v = weights(2, 5, 1, 1), weights(*sizes, seed=2)

    def function(x):
        h = (x * w).contiguous(memory_format=torch.channels_last).tanh()
        y = operation(h.flatten(0, 1).permute(1, 2, 0)[:3, :4, :5], v * x.mean())
        return y.cos()

    agree(function, numbers(2, 5, 3, 4), [w, v], rule=rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["slice_scatter", "index_put", "index_put that adds", "a mask", "scatter_add", "index_add"]
)
def test_low_precision(name, dtype):
    operation, sizes, _ = WRITES[name]
    w, v = numbers(*SIZES, seed=1), numbers(*sizes, seed=2)
    n = v.numel()

    def make(kind):
        parameters = [p.to(dtype).to(kind).requires_grad_() for p in (w, v)]
        return (
            lambda x: operation((x * parameters[0]).tanh(), x.flatten()[:n].view(sizes) * parameters[1]).tanh()
        ), parameters

    agree_low(make, numbers(*SIZES), dtype)


def test_a_source_of_another_dtype():
    w, v = weights(*SIZES), numbers(3, 5).float().requires_grad_()
    agree(
        lambda x: (x * w).select_scatter(v, 1, 2).sin(), numbers(*SIZES), [w, v], rule="select_scatter", tolerance=1e-6
    )


# What no rule is made for, and the node that PyTorch runs.
LEFT_ALONE = {
    "index_fill of a value that depends on x": (lambda h: h.index_fill(1, ROWS, h.mean()), "IndexFillBackward1"),
    "a product": (lambda h: h.scatter_reduce(1, INDEX, h[:, :2], "prod"), "ScatterReduceBackward0"),
    "a mean": (lambda h: h.scatter_reduce(1, INDEX, h[:, :2], "mean"), "ScatterReduceBackward0"),
    "the largest": (lambda h: h.scatter_reduce(1, INDEX, h[:, :2], "amax"), "ScatterReduceBackward0"),
    "one row by a number": (lambda h: h.index_add(1, torch.tensor(2), h[:, :1]), "IndexAddBackward0"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name):
    operation, node = LEFT_ALONE[name]
    w = weights(*SIZES)
    agree(lambda x: operation((x * w).tanh()).sin(), numbers(*SIZES), [w], alone=node)


# PyTorch has no derivative of the others for complex values.
@pytest.mark.parametrize("name", [n for n in WRITES if not n.startswith(("slice_sc", "select_sc", "scatter_r"))])
def test_complex_values_agree(name):
    operation, sizes, rule = WRITES[name]
    u, v = weights(*SIZES), numbers(math.prod(sizes), seed=2).view(sizes).requires_grad_()

    def function(x):
        h = torch.complex((x * u).tanh(), x)
        s = torch.complex(x.flatten()[: v.numel()].reshape(sizes) * v, v.sin())
        y = operation(h, s)
        return (y * torch.linspace(0.5, 1, y.numel(), dtype=u.dtype).view(y.shape) * (1 - 2j)).abs()

    agree(function, numbers(*SIZES), [u, v], rule=rule)


def test_bytes_as_a_mask_are_left_alone():
    w = weights(*SIZES)
    with pytest.warns(UserWarning, match="uint8"):
        agree(lambda x: (x * w).index_put((MASK.byte(),), x[MASK]), numbers(*SIZES), [w], alone="IndexPutBackward0")


@pytest.mark.parametrize(
    "name", ["index_put", "a mask", "index_copy", "index_add", "index_fill", "scatter", "masked_scatter"]
)
def test_an_index_written_to_since_raises_as_in_autograd(name):
    index = {"a mask": MASK.clone(), "masked_scatter": MASK.clone(), "scatter": INDEX.clone()}.get(name, ROWS.clone())

    def critic(x):
        h = x.tanh()
        y = {
            "index_put": lambda: h.index_put((index,), h[:2]),
            "a mask": lambda: h.index_put((index,), h.mean()),
            "index_copy": lambda: h.index_copy(1, index, h[:, :2]),
            "index_add": lambda: h.index_add(1, index, h[:, :2]),
            "index_fill": lambda: h.index_fill(1, index, 2.0),
            "scatter": lambda: h.scatter(1, index, h[:, :2]),
            "masked_scatter": lambda: h.masked_scatter(index, h * 2),
        }[name]()
        index.zero_()
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(critic, numbers(*SIZES), [], lambda y, g: (g**2).sum())


def in_place(h, index, function):
    h[index] = function(h[index])
    return h


class Between(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.second = torch.nn.Linear(8, 32), function, torch.nn.Linear(32, 1)

    def forward(self, x):
        return self.second(self.function(self.first(x)))


PEAKS = {
    "a mask": lambda h: in_place(h * 1, h < 0, lambda z: 0.2 * z),
    "rows": lambda h: in_place(h * 1, (slice(None), ROWS), torch.tanh),
    "masked_scatter": lambda h: h.masked_scatter(h > 0.5, h * 0.3),
    "scatter": lambda h: h.scatter(1, h.argsort(1)[:, :4], h[:, :4] * 2),
    "index_add": lambda h: h.index_add(1, ROWS, h[:, :2].tanh()),
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_below_that_of_the_eager_lines(name):
    torch.manual_seed(0)
    explained = gpfast.explain(Between(PEAKS[name]), torch.randn(512, 8))
    assert not [node for node in explained.nodes if node.rule == "alone"]
    assert explained.tape.peak_bytes <= explained.reference.peak_bytes
