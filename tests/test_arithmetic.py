"""Rules of elementwise arithmetic: each slot live, wanted or constant, broadcasting, promotion, in-place variants."""

import pytest
import torch
from tape_checks import LOSSES, adjoints_made_again, agree, agree_low, autograd_gradients, tape_gradients
from torch import nn

import gpfast
from gpfast.cost import peak_bytes_raw

SIZES = (4, 3, 5)
SHAPES = [SIZES, (5,), (3, 1), (1,), (), (4, 1, 5), (2, 1, 1, 1)]


def numbers(*sizes, seed=0, dtype=torch.float64, grad=False, low=-1.0):
    made = torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 - low) + low
    return made.to(dtype).requires_grad_(grad)


def parameter(*sizes, **options):
    return numbers(*sizes, grad=True, low=0.3, seed=7, **options)


def everywhere(operation, x, parameters=(), **checks):
    """The operation alone, below and above curvature, and between linear maps."""
    mixing = numbers(x.shape[-1], x.shape[-1], seed=11, grad=True)

    def between(x):
        y = operation(torch.matmul(x, mixing.to(x.dtype)))
        return torch.relu(y) * 1.5

    parameters = list(parameters)
    return [
        agree(operation, x, parameters, **checks),
        agree(lambda x: operation(torch.tanh(x) + x), x, parameters, **checks),
        agree(lambda x: torch.tanh(operation(torch.matmul(x, mixing.to(x.dtype)))), x, [*parameters, mixing], **checks),
        agree(between, x, [*parameters, mixing], **checks),
    ]


LINEAR = {
    "add": lambda h, w: h + w,
    "add after": lambda h, w: w + h,
    "add alpha": lambda h, w: torch.add(h, w, alpha=-0.5),
    "sub": lambda h, w: h - w,
    "sub from": lambda h, w: w - h,
    "rsub": lambda h, w: torch.rsub(h, w, alpha=2),
    "rsub by": lambda h, w: torch.rsub(w, h, alpha=2),
}


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_sums_with_a_parameter(name, sizes):
    w = parameter(*sizes)
    rule = "add" if name.startswith("add") else "sub"
    everywhere(lambda h: LINEAR[name](h, w), numbers(*SIZES), [w], rule=rule)
    agree(lambda h: LINEAR[name](h, w.detach()), numbers(*SIZES), [w], rule=rule)


@pytest.mark.parametrize("name", LINEAR)
def test_sums_of_two_live_values(name):
    x = numbers(*SIZES)
    everywhere(lambda h: LINEAR[name](torch.sin(h), h), x)
    everywhere(lambda h: LINEAR[name](h, h), x)
    everywhere(lambda h: LINEAR[name](torch.sin(h), h[:, :1]), x)
    everywhere(lambda h: LINEAR[name](h[0], torch.sin(h)), x)
    everywhere(lambda h: LINEAR[name](h[:, :1], h[:1]), x)


SCALARS = {
    "add": lambda h: h + 2,
    "sub": lambda h: 2 - h,
    "scale": lambda h: -h,
    "product": lambda h: h * 3,
    "quotient": lambda h: h / 3,
    "pass": lambda h: h.clone(),
    "copy": lambda h: torch.zeros(2, *h.shape, dtype=h.dtype).copy_(h),
}


@pytest.mark.parametrize("rule", SCALARS)
def test_scalars_and_copies(rule):
    everywhere(SCALARS[rule], numbers(*SIZES), rule=rule)
    agree(lambda x: SCALARS[rule](x.sum()), numbers(*SIZES), rule=rule)


def test_copy_over_a_live_value():
    everywhere(lambda h: torch.sin(h).copy_(h[:, :1] * 2), numbers(*SIZES), rule="copy")
    everywhere(lambda h: h.clone().copy_(parameter(5).detach()) + h, numbers(*SIZES))


def test_casts_down_and_up():
    w, x = parameter(5), numbers(*SIZES)
    agree(lambda x: (x * w).float().tanh() * 2, x, [w], rule="pass", tolerance=2e-6)
    agree(lambda x: (x.float() * w.float()).tanh().double() * w, x, [w], rule="pass", tolerance=2e-6)


