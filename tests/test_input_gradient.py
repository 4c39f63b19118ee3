"""Losses of a function and of its gradient: energies and forces, Sobolev training; against plain autograd."""

import collections
import copy

import pytest
import torch
from tape_critics import rules
from torch import nn

import gpfast

ATOMS = 5


class Potential(nn.Module):
    """E = sum over pairs of an MLP of their distance and of their species; invariant, smooth, three curved layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.species = nn.Embedding(3, 4)
        self.pair = nn.Sequential(nn.Linear(9, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("pairs", torch.triu_indices(ATOMS, ATOMS, 1), persistent=False)
        self.double()

    def forward(self, positions, species, strain=None):
        if strain is not None:
            positions = positions + positions @ (strain + strain.transpose(1, 2)) / 2
        i, j = self.pairs
        distances = (positions[:, i] - positions[:, j]).square().sum(2, keepdim=True).sqrt()
        kinds = self.species(species)
        features = torch.cat([torch.exp(-distances), kinds[:, i] + kinds[:, j], kinds[:, i] * kinds[:, j]], 2)
        return self.pair(features).sum((1, 2)) + self.shift[species].sum(1)


@pytest.fixture
def molecules():
    generator = torch.Generator().manual_seed(3)
    positions = torch.randn(4, ATOMS, 3, generator=generator, dtype=torch.float64)
    species = torch.randint(0, 3, (4, ATOMS), generator=generator)
    energies = torch.randn(4, generator=generator, dtype=torch.float64)
    forces = torch.randn(4, ATOMS, 3, generator=generator, dtype=torch.float64)
    return positions, species, energies, forces


@pytest.fixture(params=["tape", "alone", "autograd", "reference", "auto"])
def engine(request):
    return request.param


def loss_of(engine, *args, **kwargs):
    with rules(engine != "alone"):
        return gpfast.input_gradient_loss(*args, engine="tape" if engine == "alone" else engine, **kwargs)


def parameter_gradients(loss, module, engine="tape", **options):
    with rules(engine != "alone"):
        return torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True, **options)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def energies_and_forces(model, positions, species, energies, forces):
    """As force fields are trained everywhere."""
    positions = positions.detach().requires_grad_()
    e = model(positions, species)
    (g,) = torch.autograd.grad(e.sum(), positions, create_graph=True)
    return (e - energies).square().mean() + 10 * (-g - forces).square().mean()


def test_energies_and_forces(engine, molecules):
    model, (positions, species, energies, forces) = Potential(), molecules
    expected = energies_and_forces(model, *molecules)
    ours = loss_of(
        engine,
        model,
        positions,
        lambda e, g: (e - energies).square().mean() + 10 * (-g - forces).square().mean(),
        args=(species,),
    )
    close(ours, expected)
    close(parameter_gradients(ours, model, engine), parameter_gradients(expected, model))
    assert positions.grad is None and not positions.requires_grad


def test_a_force_field_is_trained_as_by_plain_autograd(engine, molecules):
    positions, species, energies, forces = molecules
    ends = []
    for ours in (False, True):
        model = Potential()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(6):
            optimizer.zero_grad()
            moved = positions + 0.1 * step
            if ours:
                loss = loss_of(
                    engine,
                    model,
                    moved,
                    lambda e, g: (e - energies).square().mean() + 10 * (-g - forces).square().mean(),
                    kwargs={"species": species},
                )
            else:
                loss = energies_and_forces(model, moved, species, energies, forces)
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-9)


def plain(function, inputs, loss):
    points = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*points)
    return loss(y, torch.autograd.grad(y.sum(), points, create_graph=True)), points


def virial(e, gradients):
    g, stress = gradients
    return (g.square().sum((1, 2)) * e).mean() + stress.pow(3).sum() + (stress.mean() * e.sum()).tanh()


Inputs = collections.namedtuple("Inputs", ["positions", "species_free_strain"])


@pytest.mark.parametrize("arrange", ["tuple", "list", "dict", "namedtuple"])
def test_several_inputs_and_gradients_arranged_alike(arrange, engine, molecules):
    model, (positions, species, *_) = Potential(), molecules
    strain = 0.1 * torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, _ = plain(lambda p, s: model(p, species, s), (positions, strain), virial)
    if arrange == "dict":
        function = model
        inputs = {"positions": positions, "strain": strain}
        loss = lambda e, g: virial(e, (g["positions"], g["strain"]))  # noqa: E731
        extra = {"kwargs": {"species": species}}
    else:
        function = lambda p, s: model(p, species, s)  # noqa: E731
        kind = {"tuple": tuple, "list": list, "namedtuple": Inputs._make}[arrange]
        inputs = kind([positions, strain])
        loss = lambda e, g: virial(e, g) if type(g) is type(inputs) else None  # noqa: E731
        extra = {}
    ours = loss_of(engine, function, inputs, loss, **extra)
    close(ours, expected)
    close(parameter_gradients(ours, model, engine), parameter_gradients(expected, model))


def test_sobolev_training(engine):
    """Values and slopes of a target function, for several outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)
    values, slopes = torch.sin(x.sum(1, keepdim=True)), torch.cos(x)

    def loss(y, g):
        return (y - values).square().mean() + (g - slopes).square().mean() + (y.mean(1, keepdim=True) * g).sum()

    expected, _ = plain(model, (x,), lambda y, g: loss(y, g[0]))
    ours = loss_of(engine, model, x, loss)
    close(ours, expected)
    close(parameter_gradients(ours, model, engine), parameter_gradients(expected, model))


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, g: y.square().sum(),
        lambda y, g: g.square().sum(),
        lambda y, g: (y.detach() * g.sum((1, 2))).sum(),
        lambda y, g: (y * g.detach().sum((1, 2))).exp().sum(),
        lambda y, g: (y[:2] * g[1:3, 0, 0]).sum(),
        lambda y, g: (y.square().sum() + g.pow(4).sum()).log(),
        lambda y, g: torch.autograd.grad(g.pow(3).sum() * y.sum(), [g], create_graph=True)[0].square().sum(),
    ],
    ids=["y", "g", "y held", "g held", "parts", "both", "a gradient inside"],
)
def test_losses_of_every_kind(loss, engine, molecules):
    model, (positions, species, *_) = Potential(), molecules
    expected, _ = plain(lambda p: model(p, species), (positions,), lambda y, g: loss(y, g[0]))
    ours = loss_of(engine, model, positions, loss, args=(species,))
    close(ours, expected)
    close(parameter_gradients(ours, model, engine), parameter_gradients(expected, model))


