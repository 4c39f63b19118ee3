"""Runs of small dense layers: the operators against their plain formula, and when the tape takes them."""

import copy
from collections import Counter

import pytest
import torch
from tape_checks import agree
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gpfast
from gpfast import cost

DTYPES = [torch.float32, torch.float64]
WITHIN, ABOVE, BETWEEN, BELOW = 2, 0, 1, 3  # gpfast::Test
GATES = {
    "relu": (WITHIN, -float("inf"), 0.0, 0.0, 1.0),
    "leaky relu": (ABOVE, 0.0, 0.0, 1.0, 0.2),
    "threshold": (ABOVE, 0.5, 0.0, 1.0, 0.0),
    "hardtanh": (BETWEEN, -1.0, 1.0, 1.0, 0.0),
    "below": (BELOW, 0.0, 0.25, 1.0, 0.5),
}
fast = pytest.mark.skipif(
    "avx2" not in torch.backends.cpu.get_cpu_capability().lower()
    and "avx512" not in torch.backends.cpu.get_cpu_capability().lower(),
    reason="runs of dense layers are taken on CPUs with AVX2 only",
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(5)


@pytest.fixture(autouse=True, params=[32, 64], ids=["avx2", "avx512"])
def vectors(request):
    if request.param == 64 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("needs a CPU with AVX-512")
    before = torch.ops.gpfast.set_dense_vectors(request.param)
    yield
    torch.ops.gpfast.set_dense_vectors(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def stored(weight, storage):
    """The same values, lying in memory by columns, as those of a linear layer do, by rows, or with gaps."""
    if storage == "columns":
        return weight.t().contiguous().t()
    return weight if storage == "rows" else torch.stack([weight, weight], dim=-1)[..., 0]


def layers(rows, widths, gate, dtype, storage="columns", top=False, scaled=False):
    weights = [stored(torch.randn(i, o, dtype=dtype), storage) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    gated = widths[1:] if top else widths[1:-1]
    deciders, factors = ([torch.randn(rows, n, dtype=dtype) for n in gated] for _ in range(2))
    return weights, deciders, list(GATES[gate]) * len(gated), factors if scaled else []


def both(name, *arguments):
    op = getattr(torch.ops.gpfast, name).default
    return op(*arguments), op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


def room(rows, weights):
    """For the tangents between layers."""
    return torch.empty(rows * sum(w.shape[1] for w in weights[:-1]), dtype=weights[0].dtype)


def close(ours, plain):
    assert ours.shape == plain.shape
    if ours.numel():
        scale = plain.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-30)
        tolerance = 64 * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours / scale, plain / scale, rtol=tolerance, atol=tolerance, equal_nan=True)


def sweeps_agree(rows, weights, deciders, gates, factors, dtype, wanted=-1, through=True):
    wanted &= (1 << len(weights)) - 1
    a = torch.randn(rows, weights[-1].shape[1], dtype=dtype)
    (input_, held), (plain_input, plain_held) = both("dense_adjoint", a, weights, deciders, gates, factors)
    close(input_, plain_input)
    close(held, plain_held)
    t = torch.randn(rows, weights[0].shape[0], dtype=dtype)
    arguments = (t, held, room(rows, weights), weights, deciders, gates, factors, wanted, through)
    (result, gradients), (plain_result, plain_gradients) = both("dense_tangent", *arguments)
    close(result, plain_result)
    for i, (ours, plain) in enumerate(zip(gradients, plain_gradients, strict=True)):
        assert ours.numel() == (weights[i].numel() if wanted >> i & 1 else 0)
        close(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_sweeps_are_those_of_the_plain_formula(gate, scaled, top, dtype):
    sweeps_agree(13, *layers(13, (5, 24, 17, 3), gate, dtype, top=top, scaled=scaled), dtype)


def test_layers_may_have_a_gate_or_a_factor_or_nothing_between():
    none = torch.empty(0, dtype=torch.float64)
    weights, deciders, gates, factors = layers(7, (5, 9, 8, 7, 2), "leaky relu", torch.float64, scaled=True)
    sweeps_agree(7, weights, [none, deciders[1]], gates[:10], [factors[0]], torch.float64)
    sweeps_agree(7, weights, [], [], [none, none, factors[2]], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 30, 45, 64])
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 16, 1), (64, 64, 64, 64, 1), (3, 33, 15, 2), (8, 4, 4, 4, 4, 4)])
def test_any_size(rows, widths, dtype):
    sweeps_agree(rows, *layers(rows, widths, "leaky relu", dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", ["columns", "rows", "gaps"])
def test_weights_lie_in_memory_as_they_like_and_gradients_as_they_do(storage, dtype):
    weights, deciders, gates, factors = layers(9, (7, 20, 18), "relu", dtype, storage)
    sweeps_agree(9, weights, deciders, gates, factors, dtype)
    held = torch.randn(9 * 38, dtype=dtype)
    _, gradients = torch.ops.gpfast.dense_tangent(
        torch.randn(9, 7, dtype=dtype), held, room(9, weights), weights, deciders, gates, factors, 3, False
    )
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient.t().is_contiguous() if storage == "columns" else gradient.is_contiguous()
        assert gradient.shape == weight.shape


@pytest.mark.parametrize("wanted", [0, 0b001, 0b100, 0b101])
@pytest.mark.parametrize("through", [False, True])
def test_only_what_is_wanted(wanted, through):
    sweeps_agree(6, *layers(6, (5, 9, 8, 2), "relu", torch.float64), torch.float64, wanted, through)


def test_deciders_may_have_rows_apart():
    weights, (decider,), gates, factors = layers(6, (4, 10, 2), "relu", torch.float64)
    wide = torch.randn(6, 25, dtype=torch.float64)
    wide[:, 3:13] = decider
    sweeps_agree(6, weights, [wide[:, 3:13]], gates, factors, torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("gate", GATES)
def test_what_is_not_finite_is_decided_as_alone(gate, bad):
    weights, deciders, gates, factors = layers(4, (3, 8, 1), gate, torch.float64)
    deciders[0][1, 2] = bad
    sweeps_agree(4, weights, deciders, gates, factors, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
def test_limits_are_exact_where_the_smallest_numbers_are_flushed(gate, dtype):
    """The numbers next to zero are compared as zero then."""
    weights, deciders, gates, factors = layers(4, (3, 20, 1), gate, dtype)
    deciders[0][:, ::2] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny / 4, gates[1]])[:, None]
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU flushes nothing")
    try:
        sweeps_agree(4, weights, deciders, gates, factors, dtype)
    finally:
        torch.set_flush_denormal(False)


def test_a_slope_of_zero_stops_nan():
    """As the gate alone does: what a dead unit would have got does not reach the samples."""
    weights, deciders, gates, factors = layers(4, (3, 8, 1), "relu", torch.float64)
    deciders[0][1, 2] = 0.0
    a = torch.ones(4, 1, dtype=torch.float64)
    weights[1][2] = float("nan")
    input_, held = torch.ops.gpfast.dense_adjoint(a, weights, deciders, gates, factors)
    assert held.view(-1)[1 * 8 + 2] == 0
    assert input_[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(threads, dtype):
    rows, widths = 50, (40, 64, 64, 3)
    weights, deciders, gates, factors = layers(rows, widths, "leaky relu", dtype)
    a, t = torch.randn(rows, 3, dtype=dtype), torch.randn(rows, 40, dtype=dtype)
    seen = []
    for number in (1, 2, 3):
        threads(number)
        input_, held = torch.ops.gpfast.dense_adjoint(a, weights, deciders, gates, factors)
        result, gradients = torch.ops.gpfast.dense_tangent(
            t, held, room(rows, weights), weights, deciders, gates, factors, 7, True
        )
        seen.append([input_, held, result, *gradients])
    for others in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], others, strict=True))


