"""Runs of small dense layers: the operators against their plain formula, and when the tape takes them."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low, tape_gradients
from tape_critics import KeepsTensors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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
# In the order of ops/activation_launch.h, with parameters where there are some.
KINDS = "tanh sigmoid softplus elu elu_of_result silu gelu gelu_tanh mish hardswish exponential logarithm".split()
KINDS += "sqrt rsqrt reciprocal square cube tan atan erf".split()
PARAMETERS = {"softplus": (2.5, 1.0, 0.0), "elu": (0.7, 1.3, 1.1), "elu_of_result": (0.7, 1.3, 1.1)}
PARAMETERS |= {"exponential": (0.7, 1.0, 0.0), "logarithm": (1.3, 0.5, 0.0)}
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


def curve(kind):
    return [float(KINDS.index(kind)), *PARAMETERS.get(kind, (0.0, 0.0, 0.0))]


def smooth(rows, widths, kind, dtype, top=False, scaled=False):
    """Layers with a smooth activation between, its numbers, and numbers that any of them may have saved."""
    weights, saved, _, factors = layers(rows, widths, "relu", dtype, top=top, scaled=scaled)
    return weights, [], [], factors, [h.sigmoid() for h in saved], curve(kind) * len(saved)


def both(name, *arguments):
    """What the kernel and the plain formula return, each with what it has written to."""
    op = getattr(torch.ops.gpfast, name).default
    written = [i for i, argument in enumerate(op._schema.arguments) if argument.alias_info is not None]
    seen = []
    for call in (op, lambda *fresh: op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *fresh)):
        fresh = [tree_map(torch.clone, value) if i in written else value for i, value in enumerate(arguments)]
        seen.append((call(*fresh), [fresh[i] for i in written]))
    return seen


def rooms(rows, weights, like=None):
    """For what lies between layers: a value of each."""
    return torch.empty(rows * sum(w.shape[1] for w in weights), dtype=(weights[0] if like is None else like).dtype)


def close(ours, plain):
    assert ours.shape == plain.shape
    if ours.numel():
        scale = plain.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-30)
        tolerance = 64 * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours / scale, plain / scale, rtol=tolerance, atol=tolerance, equal_nan=True)


def all_close(ours, plain):
    for x, y in zip(tree_leaves(ours), tree_leaves(plain), strict=True):
        close(x, y)


def sweeps_agree(rows, weights, deciders, gates, factors, saved=(), curves=(), *, wanted=-1, through=True, b=True):
    """All three, whose results are returned. wanted: a bit a layer that has gradients. b: second adjoints come."""
    dtype, layered = weights[0].dtype, (weights, deciders, gates, list(saved), list(curves), factors)
    wanted &= (1 << len(weights)) - 1
    a = torch.randn(rows, weights[-1].shape[1], dtype=dtype)
    (adjoints, _), (plain, _) = both("dense_adjoint", a, *layered)
    all_close(adjoints, plain)
    _, held, bends = adjoints
    t = torch.randn(rows, weights[0].shape[0], dtype=dtype)
    (tangents, written), (plain, also) = both(
        "dense_tangent", *(t, held, rooms(rows, weights[:-1]), *layered, bends, wanted, through, None, [], 0)
    )
    all_close(tangents, plain)
    if through:  # of what is at the top there is no tangent otherwise
        all_close(written[1], also[1])
    _, gradients, _ = tangents
    for i, gradient in enumerate(gradients):
        assert gradient.numel() == (weights[i].numel() if wanted >> i & 1 else 0)
    bends = written[1]
    bent = [i for i, bend in enumerate(bends) if bend.numel()]
    if not b and not bent:
        return adjoints, tangents
    inputs = [torch.randn(rows, w.shape[0], dtype=dtype) if wanted >> i & 1 else w[:0] for i, w in enumerate(weights)]
    highest = len(weights) if b else max(bent)
    lowest = 0 if through else next((i for i in range(len(weights)) if wanted >> i & 1), len(weights))
    seconds = torch.randn(rows, weights[-1].shape[1], dtype=dtype) if b else None
    room = rooms(rows, weights[lowest:highest], weights[0])
    made, plain = both("dense_second", *(seconds, room, *layered, bends, inputs, gradients, wanted, through))
    all_close((made[0], made[1][1]), (plain[0], plain[1][1]))
    (input_, sums), _ = made
    assert (input_.numel() > 0) == through
    for i, sum_ in enumerate(sums):
        comes = wanted >> i & 1 and (i < highest or i in bent)
        assert sum_.numel() == (weights[i].shape[1] if comes else 0)
    return adjoints, tangents, made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_sweeps_are_those_of_the_plain_formula(gate, scaled, top, dtype):
    sweeps_agree(13, *layers(13, (5, 24, 17, 3), gate, dtype, top=top, scaled=scaled))


def test_layers_may_have_a_gate_or_a_factor_or_nothing_between():
    none = torch.empty(0, dtype=torch.float64)
    weights, deciders, gates, factors = layers(7, (5, 9, 8, 7, 2), "leaky relu", torch.float64, scaled=True)
    sweeps_agree(7, weights, [none, deciders[1]], gates[:10], [factors[0]])
    sweeps_agree(7, weights, [], [], [none, none, factors[2]])
    saved = [none, none, deciders[2].sigmoid()]
    sweeps_agree(7, weights, [none, deciders[1]], gates[:10], factors, saved, curve("silu") * 3)
    sweeps_agree(7, weights, [none, deciders[1]], gates[:10], factors, saved, curve("silu") * 3, b=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_smooth_activations_are_those_of_the_plain_formula(kind, scaled, top, dtype):
    for b in (False, True):
        sweeps_agree(13, *smooth(13, (5, 24, 17, 3), kind, dtype, top=top, scaled=scaled), b=b)


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("b", [False, True])
@pytest.mark.parametrize("wanted", [0, 0b0010, 0b1001, 0b1111])
@pytest.mark.parametrize("through", [False, True])
def test_second_adjoints_go_as_far_as_they_are_wanted(through, wanted, b, top):
    weights, _, _, factors, saved, curves = smooth(9, (5, 9, 8, 7, 2), "tanh", torch.float64, top=top, scaled=True)
    sweeps_agree(9, weights, [], [], factors, saved, curves, wanted=wanted, through=through, b=b)
    sweeps_agree(9, weights, [], [], factors[:1], saved[:1], curves[:4], wanted=wanted, through=through, b=b)
    sweeps_agree(9, weights, [], [], [], wanted=wanted, through=through, b=b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 30, 45, 64, 65])
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 16, 1), (64, 64, 64, 64, 1), (3, 33, 15, 2), (8, 4, 4, 4, 4, 4)])
def test_any_size(rows, widths, dtype):
    sweeps_agree(rows, *layers(rows, widths, "leaky relu", dtype))
    if rows > 1:  # of a single number that cancels, little is left in float32
        sweeps_agree(rows, *smooth(rows, widths, "silu", dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", ["columns", "rows", "gaps"])
def test_weights_lie_in_memory_as_they_like_and_gradients_as_they_do(storage, dtype):
    weights, deciders, gates, factors = layers(9, (7, 20, 18), "relu", dtype, storage)
    _, (_, gradients, _), _ = sweeps_agree(9, weights, deciders, gates, factors)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient.t().is_contiguous() if storage == "columns" else gradient.is_contiguous()
        assert gradient.shape == weight.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("rows", [1, 17, 300])
def test_gradients_in_proportion(rows, through, dtype):
    """Of the tangents plus ratio x, and sums of the adjoints times ratio; where they are asked for."""
    weights, deciders, gates, factors = layers(rows, (5, 9, 40, 3), "leaky relu", dtype, scaled=True)
    held = torch.randn(rows * 52, dtype=dtype)
    t, ratio = torch.randn(rows, 5, dtype=dtype), torch.randn(rows, dtype=dtype)
    inputs = [torch.randn(rows, 5, dtype=dtype), torch.empty(0, dtype=dtype), torch.randn(rows, 40, dtype=dtype)]
    room = rooms(rows, [*weights[:-1], weights[0].t()])
    layered = (weights, deciders, gates, [], [], factors)
    (found, _), (plain, _) = both("dense_tangent", *(t, held, room, *layered, [], 0b111, through, ratio, inputs, 0b110))
    all_close(found, plain)
    _, gradients, sums = found
    assert [len(s) for s in sums] == [0, 40, 3] and all(g.numel() for g in gradients)
    top = held[-rows * 3 :].view(rows, 3)
    close(sums[2], ratio @ top)
    lowest = held[: rows * 9].view(rows, 9)
    close(gradients[0], (t + ratio[:, None] * inputs[0]).t() @ lowest)


@pytest.mark.parametrize("wanted", [0, 0b001, 0b100, 0b101])
@pytest.mark.parametrize("through", [False, True])
def test_only_what_is_wanted(wanted, through):
    sweeps_agree(6, *layers(6, (5, 9, 8, 2), "relu", torch.float64), wanted=wanted, through=through)


def test_what_was_saved_may_have_rows_apart():
    weights, (decider,), gates, factors = layers(6, (4, 10, 2), "relu", torch.float64)
    wide = torch.randn(6, 25, dtype=torch.float64)
    wide[:, 3:13] = decider
    sweeps_agree(6, weights, [wide[:, 3:13]], gates, factors)
    for factors in ([], [wide[:, 5:15]]):
        sweeps_agree(6, weights, [], [], factors, [wide[:, 3:13]], curve("softplus"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("gate", GATES)
def test_what_is_not_finite_is_decided_as_alone(gate, bad):
    weights, deciders, gates, factors = layers(4, (3, 8, 1), gate, torch.float64)
    deciders[0][1, 2] = bad
    sweeps_agree(4, weights, deciders, gates, factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
def test_limits_are_exact_where_the_smallest_numbers_are_flushed(gate, dtype):
    """The numbers next to zero are compared as zero then."""
    weights, deciders, gates, factors = layers(4, (3, 20, 1), gate, dtype)
    deciders[0][:, ::2] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny / 4, gates[1]])[:, None]
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU flushes nothing")
    try:
        sweeps_agree(4, weights, deciders, gates, factors)
    finally:
        torch.set_flush_denormal(False)


def test_a_slope_of_zero_stops_nan():
    """As the gate alone does: what a dead unit would have got does not reach the samples."""
    weights, deciders, gates, factors = layers(4, (3, 8, 1), "relu", torch.float64)
    deciders[0][1, 2] = 0.0
    a = torch.ones(4, 1, dtype=torch.float64)
    weights[1][2] = float("nan")
    input_, held, _ = torch.ops.gpfast.dense_adjoint(a, weights, deciders, gates, [], [], factors)
    assert held.view(-1)[1 * 8 + 2] == 0
    assert input_[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [50, 700])  # of one block for each thread, and of several
@pytest.mark.parametrize("between", ["leaky relu", "gelu"])
def test_threads_do_not_change_a_bit(threads, between, rows, dtype):
    widths = (40, 64, 64, 3)
    made = layers(rows, widths, between, dtype) if between in GATES else smooth(rows, widths, between, dtype)
    seen = []
    for number in (1, 2, 3):
        threads(number)
        torch.manual_seed(1)
        seen.append(sweeps_agree(rows, *made))
    for others in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results(seen[0]), results(others), strict=True))


def results(seen):
    adjoints, tangents, (seconds, (_, gradients)) = seen
    return tree_leaves((adjoints, tangents, seconds, gradients))


def test_arguments_that_do_not_belong_together_are_refused():
    weights, deciders, gates, factors = layers(4, (3, 8, 8, 1), "relu", torch.float64)
    a, ops, none = torch.ones(4, 1, dtype=torch.float64), torch.ops.gpfast, torch.empty(0, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="1 deciders with 10 numbers, 0 smooth activations with 0"):
        ops.dense_adjoint(a, weights, deciders[:1], gates, [], [], factors)
    with pytest.raises(RuntimeError, match="0 deciders with 0 numbers, 2 smooth activations with 4"):
        ops.dense_adjoint(a, weights, [], [], deciders, curve("tanh"), [])
    with pytest.raises(RuntimeError, match=r"weight 2 is \[8, 8\]"):
        ops.dense_adjoint(a, [weights[0], weights[2], weights[1]], deciders, gates, [], [], factors)
    with pytest.raises(RuntimeError, match="3 weights and 4 factors"):
        ops.dense_adjoint(a, weights, deciders, gates, [], [], deciders * 2)
    with pytest.raises(RuntimeError, match="layer 0 has a smooth activation of kind 0 beside a gate"):
        ops.dense_adjoint(a, weights, deciders, gates, deciders, curve("tanh") * 2, [])
    with pytest.raises(RuntimeError, match="layer 0 has a smooth activation of kind 20"):
        ops.dense_adjoint(a, weights, [], [], deciders[:1], [20.0, 5.0, 0.0, 0.0], [])
    layered = (weights, deciders, gates, [], [], factors, [])
    t, held = torch.ones(4, 3, dtype=torch.float64), torch.ones(68, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="room for 16 elements of tangents, not 64"):
        ops.dense_tangent(t, held, rooms(1, weights[:-1]), *layered, 7, False, None, [], 0)
    with pytest.raises(RuntimeError, match="room for 0 elements of second adjoints, not 68"):
        ops.dense_second(a, none, *layered, [], [], 7, False)
    with pytest.raises(RuntimeError, match="no second adjoints, or 0 gradients for 0 inputs"):
        ops.dense_second(None, held, *layered, [], [], 7, False)
    with pytest.raises(RuntimeError, match="no second adjoints, or 0 gradients for 1 inputs"):
        ops.dense_second(a, held, *layered, [t], [], 7, False)


@fast
def test_values_of_other_sizes_are_refused():
    """The kernels would read or write beyond them."""
    weights, deciders, gates, factors = layers(4, (3, 8, 1), "relu", torch.float64)
    ops, ones = torch.ops.gpfast, partial(torch.ones, dtype=torch.float64)
    layered = (weights, deciders, gates, [], [], factors)
    with pytest.raises(RuntimeError, match=r"\[4, 5\] above \[8, 1\]"):
        ops.dense_adjoint(ones(4, 5), *layered)
    with pytest.raises(RuntimeError, match=r"\[4, 5\] above \[8, 1\]"):
        ops.dense_second(ones(4, 5), ones(36), *layered, [], [], [], 3, True)
    with pytest.raises(RuntimeError, match=r"a bend of \[4, 7\] for 4 rows of 8"):
        ops.dense_tangent(ones(4, 3), ones(36), ones(32), *layered, [ones(4, 7)], 3, True, None, [], 0)
    with pytest.raises(RuntimeError, match=r"\[5, 3\] with strides \[3, 1\] for 4 rows of 3"):
        ops.dense_second(ones(4, 1), ones(36), *layered, [], [ones(5, 3)], [ones(3, 8)], 3, True)
    for gradient in (ones(3, 7), ones(8, 3).t() if weights[0].is_contiguous() else ones(3, 8)):
        with pytest.raises(RuntimeError, match=rf"a gradient of \[3, {gradient.shape[1]}\] with strides"):
            ops.dense_second(ones(4, 1), ones(36), *layered, [], [ones(4, 3)], [gradient], 3, True)
    for columns, held in [(2, 36), (3, 35)]:
        with pytest.raises(RuntimeError, match=rf"\[4, {columns}\] below \[3, 8\], with \[{held}\] adjoints"):
            ops.dense_tangent(ones(4, columns), ones(held), ones(32), *layered, [], 3, True, None, [], 0)


# When the tape takes them.


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function).removesuffix(".default")] += 1
        return function(*args, **(kwargs or {}))


def calls(critic, x, **options):
    """Of a penalty's operators, those of runs: a run has one call of each, the last where second adjoints come."""
    with Operators() as operators:
        gpfast.gradient_penalty(critic, x, x.flip(0), engine="tape", **options).backward()
    return tuple(operators.seen[f"gpfast.dense_{sweep}"] for sweep in ("adjoint", "tangent", "second"))


