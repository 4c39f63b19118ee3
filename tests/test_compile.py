"""torch.compile around a penalty, and around the critic that it is taken of."""

import copy
import threading
import warnings

import pytest
import torch
from tape_critics import Critic, data
from torch import nn
from torch.utils.checkpoint import checkpoint

import gpfast
from gpfast import reference, running
from gpfast.penalty import ENGINES

# The compiler's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor that is not a leaf"
)


def smooth():
    return Critic(lambda m, x: m.last(torch.tanh(m.first(x)) * m.scale))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True)


held = gpfast.GradientPenalty()
CALLS = {
    "gradient_penalty": lambda m, real, fake: gpfast.gradient_penalty(m, real, fake, alpha=0.5),
    "stats": lambda m, real, fake: gpfast.gradient_penalty(m, real, fake, alpha=0.5, return_stats=True)[0],
    "GradientPenalty": lambda m, real, fake: held(m, real, fake, alpha=0.5),
    "r1": lambda m, real, fake: gpfast.r1(m, real),
    "wgan_lp": lambda m, real, fake: gpfast.wgan_lp(m, real, fake, alpha=0.5),
    "input_gradient_loss": lambda m, real, fake: gpfast.input_gradient_loss(
        m, real, lambda y, g: (y * y).sum() + (g * g).sum()
    ),
}


@pytest.mark.parametrize(("call", "backend"), [*((call, "eager") for call in CALLS), ("gradient_penalty", "aot_eager")])
def test_a_compiled_step_has_one_graph_break(call, backend):
    m, (real, fake) = smooth(), data()

    def step(real, fake):
        loss = torch.tanh(m(fake).mean() - m(real).mean())
        return torch.cosh(loss + CALLS[call](m, real, fake))

    expected = step(real, fake)
    compiled = torch.compile(step, backend=backend)
    for _ in range(3):
        loss = compiled(real, fake)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients(loss, m), gradients(step(real, fake), m), rtol=1e-10, atol=1e-12)
    seen = torch._dynamo.explain(step)(real, fake)
    assert seen.graph_break_count == 1 and seen.graph_count == 2, seen.break_reasons


def test_a_step_that_must_be_one_graph_is_refused_in_words():
    m, (real, fake) = smooth(), data()
    step = torch.compile(lambda: gpfast.gradient_penalty(m, real, fake), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="gpfast takes gradients inside"):
        step()


def test_nothing_inside_is_compiled(monkeypatch):
    """The critic runs as it is, however often shapes change."""
    m, traced = smooth(), []

    def backend(graph, examples):
        traced.append(graph)
        return graph

    step = torch.compile(lambda real, fake: gpfast.gradient_penalty(m, real, fake).sin(), backend=backend)
    for size in range(2, 14):
        real, fake = data(size, 6)
        step(real, fake).backward()
    assert 1 <= len(traced) <= 3  # the sine alone
    assert all("linear" not in str(graph.code) for graph in traced)


def compiled_module():
    m = smooth()
    return m, torch.compile(m, backend="aot_eager")


def compiled_in_place():
    m = smooth()
    m.compile(backend="aot_eager")
    return m, m


def compiled_part():
    m = smooth()
    m.function = lambda m, x: m.last(m.part(m.first(x)))
    m.part = torch.compile(nn.Sequential(nn.Tanh(), nn.Linear(5, 5)).double(), backend="aot_eager")
    return m, m


def compiled_function():
    m = smooth()
    return m, torch.compile(lambda x: m(x), backend="aot_eager")


def behind_a_lambda():
    m = smooth()
    compiled = torch.compile(m, backend="aot_eager")
    return m, lambda x: compiled(x)


def within_a_module():
    m = smooth()
    return m, nn.Sequential(torch.compile(m, backend="aot_eager"), nn.Tanh())


MAKERS = (compiled_module, compiled_in_place, compiled_part, compiled_function, behind_a_lambda, within_a_module)


