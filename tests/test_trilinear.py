"""The rules of sums of products of three tensors, of vectors in space, and of distances between rows."""

import pytest
import torch
import torch.nn.functional as F
from second_derivatives import of_distances_by_differences
from tape_checks import LOSSES, agree, agree_low, autograd_gradients, penalty_loss, tape_gradients
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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", DISTANCES)
def test_distances_by_differences(name, loss):
    """Those of few rows, which PyTorch differentiates twice from 2.14 on: against the ones by a product of matrices."""
    operation, sizes = DISTANCES[name]
    w, x = (numbers(*sizes, seed=1) + 2).requires_grad_(), numbers(4, 5)

    def directly(h):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(BY_PRODUCT, "compute_mode", "donot_use_mm_for_euclid_dist")
            return operation(h, w)

    value, expected = autograd_gradients(lambda x: operation(x.tanh(), w), x, [w], loss)
    ours, gradients, steps = tape_gradients(lambda x: directly(x.tanh()), x, [w], loss)
    assert ("CdistBackward0", "distances") in [step[:2] for step in steps]
    torch.testing.assert_close([ours, *gradients], [value, *expected], rtol=1e-10, atol=1e-10)
    if of_distances_by_differences():
        theirs, expected = autograd_gradients(lambda x: directly(x.tanh()), x, [w], loss)
        torch.testing.assert_close([ours, *gradients], [theirs, *expected], rtol=1e-10, atol=1e-10)
    else:
        with pytest.raises(RuntimeError, match="_cdist_backward"):
            autograd_gradients(directly, x, [w], loss)


def test_distances_far_from_zero():
    """In single precision, rows a thousand times as far from zero as from each other."""
    x, w = numbers(6, 3), numbers(4, 3, seed=1)

    def critic(rows):
        return lambda x: torch.cdist(x + 1000, rows + 1000).square().sum(1).sqrt()

    exact = tape_gradients(critic(w), x, [], penalty_loss)[1][0]
    ours = tape_gradients(critic(w.float()), x.float(), [], penalty_loss)[1][0]
    assert (ours.double() - exact).norm() <= 1e-3 * exact.norm()


CROSSED = {
    "with a parameter": (lambda h, w: torch.linalg.cross(h, w), (4, 5, 3)),
    "of a parameter": (lambda h, w: torch.linalg.cross(w, h), (1, 5, 3)),
    "broadcast": (lambda h, w: torch.linalg.cross(h[:, :1], w), (1, 5, 3)),
    "along another dimension": (lambda h, w: torch.linalg.cross(h.mT, w, dim=1), (4, 3, 1)),
    "of two live values": (lambda h, w: torch.linalg.cross(h * w, h.sin().roll(1, 0)), (3,)),
    "of one with itself": (lambda h, w: torch.linalg.cross(h, h) * w + h, (3,)),
}


@pytest.mark.parametrize("name", CROSSED)
def test_products_of_vectors(name):
    operation, sizes = CROSSED[name]
    w = numbers(*sizes, seed=1, grad=True)
    everywhere(lambda h: operation(h, w), numbers(4, 5, 3), [w], rule="cross")
    agree(lambda x: operation(x.tanh(), w.detach()), numbers(4, 5, 3), rule="cross")


def test_the_energy_of_angles_and_torsions():
    """Forces of a molecule, whose loss is differentiated by the parameters of its energy."""
    stiffness = numbers(2, seed=1, grad=True)

    def energy(x):
        a, b, c = (x[:, i + 1] - x[:, i] for i in range(3))
        angle = torch.acos(F.cosine_similarity(a, b, dim=1))
        n, m = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
        torsion = torch.atan2((torch.linalg.cross(n, m) * F.normalize(b)).sum(1), (n * m).sum(1))
        return stiffness[0] * (angle - 1.9).square() + stiffness[1] * torch.cos(3 * torsion)

    steps = agree(energy, numbers(6, 4, 3), [stiffness], rule="cross")
    assert all(rule != "alone" for _, rule, *_ in steps)


def test_a_distance_of_zero_has_gradient_zero():
    x, w = numbers(4, 5), numbers(3, 5, seed=1)
    w[1] = x[2] = torch.tensor([1.0, 2, 3, 4, 5])  # whose squares are exact
    w.requires_grad_()
    agree(lambda x: torch.cdist(x, w, **BY_PRODUCT).square(), x, [w], rule="distances")


@pytest.mark.parametrize("name", ["bilinear", "distances", "cross"])
def test_the_sweeps_run_again(name):
    given = parameters((2, 5, 5), (4, 5), (4, 5))
    function = {
        "bilinear": bilinear(0b101, *given),
        "distances": lambda x: torch.cdist(x, given[1] + 3, **BY_PRODUCT),
        "cross": lambda x: torch.linalg.cross(x[:, :3].sin(), x[:, 2:] * given[1][:, 2:]),
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
