"""What critics do between their input and their scores means to the tape what it means in PyTorch."""

import threading

import pytest
import torch
from tape_critics import ENGINES, Critic, agrees, data, outcome, refuses, same
from torch import nn
from torch.nn import functional as F

import gpfast
from gpfast import reference


def a_region_without_grad(m, x):
    h = m.first(x)
    with torch.no_grad():
        gate = torch.sigmoid(m.first(x)) * 2
    return m.last(h * gate + torch.tanh(h))


def a_detached_branch(m, x):
    h = m.first(x)
    return m.last(h * (h - h.detach().mean(1, keepdim=True)) + m.first(x.detach()))


def grad_mode_goes_off_and_on(m, x):
    with torch.no_grad():
        h = m.first(x)
        with torch.enable_grad():
            h = h + m.first(x)
        limit = h.mean()
    return m.last(torch.where(h > limit, h * h, h))


def a_straight_through_estimator(m, x):
    h = m.first(x)
    return m.last((h + (torch.sign(h) - h).detach()) * torch.tanh(h))


def a_weight_made_of_the_points(m, x):
    weight = torch.tanh(m.first(x).mean(0)) * m.last.weight
    return F.linear(torch.sin(m.first(x)), weight, m.last.bias * x.mean())


def a_convolution_whose_weight_is_made_of_the_points(m, x):
    h = m.first(x)
    kernel = h[:3, :3].unsqueeze(1)
    return F.conv1d(h.unsqueeze(1), kernel, bias=h[0, :3], padding=1).pow(2).sum((1, 2))


def weights_for_each_sample(m, x):
    h = m.first(x)
    weights = (h.unsqueeze(2) * m.scale).tanh()
    return m.last(torch.bmm(weights, h.unsqueeze(2)).squeeze(2))


def a_gradient_inside(m, x):
    """A gradient flow, as in energy-based critics."""
    h = m.first(x)
    energy = torch.tanh(h * m.scale).pow(2).sum()
    (force,) = torch.autograd.grad(energy, h, create_graph=True)
    return m.last(h - 0.1 * force)


def a_gradient_with_respect_to_the_points_inside(m, x):
    energy = torch.tanh(m.first(x)).sum()
    (force,) = torch.autograd.grad(energy, x, create_graph=True)
    return m.last(torch.tanh(m.first(x - 0.3 * force)))


def a_gradient_without_graph_inside(m, x):
    h = m.first(x)
    (slope,) = torch.autograd.grad(torch.tanh(h).sum(), h, retain_graph=True)
    return m.last(torch.sin(h) * slope)


def one_module_many_times(m, x):
    h = m.first(x)
    for _ in range(3):
        h = torch.tanh(F.linear(h, m.first.weight[:, :5], m.first.bias)) + h
    return m.last(m.last.weight * h + h)


def a_parameter_used_as_data(m, x):
    return m.last(torch.tanh(torch.cat([m.first(x), m.scale.expand(2, 5)]))) * m.scale.sum()


def one_expression_used_twice(m, x):
    weight = torch.tanh(m.scale) * 2
    return m.last(torch.sin(m.first(x) * weight) * weight)


def one_broadcast_expression_used_twice(m, x):
    bias = (m.scale * m.scale).mean()
    return m.last(torch.sin(m.first(x) + bias) * bias)


def argmax_picks(m, x):
    h = m.first(x)
    best = h.argmax(1, keepdim=True)
    return h.gather(1, best).exp() + m.last(F.one_hot(best.squeeze(1), 5).to(h.dtype) * h * h)


def max_with_indices(m, x):
    values, indices = m.first(x).view(len(x), 5).max(1)
    return values * values + m.scale[indices] * values + m.last(m.first(x)).squeeze(1)


def sort_and_topk(m, x):
    h, order = torch.sort(m.first(x), dim=1)
    top, _ = torch.topk(h * h, 2, dim=1)
    return m.last(h * m.scale[order]) + top.sum(1, keepdim=True) + h.median(1, keepdim=True).values