@pytest.mark.parametrize(
    ("make", "engine"),
    [*((make, "tape") for make in MAKERS), (compiled_module, "autograd"), (compiled_module, "reference")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_compiled_critic_is_run_uncompiled_and_that_is_said_once(make, engine):
    m, critic = make()
    real, fake = data()
    with torch.compiler.set_stance("force_eager"):
        value = reference.gradient_penalty(critic, real, fake, alpha=0.5)
        expected = gradients(value, m)
    with pytest.warns(UserWarning, match="it is run uncompiled") as said:
        for _ in range(2):
            penalty = gpfast.gradient_penalty(critic, real, fake, alpha=0.5, engine=engine)
            torch.testing.assert_close(penalty, value, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradients(penalty, m), expected, rtol=1e-10, atol=1e-12)
    assert len([w for w in said if "uncompiled" in str(w.message)]) == 1
    counted = torch._dynamo.utils.counters
    before = counted["stats"]["calls_captured"]
    assert critic(fake).requires_grad
    assert counted["stats"]["calls_captured"] > before, "elsewhere it stays compiled"


@pytest.mark.filterwarnings("ignore:the critic, or a part")
def test_a_compiled_critic_within_a_compiled_step():
    m, critic = compiled_module()
    real, fake = data()
    step = torch.compile(lambda: critic(fake).mean() + gpfast.gradient_penalty(critic, real, fake), backend="eager")
    torch.manual_seed(1)
    loss = step()
    torch.manual_seed(1)
    expected = m(fake).mean() + gpfast.gradient_penalty(m, real, fake)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(loss, m), gradients(expected, m), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:the critic, or a part")
def test_the_stance_is_restored():
    _, critic = compiled_module()
    stance = torch._dynamo.eval_frame._stance.stance
    gpfast.gradient_penalty(critic, *data())
    assert torch._dynamo.eval_frame._stance.stance == stance
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gpfast.gradient_penalty(critic, *data(4, 7))
    assert torch._dynamo.eval_frame._stance.stance == stance


@pytest.mark.parametrize("engine", ENGINES)
def test_attention_is_computed_by_kernels_that_have_a_second_derivative(engine):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.project = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x):
            q = self.inside(x).unflatten(2, (2, 4)).transpose(1, 2)
            return self.project(nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)).sum(1)

    def oracle(m, real, fake):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value = reference.gradient_penalty(m, real, fake, alpha=0.3)
            return value, gradients(value, m)

    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    critics = [
        Attends(),
        nn.Sequential(nn.Linear(3, 8), encoder, nn.Flatten(), nn.Linear(40, 1)),
        nn.Sequential(nn.Linear(3, 8), copy.deepcopy(encoder).eval(), nn.Flatten(), nn.Linear(40, 1)),
        Critic(lambda m, x: m.last(m.attend(*[m.map(x)] * 3, need_weights=False)[0].mean(1)[:, :5]), **{
            "map": nn.Linear(3, 8), "attend": nn.MultiheadAttention(8, 2, batch_first=True)
        }),
        Critic(lambda m, x: m.last(m.attend(*[m.map(x)] * 3)[0].mean(1)[:, :5]), **{
            "map": nn.Linear(3, 8), "attend": nn.MultiheadAttention(8, 2, batch_first=True)
        }),
    ]  # fmt: skip
    real, fake = data(4, 5, 3)
    for critic in critics:
        critic.double()
        value, expected = oracle(critic, real, fake)
        ours = gpfast.gradient_penalty(critic, real, fake, alpha=0.3, engine=engine)
        torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients(ours, critic), expected, rtol=1e-10, atol=1e-12)


def switches():
    return [is_on() for is_on, _, _ in running._elsewhere.wanted]


def test_switches_are_turned_back():
    """After a call, after an error, after calls within calls and beside one another; and whatever they were."""
    real, fake = data()
    inside = []

    def critic(x):
        inside.append(switches())
        return torch.tanh(x).sum(1)

    def nests(x):
        gpfast.gradient_penalty(critic, real, fake)
        inside.append(switches())
        return torch.tanh(x).sum(1)

    def fails(x):
        raise KeyError("inside")

    for before in ([True, True], [True, False], [False, True]):
        with torch.nn.attention.sdpa_kernel([]):
            for (_, turn, _), value in zip(running._on_cpu.wanted, before, strict=True):
                turn(value)
            gpfast.gradient_penalty(nests, real, fake)
            with pytest.raises(KeyError):
                gpfast.gradient_penalty(fails, real, fake)
            assert switches()[:2] == before
    assert all(state[:2] == [True, False] for state in inside) and len(inside) == 6
    ready, before = threading.Barrier(2), switches()

    def waits(x):
        ready.wait(10)
        return torch.tanh(x).sum(1)

    threads = [threading.Thread(target=gpfast.gradient_penalty, args=(waits, real, fake)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert switches() == before and not running._on_cpu.inside


def test_cudnn_is_off_for_recurrent_layers_only():
    """On CUDA; asked of a stand-in for a tensor there."""

    class OnCuda:
        is_cpu, is_cuda = False, True

    for layer, off in ((nn.LSTM(3, 3), True), (nn.Sequential(nn.GRU(3, 3)), True), (nn.Conv1d(3, 3, 1), False)):
        before = torch.backends.cudnn.enabled
        with running.twice_differentiable(layer, OnCuda):
            assert torch.backends.cudnn.enabled == (before and not off)
            assert switches() == [True, False, False, False]
        assert torch.backends.cudnn.enabled == before


class Seen(nn.Module):
    def forward(self, x):
        self.onednn = torch.backends.mkldnn.enabled
        return x


class SeenLSTM(nn.LSTM):
    def forward(self, x):
        self.onednn = torch.backends.mkldnn.enabled
        if x.isnan().any():
            raise ValueError("not a number")
        return super().forward(x)[0]


@pytest.mark.parametrize("by_tape", [True, False])
def test_onednn_is_off_in_an_lstm_alone(by_tape):
    before = torch.backends.mkldnn.enabled
    other, lstm = Seen(), SeenLSTM(3, 3)
    critic, x = nn.Sequential(other, nn.Sequential(lstm)), torch.zeros(2, 4, 3)
    with running.twice_differentiable(critic, x, by_tape=by_tape):
        critic(x)
        assert other.onednn == before and lstm.onednn == (before and not by_tape)
        checkpoint(critic, x, use_reentrant=False)
        assert lstm.onednn == before
        with pytest.raises(ValueError, match="not a number"):
            critic(x * torch.nan)
        assert torch.backends.mkldnn.enabled == before
    assert not lstm._forward_hooks and not lstm._forward_pre_hooks


def test_no_warning_of_a_critic_that_is_not_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpfast.gradient_penalty(torch.compiler.disable(smooth().forward), *data())
