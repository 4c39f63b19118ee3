"""Rules for cat, stack, split and unbind against each node alone and against autograd."""

import itertools

import pytest
import torch
from tape_checks import agree, agree_low


def random(*sizes, seed=0, parameter=False):
    values = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_(parameter)


X = random(2, 3, 4)
W, V = random(3, 4, seed=1, parameter=True), random(3, 4, seed=2, parameter=True)
PART = random(2, 1, 4, seed=3, parameter=True)
LABEL = random(2, 2, 4, seed=4)


def curved(x):
    return (x * W).tanh()


def kinds_of(parts):
    """Every choice of x itself, a value, a label and a parameter in which something depends on x."""
    return ["".join(kinds) for kinds in itertools.product("xhlp", repeat=parts) if {*kinds} & {"x", "h"}]


@pytest.mark.parametrize("dim", [1, -2])
@pytest.mark.parametrize("kinds", kinds_of(3))
def test_cat_of_points_values_labels_and_parameters(kinds, dim):
    def critic(x):
        parts = {"x": x, "h": curved(x), "l": LABEL, "p": PART}
        return (torch.cat([parts[kind] for kind in kinds], dim) ** 3).sum((1, 2)) + (x * V).sum((1, 2))

    agree(critic, X, [W, V, PART], rule="cat")


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("kinds", kinds_of(2))
def test_stack(kinds, dim):
    if not set(kinds) & set("xh"):
        pytest.skip("needs a part that depends on x")
    part = random(2, 3, 4, seed=3, parameter=True)

    def critic(x):
        parts = {"x": x, "h": curved(x), "l": LABEL[:, :1].expand(2, 3, 4), "p": part}
        return torch.stack([parts[kind] for kind in kinds], dim).pow(3)

    agree(critic, X, [W, part], rule="stack")


def test_cat_first_and_last():
    agree(lambda x: torch.cat([x * V, LABEL, PART], 1), X, [V, PART], rule="cat")
    agree(lambda x: torch.cat([curved(x), PART], 1), X, [W, PART], rule="cat")
    agree(lambda x: torch.cat([x, PART], 1).tanh(), X, [PART], rule="cat")
    agree(lambda x: torch.cat([x, x, x * W], -1), X, [W], rule="cat")
    agree(lambda x: torch.cat([curved(x)]), X, [W], rule="cat")
    agree(lambda x: torch.stack([x * V, x * V], 1), X, [V], rule="stack")
    agree(lambda x: torch.stack([curved(x)], -2), X, [W], rule="stack")


def test_cat_of_scores_and_of_a_batch_of_1():
    agree(lambda x: torch.cat([curved(x).sum((1, 2)), (x * V).sum((1, 2))]), X, [W, V], rule="cat")
    agree(lambda x: torch.cat([curved(x), x], 1), X[:1], [W], rule="cat")
    agree(lambda x: torch.stack([curved(x).sum(), x.prod()]), X, [W], rule="stack")


def test_cat_with_a_frozen_parameter():
    frozen = PART.detach()
    agree(lambda x: torch.cat([curved(x), frozen], 1).tanh(), X, [W], rule="cat")


def test_cat_overlooks_what_is_empty():
    nothing, none = torch.empty(0, dtype=torch.float64, requires_grad=True), random(2, 0, 4, parameter=True)
    parameters = [W, nothing, none]
    agree(lambda x: torch.cat([nothing, curved(x), none, curved(x)[:, :0]], 1).tanh(), X, parameters, rule="cat")
    agree(lambda x: torch.cat([nothing, curved(x)[:, 0, 0], curved(x)[:0, 0, 0]]).tanh(), X, [W, nothing], rule="cat")


def test_cat_promotes():
    agree(lambda x: torch.cat([curved(x).float(), PART], 1).tanh(), X, [W, PART], rule="cat", tolerance=1e-6)
    single = PART.detach().float().requires_grad_()
    agree(lambda x: torch.cat([curved(x), single], 1).tanh(), X, [W, single], rule="cat", tolerance=1e-6)
    half = single.detach().half()
    agree(lambda x: torch.cat([curved(x).float(), half], 1).tanh(), X, [W], rule="cat", tolerance=1e-6)


def test_cat_with_complex_numbers_is_left_alone():
    imaginary = torch.complex(PART.detach(), PART.detach())
    agree(lambda x: torch.cat([curved(x), imaginary], 1).abs().tanh(), X, [W], alone="CatBackward0")