def chunks(m, x):
    a, b = torch.tanh(m.first(x))[:, :4].chunk(2, 1)
    return (a * b).sum(1)


def one_chunk_only(m, x):
    _, b = m.first(x)[:, :4].chunk(2, 1)
    return (b * b).sum(1)


def rows_taken_apart(m, x):
    rows = m.first(x).unbind(0)
    return m.last(torch.stack([rows[0] * rows[1], rows[2].exp(), rows[3]]))


def columns_taken_apart(m, x):
    a, _, c, *rest = m.first(x).unbind(1)
    return a * c.tanh() + sum(rest)


def a_function_of_the_input_and_no_parameter(m, x):
    return x.pow(3).sum(1)


def complex_numbers(m, x):
    spectrum = torch.fft.rfft(m.first(x), dim=1)
    spectrum = spectrum * torch.polar(m.scale[:3].abs() + 1, m.scale[:3])
    return m.last(torch.fft.irfft(spectrum.tanh(), n=5, dim=1)) + spectrum.abs().pow(2).sum(1, keepdim=True)


def a_complex_norm(m, x):
    h = torch.complex(m.first(x), m.first(x.flip(1)))
    return (h * h.conj()).real.sum(1) + torch.view_as_real(h).prod(2).sum(1) + h.angle().sum(1)


def einsum(m, x):
    h = m.first(x)
    return torch.einsum("bi,bj,ij->b", h, torch.tanh(h), m.first.weight[:, :5])


def a_covariance(m, x):
    """Samples depend on one another."""
    h = m.first(x)
    covariance = (h - h.mean(0)).t() @ (h - h.mean(0)) / len(x)
    return m.last(torch.tanh(h @ covariance))


def linear_algebra(m, x):
    h = m.first(x)
    gram = h.t() @ h + torch.eye(5, dtype=h.dtype)
    return m.last(torch.linalg.solve(gram, h.t()).t()) + torch.logdet(gram)


def integers_and_flags_beside(m, x):
    h = m.first(x)
    ranks = h.argsort(1).argsort(1)
    return m.last(torch.where(ranks > 2, h * m.scale, h.pow(3)))


def results_of_low_precision(m, x):
    return m.last(torch.tanh(m.first(x).float()).double() * m.scale)


def one_sample_after_another(m, x):
    return torch.cat([m.last(torch.tanh(m.first(row))) for row in x])


def control_flow_on_values(m, x):
    h = m.first(x)
    return m.last(torch.tanh(h)) if h.sum() > 1e3 else m.last(torch.sin(h) * h)


CRITICS = [f for f in list(globals().values()) if getattr(f, "__module__", "") == __name__ and callable(f)]


@pytest.mark.parametrize("forward", CRITICS, ids=lambda f: f.__name__)
def test_exact_with(forward):
    # Kernels for the derivative of float32's tanh round in different orders.
    tolerance = 1e-6 if forward is results_of_low_precision else 1e-10
    agrees(forward, tolerance=tolerance)
    agrees(forward, tolerance=tolerance, at="real", reduction="none")


@pytest.mark.parametrize("critic", [lambda x: x, lambda x: x.t()[1:], lambda x: x[:, 2], lambda x: 3 * x.relu()])
def test_a_critic_that_returns_its_input_or_little_more(critic):
    """It has a value, and a gradient of nothing but zeros, or none."""
    real, fake = data()
    expected = reference.gradient_penalty(critic, real, fake, alpha=0.3)
    for engine in ("tape", "autograd"):
        fake.grad = None
        value = gpfast.gradient_penalty(critic, real, fake.requires_grad_(), alpha=0.3, engine=engine)
        torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
        if value.requires_grad:
            value.backward()
            assert not fake.grad.any()


def test_gradients_that_are_zero_for_certain():
    """A rounding has no slope, and a critic without one is no critic; beside one it is exact."""
    agrees(lambda m, x: m.last(torch.tanh(m.first(x)) + torch.round(m.first(x)) + (m.first(x) > 0)))