def runs_of(critic, x, **options):
    adjoints, tangents, _ = calls(critic, x, **options)
    assert adjoints == tangents
    return adjoints


def mlp(*between, width=8, inputs=4, bias=True):
    """Linear, activation, linear, activation, ..., linear to a score."""
    modules, last = [], inputs
    for activation in between:
        modules += [nn.Linear(last, width, bias=bias), activation]
        last = width
    return nn.Sequential(*modules, nn.Linear(last, 1, bias=bias)).double()


def points(rows=17, columns=4):
    return torch.randn(rows, columns, dtype=torch.float64)


class Fifth(nn.Module):
    """A smooth activation that runs have none of: no compiler vectorises powers."""

    def forward(self, x):
        return x**5


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


SMOOTH = {
    "two": lambda: mlp(nn.Tanh(), nn.Softplus()),
    "first": lambda: mlp(nn.Tanh(), nn.ReLU(), nn.ReLU()),
    "last": lambda: mlp(nn.ReLU(), nn.ReLU(), nn.SiLU()),
    "in the middle": lambda: mlp(nn.LeakyReLU(0.2), nn.ELU(0.7), nn.ReLU()),
    "in place": lambda: mlp(nn.ELU(inplace=True), nn.Tanh(), nn.Mish(inplace=True)),
    "without bias": lambda: mlp(nn.GELU(), nn.GELU("tanh"), bias=False),
    "dropout above": lambda: mlp(nn.Sequential(nn.SiLU(), nn.Dropout(0.4)), nn.Sequential(nn.Tanh(), nn.Dropout(0.1))),
    "on top": lambda: nn.Sequential(mlp(nn.Tanh(), nn.ReLU()), nn.Sigmoid()),
    "alone on top": lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.Softplus()),
    "below": lambda: nn.Sequential(nn.Tanh(), mlp(nn.Tanh())),
    "what bends above": lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), Fifth()),
    "what bends above and between": lambda: nn.Sequential(mlp(nn.ELU(), nn.ReLU(), width=5), Fifth()),
    "nothing between": lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)),
    "wide result": lambda: nn.Sequential(nn.Linear(4, 9), nn.SiLU(), nn.Linear(9, 5)),
    "odd widths": lambda: nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 33), nn.ELU(), nn.Linear(33, 17)),
}


