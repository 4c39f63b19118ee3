"""What PyTorch wraps around modules: checkpoints, scripts, normalised weights, replicas, hooks on what is saved."""

import contextlib
import copy

import pytest
import torch
from tape_critics import ENGINES, Critic, agrees, data, outcome, refuses, same
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import GraphExecGroup, checkpoint, checkpoint_sequential

import gpfast
from gpfast import reference


def layers(width=5, depth=4):
    parts = [(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*(layer for pair in parts for layer in pair))


def with_layers(forward):
    return Critic(forward, layers=layers())


def one_checkpoint(m, x):
    return m.last(checkpoint(m.layers, m.first(x), use_reentrant=False))


def checkpoints_in_a_row(m, x):
    return m.last(checkpoint_sequential(m.layers, 3, m.first(x), use_reentrant=False))


def nested_checkpoints(m, x):
    def outer(h):
        h = torch.sin(checkpoint(m.layers, h, use_reentrant=False)) * m.scale
        return checkpoint(m.layers, h, use_reentrant=False)

    return m.last(checkpoint(outer, m.first(x), use_reentrant=False))


def the_whole_critic_in_a_checkpoint(m, x):
    return checkpoint(lambda x: m.last(m.layers(m.first(x))), x, use_reentrant=False)


def a_checkpoint_with_dropout(m, x):
    return m.last(checkpoint(lambda h: F.dropout(torch.tanh(m.layers(h)), 0.3), m.first(x), use_reentrant=False))


def a_checkpoint_that_stops_late(m, x):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return m.last(checkpoint(m.layers, m.first(x), use_reentrant=False) ** 2)


def a_checkpoint_used_twice(m, x):
    h = checkpoint(m.layers, m.first(x), use_reentrant=False)
    return m.last(h * torch.sigmoid(h)) + h.pow(2).sum(1, keepdim=True)


def a_checkpoint_around_what_has_no_rule(m, x):
    def alone(h):  # the first is read for a rule that there is not; all are read twice
        h = F.conv1d(h[None], torch.tanh(h)[:, None, :2], groups=len(h))[0]
        return torch.sinc(torch.cumprod(torch.sin(h), 1)) * h

    return m.last(F.pad(checkpoint(alone, m.layers(m.first(x)), use_reentrant=False), (0, 1)))


def selective_checkpointing(m, x):
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    keep = lambda: create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])  # noqa: E731
    return m.last(checkpoint(m.layers, m.first(x), use_reentrant=False, context_fn=keep))


@pytest.mark.parametrize(
    "forward",
    [
        one_checkpoint,
        checkpoints_in_a_row,
        nested_checkpoints,
        the_whole_critic_in_a_checkpoint,
        a_checkpoint_with_dropout,
        a_checkpoint_that_stops_late,
        a_checkpoint_used_twice,
        a_checkpoint_around_what_has_no_rule,
    ],
    ids=lambda f: f.__name__,
)
def test_exact_with(forward):
    agrees(with_layers(forward))
    agrees(with_layers(forward), at="real", reduction="none")


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_checkpoint_is_recomputed_once(reduction, group):
    """Not for each tensor that is read of it, which would keep all others as well."""
    calls = []

    def counted(m, x):
        def inside(h):
            calls.append(len(h))
            return m.layers(h)

        return m.last(checkpoint(inside, m.first(x), use_reentrant=False))

    m = with_layers(counted).double()
    with GraphExecGroup() if group else contextlib.nullcontext():
        gpfast.gradient_penalty(m, *data(), engine="tape", reduction=reduction).sum().backward()
        assert (torch._C._get_graph_exec_group() is not None) is group
    assert len(calls) == 2
    calls.clear()
    gpfast.input_gradient_loss(m, data()[0], lambda y, g: g.square().sum(), engine="tape").backward()
    assert len(calls) == 2


def test_a_checkpoint_costs_no_more_than_its_tensors():
    parts = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.LeakyReLU())]
    plain = nn.Sequential(*parts, nn.Linear(16, 1))
    real = torch.randn(64, 16)

    def peak(critic):
        step = lambda: gpfast.gradient_penalty(critic, real, real / 2, engine="tape").backward()  # noqa: E731
        plain.zero_grad()
        return gpfast.cost.measure(step, existing=(plain, real)).peak_bytes

    assert peak(lambda x: checkpoint(plain, x, use_reentrant=False)) <= peak(plain) + real.nbytes


