"""What the tape returns behaves like any result of autograd: backward, accumulation, errors, memory."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from tape_critics import ENGINES, Critic, agrees, data, outcome, rules, same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gpfast

SECOND = "Trying to backward through the graph a second time"


def smooth(m, x):
    return m.last(torch.tanh(m.first(x)) * m.scale)


def piecewise(m, x):
    return m.last(torch.relu(m.first(x)) * m.scale)


@pytest.fixture(params=[smooth, piecewise], ids=["curved", "piecewise"])
def model(request):
    return Critic(request.param)


def penalty(engine, model, **options):
    real, fake = data()
    with rules(engine != "alone"):
        return gpfast.gradient_penalty(
            model, real, fake, alpha=0.4, engine="tape" if engine == "alone" else engine, **options
        )


def gradients(loss, model, **options):
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, **options)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=["tape", "alone", "autograd"])
def engine(request):
    return request.param


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice(engine, reduction, model):
    expected = gradients(penalty("reference", model, reduction=reduction).sum(), model)
    value = penalty(engine, model, reduction=reduction)
    for times in (1, 2, 3):
        with rules(engine != "alone"):
            value.sum().backward(retain_graph=True)
        close(
            [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()],
            [times * g for g in expected],
        )
    value.sum().backward()
    with pytest.raises(RuntimeError, match=SECOND):
        value.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_once_without_retain_graph(engine, reduction, model):
    value = penalty(engine, model, reduction=reduction)
    value.sum().backward()
    kept = [copy.deepcopy(p.grad) for p in model.parameters()]
    with pytest.raises(RuntimeError, match=SECOND):
        value.sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True) if g is not None)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_some_parameters(engine, reduction, model):
    expected = dict(zip(dict(model.named_parameters()), gradients(penalty("reference", model), model), strict=True))
    value = penalty(engine, model, reduction=reduction).mean()
    parameters = dict(model.named_parameters())
    for names in (["scale"], ["last.weight", "first.weight"], ["first.weight", "scale", "first.weight"]):
        found = torch.autograd.grad(value, [parameters[name] for name in names], retain_graph=True)
        close(list(found), [expected[name] for name in names])
    (found,) = torch.autograd.grad(value, [parameters["first.weight"]])
    close(found, expected["first.weight"])
    assert all(p.grad is None for p in parameters.values())
    with pytest.raises(RuntimeError, match=SECOND):
        torch.autograd.grad(value, [parameters["scale"]])


def test_backward_into_some_inputs_and_with_a_gradient_of_ones_own(engine, model):
    expected = dict(zip(dict(model.named_parameters()), gradients(penalty("reference", model), model), strict=True))
    penalty(engine, model).backward(torch.tensor(-2.5, dtype=torch.float64), inputs=[model.scale])
    close(model.scale.grad, -2.5 * expected["scale"])
    assert model.first.weight.grad is None and model.last.weight.grad is None


def test_what_takes_part_gets_a_tensor_and_the_rest_gets_none(model):
    """A parameter on the way whose gradient is zero for certain gets zeros; an unused or frozen one gets none."""
    model.unused = nn.Linear(2, 2)
    model.scale.requires_grad_(False)
    real, fake = data()
    gpfast.gradient_penalty(model, real, fake, engine="tape").backward()
    assert model.unused.weight.grad is None and model.scale.grad is None
    assert model.first.weight.grad.any() and model.last.weight.grad.any()
    assert model.last.bias.grad is not None and not model.last.bias.grad.any()
    assert torch.autograd.grad(penalty("tape", model), [model.unused.weight], allow_unused=True) == (None,)
    with pytest.raises(RuntimeError, match="to not have been used"):
        torch.autograd.grad(penalty("tape", model), [model.unused.weight])


@pytest.mark.parametrize("frozen", ["first.weight", "last.weight", "scale", "first.bias"])
def test_frozen_parameters(frozen, model):
    dict(model.named_parameters())[frozen].requires_grad_(False)
    agrees(model)
    agrees(model, reduction="none")


def test_gradients_are_added_to_what_is_there(engine, model):
    expected = gradients(penalty("reference", model), model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    held = [p.grad for p in model.parameters()]
    penalty(engine, model).backward()
    close([p.grad for p in model.parameters()], [1 + g for g in expected])
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True)), "added in place, as PyTorch does"


def test_a_term_of_a_loss_through_the_same_critic(engine, model):
    real, fake = data()

    def loss(engine):
        first = model(fake).mean() - model(real).mean()
        middle = 0.5 * penalty(engine, model) + penalty(engine, model, weight=3.0, center=0.0).sqrt()
        return first + middle + model(real).pow(2).mean() * 1e-3 + (2 * penalty(engine, model, reduction="none")).sum()

    close(gradients(loss(engine), model), gradients(loss("reference"), model))


def test_several_penalties_and_one_backward(engine, model):
    def total(engine):
        return sum(penalty(engine, model, weight=w) for w in (1.0, 2.0, 3.0))

    close(gradients(total(engine), model), gradients(total("reference"), model))


def test_gradients_of_the_data_of_alpha_and_of_the_weight(engine, model):
    results = []
    for name in ("reference", engine):
        real, fake = (x.requires_grad_() for x in data())
        alpha = torch.linspace(0.1, 0.9, 4, dtype=torch.float64).requires_grad_()
        weight = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
        leaves = [real, fake, alpha, weight, *model.parameters()]
        with rules(name != "alone"):
            value = gpfast.gradient_penalty(
                model, real, fake, alpha=alpha, weight=weight, engine="tape" if name == "alone" else name
            )
            results.append([value, *torch.autograd.grad(value, leaves, materialize_grads=True)])
        assert model.function is piecewise or all(g.any() for g in results[-1][1:5])
    close(results[1], results[0])


def test_the_generator_is_reached_through_the_fake_batch(engine, model):
    results = []
    for name in ("reference", engine):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            generator = nn.Sequential(nn.Linear(3, 6), nn.Tanh()).double()
        real, _ = data()
        z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
        with rules(name != "alone"):
            value = gpfast.gradient_penalty(
                model, real, generator(z), alpha=0.3, engine="tape" if name == "alone" else name
            )
            value.backward()
        results.append([p.grad for p in generator.parameters()])
    close(results[1], results[0])


def test_penalties_of_samples_with_weights_of_their_own(engine, model):
    """reduction="none": what arrives may differ each time; zero, negative and huge weights are weights."""
    arriving = [
        torch.tensor(w, dtype=torch.float64) for w in ([1.0, 2, 3, 4], [0.0, 0, 5, 0], [-1e6, 1, 0, 2], [0.0] * 4)
    ]
    theirs, ours = penalty("reference", model, reduction="none"), penalty(engine, model, reduction="none")
    assert ours.shape == (4,)
    for weights in arriving:
        for loss in (
            lambda value, w=weights: (w * value).sum(),
            lambda value, w=weights: (w * value).exp().mean().log(),
        ):
            if weights.abs().max() > 1e3 and loss(ours.detach()).isinf():
                continue
            close(gradients(loss(ours), model, retain_graph=True), gradients(loss(theirs), model, retain_graph=True))


def test_without_grad_mode_only_the_value(engine, model):
    expected = penalty("reference", model)
    with torch.no_grad():
        value = penalty(engine, model)
        values = penalty(engine, model, reduction="none")
    assert not value.requires_grad and value.grad_fn is None and not values.requires_grad
    close(value, expected.detach())
    assert not torch.is_grad_enabled() or value.is_leaf


def test_third_derivatives(model):
    leaves = [model.first.weight, model.scale]
    expected = torch.autograd.grad(penalty("reference", model), leaves, create_graph=True)
    exact = gradients(sum(g.pow(2).sum() for g in expected), model)
    for reduction in ("mean", "none"):
        found = torch.autograd.grad(penalty("tape", model, reduction=reduction).mean(), leaves, create_graph=True)
        close(list(found), list(expected))
        with pytest.raises(RuntimeError, match='engine="autograd"'):
            sum(g.pow(2).sum() for g in found).backward()
    found = torch.autograd.grad(penalty("autograd", model), leaves, create_graph=True)
    close(gradients(sum(g.pow(2).sum() for g in found), model), exact)


def test_steps_of_an_optimizer_end_where_the_eager_lines_end(engine, model):
    ends = []
    for name in ("reference", engine):
        m = copy.deepcopy(model)
        optimizer = torch.optim.Adam(m.parameters(), 1e-2, betas=(0.0, 0.9))
        for step in range(8):
            real, fake = data(seed=step)
            optimizer.zero_grad(set_to_none=bool(step % 2))
            loss = m(fake).mean() - m(real).mean() + penalty(name, m)
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in m.parameters()])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-9)


# The caller's graph.


def from_outputs(engine, outputs, x, **options):
    with rules(engine != "alone"):
        return gpfast.gradient_penalty_from(outputs, x, engine="tape" if engine == "alone" else engine, **options)


def test_a_graph_of_the_callers_is_never_released(engine, model):
    x = data()[0].requires_grad_()
    outputs = model(x)
    expected = gradients(from_outputs("reference", outputs, x), model, retain_graph=True)
    first = gradients(outputs.sum(), model, retain_graph=True)
    for reduction in ("mean", "none", "mean"):
        value = from_outputs(engine, outputs, x, reduction=reduction).mean()
        close(gradients(value, model, retain_graph=engine == "autograd"), expected)
    close(gradients(outputs.sum(), model), first)
    with pytest.raises(RuntimeError, match=SECOND):
        from_outputs(engine, outputs, x)


def test_the_outputs_and_their_penalty_in_one_backward(engine, model):
    results = []
    for name in ("reference", engine):
        m = copy.deepcopy(model)
        x = data()[0].requires_grad_()
        outputs = m(x)
        (outputs.exp().mean() + from_outputs(name, outputs, x)).backward()
        results.append([*(p.grad for p in m.parameters()), x.grad])
    close(results[1], results[0])


class Fails(torch.autograd.Function):
    """Its derivative, and the derivative of that, fail as often as told."""

    failures = 0

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.sin()

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return FailsLater.apply(grad * h.cos())


class FailsLater(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        if Fails.failures == 1:
            Fails.failures -= 1
            raise OSError("the first derivative")
        return h * 1

    @staticmethod
    def backward(ctx, grad):
        if Fails.failures == 2:
            Fails.failures = 0
            raise OSError("the second derivative")
        return grad * 1


@pytest.mark.parametrize("failures", [1, 2])
def test_an_exception_in_a_node_leaves_the_graph_usable(failures, engine):
    model = Critic(lambda m, x: m.last(torch.tanh(Fails.apply(m.first(x))) * m.scale))
    x = data()[0].requires_grad_()
    outputs = model(x)
    Fails.failures = 0
    expected = gradients(from_outputs("reference", outputs, x), model, retain_graph=True)
    for reduction in ("mean", "none"):
        Fails.failures = failures
        with pytest.raises(OSError, match="derivative"):
            gradients(from_outputs(engine, outputs, x, reduction=reduction).mean(), model, retain_graph=True)
        assert Fails.failures == 0
        value = from_outputs(engine, outputs, x, reduction=reduction).mean()
        close(gradients(value, model, retain_graph=True), expected)
    gradients(outputs.sum(), model)


def test_a_graph_that_was_released_in_part(model):
    x = data()[0].requires_grad_()
    h = torch.tanh(model.first(x))
    outputs = model.last(h * h)
    h.sum().backward()
    for engine in ("reference", *ENGINES):
        with pytest.raises(RuntimeError, match=SECOND):
            from_outputs(engine, outputs, x)


def test_a_point_in_the_middle_of_a_graph(engine, model):
    """`inputs` may be any tensor of the graph, also several, of which one leads to the other."""
    results = []
    for name in ("reference", engine):
        m, x = copy.deepcopy(model), data()[0].requires_grad_()
        h = m.first(x)
        k = torch.sin(h) * m.scale
        outputs = m.last(k * h)
        first = from_outputs(name, outputs, k)
        second = from_outputs(name, outputs, (h, k))
        (first + second).backward(retain_graph=True)
        results.append(
            [first, second, x.grad, *(p.grad for p in m.parameters() if p.grad is not None and p.grad.any())]
        )
    close(results[1], results[0])


OVERWRITTEN = {
    "curved": lambda: Critic(smooth),
    "piecewise": lambda: Critic(piecewise),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(8, 1)
    ),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.Linear(3, 4),
        nn.TransformerEncoderLayer(4, 2, 4, 0.0),
        nn.Flatten(),
        nn.Linear(8, 1),
    ),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
@pytest.mark.parametrize("engine", ["tape", "alone"])
def test_a_parameter_that_is_overwritten_before_backward_is_noticed(name, engine):
    """Where eager notices it, so does the tape; where eager does not, the gradient is eager's, or it is noticed too."""
    torch.manual_seed(0)
    model = OVERWRITTEN[name]().double()
    parameters = dict(model.named_parameters())
    noticed = 0
    for overwritten in parameters:
        results = []
        for which in ("autograd", engine):
            value = penalty(which, model, reduction="none").sum()
            before = parameters[overwritten].detach().clone()
            with torch.no_grad():
                parameters[overwritten].mul_(2)
            try:
                with rules(which != "alone"):
                    results.append(gradients(value, model))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
                results.append(None)
            with torch.no_grad():
                parameters[overwritten].copy_(before)
        noticed += results[0] is None
        if results[1] is not None:
            assert results[0] is not None, overwritten
            close(results[1], results[0])
    assert noticed