def test_arguments_that_do_not_belong_together_are_refused():
    weights, deciders, gates, factors = layers(4, (3, 8, 8, 1), "relu", torch.float64)
    a = torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="3 weights, 1 deciders, 10 numbers"):
        torch.ops.gpfast.dense_adjoint(a, weights, deciders[:1], gates, factors)
    with pytest.raises(RuntimeError, match=r"weight 2 is \[8, 8\]"):
        torch.ops.gpfast.dense_adjoint(a, [weights[0], weights[2], weights[1]], deciders, gates, factors)
    with pytest.raises(RuntimeError, match="room for 16 elements of tangents, not 64"):
        torch.ops.gpfast.dense_tangent(
            torch.ones(4, 3, dtype=torch.float64),
            torch.ones(68, dtype=torch.float64),
            room(1, weights),
            *(weights, deciders, gates, factors, 7, False),
        )


@fast
def test_values_of_other_sizes_are_refused():
    """The kernels would read or write beyond them."""
    weights, deciders, gates, factors = layers(4, (3, 8, 1), "relu", torch.float64)
    with pytest.raises(RuntimeError, match=r"\[4, 5\] above \[8, 1\]"):
        torch.ops.gpfast.dense_adjoint(torch.ones(4, 5, dtype=torch.float64), weights, deciders, gates, factors)
    for columns, held in [(2, 36), (3, 35)]:
        t, adjoints = torch.ones(4, columns, dtype=torch.float64), torch.ones(held, dtype=torch.float64)
        with pytest.raises(RuntimeError, match=rf"\[4, {columns}\] below \[3, 8\], with \[{held}\] adjoints"):
            torch.ops.gpfast.dense_tangent(t, adjoints, room(4, weights), weights, deciders, gates, factors, 3, True)