def test_lerp_between_live_values_and_a_parameter():
    w = parameter(3, 1)
    everywhere(lambda h: torch.lerp(h, w, 0.3), numbers(*SIZES), [w], rule="lerp")
    everywhere(lambda h: torch.lerp(w, h, 0.3), numbers(*SIZES), [w], rule="lerp")
    everywhere(lambda h: torch.lerp(torch.sin(h), h, 1.3), numbers(*SIZES), rule="lerp")


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_products_with_a_parameter_and_a_constant(sizes):
    w, x = parameter(*sizes), numbers(*SIZES)
    everywhere(lambda h: h * w, x, [w], rule="product")
    everywhere(lambda h: w * h, x, [w], rule="product")
    everywhere(lambda h: h * w.detach(), x, [w], rule="product")
    everywhere(lambda h: w.detach() * h, x, [w], rule="product")
    everywhere(lambda h: h * (w.detach() > 0.6), x, rule="product")


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_quotients_with_a_parameter_and_a_constant(sizes):
    w, x = parameter(*sizes), numbers(*SIZES)
    everywhere(lambda h: h / w, x, [w], rule="quotient")
    everywhere(lambda h: h / w.detach(), x, [w], rule="quotient")
    everywhere(lambda h: torch.div(h, w, rounding_mode=None), x, [w], rule="quotient")
    everywhere(lambda h: w / (h.exp() + 1), x, [w], rule="quotient")
    everywhere(lambda h: w.detach() / (h.exp() + 1), x, rule="quotient")
    everywhere(lambda h: (w.detach() * 9).long() / (h.exp() + 1), x, rule="quotient")