def test_data_that_is_refilled_before_backward_is_noticed(engine, model):
    for name in ("reference", engine):
        real = data()[0]
        with rules(name != "alone"):
            value = gpfast.r1(
                Critic(lambda m, x: m.last(torch.tanh(m.first(x * x)))),
                real,
                engine="tape" if name == "alone" else name,
                reduction="none",
            )
            real.zero_()
            with pytest.raises(RuntimeError, match="modified (by an )?inplace"):
                value.sum().backward()


# Memory.


def test_gradients_have_storages_of_their_own(engine):
    """Nothing that is handed over is a view of, or the same as, anything else (zeros of several vectors apart)."""

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.rand(6).double() + k) for k in range(3))
            self.w, self.v = (nn.Parameter(torch.rand(6, 6).double()) for _ in range(2))
            self.grouped = nn.Conv1d(6, 6, 1, groups=2)
            self.norm = nn.GroupNorm(2, 6)

        def forward(self, x):
            h = x + self.a + self.b
            h = h @ self.w + self.c + h @ self.v.t()
            h = torch.tanh(torch.cat([h[:, :3] * self.a[:3], h[:, 3:] + self.b[3:]], 1))
            return self.norm(self.grouped(h.unsqueeze(2))).pow(2).sum((1, 2)) + (self.c * h).sum(1)

    torch.manual_seed(0)
    model = Shares().double()
    real, fake = (x.requires_grad_() for x in data())
    for reduction, retain in itertools.product(("mean", "none"), (False, True)):
        for p in [*model.parameters(), real, fake]:
            p.grad = None
        with rules(engine != "alone"):
            name = "tape" if engine == "alone" else engine
            value = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=name, reduction=reduction).mean()
            value.backward(retain_graph=retain)
        leaves = [p for p in [*model.parameters(), real, fake] if p.grad is not None]
        storages = {p.grad.untyped_storage().data_ptr() for p in leaves}
        assert len(storages) == len(leaves) >= 9
        assert all(p.grad.untyped_storage().nbytes() == p.grad.numel() * 8 for p in leaves)
        if retain:
            once = [p.grad.clone() for p in leaves]
            for p in leaves:
                p.grad.fill_(float("nan"))
                p.grad = None
            value.backward()
            assert all(torch.equal(p.grad, g) for p, g in zip(leaves, once, strict=True))