@fast
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_critics_are_one_run_of_three_calls(name):
    critic = SMOOTH[name]().double()
    agree(critic, points(), critic.parameters(), rule="linear")
    assert calls(critic, points()) == (1, 1, 1)


@fast
def test_a_smooth_critic_has_fewer_launches_as_a_run():
    critic, launches = mlp(nn.Tanh(), nn.Tanh()), []
    for rows in (17, 15):  # of fewer samples than runs have
        x = points(rows)
        step = partial(gpfast.gradient_penalty, critic, x, x.flip(0), engine="tape")
        launches.append(cost.measure(lambda step=step: step().backward()).launches)
    assert launches[0] <= launches[1] - 16


SAVED = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda h: F.softplus(h, beta=2.5, threshold=1.0),
    "logsigmoid": F.logsigmoid,
    "elu": lambda h: F.elu(h, 0.7),
    "elu_": lambda h: F.elu_(h * 1, 0.7),
    "selu": F.selu,
    "celu": lambda h: F.celu(h, 0.7),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda h: F.gelu(h, approximate="tanh"),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda h: torch.log(h.abs() + 1),
    "sqrt": lambda h: torch.sqrt(h.abs() + 1),
    "rsqrt": lambda h: torch.rsqrt(h.abs() + 1),
    "reciprocal": lambda h: torch.reciprocal(h.abs() + 1),
    "square": torch.square,
    "pow 3": lambda h: h**3,
    "tan": lambda h: torch.tan(h / 4),
    "atan": torch.atan,
    "erf": torch.erf,
}
DIRECT = [name for name in SAVED if name not in ("elu_", "log", "sqrt", "rsqrt", "reciprocal", "tan")]