# When the tape takes them.


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function).removesuffix(".default")] += 1
        return function(*args, **(kwargs or {}))


def runs_of(critic, x, **options):
    """How many runs a penalty has: one adjoint and one tangent call each."""
    with Operators() as operators:
        gpfast.gradient_penalty(critic, x, x.flip(0), engine="tape", **options).backward()
    assert operators.seen["gpfast.dense_adjoint"] == operators.seen["gpfast.dense_tangent"]
    return operators.seen["gpfast.dense_adjoint"]


def mlp(*between, width=8, inputs=4, bias=True):
    """Linear, activation, linear, activation, ..., linear to a score."""
    modules, last = [], inputs
    for activation in between:
        modules += [nn.Linear(last, width, bias=bias), activation]
        last = width
    return nn.Sequential(*modules, nn.Linear(last, 1, bias=bias)).double()


def points(rows=17, columns=4):
    return torch.randn(rows, columns, dtype=torch.float64)


TAKEN = {
    "relu": lambda: mlp(nn.ReLU(), nn.ReLU(), nn.ReLU()),
    "relu in place": lambda: mlp(nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "leaky": lambda: mlp(nn.LeakyReLU(0.2), nn.LeakyReLU(0.1, inplace=True)),
    "limits": lambda: mlp(nn.ReLU6(), nn.Hardtanh(-0.5, 0.5), nn.Threshold(0.1, 0.0)),
    "without bias": lambda: mlp(nn.ReLU(), nn.ReLU(), bias=False),
    "gate on top": lambda: nn.Sequential(mlp(nn.ReLU()), nn.LeakyReLU(0.3)).double(),
    "gate below": lambda: nn.Sequential(nn.LeakyReLU(0.3), mlp(nn.ReLU())).double(),
    "smooth below": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), mlp(nn.ReLU(), nn.ReLU())).double(),
    "dropout": lambda: mlp(
        nn.Sequential(nn.LeakyReLU(0.2), nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.1), nn.ReLU())
    ),
    "nothing between": lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 1)).double(),
    "wide result": lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)).double(),
}


@fast
@pytest.mark.parametrize("name", TAKEN)
def test_dense_critics_are_one_run_and_exact(name):
    critic = TAKEN[name]()
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


