"""Hooks on parameters and results are called as ever; with hooks inside a critic PyTorch takes its graph."""

import warnings

import pytest
import torch
from tape_critics import Critic, agrees, data, outcome
from torch import nn

import gpfast
from gpfast import tape


class Squares(torch.autograd.Function):
    """A node that no rule covers."""

    @staticmethod
    def forward(ctx, h, scale):
        ctx.save_for_backward(h, scale)
        return h * h * scale

    @staticmethod
    def backward(ctx, grad):
        h, scale = ctx.saved_tensors
        return 2 * h * scale * grad, (grad * h * h).sum(0)


class Sees:
    """A hook that scales, counts its calls and keeps what it saw."""

    def __init__(self, factor=2.0):
        self.factor, self.seen = factor, []

    def __call__(self, grad):
        self.seen.append(grad.detach().clone())
        return self.factor * grad * grad

    def __deepcopy__(self, memo):
        return self


def a_hook_on_a_tensor(m, x):
    h = m.first(x)
    h.register_hook(lambda g: 3 * g)
    return m.last(torch.tanh(h))


def a_hook_on_the_points(m, x):
    h = x * 1
    h.register_hook(lambda g: g * g)
    return m.last(torch.tanh(m.first(h)))


def a_hook_on_the_input_itself(m, x):
    x.register_hook(lambda g: 2 * g)
    return m.last(torch.tanh(m.first(x)))


def a_hook_on_the_scores(m, x):
    y = m.last(torch.tanh(m.first(x)))
    y.register_hook(lambda g: 0.5 * g)
    return y


def a_hook_on_a_node(m, x):
    h = torch.tanh(m.first(x))
    h.grad_fn.register_prehook(lambda g: (2 * g[0],))
    h.grad_fn.register_hook(lambda into, out: (into[0] * 3,))
    return m.last(h)


def full_backward_hooks(m, x):
    m.first.register_full_backward_hook(lambda module, into, out: (into[0] * 2,))
    return m.last(torch.tanh(m.first(x)))


def full_backward_pre_hooks(m, x):
    m.last.register_full_backward_pre_hook(lambda module, out: (out[0] * 2,))
    return m.last(torch.tanh(m.first(x)))


def a_hook_on_an_expression_of_parameters(m, x):
    weight = torch.tanh(m.scale)
    weight.register_hook(lambda g: g * g)
    return m.last(torch.tanh(m.first(x)) * weight)


