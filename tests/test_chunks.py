"""A batch in parts: the values and gradients of the whole, or a refusal with its reason."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo_runs import inputs, run

import gpfast
from gpfast import reference
from gpfast.cost import peak_bytes_raw
from gpfast.zoo import ZOO, build

SMALL = ("toy-mlp", "layernorm-dcgan", "resnet32", "audio-1d", "two-inputs", "projection")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("at", ["interpolates", "real", "dragan"])
@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", [name for name in SMALL if name in ZOO])
def test_parts_add_up_to_the_whole(name, chunks, at, reduction):
    critic = build(name, small=True, dtype=torch.float64)
    case = inputs(name, True, 7, torch.float64, seed=1)
    expected, oracle, _ = run(reference.gradient_penalty, critic, case, at=at, reduction=reduction)
    value, ours, _ = run(gpfast.gradient_penalty, critic, case, at=at, reduction=reduction, chunks=chunks)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    largest = max(g.abs().max() for g in oracle.values() if g is not None)
    for parameter, g in oracle.items():
        mine = ours[parameter]
        if g is None:
            assert mine is None or not mine.any()
        else:
            assert (mine - g).abs().max() <= 1e-10 * largest, parameter


@pytest.mark.parametrize("name", ["toy-mlp", "resnet32", "text-resnet-1d", "self-attention"])
def test_gradients_of_the_parts_meet_before_backward(name):
    critic = build(name, small=True)
    case = inputs(name, True, 6, torch.float32, seed=1)
    whole, parts = (gpfast.gradient_penalty(critic, case.real, case.fake, chunks=k) for k in (1, 3))
    assert len(parts.grad_fn.next_functions) == len(whole.grad_fn.next_functions)


def test_parts_of_one_sample_hold_one_gradient_of_each_parameter():
    critic = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 200), nn.Linear(200, 1))
    real, fake = torch.randn(2, 8, 400)
    gradients, largest = sum(p.nbytes for p in critic.parameters()), 4 * 400 * 300
    gpfast.gradient_penalty(critic, real, fake, chunks=8)  # tries the critic
    peak = peak_bytes_raw(lambda: gpfast.gradient_penalty(critic, real, fake, chunks=8))
    assert gradients <= peak < gradients + largest + 50_000  # added to in place, one new one at a time


def test_a_hook_on_a_part_of_the_parameter_side_is_called_for_each_part():
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.ones(3, 4)), []

        def forward(self, x):
            transposed = self.weight.t()
            if torch.is_grad_enabled():
                transposed.register_hook(self.seen.append)
            return (x @ transposed).square().sum(1)

    critic, real = Hooked(), torch.randn(6, 4)
    gpfast.gradient_penalty(critic, real, real + 1, chunks=3).backward()
    assert len(critic.seen) == 3 and all(g.shape == (4, 3) for g in critic.seen)
    torch.testing.assert_close(sum(critic.seen).t(), critic.weight.grad)


@pytest.fixture
def data(generator):
    return tuple(torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def test_arguments_masks_weights_and_attached_data_are_cut_alike(data):
    model, (real, fake) = mlp(), data
    labels, scale = torch.randn(6, 4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    mask, weight = torch.rand(6, 4), torch.tensor(3.0, requires_grad=True)
    results = []
    for options in ({"engine": "reference"}, {"chunks": 4}):
        fake = fake.detach().requires_grad_()
        value, stats = gpfast.gradient_penalty(
            lambda x, y, s, factor: factor * model(x * y + s),
            real,
            fake,
            alpha=0.3,
            weight=weight,
            mask=mask,
            args=(labels, scale),
            kwargs={"factor": 2.0},
            return_stats=True,
            **options,
        )
        wanted = [fake, weight, *list(model.parameters())[:-1]]
        results.append([value.detach(), *stats, *torch.autograd.grad(value, wanted)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_twice_with_a_kept_graph_and_as_a_term_of_a_loss(data):
    model, (real, fake) = mlp(), data
    loss = gpfast.gradient_penalty(model, real, fake, alpha=0.3, chunks=3) + model(real).mean()
    expected = gpfast.gradient_penalty(model, real, fake, alpha=0.3, engine="reference") + model(real).mean()
    once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    twice = torch.autograd.grad(loss, list(model.parameters()))
    for a, b, c in zip(once, twice, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)


def test_only_the_value_without_grad_mode(data):
    model, (real, fake) = mlp(), data
    with torch.no_grad():
        value = gpfast.gradient_penalty(model, real, fake, alpha=0.3, chunks=3)
    assert not value.requires_grad
    expected = gpfast.gradient_penalty(model, real, fake, alpha=0.3, engine="reference").detach()
    torch.testing.assert_close(value, expected)


class Minibatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x):
        return self.score(torch.cat([x, x.std(0).mean().expand(len(x), 1)], 1))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 1, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.score(x).tanh()


class Clipping(Counting):
    def forward(self, x):
        self.score.weight.data = self.score.weight.data.clamp(-0.1, 0.1)
        return self.score(x).tanh()


class Iterating(nn.Module):
    """Spectral norm as it was before PyTorch had one: its vector is written through .data."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3, dtype=torch.float64)
        self.u = nn.Parameter(F.normalize(torch.randn(3, dtype=torch.float64), dim=0), requires_grad=False)

    def forward(self, x):
        w = self.score.weight
        v = F.normalize(w.detach().t() @ self.u.data, dim=0)
        if self.training:
            self.u.data.copy_(F.normalize(w.detach() @ v, dim=0))
        return F.linear(x, w / (self.u @ w @ v), self.score.bias).tanh().sum(1)


