"""Rules of reductions: sums, means, variances, norms and maxima over dimensions."""

import math

import pytest
import torch
from tape_checks import agree, agree_low
from test_arithmetic import everywhere, numbers, parameter

SIZES = (4, 3, 5)
DIMS = [None, 0, 1, -1, (0, 2), (0, 1, 2), ()]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_sums_and_means(rule, dims, keepdim):
    def operation(h):
        return getattr(h, rule)() if dims is None else getattr(h, rule)(dims, keepdim=keepdim)

    everywhere(operation, numbers(*SIZES), rule=rule)
    everywhere(lambda h: h * operation(h) if keepdim else operation(h).exp(), numbers(*SIZES), rule=rule)


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_sums_and_means_in_another_dtype(rule):
    w = parameter(5)
    x = numbers(*SIZES, dtype=torch.float32)
    agree(lambda x: getattr(x * w.float(), rule)(1, dtype=torch.float64) * w, x, [w], rule=rule, tolerance=2e-6)
    agree(lambda x: getattr((x * w).tanh(), rule)(dtype=torch.float32), x, [w], rule=rule, tolerance=2e-6)


def test_sum_of_one_entry_and_of_a_scalar():
    everywhere(lambda h: h.sum().sum(0).mean(0) * 2, numbers(*SIZES), rule="sum")
    everywhere(lambda h: h.mean((0, 1), keepdim=True).sum(1), numbers(1, 1, 5), rule="mean")


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", DIMS[:-1], ids=str)
@pytest.mark.parametrize("correction", [0, 1, 0.5])
def test_variances_and_deviations(dims, keepdim, correction):
    options = {"correction": correction, "keepdim": keepdim}
    x = numbers(*SIZES)
    everywhere(lambda h: torch.var(h, dims, **options), x, rule="variance")
    everywhere(lambda h: torch.std(h, dims, **options), x, rule="deviation")


def test_variances_with_dims_given_and_empty_run_alone():
    """PyTorch's derivative is off there: not ours to mend."""
    agree(lambda x: torch.var(x, (), correction=0), numbers(*SIZES), alone="VarBackward0")
    agree(lambda x: torch.std(x, (), correction=0), numbers(*SIZES), alone="StdBackward0")


@pytest.mark.parametrize("name", ["var_mean", "std_mean"])
def test_two_results(name):
    operation = getattr(torch, name)
    rule = "variance" if name == "var_mean" else "deviation"
    x = numbers(*SIZES)
    everywhere(lambda h: torch.mul(*operation(h, 1)), x, rule=rule)
    everywhere(lambda h: torch.add(*operation(h, (0, 2), keepdim=True)), x, rule=rule)
    everywhere(lambda h: operation(h, 1)[0], x, rule=rule)
    everywhere(lambda h: operation(h, 1)[1], x, rule=rule)
    everywhere(lambda h: operation(h)[1], x, rule=rule)
    everywhere(lambda h: (h - operation(h, -1, keepdim=True)[1]) / operation(h, -1, keepdim=True)[0], x, rule=rule)


def test_deviation_zero_has_gradient_zero():
    x = numbers(*SIZES)
    x[1] = x[1, :1]
    agree(lambda x: x.std(1) * 2, x, rule="deviation")
    agree(lambda x: (x * x).std(1).exp(), x, rule="deviation")


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_variance_of_one_entry_runs_alone():
    import gpfast

    def seen(y, g):
        names.extend(line.split("\t")[:2] for line in torch.ops.gpfast.describe(g))
        return g.sum()

    names = []
    gpfast.input_gradient_loss(lambda x: torch.var(x, 1) * 0, numbers(3, 1), seen, engine="tape")
    assert ["VarBackward0", "alone"] in names