class Between(nn.Module):
    def __init__(self, activation, columns=8):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(4, columns), nn.Linear(columns, columns), nn.Linear(columns, 1)]
        ).double()
        self.activation = activation

    def forward(self, x):
        first, second, last = self.layers
        return last(self.activation(second(self.activation(first(x)))))


@fast
@pytest.mark.parametrize("between", [nn.ReLU, nn.SiLU])
def test_many_samples_are_swept_in_blocks(between):
    critic = mlp(between(), between())
    agree(critic, points(700), critic.parameters(), rule="linear")
    assert runs_of(critic, points(700)) == 1


@fast
@pytest.mark.parametrize("between, rows", [(nn.Tanh, 1000), (nn.SiLU, 1000), (nn.ReLU, 1000)])
def test_a_run_of_many_samples_holds_less_than_the_eager_lines(between, rows):
    critic, x = mlp(between(), between(), between(), between(), width=64), points(rows)

    def step(engine):
        critic.zero_grad(set_to_none=True)
        gpfast.gradient_penalty(critic, x, x.flip(0), engine=engine).backward()

    peaks = {}
    for engine in ("tape", "reference"):
        step(engine)
        critic.zero_grad(set_to_none=True)
        peaks[engine] = cost.measure(lambda e=engine: step(e), existing=(critic, x)).peak_bytes
    assert peaks["tape"] < peaks["reference"], peaks