def test_cat_of_channels_last():
    x = random(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 2, 3, padding=1).double().to(memory_format=torch.channels_last)
    agree(lambda x: torch.cat([x, layer(x).tanh()], 1).tanh(), x, layer.parameters(), rule="cat")
    part = random(2, 1, 4, 5, seed=1)
    agree(lambda x: torch.cat([layer(x).tanh(), part, x, part], 1).tanh(), x, layer.parameters(), rule="cat")


def test_cat_of_transposed_and_expanded_values():
    agree(lambda x: torch.cat([curved(x).mT, PART.mT.expand(2, 4, 2)], -1).tanh(), X, [W, PART], rule="cat")
    agree(lambda x: torch.cat([curved(x)[:, :1].expand(-1, 5, -1), x], 1).tanh(), X, [W], rule="cat")


SPLITS = {
    "split": (lambda h: h.split(2, -1), "split"),
    "split with a rest": (lambda h: h.split(2, 1), "split"),
    "split with sizes": (lambda h: h.split([1, 0, 3], -1), "split"),
    "chunk": (lambda h: h.chunk(3, 1), "split"),
    "chunk into one": (lambda h: h.chunk(1, 1), "split"),
    "unsafe_chunk": (lambda h: h.unsafe_chunk(2, -1), "split"),
    "unsafe_split_with_sizes": (lambda h: h.unsafe_split_with_sizes([1, 2], 1), "split"),
    "unbind": (lambda h: h.unbind(-1), "unbind"),
    "unbind a batch": (lambda h: h.unbind(), "unbind"),
    "unbind one": (lambda h: h[:, :1].unbind(1), "unbind"),
    "split of a transposed value": (lambda h: h.mT.split([3, 1], 1), "split"),
}


def subsets(count):
    return [[k for k in range(count) if bits >> k & 1] for bits in range(1, 2**count)]


@pytest.mark.parametrize("name", SPLITS)
def test_any_part_of_a_split(name):
    cut, rule = SPLITS[name]
    for used in subsets(len(cut(X))):
        if not any(cut(X)[k].numel() for k in used):
            continue

        def score(h, used=used):
            parts = cut(h)
            return sum(((k + 1) * parts[k] ** 3).sum() for k in used)

        agree(lambda x, score=score: score(curved(x)), X, [W], rule=rule)
        agree(lambda x, score=score: score(x) + (x * W).sum(), X, [W], rule=rule)
    agree(lambda x: cut(x * W)[0], X, [W], rule=rule)
    agree(lambda x: cut(curved(x))[-1], X, [W], rule=rule)


def test_two_of_five():
    x, w = random(2, 5, 3), random(5, 3, seed=1, parameter=True)

    def critic(x):
        parts = (x * w).tanh().unbind(1)
        return (parts[1] * parts[3]).sum(1)

    agree(critic, x, [w], rule="unbind")


def test_parts_of_which_some_bend_and_some_do_not():
    def critic(x):
        a, b, c = curved(x).split(1, 1)
        return (a.tanh() * PART + b + V[:1] * c).sum((1, 2))

    agree(critic, X, [W, V, PART], rule="split")


def test_split_and_cat_again():
    def critic(x):
        a, b = curved(x).chunk(2, -1)
        return torch.cat([b, a, a * b.sigmoid()], -1).sum((1, 2))

    agree(critic, X, [W], rule="split")


def test_split_of_channels_last():
    x = random(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1).double().to(memory_format=torch.channels_last)
    for used in subsets(4):

        def critic(x, used=used):
            parts = convolution(x).split(1, 1)
            return sum((k + 1) * parts[k].tanh() for k in used)

        agree(critic, x, convolution.parameters(), rule="split")


def test_a_recurrent_critic():
    x, u = random(2, 5, 3), random(3, 3, seed=1, parameter=True)

    def critic(x):
        h = torch.zeros(2, 3, dtype=torch.float64)
        states = []
        for step in x.unbind(1):
            h = (h @ u + step).tanh()
            states.append(h)
        return torch.stack(states, 1).sum((1, 2))

    agree(critic, x, [u], rule="unbind")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    def make(kind):
        w, part = (p.detach().to(dtype).to(kind).requires_grad_() for p in (W, PART))

        def critic(x):
            a, b = torch.cat([(x * w).tanh(), part, x], 1).split([3, 4], 1)
            return torch.stack([a, b[:, 1:]], 1).tanh()

        return critic, [w, part]

    agree_low(make, X, dtype)