def test_what_requires_grad_receives_it(engine, molecules):
    """Also tensors that only the loss or the function knows."""
    model, (positions, species, energies, _) = Potential(), molecules
    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    results = []
    for ours in (False, True):
        leaf = positions.clone().requires_grad_()
        target = energies.clone().requires_grad_()
        loss = lambda y, g, target=target: (y * target).sum() + factor * g.square().sum()  # noqa: E731
        if ours:
            value = loss_of(engine, lambda p: model(p, species) * factor, leaf * 2, loss)
        else:
            y = model(doubled := leaf * 2, species) * factor
            value = loss(y, torch.autograd.grad(y.sum(), doubled, create_graph=True)[0])
        with rules(engine != "alone"):
            results.append(torch.autograd.grad(value, [leaf, target, factor, *model.parameters()]))
    close(results[1], results[0])


def test_backward_twice_and_a_third_derivative(engine, molecules):
    model, (positions, species, *_) = Potential(), molecules
    function = lambda y, g: y.sum() + g.square().sum()  # noqa: E731
    expected, _ = plain(lambda p: model(p, species), (positions,), lambda y, g: function(y, g[0]))
    expected = parameter_gradients(expected, model)
    loss = loss_of(engine, model, positions, function, args=(species,))
    for _ in range(2):
        close(parameter_gradients(loss, model, engine, retain_graph=True), expected)
    last = parameter_gradients(loss, model, engine, create_graph=True)
    close([g.detach() for g in last], list(expected))
    if engine in ("autograd", "reference"):
        assert torch.autograd.grad(last[1].square().sum(), model.pair[0].weight)[0].any()
    else:
        with pytest.raises(RuntimeError, match='engine="autograd"'):
            last[1].square().sum().backward()
    loss = loss_of(engine, model, positions, function, args=(species,))
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_without_grad_mode(engine, molecules):
    model, (positions, species, *_) = Potential(), molecules
    with torch.no_grad():
        y, g = loss_of(engine, model, positions, lambda y, g: (y, g), args=(species,))
    assert not y.requires_grad and not g.requires_grad and y.shape == (4,) and g.shape == positions.shape
    (expected, (slope,)), _ = plain(lambda p: model(p, species), (positions,), lambda y, g: (y, g))
    close([y, g], [expected.detach(), slope.detach()])


def test_results_may_be_written_in_place(engine):
    """Where eager allows it, ours are one's own; where eager notices that a saved value was overwritten, so do we."""
    scale = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).requires_grad_()
    a, b = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(a, b):
        return a + torch.exp(b * scale)

    def loss(y, g):
        return y.pow(2).sum() + g[0].neg().pow(3).sum() + (g[1] * 2 + 1).pow(2).sum()

    def in_place(y, g):
        return y.pow_(2).sum() + g[0].neg_().pow_(3).sum() + g[1].mul_(2).add_(1).pow_(2).sum()

    expected, _ = plain(function, (a, b), loss)
    expected = torch.autograd.grad(expected, scale)
    try:
        found = torch.autograd.grad(loss_of(engine, function, (a, b), in_place), scale)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        close(found, expected)


