"""The rule of matrix products: two live factors, batches, and vectors in the place of matrices."""

import pytest
import torch
from tape_checks import adjoints_made_again, agree, agree_low, autograd_gradients, cubic_loss

import gpfast


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(12)


def points(*sizes):
    return torch.randn(sizes, dtype=torch.float64)


def parameter(*sizes):
    return points(*sizes).div(2).requires_grad_()


PRODUCTS = {
    # name: (operation, sizes of its operands)
    "mm": (torch.mm, [(4, 3), (3, 5)]),
    "mm of one row": (torch.mm, [(1, 3), (3, 5)]),
    "mm of one column": (torch.mm, [(4, 3), (3, 1)]),
    "outer mm": (torch.mm, [(4, 1), (1, 5)]),
    "empty mm": (torch.mm, [(4, 0), (0, 5)]),
    "bmm": (torch.bmm, [(2, 4, 3), (2, 3, 5)]),
    "bmm of one": (torch.bmm, [(1, 4, 3), (1, 3, 5)]),
    "outer bmm": (torch.bmm, [(2, 4, 1), (2, 1, 5)]),
    "addmm": (lambda a, b, c: torch.addmm(a, b, c, beta=2, alpha=0.5), [(4, 5), (4, 3), (3, 5)]),
    "addmm of a row": (torch.addmm, [(5,), (4, 3), (3, 5)]),
    "addmm of a column": (lambda a, b, c: torch.addmm(a, b, c, beta=-1), [(4, 1), (4, 3), (3, 5)]),
    "addmm of nothing": (lambda a, b, c: torch.addmm(a, b, c, beta=0), [(4, 5), (4, 3), (3, 5)]),
    "baddbmm": (lambda a, b, c: torch.baddbmm(a, b, c, beta=2, alpha=0.5), [(2, 4, 5), (2, 4, 3), (2, 3, 5)]),
    "baddbmm of a row": (torch.baddbmm, [(1, 5), (2, 4, 3), (2, 3, 5)]),
    "mv": (torch.mv, [(4, 3), (3,)]),
    "mv of one row": (torch.mv, [(1, 3), (3,)]),
    "addmv": (lambda a, b, c: torch.addmv(a, b, c, beta=2, alpha=0.5), [(4,), (4, 3), (3,)]),
    "addmv of a number": (torch.addmv, [(1,), (4, 3), (3,)]),
    "dot": (torch.dot, [(4,), (4,)]),
    "dot of one": (torch.dot, [(1,), (1,)]),
    "vdot": (torch.vdot, [(4,), (4,)]),
    "addr": (lambda a, b, c: torch.addr(a, b, c, beta=2, alpha=0.5), [(4, 5), (4,), (5,)]),
    "addr of a row": (torch.addr, [(5,), (4,), (5,)]),
}


NODES = [f"{name}Backward0" for name in ("Mm", "Bmm", "Addmm", "Baddbmm", "Mv", "Addmv", "Dot", "Vdot", "Addr")]
COMBINATIONS = [
    pytest.param(name, live, id=f"{name}-{live:0{len(sizes)}b}")
    for name, (_, sizes) in PRODUCTS.items()
    for live in range(1, 2 ** len(sizes))
]


@pytest.mark.parametrize("others", ["parameters", "constants"])
@pytest.mark.parametrize("name, live", COMBINATIONS)
def test_every_combination_of_live_operands(name, live, others):
    """Bit i of `live`: operand i depends on the points, through a function that bends."""
    operation, sizes = PRODUCTS[name]
    base = [points(*size).requires_grad_(others == "parameters") for size in sizes]
    mixes = [points(6, b.numel()) for b in base]

    def operands(x):
        for i, (b, mix) in enumerate(zip(base, mixes, strict=True)):
            yield b + torch.tanh(x @ mix).view(b.shape) if live >> i & 1 else b

    done = agree(lambda x: operation(*operands(x)), points(6), base)
    done += agree(lambda x: torch.tanh(operation(*operands(x))), points(6), base)
    assert not [node for node, rule, *_ in done if rule == "alone" and node in NODES]