PAIRS = {
    "same sizes": lambda h: (torch.sin(h), h.exp()),
    "one tensor": lambda h: ((1 + h.exp()),) * 2,
    "row": lambda h: (torch.sin(h), h[0].exp()),
    "column": lambda h: (h[:, :1], h.exp()),
    "crossed": lambda h: (h[:, :1], h[:1].exp()),
    "scalar": lambda h: (h, h.exp().sum()),
    "scalar first": lambda h: (h.sum(), h.exp()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_live_values(name):
    x = numbers(*SIZES)
    everywhere(lambda h: torch.mul(*PAIRS[name](h)), x, rule="square" if name == "one tensor" else "product")
    everywhere(lambda h: torch.div(*PAIRS[name](h)) + h, x, rule="quotient")


def test_square_of_the_points_themselves():
    everywhere(lambda h: h * h, numbers(*SIZES), rule="square")
    agree(lambda x: x * x, numbers(1, 1), rule="square")


def test_values_over_their_own_norm():
    everywhere(lambda h: h / h.norm(dim=-1, keepdim=True), numbers(*SIZES), rule="quotient")
    everywhere(lambda h: h / (h * h).mean(1, keepdim=True).add(1e-3).sqrt(), numbers(*SIZES), rule="square")


def test_gates():
    a, b = numbers(5, 5, seed=1, grad=True), numbers(5, 5, seed=2, grad=True)
    everywhere(lambda h: torch.sigmoid(h @ a) * torch.tanh(h @ b), numbers(*SIZES), [a, b], rule="product")
    a.requires_grad_(False)
    everywhere(lambda h: torch.sigmoid(h @ a) * torch.tanh(h @ b), numbers(*SIZES), [b], rule="product")


def test_residual_scaled_by_a_parameter():
    gamma, a = parameter(), numbers(5, 5, seed=1, grad=True)
    everywhere(lambda h: h + gamma * torch.relu(h @ a), numbers(*SIZES), [gamma, a], rule="product")
    everywhere(lambda h: h * torch.exp(gamma) + h, numbers(*SIZES), [gamma], rule="product")


def test_a_parameter_that_is_used_twice_and_one_that_meets_itself():
    w = parameter(5)
    everywhere(lambda h: (h * w + w) / w, numbers(*SIZES), [w])
    everywhere(lambda h: h * (w * w), numbers(*SIZES), [w])


def test_dropout_by_a_mask():
    mask = (numbers(*SIZES, seed=5) > -0.2) / 0.6
    everywhere(lambda h: h * mask, numbers(*SIZES), rule="product")
    everywhere(lambda h: torch.nn.functional.dropout(h, 0.3) * 2, numbers(*SIZES), rule="product")


def test_in_place_variants():
    w, x = parameter(3, 1), numbers(*SIZES)
    everywhere(lambda h: h.clone().mul_(w), x, [w], rule="product")
    everywhere(lambda h: h.clone().div_(w), x, [w], rule="quotient")
    everywhere(lambda h: h.clone().add_(w, alpha=2), x, [w], rule="add")
    everywhere(lambda h: h.clone().sub_(h), x, [w], rule="sub")
    everywhere(lambda h: h.clone().neg_(), x, rule="scale")
    everywhere(lambda h: h.clone().masked_fill_(h.detach() > 0, 0.5), x, rule="masked_fill")


def test_in_place_product_whose_first_factor_was_overwritten():
    """Autograd saves a copy of it, which is not the node's own input."""
    x = numbers(*SIZES)
    for operation in (torch.Tensor.mul_, torch.Tensor.div_):
        for loss in LOSSES:

            def function(x, operation=operation):
                return operation(torch.sin(x) * 2, x.exp())

            value, (expected,) = autograd_gradients(function, x, [], loss)
            ours, (gradient,), steps = tape_gradients(function, x, [], loss)
            assert steps[0][1] in ("product", "quotient")
            torch.testing.assert_close(ours, value, rtol=1e-12, atol=0)
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_a_saved_value_that_was_written_to_is_an_error_as_in_autograd():
    def function(x):
        h = torch.tanh(x)
        w = torch.ones(5, dtype=x.dtype)
        y = h * w
        w.add_(1)
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        agree(function, numbers(*SIZES), rule="product")
    import gpfast

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gpfast.input_gradient_loss(function, numbers(*SIZES), lambda y, g: g.sum(), engine="tape")


PROMOTIONS = {
    "add": lambda h, w: h + w,
    "sub": lambda h, w: w - h,
    "product": lambda h, w: h * w,
    "quotient": lambda h, w: h / w,
    "where": lambda h, w: torch.where(h.detach() > 0, h, w),
    "lerp": lambda h, w: torch.lerp(h.double(), w.double(), 0.25),
    "pass": lambda h, w: h.double() * w.double(),
}


@pytest.mark.parametrize("sizes", [SIZES, (5,), ()], ids=str)
@pytest.mark.parametrize("rule", PROMOTIONS)
def test_promotion_between_float32_and_float64(rule, sizes):
    for narrow in (torch.float32, torch.float64):
        for wide in (torch.float32, torch.float64):
            x, w = numbers(*SIZES, dtype=narrow), parameter(*sizes, dtype=wide)
            loose = {} if narrow == wide == torch.float64 else {"tolerance": 1e-5}
            agree(lambda x, w=w: PROMOTIONS[rule](x, w), x, [w], **loose)
            agree(lambda x, w=w: PROMOTIONS[rule](torch.tanh(x), w).tanh(), x, [w], **loose)
            agree(lambda x, w=w: PROMOTIONS[rule](x, w.detach()), x, [], **loose)
            agree(lambda x, w=w: PROMOTIONS[rule](x.sum(), (x * w).tanh()).tanh(), x, [w], **loose)
            agree(lambda x, w=w: PROMOTIONS[rule](x.tanh(), (x * w).sum() + 2).tanh(), x, [w], **loose)


def test_integers_as_constants():
    counts = torch.arange(1, 6)
    for operation in (torch.add, torch.sub, torch.mul, torch.div):
        everywhere(lambda h, operation=operation: operation(h, counts), numbers(*SIZES))
        everywhere(lambda h, operation=operation: operation(counts, h.exp()), numbers(*SIZES))
        agree(lambda x, operation=operation: operation(x, counts), numbers(*SIZES, dtype=torch.float32), tolerance=2e-6)


def test_where_and_masked_fill():
    w, x = parameter(3, 1), numbers(*SIZES)
    mask = numbers(4, 1, 5, seed=3) > 0
    everywhere(lambda h: torch.where(mask, h, w), x, [w], rule="where")
    everywhere(lambda h: torch.where(mask, w, h), x, [w], rule="where")
    everywhere(lambda h: torch.where(h.detach() > 0, h, 0.1 * h), x, rule="where")
    everywhere(lambda h: torch.where(mask, h[:1], h[:, :1].exp()), x, rule="where")
    everywhere(lambda h: torch.where(mask[0], h[:, :1], torch.ones(5, dtype=h.dtype)), x, rule="where")
    everywhere(lambda h: torch.where(mask[0], 1.0, h[:, :1]), x, rule="where")
    everywhere(lambda h: h.masked_fill(mask, 0.3), x, rule="masked_fill")
    everywhere(lambda h: h.masked_fill(mask, w.sum()), x, [w], rule="masked_fill")
    everywhere(lambda h: h.masked_fill(mask, h.sum()), x, rule="masked_fill")
    everywhere(lambda h: h[:1, :1].masked_fill(mask, 2), x, rule="masked_fill")


def test_where_shields_a_branch_that_is_infinite():
    def function(x):
        safe = torch.where(x > 0, x, 1.0)
        return torch.where(x > 0, 1 / safe, x)

    agree(function, numbers(*SIZES), rule="where")
    agree(lambda x: torch.where(x > 0, x, x * 2).sqrt().masked_fill(x <= 0, 0), numbers(*SIZES, low=0.1), rule="where")


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maximum_and_minimum_with_ties(name):
    operation = getattr(torch, name)
    w, x = parameter(3, 1), numbers(*SIZES)
    everywhere(lambda h: operation(h, w - 0.5), x, [w], rule=name)
    everywhere(lambda h: operation(w.detach() - 0.5, h), x, rule=name)
    everywhere(lambda h: operation(h.sin(), h * 0.5), x, rule=name)
    everywhere(lambda h: operation(h, h), x, rule=name)
    everywhere(lambda h: operation(h.mean(), h), x, rule=name)
    everywhere(lambda h: operation(h.mean(), h.square().sum()), x, rule=name)
    everywhere(lambda h: operation(torch.relu(h), torch.zeros((), dtype=h.dtype)), x, rule=name)
    everywhere(lambda h: operation(h[:, :1], h[:1] * 2), x, rule=name)
    agree(lambda x: operation(x.float(), (w - 0.5).float()), x, [w], rule=name, tolerance=1e-6)


def test_layouts():
    x = numbers(2, 3, 4, 5)
    w = parameter(3, 1, 1)
    for make in (
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        lambda x: x[:, :, ::2],
    ):
        function = lambda x, make=make: (torch.tanh(make(x) * w) + make(x) / w) * torch.sigmoid(x).mean()  # noqa: E731
        agree(function, x, [w], rule="product")


def test_batch_of_one_and_no_entries():
    w = parameter(5)
    everywhere(lambda h: (h * w + w) / (w + h.exp()), numbers(1, 5), [w])
    agree(lambda x: x * w + x, numbers(1, 5), [w])


def test_what_reaches_no_score():
    everywhere(lambda h: torch.stack([h * h, h + 1]).unbind(0)[1] * 2, numbers(*SIZES))
    everywhere(lambda h: torch.lerp(h, h.exp(), 0.0), numbers(*SIZES), rule="lerp")


def test_rounding_divisions_run_alone():
    agree(lambda x: torch.div(x, 0.3, rounding_mode="floor") + x * x, numbers(*SIZES), alone="DivBackward2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    def make(dtype):
        w, v = parameter(5, dtype=dtype), numbers(5, 5, seed=4, grad=False).to(dtype).requires_grad_()

        def function(x):
            h = torch.tanh(x @ v) * w + x
            return (h / (w + torch.sigmoid(h))).sum(-1)

        return function, [w, v]

    agree_low(make, numbers(8, 5), dtype)


def test_repeated_backward():
    import gpfast

    w = parameter(5)
    x = numbers(*SIZES).requires_grad_()
    loss = gpfast.input_gradient_loss(
        lambda x: torch.tanh(x * w) / (x.exp() + w) * x.sin(), x, lambda y, g: (g.square() + y * y).sum(), engine="tape"
    )
    first = torch.autograd.grad(loss, [w, x], retain_graph=True)
    again = torch.autograd.grad(loss, [w, x], retain_graph=True)
    last = torch.autograd.grad(loss, [w, x])
    for a, b, c in zip(first, again, last, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


class Gated(nn.Module):
    """tanh(u) sigmoid(v) of the halves of a convolution, and what else is done with it."""

    def __init__(self, between=lambda u, v: u.tanh() * v.sigmoid(), parts=2):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4 * parts, 3, padding=1), nn.Conv2d(4, 1, 3)
        self.between, self.parts = between, parts

    def forward(self, x):
        return self.second(self.between(*self.first(x).chunk(self.parts, 1))).tanh().sum((1, 2, 3))


def in_a_view(u, v):
    y = u.sin()
    y[:, :2].mul_(v.sigmoid()[:, :2])
    return y


GATES = {
    "of halves": Gated(),
    "of a sum": Gated(lambda u, v: (u.tanh() - v.sigmoid()).tanh() * 1.5),
    "of a sum, one side twice": Gated(lambda u, v: (u.tanh() + 2 * v) * v.sigmoid()),
    "of three": Gated(lambda u, v, w: u.tanh() * v.sigmoid() + w.cos(), 3),
    "one part unused": Gated(lambda u, v, w: u.tanh() * w.sigmoid(), 3),
    "one part as it is": Gated(lambda u, v: u * v.sigmoid()),
    "in a view": Gated(in_a_view),
    "chained": Gated(lambda u, v: (u.tanh() * v.sigmoid()).sin() * 0.5 + 1),
}


@pytest.mark.parametrize("critic", GATES.values(), ids=GATES)
def test_adjoints_below_a_gate_are_made_again(critic):
    critic = critic.double()
    x = torch.randn(3, 3, 5, 4, dtype=torch.float64)
    with adjoints_made_again():
        agree(critic, x, critic.parameters(), rule="split")
        for loss in LOSSES:
            _, once, _ = tape_gradients(critic, x, critic.parameters(), loss)
            _, twice, _ = tape_gradients(critic, x, critic.parameters(), loss, again=True)
            torch.testing.assert_close(twice, once, rtol=1e-12, atol=1e-12)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(16, 64)

    def forward(self, h):
        for _ in range(8):
            u, v, w, z = self.gates(h).chunk(4, 1)
            h = u.sigmoid() * v.tanh() + w.sigmoid() * z
        return h.sum(1)


def test_a_gate_holds_no_parts_of_second_adjoints():
    """Without the activations, which add them to their own, 0.94 would be left."""
    critic, (x, y) = Recurrent(), torch.randn(2, 128, 16)

    def peak():
        gpfast.gradient_penalty(critic, x, y).backward()
        critic.zero_grad()
        return peak_bytes_raw(lambda: gpfast.gradient_penalty(critic, x, y).backward())

    held = peak()
    with adjoints_made_again():
        assert peak() < 0.88 * held


def test_nothing_below_a_gate_holds_its_adjoint():
    critic, x = Gated(), torch.randn(3, 3, 5, 4)
    half = 4 * x.numel() // 3 * 4  # bytes

    def kept():
        nodes = gpfast.explain(critic, x).nodes
        return [node.kept_bytes for node in nodes if node.name.startswith(("Tanh", "Sigmoid"))]

    held = kept()
    with adjoints_made_again():
        again = kept()
    # Those of the gate; what is above it has nothing that makes its adjoint.
    assert [before - now for before, now in zip(held, again, strict=True)] == [half, half, 0]