class Clamping(Counting):
    """It is the same critic for every part, for what is clamped stays so."""

    def forward(self, x):
        self.score.weight.data.clamp_(-0.1, 0.1)
        return self.score(x).tanh()


class Packed(Counting):
    """Judges samples two by two (PacGAN)."""

    def forward(self, x):
        return self.score(x.reshape(-1, 2, 4).mean(1)).repeat_interleave(2, 0)


REFUSALS = {
    "not a number": (mlp, {"chunks": 0}, "must be an integer of at least 1; got 0"),
    "one norm": (mlp, {"norm_dims": "batch"}, "norm_dims='batch'"),
    "no reduction": (mlp, {"reduction": "none"}, "with 'none' the gradients wait"),
    "another engine": (mlp, {"engine": "autograd"}, "needs the tape, and `engine` is 'autograd'"),
    "batch norm": (lambda: nn.Sequential(mlp(), nn.BatchNorm1d(1).double()), {}, "statistics of a part of the batch"),
    "minibatch statistics": (Minibatch, {}, "depends on the other samples"),
    "a buffer": (Counting, {}, "changed Counting's buffer seen"),
    "a parameter through .data": (Iterating, {}, "changed Iterating's parameter u"),
    "no single sample": (Packed, {}, "one by one.* there the critic raises RuntimeError: .*Leave `chunks` out"),
    "a parameter": (Clipping, {}, "changed Clipping's parameter score.weight"),
}


@pytest.mark.filterwarnings("ignore:.*BatchNorm")
@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_a_reason(case, data):
    make, options, words = REFUSALS[case]
    with pytest.raises((ValueError, RuntimeError), match=words):
        gpfast.gradient_penalty(make(), *data, **{"chunks": 2, **options})


@pytest.mark.parametrize("make", [lambda: Iterating().eval(), Clamping])
def test_what_stays_the_same_from_part_to_part_is_not_refused(make, data):
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    expected = gpfast.gradient_penalty(copy.deepcopy(model), *data, alpha=0.3, engine="reference").detach()
    for _ in range(2):
        value = gpfast.gradient_penalty(model, *data, alpha=0.3, chunks=3).detach()
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    if isinstance(model, Iterating):  # judged anew in another mode
        with pytest.raises(RuntimeError, match="changed Iterating's parameter u"):
            nn.init.normal_(model.score.weight)
            gpfast.gradient_penalty(model.train(), *data, chunks=2)


def test_backward_hooks_are_refused(data):
    model = mlp()
    model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="`chunks` needs the tape"):
        gpfast.gradient_penalty(model, *data, chunks=2)


def test_the_probe_runs_once_leaves_the_random_state_and_the_mode(data):
    calls = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            calls.append((len(x), self.training))
            return self.net(self.drop(x))

    model = Watched()
    torch.manual_seed(4)
    gpfast.gradient_penalty(model, *data, chunks=2)
    gpfast.gradient_penalty(model, *data, chunks=2)
    assert [c for c in calls if not c[1]] == [(2, False), (2, False), (1, False), (1, False)]
    assert [c for c in calls if c[1]] == [(3, True)] * 4 and model.drop.training
    drawn = torch.rand(3)
    torch.manual_seed(4)
    gpfast.gradient_penalty(copy.deepcopy(model), *data, chunks=2)
    gpfast.gradient_penalty(model, *data, chunks=2)
    assert torch.equal(torch.rand(3), drawn)