@pytest.mark.parametrize("name", ["mm", "bmm", "mv", "dot"])
def test_points_are_both_operands(name):
    square = {"mm": (3, 3), "bmm": (2, 3, 3), "dot": (4,), "mv": (3, 3)}[name]
    operation = {"mv": lambda x: torch.mv(x, x[0])}.get(name, lambda x: getattr(torch, name)(x, x))
    agree(operation, points(*square), rule="matmul")
    agree(lambda x: operation(x).tanh(), points(*square), rule="matmul")


def test_gram_matrix():
    agree(lambda x: x @ x.t(), points(4, 3), rule="matmul")
    agree(lambda x: torch.tanh(x @ x.mT), points(2, 4, 3), rule="matmul")
    agree(lambda x: torch.linalg.multi_dot([x, x.t(), x]), points(4, 3), rule="matmul")


def test_operands_of_every_layout():
    weight = parameter(5, 3)
    batch = parameter(2, 5, 3)
    agree(lambda x: torch.tanh(x.t() @ weight), points(5, 4), [weight], rule="linear")
    agree(lambda x: torch.tanh(x[:, ::2] @ weight), points(4, 10), [weight], rule="linear")
    agree(lambda x: torch.tanh(torch.bmm(x.transpose(1, 2), batch)), points(2, 5, 4), [batch], rule="linear")
    agree(lambda x: torch.tanh(torch.bmm(x.transpose(0, 1), batch)), points(4, 2, 5), [batch], rule="linear")
    agree(lambda x: torch.tanh(torch.bmm(x, batch.transpose(1, 2))), points(2, 4, 3), [batch], rule="linear")
    agree(lambda x: torch.tanh(torch.bmm(x, weight.expand(2, 5, 3))), points(2, 4, 5), [weight], rule="linear")
    agree(lambda x: torch.tanh(torch.bmm(x.sin(), x.mT)), points(2, 4, 3), rule="matmul")


def test_broadcast_matmul():
    weight, vector = parameter(3, 5), parameter(3)
    agree(lambda x: torch.tanh(x @ weight), points(2, 2, 4, 3), [weight], rule="linear")
    agree(lambda x: torch.tanh(weight.t() @ x.mT), points(2, 4, 3), [weight], rule="linear")
    agree(lambda x: torch.tanh(x @ vector), points(2, 4, 3), [vector], rule="linear")
    agree(lambda x: torch.tanh(weight.t() @ x), points(3), [weight], rule="linear")
    agree(lambda x: torch.tanh(x @ x[0].mT), points(2, 4, 3), rule="matmul")


def test_einsum():
    weight, form = parameter(5, 3), parameter(3, 3)
    agree(lambda x: torch.einsum("bi,oi->bo", x.tanh(), weight), points(4, 3), [weight], rule="linear")
    agree(lambda x: torch.einsum("bij,bkj->bik", x, x).tanh(), points(2, 4, 3), rule="matmul")
    agree(lambda x: torch.einsum("bi,ij,bj->b", x, form, x), points(4, 3), [form])
    agree(lambda x: torch.tensordot(x, weight, ([2], [1])).tanh(), points(2, 4, 3), [weight], rule="linear")
    agree(lambda x: torch.inner(x, x).tanh(), points(4, 3), rule="matmul")


def test_sums_of_batches_run_alone():
    batch = parameter(2, 3, 5)
    agree(lambda x: torch.addbmm(x[0, :, :1], x, batch), points(2, 4, 3), [batch], alone="AddbmmBackward0")