@pytest.mark.parametrize(
    ("pack", "output"),
    [
        (lambda y, h: (h, y), 1),
        (lambda y, h: [y], 0),
        (lambda y, h: {"features": h, "score": y}, "score"),
        (lambda y, h: torch.return_types.max((y, h)), "values"),
        (lambda y, h: (y, h), lambda result: result[0] + result[1].pow(2).sum(1, keepdim=True)),
        (lambda y, h: y.squeeze(), None),
        (lambda y, h: y.sum(), None),
        (lambda y, h: h.view(4, 5, 1, 1).expand(4, 5, 2, 2), None),
    ],
    ids=["tuple", "list", "dict", "named", "callable", "vector", "number", "expanded"],
)
def test_results_of_every_kind(pack, output):
    def forward(m, x):
        h = torch.tanh(m.first(x))
        return pack(m.last(h), h)

    agrees(forward, output=output)


def test_labels_and_other_inputs_reach_the_critic():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(3, 4), nn.Bilinear(6, 4, 1)

        def forward(self, x, labels, *, power=1.0):
            return self.body(torch.tanh(x), self.embed(labels)) ** power

    agrees(Conditional().double(), *data(), args=(torch.tensor([0, 2, 2, 1]),), kwargs={"power": 2})


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Bilinear(6, 6, 1)

    def forward(self, a, b):
        return self.mix(torch.tanh(a), b)


def test_several_inputs():
    """One of them used, or both; each receives its own gradient."""
    model = TwoInputs().double()
    for arrange in (tuple, lambda pair: dict(zip("ab", pair, strict=True))):
        results = []
        for engine in ("reference", "autograd", "tape"):
            inputs = [tuple(x.clone().requires_grad_() for x in data(seed=seed)) for seed in (1, 2)]
            value = gpfast.gradient_penalty(
                model, arrange([i[0] for i in inputs]), arrange([i[1] for i in inputs]), alpha=0.3, engine=engine
            )
            leaves = [x for pair in inputs for x in pair] + list(model.parameters())
            results.append([value, *torch.autograd.grad(value, leaves, materialize_grads=True)])
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-10, atol=1e-12)


def by_another_thread(m, x):
    out = []
    thread = threading.Thread(target=lambda: out.append(m.last(torch.tanh(m.first(x)) * m.scale)))
    thread.start()
    thread.join()
    return out[0]


def half_by_another_thread(m, x):
    h, out = torch.sin(m.first(x)), []
    thread = threading.Thread(target=lambda: out.append(torch.tanh(h.mul_(2)) * m.scale))
    thread.start()
    thread.join()
    return m.last(out[0] * h)


@pytest.mark.parametrize("forward", [by_another_thread, half_by_another_thread], ids=lambda f: f.__name__)
def test_a_critic_run(forward):
    agrees(forward)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("engine", ["tape", "alone"])
def test_two_threads_at_once(engine, shared):
    """Each has its own critic, or both take the gradient of one, and add to its parameters by turns."""
    critics = [Critic(one_module_many_times) for _ in range(2)]
    if shared:
        critics[1] = critics[0]
    batches = [data(seed=seed) for seed in (1, 2)]
    expected, found, failed = [{}, {}], [[], []], []
    for i in (0, 1):
        value = reference.gradient_penalty(critics[i], *batches[i], alpha=0.5)
        expected[i] = torch.autograd.grad(value, list(critics[i].parameters()), allow_unused=True)

    def work(i):
        try:
            torch.ops.gpfast.set_rules_enabled(engine == "tape")  # each thread has its own switch
            for _ in range(30):
                value = gpfast.gradient_penalty(critics[i], *batches[i], alpha=0.5, engine="tape")
                found[i].append(torch.autograd.grad(value, list(critics[i].parameters()), allow_unused=True))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    for i in (0, 1):
        for gradients in found[i]:
            for mine, theirs in zip(gradients, expected[i], strict=True):
                if theirs is None:
                    assert mine is None or not mine.any()
                else:
                    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