@pytest.mark.parametrize("last", [torch.tanh, torch.exp, torch.sigmoid, torch.relu], ids=lambda f: f.__name__)
def test_outputs_that_were_saved_may_not_be_overwritten_unnoticed(last, engine):
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).requires_grad_()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, _ = plain(lambda x: last(x * weight), (x,), lambda y, g: (y * 3).sum() + g[0].pow(2).sum())
    expected = torch.autograd.grad(expected, weight)
    try:
        loss = loss_of(engine, lambda x: last(x * weight), x, lambda y, g: y.mul_(3).sum() + g.pow(2).sum())
        with rules(engine != "alone"):
            found = torch.autograd.grad(loss, weight)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        close(found, expected)


def test_picked_outputs_and_a_function_that_is_no_module(engine, molecules):
    model, (positions, species, *_) = Potential(), molecules
    expected, _ = plain(lambda p: model(p, species), (positions,), lambda y, g: g[0].square().sum() + y.sum())
    expected = parameter_gradients(expected, model)
    for pack, output in (
        (lambda e: {"energy": e, "other": 1}, "energy"),
        (lambda e: (e, None), 0),
        (lambda e: (e, None), lambda result: result[0]),
    ):
        ours = loss_of(
            engine,
            lambda p, pack=pack: pack(model(p, species)),
            positions,
            lambda y, g: g.square().sum() + y.sum(),
            output=output,
        )
        close(parameter_gradients(ours, model, engine), expected)


def test_under_transforms(molecules):
    model, (positions, species, *_) = Potential(), molecules
    parameters = dict(model.named_parameters())

    def loss(parameters):
        function = lambda p: torch.func.functional_call(model, parameters, (p, species))  # noqa: E731
        return gpfast.input_gradient_loss(function, positions, lambda y, g: y.square().sum() + g.square().sum())

    expected, _ = plain(lambda p: model(p, species), (positions,), lambda y, g: y.square().sum() + g[0].square().sum())
    close(list(torch.func.grad(loss)(parameters).values()), list(parameter_gradients(expected, model)))


X = torch.randn(3, 2, dtype=torch.float64)
LINEAR = nn.Linear(2, 1).double()
SUM = lambda y, g: y.sum() + g.sum()  # noqa: E731
ERRORS = {
    "engine": (
        ValueError,
        "`engine` must be one of",
        lambda: gpfast.input_gradient_loss(LINEAR, X, SUM, engine="fast"),
    ),
    "loss": (TypeError, "`loss` must be callable", lambda: gpfast.input_gradient_loss(LINEAR, X, 3)),
    "function": (TypeError, "`function` must be callable", lambda: gpfast.input_gradient_loss(3, X, SUM)),
    "dtype": (TypeError, "`inputs` must be floating point", lambda: gpfast.input_gradient_loss(LINEAR, X.long(), SUM)),
    "member": (
        TypeError,
        r"`inputs\['b'\]` must be a tensor",
        lambda: gpfast.input_gradient_loss(LINEAR, {"a": X, "b": 3}, SUM),
    ),
    "nothing": (ValueError, "holds no tensor", lambda: gpfast.input_gradient_loss(LINEAR, (), SUM)),
    "unused": (
        RuntimeError,
        r"does not depend on `inputs\[1\]`",
        lambda: gpfast.input_gradient_loss(lambda a, b: LINEAR(a), (X, X), SUM),
    ),
    "detached": (
        RuntimeError,
        "carries no graph",
        lambda: gpfast.input_gradient_loss(lambda x: x.detach(), X, SUM),
    ),
    "output": (
        ValueError,
        "is not in the",
        lambda: gpfast.input_gradient_loss(lambda x: {"e": LINEAR(x)}, X, SUM, output="energy"),
    ),
    "args": (TypeError, "`args` must be a tuple", lambda: gpfast.input_gradient_loss(LINEAR, X, SUM, args=X)),
    "inference": (RuntimeError, "inference_mode", lambda: under_inference()),
    "in place": (RuntimeError, "in place.* your `inputs`", lambda: gpfast.input_gradient_loss(doubled, X, SUM)),
    "a view in place": (RuntimeError, "in place.* your `inputs`", lambda: gpfast.input_gradient_loss(cleared, X, SUM)),
}


def doubled(x):
    return x.mul_(2).sum(1)


def cleared(x):
    x[:, 0] = 0
    return x.sum(1)


def under_inference():
    with torch.inference_mode():
        return gpfast.input_gradient_loss(LINEAR, X, SUM)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    kind, words, call = ERRORS[name]
    before = copy.deepcopy(X)
    with pytest.raises(kind, match=words):
        call()
    assert torch.equal(X, before)