def test_sweeps_that_run_again():
    """A graph that is kept is differentiated twice, from different tangents."""
    first, second = parameter(3, 30), parameter(3, 2)
    function = lambda x: ((x @ first).tanh().t() @ (x @ second).tanh()).tanh()  # noqa: E731
    x, parameters = points(4, 3), [first, second]
    value, expected = autograd_gradients(function, x, parameters, cubic_loss)
    point = x.requires_grad_()
    ours = gpfast.input_gradient_loss(function, point, cubic_loss, engine="tape")
    torch.testing.assert_close(ours, value)
    for factor, keep in ((3, True), (-2, True), (1, False)):
        gradients = torch.autograd.grad(factor * ours, [*parameters, point], retain_graph=keep)
        torch.testing.assert_close(gradients, tuple(factor * g for g in expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    def make(at):
        torch.manual_seed(4)
        first, second = (points(8, 8).to(dtype).to(at).requires_grad_() for _ in range(2))
        return lambda x: (torch.bmm(x @ first, (x @ second).mT) / 8).tanh() @ x, [first, second]

    agree_low(make, points(3, 8, 8) / 2, dtype)


FACTOR = torch.linspace(0.5, 2, 15, dtype=torch.float64).view(3, 5)
# What lies between a product and the curve that makes adjoints again.
BETWEEN = {
    "nothing": lambda y: y,
    "a number": lambda y: 3 * y,
    "a factor": lambda y: y.view(4, 3, 5) * FACTOR,
    "a factor that is broadcast": lambda y: y[None] * torch.linspace(1, 2, 2, dtype=y.dtype).view(2, 1, 1),
    "a sum": lambda y: 1 - y,
    "a view and a sum": lambda y: y.view(4, 3, 5) + FACTOR,
    "a cast": lambda y: y.float().double(),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("form", ["mm", "addmm", "bmm"])
def test_an_adjoint_that_the_reader_makes_again_is_not_held(form, name):
    w, c = parameter(4, 5), parameter(5)
    tolerance = 1e-6 if name == "a cast" else 1e-10
    product = {
        "mm": lambda x: x.mm(w),
        "addmm": lambda x: torch.addmm(c, x, w),
        "bmm": lambda x: x.view(2, 6, 4).bmm(torch.stack([w, w * c])).view(12, 5),
    }[form]

    def critic(x):
        return BETWEEN[name](product(x)).tanh().flatten(1)

    def shared(x):
        y = product(x)
        return critic(x).flatten() @ critic(x).flatten() + BETWEEN[name](y).tanh().sum() * y

    kept = []

    def loss(y, g):
        lines = [line.split("\t") for line in torch.ops.gpfast.describe(g)]
        kept.append(sum(int(held) for _, rule, *_, held in lines if rule == "linear"))
        return g.square().sum()

    x = points(12, 4)
    gpfast.input_gradient_loss(critic, x, loss, engine="tape")
    with adjoints_made_again():
        gpfast.input_gradient_loss(critic, x, loss, engine="tape")
        for function in (critic, shared, lambda x: critic(x.sin())):
            agree(function, x, [w, c], tolerance=tolerance)
        found = gpfast.gradient_penalty(
            lambda x: critic(x).sum(1), x, x + 1, alpha=0.5, reduction="none", engine="tape"
        )
    expected = gpfast.gradient_penalty(
        lambda x: critic(x).sum(1), x, x + 1, alpha=0.5, reduction="none", engine="autograd"
    )
    assert kept[0] - kept[1] == 12 * 5 * 8
    if critic(x).shape[0] != 12:
        return
    for weights in torch.eye(12, dtype=torch.float64)[:2]:
        ours, theirs = (torch.autograd.grad(p, [w], weights, retain_graph=True)[0] for p in (found, expected))
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5 if name == "a cast" else 1e-9, atol=1e-7 if name == "a cast" else 1e-10
        )


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_an_adjoint_made_again_meets_the_conjugate_of_a_complex_factor():
    turning = torch.polar(torch.ones(5, dtype=torch.float64), torch.linspace(0.3, 2, 5, dtype=torch.float64))
    w = torch.complex(points(4, 5), points(4, 5)).requires_grad_()

    def critic(x):
        return (x.to(w.dtype).mm(w) * turning).to(x.dtype).tanh()

    with adjoints_made_again():
        agree(critic, points(12, 4), [w])
        agree(lambda x: critic(x.sin()), points(12, 4), [w])