@fast
@pytest.mark.parametrize("name", SAVED)
def test_every_smooth_activation(name):
    critic = Between(SAVED[name])
    agree(critic, points(), critic.parameters(), rule="activation")
    if name in DIRECT:
        assert calls(critic, points()) == (1, 1, 1)


@fast
@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("rows", [19, 200])
def test_low_precision(name, rows):
    torch.manual_seed(1)
    critic = Between(SAVED[name], columns=40)

    def make(dtype):
        function = copy.deepcopy(critic).to(torch.float32).to(dtype)
        return function, list(function.parameters())

    agree_low(make, points(rows), torch.float32)


@fast
@pytest.mark.parametrize("rows", [16, 33, 300])
@pytest.mark.parametrize("above", [nn.Sigmoid, Fifth])
def test_below_scores_that_bend_alone(above, rows):
    """Their second adjoints are in proportion to the adjoints: two calls."""
    critic = nn.Sequential(mlp(nn.ReLU(), nn.ReLU()), above())
    agree(critic, points(rows), critic.parameters(), rule="linear")
    with Operators() as operators:
        gpfast.gradient_penalty(critic, points(rows), points(rows)).backward()
    assert operators.seen["gpfast.dense_tangent"] == 1 and not operators.seen["gpfast.dense_second"]