class Tagged(torch.Tensor):
    """A subclass that counts what is called on it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Tagged.calls += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_tensor_subclass():
    """The values of the critic, its input or its parameter may be of a class of their own."""
    Tagged.calls = 0

    def inside(m, x):
        h = m.first(x).as_subclass(Tagged)
        return m.last(torch.tanh(h) * h)

    agrees(inside)
    assert Tagged.calls
    as_plain = agrees(one_module_many_times)["autograd"]
    real, fake = (x.as_subclass(Tagged) for x in data())
    for engine in ENGINES:
        done = outcome(engine, Critic(one_module_many_times), real, fake, {})
        done.value = None if done.value is None else done.value.as_subclass(torch.Tensor)
        done.gradients = {k: g if g is None else g.as_subclass(torch.Tensor) for k, g in done.gradients.items()}
        same(done, as_plain, engine)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device(device):
    """What the engines make follows the data."""
    critics, (real, fake) = (Critic(one_module_many_times), Critic(results_of_low_precision)), data()
    with torch.device(device):
        agrees(critics[0], real, fake)
        agrees(critics[1], real, fake, tolerance=1e-6, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        agrees(one_module_many_times)
        agrees(one_broadcast_expression_used_twice, weight=3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_loss_that_escapes():
    """Right where the call keeps the graph, PyTorch's own error where it does not: never a silent loss of gradient."""

    def forward(m, x):
        h = m.first(x)
        m.aux = torch.tanh(h).pow(2).mean()
        return m.last(torch.tanh(h) * h)

    def total(engine, **options):
        torch.manual_seed(3)
        m, (real, fake) = Critic(forward), data()
        real.requires_grad_()
        penalty = gpfast.gradient_penalty(m, real, fake, engine=engine, **options)
        return m, real, penalty, m.aux

    def gradients(m, real):
        return [p.grad for p in m.parameters() if p.grad is not None and p.grad.any()] + [real.grad]

    m, real, penalty, aux = total("reference")
    (penalty + aux).backward()
    expected = gradients(m, real)
    for engine in ("tape", "autograd"):
        m, real, penalty, aux = total(engine, retain_graph=True)
        (penalty + aux).backward()
        torch.testing.assert_close(gradients(m, real), expected, rtol=1e-10, atol=1e-12)
        m, real, penalty, aux = total(engine, retain_graph=True)
        aux.backward(retain_graph=True)
        penalty.backward()
        torch.testing.assert_close(gradients(m, real), expected, rtol=1e-10, atol=1e-12)
    for again in (lambda penalty, aux: penalty + aux, lambda penalty, aux: aux):
        _, _, penalty, aux = total("tape")
        with pytest.raises(RuntimeError, match="a second time"):
            again(penalty, aux).backward()


def test_an_expression_made_outside_and_used_twice():
    """Two penalties, and the loss itself, through one weight that was computed once."""
    results = []
    for engine in ("reference", "autograd", "tape"):
        m, (real, fake) = Critic(), data()
        weight = torch.tanh(m.scale) * m.first.bias
        m.function = lambda m, x, weight=weight: m.last(torch.sin(m.first(x)) * weight)
        penalty = gpfast.gradient_penalty(m, real, fake, alpha=0.3, engine=engine)
        second = gpfast.gradient_penalty(m, real, fake, alpha=0.7, engine=engine)
        (m(fake).mean() - m(real).mean() + penalty + 2 * second).backward()
        results.append([penalty, second, *(p.grad for p in m.parameters())])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-10, atol=1e-12)


def test_a_critic_that_fails_leaves_nothing_behind():
    def forward(m, x):
        y = m.last(torch.tanh(m.first(x)))
        if m.broken:
            raise OSError("no more")
        return y

    refuses(Critic(forward, broken=True), OSError, "no more")
    agrees(Critic(forward, broken=False))


def test_scores_that_do_not_depend_on_the_input():
    for engine in ("tape", "autograd"):
        with pytest.raises(RuntimeError, match="does not depend on"):
            gpfast.gradient_penalty(lambda x: torch.ones(3, requires_grad=True) * 2, *data(), engine=engine)