def test_what_bends_above_keeps_layers_apart():
    """What bends above a run would send it second adjoints, which it has no sweep for."""
    critic = nn.Sequential(mlp(nn.ReLU(), nn.ReLU(), width=5), nn.Softplus(), nn.Linear(1, 1)).double()
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 0


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.by = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.by


NOT_TAKEN = {
    "one layer": lambda: nn.Linear(4, 1).double(),
    "smooth": lambda: mlp(nn.Tanh(), nn.Softplus()),
    "prelu": lambda: mlp(nn.PReLU()),
    "two activations between": lambda: mlp(nn.Sequential(nn.ReLU(), nn.Hardtanh(-2, 2))),
    "a trained factor between": lambda: mlp(Scaled(8)),
    "large": lambda: mlp(nn.ReLU(), width=3000, inputs=3000),
    "many rows": lambda: mlp(nn.ReLU(), width=2, inputs=1),
    "few rows": lambda: mlp(nn.ReLU(), nn.ReLU()),
    "three dimensions": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), mlp(nn.ReLU(), inputs=2)).double(),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_other_critics_are_swept_layer_by_layer(name):
    critic = NOT_TAKEN[name]()
    columns = next(m for m in critic.modules() if isinstance(m, nn.Linear)).in_features
    rows = {"many rows": 2**16 + 1, "few rows": 15}.get(name, 17)
    assert runs_of(critic, points(rows, 4 if name == "three dimensions" else columns)) == 0


class Broadcast(nn.Module):
    """Linear, times a constant of the first size, linear of so many columns, linear."""

    def __init__(self, factor, columns, pooled):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, columns), nn.Linear(8, 5), nn.Linear(5, 1)])
        self.register_buffer("factor", torch.rand(factor) + 0.5)
        self.pooled = pooled
        self.double()

    def forward(self, x):
        first, second, last = self.layers
        return last(second(first(x.mean(0, keepdim=True) if self.pooled else x) * self.factor).relu())


@fast
@pytest.mark.parametrize("factor, columns, pooled", [((17, 1), 8, False), ((17, 8), 1, False), ((17, 8), 8, True)])
def test_a_factor_that_is_broadcast_or_broadcasts_ends_a_run(factor, columns, pooled):
    critic = Broadcast(factor, columns, pooled)
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


class Branching(nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.reads = reads
        self.double()

    def forward(self, x):
        before = self.first(x)
        h = before.relu()
        y = self.last(self.second(h).relu())
        return y + {"result": h, "product": before, "point": x}[self.reads].sum(1, keepdim=True)


@fast
@pytest.mark.parametrize("reads", ["result", "product", "point"])
def test_a_value_that_somebody_else_reads_ends_a_run(reads):
    critic = Branching(reads)
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


@fast
@pytest.mark.parametrize("frozen", [["0.weight"], ["2.weight"], ["4.weight"], ["0.weight", "2.weight", "0.bias"]])
def test_frozen_weights(frozen):
    critic = mlp(nn.ReLU(), nn.LeakyReLU(0.2))
    for name in frozen:
        critic.get_parameter(name).requires_grad_(False)
    agree(critic, points(), critic.parameters(), rule="linear")
    runs_of(critic, points())
    assert all((p.grad is not None) == p.requires_grad for p in critic.parameters())


def test_everything_is_frozen():
    critic = mlp(nn.ReLU(), nn.ReLU()).requires_grad_(False)
    agree(critic, points(), rule="linear")


class Shared(nn.Module):
    """One weight in three layers, as it is, transposed, and through an expression."""

    def __init__(self):
        super().__init__()
        self.weight, self.score = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 1))
        self.double()

    def forward(self, x):
        x = (x @ self.weight).relu()
        x = (x @ self.weight.t()).relu()
        return (x @ (self.weight / self.weight.norm())).relu() @ self.score


@fast
def test_weights_that_are_shared_or_computed():
    critic = Shared()
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