NORMS = {
    "all": lambda h: h.norm(),
    "torch.norm": lambda h: torch.norm(h, dim=1),
    "keepdim": lambda h: h.norm(dim=-1, keepdim=True),
    "two": lambda h: torch.linalg.vector_norm(h, dim=(0, 2)),
    "no dims": lambda h: torch.linalg.vector_norm(h, dim=()),
    "of a scalar": lambda h: h.sum().norm() * 2,
    "all, keepdim": lambda h: torch.linalg.vector_norm(h, keepdim=True),
    "frobenius": lambda h: torch.norm(h, p="fro", dim=(1, 2)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    everywhere(NORMS[name], numbers(*SIZES), rule="norm")
    everywhere(lambda h: NORMS[name](h).exp().sum() * h, numbers(*SIZES), rule="norm")


@pytest.mark.parametrize("p", [1, math.inf, -math.inf])
def test_norms_that_are_linear_in_pieces(p):
    x = numbers(*SIZES)
    tied = x.round()  # with entries that are zero, and several that are largest
    for values in (x, tied):
        everywhere(lambda h: h.norm(p, dim=1), values, rule="norm")
        everywhere(lambda h: torch.linalg.vector_norm(h, p, (0, 2), keepdim=True) * h, values, rule="norm")
        everywhere(lambda h: h.norm(p) * h, values, rule="norm")
        everywhere(lambda h: torch.linalg.vector_norm(torch.relu(h), p, -1).exp(), values, rule="norm")
    agree(lambda x: x.sum().norm(p) * 2, x, rule="norm")


def test_other_norms_run_alone():
    for p in (0.5, 3):
        agree(lambda x, p=p: x.norm(p, dim=1), numbers(*SIZES), alone="LinalgVectorNormBackward0")


PRODUCTS = {
    "all": lambda h: h.prod(),
    "one dimension": lambda h: h.prod(1),
    "keepdim": lambda h: (2 * h).prod(-1, keepdim=True),
    "of one": lambda h: h[:, :1].prod(1),
    "of a scalar": lambda h: h.sum().prod(),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    everywhere(PRODUCTS[name], numbers(*SIZES), rule="prod")
    everywhere(lambda h: PRODUCTS[name](h.exp()).log() * h.sum(1, True), numbers(*SIZES), rule="prod")


def test_products_with_a_zero_run_alone():
    x = numbers(*SIZES)
    x[1, 1] = 0
    agree(lambda x: x.prod(1), x, alone="ProdBackward1")
    agree(lambda x: (x * x).prod(), x, alone="ProdBackward0")


def test_the_norm_of_a_zero_row_has_gradient_zero():
    x = numbers(*SIZES)
    x[1] = 0
    import gpfast

    point = x.requires_grad_()
    loss = gpfast.input_gradient_loss(lambda x: x.norm(dim=(1, 2)), point, lambda y, g: g.pow(3).sum(), engine="tape")
    (gradient,) = torch.autograd.grad(loss, point)
    assert not gradient[1].any() and gradient[0].any() and gradient.isfinite().all()


MAXIMA = {
    "max": lambda h: h.max(),
    "min": lambda h: h.min(),
    "amax": lambda h: h.amax(1),
    "amax two": lambda h: h.amax((0, 2), keepdim=True),
    "amax all": lambda h: h.amax(),
    "amin": lambda h: h.amin(-1, keepdim=True),
    "median": lambda h: h.median(),
    "nanmedian": lambda h: h.nanmedian(),
}


@pytest.mark.parametrize("name", MAXIMA)
def test_maxima_by_value_share_ties(name):
    everywhere(MAXIMA[name], numbers(*SIZES), rule="extreme")
    everywhere(lambda h: MAXIMA[name](torch.relu(h)) * 2, numbers(*SIZES), rule="extreme")
    everywhere(lambda h: MAXIMA[name](h.round()) + (h * h).sum(), numbers(*SIZES), rule="extreme")
    everywhere(lambda h: MAXIMA[name](torch.cat([h, h], 1)), numbers(*SIZES), rule="extreme")


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", ["max", "min"])
def test_maxima_by_index(name, dim, keepdim):
    def operation(h):
        return getattr(h, name)(dim, keepdim=keepdim)[0]

    everywhere(operation, numbers(*SIZES), rule="picked")
    everywhere(lambda h: operation(torch.cat([h, h], 1)) ** 3, numbers(*SIZES), rule="picked")
    agree(lambda x: x.sum().exp().max(0)[0], numbers(*SIZES), rule="picked")


PICKED = {
    "median": lambda h, *where: h.median(*where)[0],
    "nanmedian": lambda h, *where: h.nanmedian(*where)[0],
    "kthvalue": lambda h, *where: h.kthvalue(2, *where)[0],
    "mode": lambda h, *where: h.mode(*where)[0],
}


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("name", PICKED)
def test_entries_of_a_rank(name, dim, keepdim):
    everywhere(lambda h: PICKED[name](h, dim, keepdim), numbers(*SIZES), rule="picked")
    everywhere(lambda h: PICKED[name](h.round(), dim, keepdim) + h.square().sum(), numbers(*SIZES), rule="picked")


@pytest.mark.parametrize("groups", [2, 4])
def test_minibatch_deviation_layer(groups):
    weight = numbers(4, 3, 3, 3, seed=3, grad=True)

    def by_hand(h):
        n, c, height, width = h.shape
        y = h.view(groups, -1, c, height, width)
        y = y - y.mean(0, keepdim=True)
        y = (y.square().mean(0) + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
        y = y.repeat(groups, 1, height, width)
        return torch.cat([h, y], 1)

    def by_std(h):
        deviation = h.std(0, unbiased=False).mean()
        return torch.cat([h, deviation.expand(h.shape[0], 1, *h.shape[2:])], 1)

    def by_var(h):
        deviation = (h.view(groups, -1, *h.shape[1:]).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([h, deviation.repeat(groups).view(-1, 1, 1, 1).expand(-1, 1, *h.shape[2:])], 1)

    x = numbers(4, 2, 3, 3)
    for layer, rule in ((by_hand, "mean"), (by_std, "deviation"), (by_var, "variance")):

        def critic(x, layer=layer):
            h = layer(x * 2)
            h = torch.nn.functional.leaky_relu(torch.conv2d(h, weight, padding=1), 0.2)
            return layer(h).flatten(1).sum(1)

        agree(critic, x, [weight], rule=rule)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
def test_layouts(layout):
    def arranged(x):
        if layout == "channels_last":
            return (x * 1).contiguous(memory_format=torch.channels_last)
        return x.transpose(1, 3) * 1 if layout == "transposed" else (x * 1)[:, :, ::2]

    x = numbers(2, 3, 4, 5)
    agree(lambda x: torch.tanh(arranged(x)).mean((2, 3)), x, rule="mean")
    agree(lambda x: torch.tanh(arranged(x)).std((0, 2)), x, rule="deviation")
    agree(lambda x: torch.tanh(arranged(x)).norm(dim=1), x, rule="norm")
    agree(lambda x: torch.tanh(arranged(x)).amax((2, 3)), x, rule="extreme")
    agree(lambda x: torch.tanh(arranged(x)).max(2)[0], x, rule="picked")


def test_complex_input_runs_alone():
    agree(lambda x: torch.complex(x, x.sin()).var(1), numbers(*SIZES), alone="VarBackward0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    def make(dtype):
        w = numbers(5, 7, seed=4).to(dtype).requires_grad_()

        def function(x):
            h = torch.tanh(x @ w)
            found = h.mean(1) + h.std(1) * h.sum(1) + h.norm(dim=1) + h.amax(1) + h.var(0).sum()
            return found + h.norm(1, dim=1) * h.norm(math.inf, dim=1) + (h + 2).prod(1) / 64

        return function, [w]

    agree_low(make, numbers(16, 5), dtype)


def test_repeated_backward():
    import gpfast

    x, w = numbers(*SIZES).requires_grad_(), parameter(5)
    loss = gpfast.input_gradient_loss(
        lambda x: (
            (x * w).std(1).sum(1)
            + (x * w).norm(dim=(1, 2))
            + (x * w).var((1, 2))
            + torch.tanh(x).amax((1, 2))
            + (x * w).prod(1).sum(1) * (x * w).norm(1, dim=(1, 2))
        ),
        x,
        lambda y, g: (g.square().sum() + y * y).sum(),
        engine="tape",
    )
    first = torch.autograd.grad(loss, [w, x], retain_graph=True)
    again = torch.autograd.grad(loss, [w, x], retain_graph=True)
    last = torch.autograd.grad(loss, [w, x])
    for a, b, c in zip(first, again, last, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