def test_the_same_bits_twice(engine, model):
    values = [outcome(engine, model, *data(), {"reduction": r}) for r in ("mean", "mean", "none", "none")]
    for first, second in (values[:2], values[2:]):
        assert torch.equal(first.value, second.value)
        for name, g in first.gradients.items():
            assert (g is None) == (second.gradients[name] is None) and (
                g is None or torch.equal(g, second.gradients[name])
            )


LEAK = """
import os, sys, torch, gpfast
torch.manual_seed(0)
nn = torch.nn
m = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
real, fake = torch.randn(2, 3, 4)
def kept():
    x = real.requires_grad_()
    out = m(x)
    (gpfast.gradient_penalty_from(out, x, engine="tape") + out.mean()).backward()
    x.grad = None
kinds = {
    "tape": lambda: gpfast.gradient_penalty(m, real, fake, engine="tape").backward(),
    "samples": lambda: gpfast.gradient_penalty(m, real, fake, engine="tape", reduction="none").sum().backward(),
    "dropped": lambda: gpfast.gradient_penalty(m, real, fake, engine="tape", reduction="none"),
    "from": kept,
    "alone": lambda: gpfast.gradient_penalty(m, real, fake, engine="tape").backward(),
}
page = os.sysconf("SC_PAGE_SIZE")
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * page
for kind, call in kinds.items():
    torch.ops.gpfast.set_rules_enabled(kind != "alone")
    m.zero_grad()
    for i in range(2000):
        if i == 500:
            before = rss()
        call()
    print(kind, (rss() - before) / 1500)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thousands_of_calls_leak_nothing():
    """Under 1 KB a call over the last 1,500 of 2,000; each tensor of a call is bigger than that with its node."""
    run = subprocess.run([sys.executable, "-c", LEAK], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    slopes = {kind: float(slope) for kind, slope in (line.split() for line in run.stdout.splitlines())}
    assert len(slopes) == 5 and all(slope < 1024 for slope in slopes.values()), slopes


# Work.


class Counts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def deep(depth, block):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in block()]
    return nn.Sequential(*layers, nn.Linear(5, 1)).double()


@pytest.mark.parametrize(
    "block",
    [
        lambda: [nn.Linear(5, 5), nn.ReLU()],
        lambda: [nn.Linear(5, 5), nn.Tanh()],
        lambda: [nn.LayerNorm(5), nn.Softplus(), nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten()],
    ],
    ids=["piecewise", "curved", "norms"],
)
@pytest.mark.parametrize("engine", ["tape", "alone"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_work_for_each_node_is_constant_in_depth(engine, block, reduction):
    calls = []
    for depth in (10, 45, 80):
        model, (real, fake) = deep(depth, block), data(3, 5)
        with Counts() as counts, rules(engine == "tape"):
            gpfast.gradient_penalty(model, real, fake, engine="tape", reduction=reduction).sum().backward()
        calls.append(counts.calls)
    assert calls[2] - calls[1] == calls[1] - calls[0] > 35


@pytest.mark.parametrize("engine", ["tape", "alone"])
def test_a_graph_far_deeper_than_the_stack(engine):
    def forward(m, x):
        h = m.first(x)
        for _ in range(15_000):
            h = h * 1.0001
        return m.last(torch.tanh(h))

    agrees(forward, engines=[engine])


def test_engines_side_by_side(model):
    """One critic, each engine in turn, with their results alive together."""
    values = {engine: penalty(engine, model) for engine in ("reference", *ENGINES)}
    expected = gradients(values["reference"], model)
    for engine in reversed(ENGINES):
        close(values[engine], values["reference"])
        close(gradients(values[engine], model), expected)


def test_a_batched_backward_is_exact_or_refused(model):
    """Vectorised Jacobians call the backward once with a batch of gradients."""
    rows = torch.eye(4, dtype=torch.float64)
    value = penalty("reference", model, reduction="none")
    expected = torch.autograd.grad(value, [model.scale], rows, is_grads_batched=True)
    try:
        ours = torch.autograd.grad(penalty("tape", model, reduction="none"), [model.scale], rows, is_grads_batched=True)
    except RuntimeError as error:
        assert 'engine="autograd"' in str(error)
        return
    close(ours, expected)


def test_values_agree_with_the_reference_for_many_options(model):
    real, fake = data()
    for options in (
        {"norm_dims": "batch"},
        {"norm_dims": (0, 1)},
        {"mask": torch.rand(6, dtype=torch.float64)},
        {"one_sided": True, "center": 0.2},
        {"center": 0.0, "eps": 0.0},
        {"at": "dragan"},
        {"at": "fake"},
        {"reduction": "sum", "weight": 0.0},
        {"reduction": "sum", "weight": -3},
    ):
        expected = outcome("reference", model, real, fake, options)
        for engine in ENGINES:
            same(outcome(engine, model, real, fake, options), expected, engine)


def test_the_comparison_sees_a_difference():
    first, second = outcome("tape", Critic(smooth), *data(), {}), outcome("reference", Critic(piecewise), *data(), {})
    with pytest.raises(AssertionError):
        same(first, second, "tape")