@fast
def test_below_scores_that_bend_alone_with_rows_of_their_own():
    body = mlp(nn.ReLU(), nn.LeakyReLU(0.1))
    body[0].bias.requires_grad_(False)
    body[2].weight.requires_grad_(False)

    def critic(x):
        return body(x.flatten(0, 1)).view(6, 5).mean(1).sigmoid()

    x = torch.randn(6, 5, 4, dtype=torch.float64)
    agree(critic, x, body.parameters(), rule="linear")
    assert runs_of(critic, x) == 1


@fast
@pytest.mark.parametrize("above", [(), (nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 18), nn.ELU(), nn.Linear(18, 1))])
def test_below_scores_that_bend_alone_sweeps_run_again(above):
    """Also where what bends is a run itself."""
    critic = nn.Sequential(mlp(nn.ReLU(), nn.ReLU()), nn.Tanh(), *above).double()
    x, alpha = points(40), torch.rand(40, dtype=torch.float64)
    assert runs_of(critic, x) == (2 if above else 1)

    def gradients(engine, times):
        critic.zero_grad()
        value = gpfast.gradient_penalty(critic, x, x.flip(0), alpha=alpha, reduction="none", engine=engine)
        for _ in range(times):
            value.square().sum().backward(retain_graph=True)
        return [torch.zeros_like(p) if p.grad is None else p.grad / times for p in critic.parameters()]

    expected = gradients("reference", 1)
    for times in (1, 2):
        for one, right in zip(gradients("tape", times), expected, strict=True):
            torch.testing.assert_close(one, right)