def test_a_region_that_may_be_recomputed_once():
    """Once is what the tape needs; what is read twice meets PyTorch's own error."""
    m = with_layers(selective_checkpointing)
    refuses(m, RuntimeError, "Trying to backward an extra time", engines=("alone", "autograd"))
    plain = copy.deepcopy(m)
    plain.function = lambda m, x: m.last(m.layers(m.first(x)))
    same(outcome("tape", m, *data(), {}), outcome("reference", plain, *data(), {}), "tape")


def test_reentrant_checkpoints_are_refused_as_in_eager():
    forward = lambda m, x: m.last(checkpoint(m.layers, m.first(x), use_reentrant=True))  # noqa: E731
    refuses(with_layers(forward), RuntimeError, "use_reentrant=False")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.project = nn.Linear(3, 8), nn.Linear(8, 1)

    def attend(self, x):
        q = self.inside(x).unflatten(2, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)

    def forward(self, x):
        return self.project(checkpoint(self.attend, x, use_reentrant=False)).sum(1)


def test_a_checkpoint_around_attention_is_recomputed_by_the_same_kernels():
    real, fake = data(4, 5, 3)
    torch.manual_seed(0)
    m = Attends().double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = outcome("reference", m, real, fake, {})
    for engine in ("tape", "alone"):
        same(outcome(engine, m, real, fake, {}), expected, engine)