@pytest.mark.parametrize(
    "forward",
    [
        a_hook_on_a_tensor,
        a_hook_on_the_points,
        a_hook_on_the_scores,
        a_hook_on_a_node,
        full_backward_hooks,
        full_backward_pre_hooks,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.filterwarnings("ignore:gpfast's tape cannot:UserWarning")
def test_a_graph_with_backward_hooks_is_differentiated_by_autograd(forward):
    agrees(forward)
    agrees(forward, at="real", reduction="none")


@pytest.mark.filterwarnings("ignore:gpfast's tape cannot:UserWarning")
def test_a_hook_on_the_input_itself():
    """The eager lines ask for the gradient at the node, past the hooks of the tensor, as gpfast does."""
    agrees(a_hook_on_the_input_itself)


def test_it_is_said_once_with_the_name_of_the_node():
    tape.say_refused.cache_clear()
    real, fake = data()
    with pytest.warns(UserWarning, match="TanhBackward0 has a backward hook.*engine='autograd'") as said:
        for _ in range(3):
            gpfast.gradient_penalty(Critic(a_hook_on_a_node), real, fake, engine="tape").backward()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpfast.gradient_penalty(Critic(a_hook_on_a_tensor), real, fake, engine="autograd").backward()


@pytest.mark.filterwarnings("ignore:gpfast's tape cannot:UserWarning")
def test_a_retained_gradient_inside_the_critic():
    kept = {}

    def forward(m, x):
        h = m.first(x)
        h.retain_grad()
        m.kept = [h]
        return m.last(torch.tanh(h))

    for engine, done in {"reference": outcome("reference", Critic(forward), *data(), {}), **agrees(forward)}.items():
        kept[engine] = done.critic.kept[0].grad
        assert kept[engine] is not None
        torch.testing.assert_close(kept[engine], kept["reference"], rtol=1e-10, atol=1e-12)


def test_a_hook_on_an_expression_of_parameters():
    agrees(a_hook_on_an_expression_of_parameters)


@pytest.mark.parametrize("alone_beside_it", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_hook_on_a_parameter_sees_the_whole_gradient_once(alone_beside_it, reduction):
    hooks = {}

    def forward(m, x):
        if not hasattr(m, "hook"):
            m.hook = Sees()
            m.scale.register_hook(m.hook)
        h = torch.sin(m.first(x)) * m.scale
        return m.last(Squares.apply(h, m.scale) if alone_beside_it else h * h)

    for engine, done in agrees(forward, reduction=reduction).items():
        hooks[engine] = done.critic.hook.seen
    expected = outcome("reference", Critic(forward), *data(), {"reduction": reduction}).critic.hook.seen
    for engine, seen in hooks.items():
        assert len(seen) == len(expected) == 1, engine
        torch.testing.assert_close(seen[0], expected[0], rtol=1e-10, atol=1e-12)


def test_a_hook_after_a_parameter_accumulated_runs_once():
    """As optimizers that step in backward rely on."""

    def forward(m, x):
        if not hasattr(m, "calls"):
            m.calls = []
            for name, p in m.named_parameters():
                p.register_post_accumulate_grad_hook(lambda p, name=name: m.calls.append((name, p.grad.clone())))
        return m.last(torch.tanh(m.first(x)) * m.scale)

    for done in agrees(forward).values():
        names = [name for name, _ in done.critic.calls]
        assert len(set(names)) == len(names) >= 4
        for name, grad in done.critic.calls:
            assert torch.equal(grad, done.gradients[name])


def test_hooks_on_real_and_fake():
    """Each is called once, with the gradient that arrives there."""
    seen = {}
    for engine in ("reference", "tape"):
        (real, fake), m = data(), Critic(lambda m, x: m.last(torch.tanh(m.first(x))))
        real.requires_grad_(), fake.requires_grad_()
        hooks = seen[engine] = Sees(), Sees()
        real.register_hook(hooks[0]), fake.register_hook(hooks[1])
        gpfast.gradient_penalty(m, real, fake, alpha=0.3, engine=engine).backward()
        seen[engine] = [*(hook.seen for hook in hooks), [real.grad], [fake.grad]]
    for ours, theirs in zip(seen["tape"], seen["reference"], strict=True):
        assert len(ours) == len(theirs) == 1
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-12)


def test_hooks_on_the_penalty_itself():
    values = []
    for engine in ("reference", "tape"):
        m = Critic(lambda m, x: m.last(torch.tanh(m.first(x))))
        penalty = gpfast.gradient_penalty(m, *data(), alpha=0.5, engine=engine)
        penalty.register_hook(lambda g: 4 * g)
        penalty.retain_grad()
        penalty.backward()
        values.append((penalty.grad, m.first.weight.grad))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)


def test_module_hooks_of_the_forward_pass():
    """They are part of the critic's run."""

    def forward(m, x):
        handles = [
            m.first.register_forward_hook(lambda module, given, out: torch.tanh(out)),
            m.last.register_forward_pre_hook(lambda module, given: (given[0] * m.scale,)),
        ]
        y = m.last(m.first(x))
        for handle in handles:
            handle.remove()
        return y

    agrees(forward)


def test_global_module_hooks():
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, out: calls.append(module))
    try:
        agrees(lambda m, x: m.last(torch.tanh(m.first(x))))
    finally:
        handle.remove()
    assert len(calls) == 3 * 4


@pytest.mark.filterwarnings("ignore:gpfast's tape cannot:UserWarning")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection():
    with torch.autograd.detect_anomaly():
        agrees(lambda m, x: m.last(torch.tanh(m.first(x))))