@fast
def test_below_scores_that_bend_alone_runs_round_no_more():
    def make(dtype):
        torch.manual_seed(5)
        critic = nn.Sequential(mlp(nn.ReLU(), nn.ReLU()), nn.Sigmoid()).to(dtype)
        return critic, list(critic.parameters())

    agree_low(make, points(200), torch.float32)


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.by = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.by


NOT_TAKEN = {
    "one layer": lambda: nn.Linear(4, 1).double(),
    "powers": lambda: mlp(Fifth(), Fifth()),
    "prelu": lambda: mlp(nn.PReLU()),
    "two activations between": lambda: mlp(nn.Sequential(nn.ReLU(), nn.Hardtanh(-2, 2))),
    "two smooth ones between": lambda: mlp(nn.Sequential(nn.Tanh(), nn.Softplus())),
    "smooth and gate between": lambda: mlp(nn.Sequential(nn.Tanh(), nn.ReLU())),
    "gate and smooth between": lambda: mlp(nn.Sequential(nn.ReLU(), nn.Tanh())),
    "dropout below what is smooth": lambda: mlp(nn.Sequential(nn.Dropout(0.5), nn.Tanh())),
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
    x = points(rows, 4 if name == "three dimensions" else columns)
    assert runs_of(critic, x) == 0
    if name not in ("large", "many rows"):
        agree(critic, x, critic.parameters())


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
    def __init__(self, reads, activation):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.reads, self.activation = reads, getattr(torch, activation)
        self.double()

    def forward(self, x):
        before = self.first(x)
        h = self.activation(before)
        y = self.last(self.activation(self.second(h)))
        return y + {"result": h, "product": before, "point": x}[self.reads].sum(1, keepdim=True)


@fast
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("reads", ["result", "product", "point"])
def test_a_value_that_somebody_else_reads_ends_a_run(reads, activation):
    critic = Branching(reads, activation)
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


@fast
@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.SiLU])
@pytest.mark.parametrize(
    "frozen",
    [
        ["0.weight"],
        ["2.weight"],
        ["4.weight"],
        ["0.weight", "2.weight", "0.bias"],
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["0.bias", "2.bias"],
        ["4.weight", "4.bias"],
    ],
)
def test_frozen_weights(frozen, activation):
    critic = mlp(activation(), activation())
    for name in frozen:
        critic.get_parameter(name).requires_grad_(False)
    agree(critic, points(), critic.parameters(), rule="linear")
    runs_of(critic, points())
    assert all((p.grad is not None) == p.requires_grad for p in critic.parameters())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus])
def test_everything_is_frozen(activation):
    critic = mlp(activation(), activation()).requires_grad_(False)
    agree(critic, points(), rule="linear")


class Addmm(nn.Module):
    """What is added has these sizes, and the factors alpha and beta."""

    def __init__(self, *sizes, alpha=1, beta=1):
        super().__init__()
        self.weight, self.score = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 1))
        self.added = nn.Parameter(torch.randn(sizes))
        self.factors = {"alpha": alpha, "beta": beta}
        self.double()

    def forward(self, x):
        return torch.addmm(self.added, x, self.weight, **self.factors).tanh() @ self.score


@fast
@pytest.mark.parametrize("sizes", [(6,), (1, 6), (1,), (1, 1), ()], ids=str)
@pytest.mark.parametrize("beta", [1, -2])
def test_what_is_added_to_every_row(sizes, beta):
    critic = Addmm(*sizes, beta=beta)
    agree(critic, points(), critic.parameters(), rule="linear")
    assert calls(critic, points()) == (1, 1, 1)


@pytest.mark.parametrize("options", [{"sizes": (17, 6)}, {"sizes": (17, 1)}, {"alpha": 2}], ids=str)
def test_what_is_added_to_rows_that_differ_and_scaled_products_are_no_run(options):
    critic = Addmm(*options.get("sizes", (6,)), alpha=options.get("alpha", 1))
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 0


