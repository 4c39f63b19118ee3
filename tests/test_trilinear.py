"""The rules of sums of products of three tensors, and of distances between rows."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import LOSSES, agree, agree_low, tape_gradients
from test_arithmetic import everywhere, numbers


def parameters(*shapes):
    return [numbers(*sizes, seed=i + 1, grad=True) for i, sizes in enumerate(shapes)]


def bilinear(live, weight, u, w):
    """Of x, with the factors live whose bit is set."""
    return lambda h: F.bilinear(
        h.sin() if live & 1 else u, h.cos() if live & 4 else w, weight * h.mean() if live & 2 else weight
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("live", range(1, 8))
def test_every_factor(live, frozen):
    given = parameters((2, 5, 5), (4, 3, 5), (4, 3, 5), (2,))
    *factors, bias = (p.detach() if frozen else p for p in given)
    function = bilinear(live, *factors)
    everywhere(lambda h: function(h) + bias, numbers(4, 3, 5), given, rule="trilinear")


def test_bilinear_layers():
    layers = torch.nn.Bilinear(5, 4, 3).double(), torch.nn.Bilinear(3, 3, 1).double()
    a, own = numbers(5, 4, seed=3, grad=True), [p for layer in layers for p in layer.parameters()]

    def critic(x):
        h = layers[0](x, torch.relu(x @ a))
        return layers[1](h, h.tanh())

    agree(critic, numbers(6, 5), [a, *own], rule="trilinear")


BY_PRODUCT = {"compute_mode": "use_mm_for_euclid_dist"}
DISTANCES = {
    "to a parameter": (lambda h, w: torch.cdist(h, w, **BY_PRODUCT), (3, 5)),
    "from a parameter": (lambda h, w: torch.cdist(w, h, **BY_PRODUCT), (3, 5)),
    "in batches": (lambda h, w: torch.cdist(h.view(2, 2, 5), w, **BY_PRODUCT), (2, 3, 5)),
    "broadcast": (lambda h, w: torch.cdist(h.view(2, 2, 5), w, **BY_PRODUCT), (3, 5)),
    "of two live values": (lambda h, w: torch.cdist(h * w, h.sin() + 2, **BY_PRODUCT), (5,)),
    "to one row": (lambda h, w: torch.cdist(h, w, **BY_PRODUCT), (1, 5)),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distances(name):
    operation, sizes = DISTANCES[name]
    w = (numbers(*sizes, seed=1) + 2).requires_grad_()
    everywhere(lambda h: operation(h, w), numbers(4, 5), [w], rule="distances")
    agree(lambda x: operation(x, w.detach()), numbers(4, 5), rule="distances")
    agree(lambda x: torch.exp(-operation(x, w)).sum(-1), numbers(4, 5), [w], rule="distances")


def test_a_distance_of_zero_has_gradient_zero():
    x, w = numbers(4, 5), numbers(3, 5, seed=1)
    w[1] = x[2] = torch.tensor([1.0, 2, 3, 4, 5])  # whose squares are exact
    w.requires_grad_()
    agree(lambda x: torch.cdist(x, w, **BY_PRODUCT).square(), x, [w], rule="distances")


@pytest.mark.parametrize("name", ["bilinear", "distances"])
def test_the_sweeps_run_again(name):
    given = parameters((2, 5, 5), (4, 5), (4, 5))
    function = {
        "bilinear": bilinear(0b101, *given),
        "distances": lambda x: torch.cdist(x, given[1] + 3, **BY_PRODUCT),
    }[name]
    for loss in LOSSES:
        runs = [tape_gradients(function, numbers(4, 5), given, loss, again=again)[1] for again in (False, True)]
        for one, other in zip(*runs, strict=True):
            assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    weight = (numbers(3, 5, 5, seed=1) / 3).to(dtype)

    def make(kind):
        own = weight.to(kind).requires_grad_()
        return (lambda x: F.bilinear(x, x.tanh(), own)), [own]

    agree_low(make, numbers(16, 5), dtype)