def gate(h: torch.Tensor, scale: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        if float(h.sum()) > 1e6:
            h = h * 0
        h = torch.tanh(h * scale) + h
    return h


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_function():
    scripted = torch.jit.script(gate)
    m = Critic(lambda m, x: m.last(scripted(m.first(x), m.scale, 2)))
    for _ in range(4):  # the executor rewrites what it runs in its first runs
        agrees(m)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace", "frozen"])
def test_a_scripted_critic(how):
    """Against its own source: a script differentiates by formulas of its own, and autograd differentiates those."""
    torch.manual_seed(0)
    source = nn.Sequential(
        nn.Linear(6, 5),
        nn.LayerNorm(5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.Dropout(0.0),
        nn.Tanh(),
        nn.Linear(5, 1),
    ).double()
    if how == "trace":
        critic = torch.jit.trace(source, data()[0])
    else:
        critic = torch.jit.script(source)
    if how == "frozen":
        critic = torch.jit.freeze(critic.eval(), preserved_attrs=[])
    real, fake = data()
    for alpha in (0.2, 0.5, 0.8, 0.9):
        expected = reference.gradient_penalty(source, real, fake, alpha=alpha)
        gradients = torch.autograd.grad(expected, list(source.parameters()), materialize_grads=True)
        for engine in ENGINES:
            value = gpfast.gradient_penalty(
                critic, real, fake, alpha=alpha, engine="tape" if engine == "alone" else engine
            )
            torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
            if how == "frozen":  # its parameters are constants
                continue
            ours = torch.autograd.grad(value, list(critic.parameters()), materialize_grads=True)
            torch.testing.assert_close(ours, gradients, rtol=1e-10, atol=1e-12)


def old_weight_norm(layer):
    return torch.nn.utils.weight_norm(layer)


def old_spectral_norm(layer):
    return torch.nn.utils.spectral_norm(layer, n_power_iterations=2)


def weight_norm(layer):
    return torch.nn.utils.parametrizations.weight_norm(layer, dim=0)


def spectral_norm(layer):
    return torch.nn.utils.parametrizations.spectral_norm(layer)


def orthogonal(layer):
    return torch.nn.utils.parametrizations.orthogonal(layer)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("wrap", [old_weight_norm, old_spectral_norm, weight_norm, spectral_norm, orthogonal])
@pytest.mark.parametrize("training", [True, False])
def test_normalised_weights(wrap, training):
    """Their buffers advance once a penalty; the gradient reaches what the weight is made of."""
    torch.manual_seed(0)
    inside = [wrap(nn.Conv1d(2, 3, 3)), nn.LeakyReLU(0.2), wrap(nn.Conv1d(3, 3, 3)), nn.Tanh()]
    critic = nn.Sequential(*inside, nn.Flatten(), wrap(nn.Linear(6, 1))).double()
    critic.train(training)
    if wrap is old_spectral_norm or wrap is old_weight_norm:
        critic(torch.randn(2, 2, 6, dtype=torch.float64))
        for module in critic:  # a tensor that was computed is no leaf, and cannot be copied
            if hasattr(module, "weight_orig") or hasattr(module, "weight_g"):
                module.weight = module.weight.detach()
    buffers = {name: b.clone() for name, b in critic.named_buffers()}
    done = agrees(critic, *data(4, 2, 6), engines=ENGINES)
    if training and wrap in (spectral_norm, old_spectral_norm):
        assert any(not torch.equal(done["tape"].buffers[name], b) for name, b in buffers.items())
    agrees(critic, *data(4, 2, 6), reduction="none", at="real")


def test_normalised_weights_cached_around_the_call():
    torch.manual_seed(0)
    critic = nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Tanh(), spectral_norm(nn.Linear(5, 1))).double()
    real, fake = data()
    results = []
    for engine in ("reference", "autograd", "tape"):
        m = copy.deepcopy(critic)
        with torch.nn.utils.parametrize.cached():
            first = gpfast.gradient_penalty(m, real, fake, alpha=0.2, engine=engine)
            second = gpfast.gradient_penalty(m, real, fake, alpha=0.7, engine=engine)
            (first + 2 * second + m(fake).mean()).backward()
        results.append([first, second, *(p.grad for p in m.parameters()), *m.buffers()])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("form", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_layers(kind, form):
    torch.manual_seed(0)
    width = 10 if form else 5
    m = Critic(
        lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=kind(3, 5, batch_first=True, **form), out=nn.Linear(width, 1)
    )
    del m.first, m.last, m.scale
    agrees(m, *data(3, 4, 3))


def test_recurrent_cells_by_hand():
    def forward(m, x):
        h = c = torch.zeros(len(x), 5, dtype=x.dtype)
        for step in x.unbind(1):
            h, c = m.cell(step, (h, c))
        return m.last(h)

    torch.manual_seed(0)
    agrees(Critic(forward, cell=nn.LSTMCell(3, 5)), *data(3, 4, 3))


def test_an_lstm_in_float32_is_made_of_nodes_with_rules():
    class Scored(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0][:, -1]

    found = gpfast.explain(Scored(3, 5, batch_first=True), data(3, 4, 3, dtype=torch.float32)[0])
    assert len(found.nodes) > 20 and "Every node has a rule." in str(found)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_a_checkpoint_is_checked_as_the_critic_runs(engine):
    """By the kernels of the call, also where backward comes after it."""
    torch.manual_seed(0)
    lstm, attention = nn.LSTM(3, 5, batch_first=True), Attends()

    def recalls(x):
        return checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False).sum((1, 2))

    def attends(x):
        return checkpoint(attention, x, use_reentrant=False)

    for critic in (recalls, attends):
        assert gpfast.check(critic, *data(3, 4, 3, dtype=torch.float32), engine=engine).ok
    real, fake = data(3, 4, 3, dtype=torch.float32)
    gpfast.gradient_penalty(recalls, real, fake, engine=engine).backward()
    assert lstm.weight_ih_l0.grad.any()
    assert gpfast.explain(attends, real).reference.launches > 0


@pytest.mark.parametrize("again", [False, True])
def test_recurrent_layers_in_float32(again):
    """oneDNN's layer, a node of its own, in a checkpoint."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.LSTM(3, 5, batch_first=True))
    score = nn.Linear(5, 1)
    exact = copy.deepcopy(critic).double(), copy.deepcopy(score).double()
    real, fake = data(3, 4, 3, dtype=torch.float32)

    def gradients(engine, critic, score, real, fake):
        def forward(x):
            h = checkpoint(critic, x, use_reentrant=False) if again else critic(x)
            return score(h[0][:, -1])

        value = gpfast.gradient_penalty(forward, real, fake, alpha=0.5, engine=engine)
        return torch.autograd.grad(value, [*critic.parameters(), *score.parameters()], materialize_grads=True)

    expected = gradients("reference", *exact, real.double(), fake.double())
    for engine in ("reference", "autograd", "tape"):
        for ours, theirs in zip(gradients(engine, critic, score, real, fake), expected, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-8, engine


def test_a_packed_sequence():
    def forward(m, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [4, 3, 1], batch_first=True)
        return m.last(m.rnn(packed)[1][0])

    torch.manual_seed(0)
    agrees(Critic(forward, rnn=nn.LSTM(3, 5, batch_first=True)), *data(3, 4, 3))


def test_data_parallel_without_devices():
    torch.manual_seed(0)
    critic = nn.DataParallel(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))).double()
    agrees(critic, *data())


def test_modules_copied_to_hooks_and_containers():
    """Shared modules, containers, lazy modules."""
    shared = nn.Linear(5, 5)
    critic = nn.Sequential(nn.LazyLinear(5), shared, nn.Tanh(), shared, nn.Softplus(), shared, nn.Linear(5, 1))
    torch.manual_seed(0)
    critic(torch.zeros(1, 6))
    agrees(critic.double(), *data())


def test_functional_call():
    """The parameters are someone else's tensors, which receive the gradient."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    real, fake = data()
    results = []
    for engine in ("reference", "autograd", "tape"):
        theirs = {name: (p.detach() * 2).requires_grad_() for name, p in m.named_parameters()}
        scaled = {name: p * 0.5 for name, p in theirs.items()}
        critic = lambda x, scaled=scaled: torch.func.functional_call(m, scaled, (x,))  # noqa: E731
        value = gpfast.gradient_penalty(critic, real, fake, alpha=0.4, engine=engine)
        results.append([value, *torch.autograd.grad(value, list(theirs.values()), materialize_grads=True)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-10, atol=1e-12)


def test_transforms_around_the_penalty():
    """Under torch.func "auto" takes PyTorch's double backward, and the tape by name says why it cannot."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    parameters, (real, fake) = dict(m.named_parameters()), data()

    def penalty(parameters, engine):
        critic = lambda x: torch.func.functional_call(m, parameters, (x,))  # noqa: E731
        return gpfast.gradient_penalty(critic, real, fake, alpha=0.4, engine=engine)

    expected = torch.autograd.grad(
        reference.gradient_penalty(m, real, fake, alpha=0.4), list(m.parameters()), materialize_grads=True
    )
    for engine in ("auto", "autograd"):
        ours = torch.func.grad(lambda p, engine=engine: penalty(p, engine))(parameters)
        torch.testing.assert_close(list(ours.values()), list(expected), rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="torch.func.*engine='auto'"):
        torch.func.grad(lambda p: penalty(p, "tape"))(parameters)
    stacked = torch.func.vmap(lambda p: penalty(p, "auto"))({k: torch.stack([v, 2 * v]) for k, v in parameters.items()})
    torch.testing.assert_close(stacked[0], penalty(parameters, "auto"), rtol=1e-10, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        torch.testing.assert_close(penalty(parameters, "auto"), stacked[0], rtol=1e-10, atol=1e-12)
        with pytest.raises(RuntimeError, match="forward-mode.*engine='auto'"):
            penalty(parameters, "tape")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_transforms_inside_the_critic():
    """What they compute is part of autograd's graph."""

    def forward(m, x):
        energy = lambda h: torch.tanh(h * m.scale).pow(2).sum()  # noqa: E731
        h = m.first(x)
        return m.last(h - torch.func.vmap(torch.func.grad(energy))(h))

    agrees(forward)
    agrees(
        lambda m, x: m.last(torch.func.jvp(lambda h: torch.tanh(h * m.scale), (m.first(x),), (m.first(x.flip(1)),))[1])
    )


@pytest.mark.parametrize(
    "hooks",
    [
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: torch.autograd.graph.saved_tensors_hooks(
            lambda t: (t.numpy(force=True),), lambda p: torch.from_numpy(p[0])
        ),
        lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    ],
    ids=["save_on_cpu", "numpy", "copies"],
)
@pytest.mark.parametrize("around", ["the layers", "the call"])
def test_saved_tensors_hooks(hooks, around):
    """What PyTorch does with them, second derivatives included, every engine does."""

    def forward(m, x):
        if around == "the call":
            return m.last(torch.tanh(m.layers(m.first(x))) * m.scale)
        with hooks():
            h = torch.tanh(m.layers(m.first(x))) * m.scale
        return m.last(h)

    m, (real, fake) = with_layers(forward), data()
    with hooks() if around == "the call" else torch.enable_grad():
        expected = outcome("reference", m, real, fake, {})
        found = {engine: outcome(engine, m, real, fake, {}) for engine in ENGINES}
    for engine, done in found.items():
        same(done, expected, engine)


def test_saving_is_not_allowed():
    def forward(m, x):
        with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
            return m.last(torch.tanh(m.first(x)))

    agrees(forward)


class Kept(TorchDispatchMode):
    """Nothing that is made goes: no memory is used again."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made.append(result)
        return result


def test_mutation_of_what_was_saved_is_allowed_by_context():
    """PyTorch clones what is overwritten, and differentiates at the old value.

    It knows tensors by address and version, and takes one for another where memory is used again.
    """

    def forward(m, x):
        h = torch.tanh(m.first(x))
        y = m.last(h * h)
        with torch.no_grad():
            h.mul_(2)
        return y

    m, (real, fake), found = Critic(forward), data(), {}
    for engine in ("reference", *ENGINES):
        with Kept(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            found[engine] = outcome(engine, m, real, fake, {})
    for engine in ENGINES:
        same(found[engine], found["reference"], engine)