@fast
@pytest.mark.parametrize("lies", ["rows apart", "columns"])
def test_samples_that_lie_otherwise_in_memory(lies):
    critic = mlp(nn.Tanh(), nn.ReLU())
    x = points(17, 9)[:, 2:6] if lies == "rows apart" else points(4, 17).t()
    agree(critic, x, critic.parameters(), rule="linear")


def energy_loss(y, g):
    """Nothing of the gradient: there are second adjoints without tangents."""
    return y.tanh().sum() + 0 * g.detach().sum()


@fast
@pytest.mark.parametrize("between", [nn.GELU, nn.ELU])
def test_second_adjoints_without_tangents(between):
    critic, x = mlp(between(), between()), points()
    parameters = list(critic.parameters())
    with Operators() as operators:
        _, ours, _ = tape_gradients(critic, x, parameters, energy_loss)
    assert operators.seen["gpfast.dense_second"] == 1 and not operators.seen["gpfast.dense_tangent"]
    expected = torch.autograd.grad(critic(x).tanh().sum(), parameters)
    for one, right in zip(ours, expected, strict=False):
        torch.testing.assert_close(one, right)


class Keeps(nn.Module):
    """A custom Function below layers, whose derivative reads a value between them."""

    def __init__(self, reads):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)]).double()
        self.reads = reads

    def forward(self, x):
        first, second, third, last = self.layers
        holder = []
        product = second(KeepsTensors.apply(first(x), holder))
        result = product.tanh()
        holder.append({"product": product, "result": result}[self.reads])
        return last(third(result).tanh())


@pytest.mark.parametrize("reads", ["product", "result"])
def test_what_a_function_below_reads_of_the_layers_has_its_second_adjoint(reads):
    critic, x = Keeps(reads), points()
    whole = copy.deepcopy(critic)
    for module, engine in ((critic, "tape"), (whole, "reference")):
        gpfast.gradient_penalty(module, x, x.flip(0), alpha=0.3, engine=engine).backward()
    for p, q in zip(critic.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, torch.zeros_like(p) if q.grad is None else q.grad)


class Shared(nn.Module):
    """One weight in three layers, as it is, transposed, and through an expression."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.weight, self.score = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 1))
        self.double()

    def forward(self, x):
        x = self.activation(x @ self.weight)
        x = self.activation(x @ self.weight.t())
        return self.activation(x @ (self.weight / self.weight.norm())) @ self.score


@fast
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_weights_that_are_shared_or_computed(activation):
    critic = Shared(activation)
    agree(critic, points(), critic.parameters(), rule="linear")
    assert runs_of(critic, points()) == 1


@fast
def test_a_layer_that_is_used_again():
    inner = nn.Linear(8, 8)
    critic = nn.Sequential(
        nn.Linear(4, 8), nn.SiLU(), inner, nn.ReLU(), inner, nn.Tanh(), inner, nn.Linear(8, 1)
    ).double()
    agree(critic, points(), critic.parameters(), rule="linear")
    assert calls(critic, points()) == (1, 1, 1)


@fast
@pytest.mark.parametrize("between", [nn.ReLU, nn.SiLU])
def test_gradients_may_be_asked_for_twice(between):
    critic, x = mlp(between(), between()), points()
    parameters = list(critic.parameters())

    def losses(engine):
        return gpfast.gradient_penalty(critic, x, x.flip(0), alpha=0.3, reduction="none", engine=engine).pow(2).sum()

    with Operators() as operators:
        value = losses("tape")
        first = torch.autograd.grad(value, parameters, retain_graph=True)
        again = torch.autograd.grad(value, parameters)
    assert operators.seen["gpfast.dense_adjoint"] == 1 and operators.seen["gpfast.dense_tangent"] == 2
    assert operators.seen["gpfast.dense_second"] == (2 if between is nn.SiLU else 0)
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
@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("frozen", [[], ["2.weight"], ["0.weight"], ["0.weight", "0.bias"]], ids=str)
def test_the_flop_are_those_of_the_products(frozen, between):
    critic, x = mlp(between(), between()), points()
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