@fast
def test_gradients_may_be_asked_for_twice():
    critic, x = mlp(nn.ReLU(), nn.ReLU()), points()
    parameters = list(critic.parameters())

    def losses(engine):
        return gpfast.gradient_penalty(critic, x, x.flip(0), alpha=0.3, reduction="none", engine=engine).pow(2).sum()

    with Operators() as operators:
        value = losses("tape")
        first = torch.autograd.grad(value, parameters, retain_graph=True)
        again = torch.autograd.grad(value, parameters)
    assert operators.seen["gpfast.dense_adjoint"] == 1 and operators.seen["gpfast.dense_tangent"] == 2
    expected = torch.autograd.grad(losses("reference"), parameters, allow_unused=True, materialize_grads=True)
    for one, two, right in zip(first, again, expected, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, right)


@fast
def test_what_is_held_for_backward_may_not_be_written_to():
    """Autograd would raise too: the activations that decide are read once more in backward."""
    critic, held = mlp(nn.ReLU(), nn.ReLU()), []
    critic[1].register_forward_hook(lambda module, args, result: held.append(result))
    x = points()
    value = gpfast.gradient_penalty(critic, x, x.flip(0), reduction="none", engine="tape").sum()
    held[0].detach().neg_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@fast
@pytest.mark.parametrize("chunks", [2, 3])
def test_parts_of_a_batch_add_up(chunks):
    critic, x = mlp(nn.ReLU(), nn.ReLU()), points(50)
    whole = copy.deepcopy(critic)
    alpha = torch.rand(50, dtype=torch.float64)
    with Operators() as operators:
        a = gpfast.gradient_penalty(critic, x, x.flip(0), alpha=alpha, chunks=chunks)
    assert operators.seen["gpfast.dense_tangent"] == 1, "the others add to what the first part left"
    b = gpfast.gradient_penalty(whole, x, x.flip(0), alpha=alpha, engine="reference")
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b)
    for p, q in zip(critic.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, torch.zeros_like(p) if q.grad is None else q.grad)


@fast
@pytest.mark.filterwarnings("ignore:gpfast's tape cannot:UserWarning")
def test_a_hook_on_the_way_is_not_passed_over():
    critic, seen = mlp(nn.ReLU(), nn.ReLU()), []

    def hooked(x):
        h = critic[1](critic[0](x))
        h.register_hook(lambda g: seen.append(g.shape) or 2 * g)
        return critic[2:](h)

    reference = copy.deepcopy(critic)

    def plain(x):
        h = reference[1](reference[0](x))
        h.register_hook(lambda g: 2 * g)
        return reference[2:](h)

    x = points()
    a = gpfast.gradient_penalty(hooked, x, x.flip(0), alpha=0.3)
    b = gpfast.gradient_penalty(plain, x, x.flip(0), alpha=0.3, engine="reference")
    a.backward()
    b.backward()
    assert seen
    torch.testing.assert_close(a, b)
    for p, q in zip(critic.parameters(), reference.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


@fast
@pytest.mark.parametrize("frozen", [[], ["2.weight"]])
def test_the_flop_are_those_of_the_products(frozen):
    critic, x = mlp(nn.ReLU(), nn.ReLU()), points()
    for name in frozen:
        critic.get_parameter(name).requires_grad_(False)

    def step():
        gpfast.gradient_penalty(critic, x, x.flip(0)).backward()

    as_run = cost.measure(step).flop
    before = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    try:
        apart = cost.measure(step).flop
    finally:
        torch.backends.mkldnn.set_flags(before, _fp32_precision=None)
    outer = 2 * len(x) * 8  # the last layer's adjoint, which alone is a product of numbers
    assert as_run == apart + outer


@fast
def test_explain_still_names_every_layer():
    critic = mlp(nn.ReLU(), nn.ReLU())
    text = str(gpfast.explain(critic, points()))
    assert text.count("linear") >= 3 and text.count("gate") >= 2


def test_where_calls_are_launches_layers_are_apart():
    """There is no CUDA kernel of a run, so that what is counted as on a GPU has none."""
    before = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    try:
        assert runs_of(mlp(nn.ReLU(), nn.ReLU()), points()) == 0
    finally:
        torch.backends.mkldnn.set_flags(before, _fp32_precision=None)
