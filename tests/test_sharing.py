"""An activation that saved its input holds its result, where the next layer saved that too: nothing else changes."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from tape_checks import all_shared
from tape_critics import agrees
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo_runs import exact

import gpfast
from gpfast import tape, zoo

SHARED = {
    "leaky_relu": nn.LeakyReLU(0.2),
    "slope of zero": nn.LeakyReLU(0.0),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.25),
}
SEPARATE = {"negative slope": nn.LeakyReLU(-0.3), "clamp": lambda x: x.clamp(-0.5, 0.25), "smooth": nn.ELU()}
LAYERS = {
    "convolution": (nn.Conv2d(3, 4, 3, padding=1), lambda x: x),
    "of one dimension": (nn.Conv1d(3, 4, 3, padding=1), lambda x: x.flatten(2)),
    "linear": (nn.Linear(192, 5), lambda x: x.flatten(1)),
    "linear without bias": (nn.Linear(192, 5, bias=False), lambda x: x.flatten(1)),
    "linear on tokens": (nn.Linear(8, 5), lambda x: x),
}


@pytest.fixture
def everything_shared(monkeypatch):
    monkeypatch.setattr(tape, "WORTH_SHARING", 0)


def points(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def critic(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(2)
    activation = activation or nn.LeakyReLU(0.2)
    layers = [nn.Conv2d(3, 6, 3, padding=1), activation, nn.Conv2d(6, 6, 3, stride=2), activation]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 1)).double()


def convolved(y: torch.Tensor) -> torch.Tensor:
    return F.conv2d(y, torch.ones(1, 3, 1, 1, dtype=y.dtype, requires_grad=True))


def after(activation, layer=None):
    """(the input, the result, and what the activation holds) after a layer that takes the result."""
    layer, form = layer or LAYERS["convolution"]
    h = form(points().requires_grad_() * 1)
    with all_shared():
        y = activation(h)
        z = copy.deepcopy(layer).double()(y)
    assert z.grad_fn is not None
    return h, y, y.grad_fn._saved_self


@pytest.mark.parametrize("activation", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_result_is_held_where_the_next_layer_saved_it(activation, layer):
    h, y, held = after(activation, layer)
    assert held.data_ptr() == y.data_ptr() != h.data_ptr()
    assert held.grad_fn is h.grad_fn


@pytest.mark.parametrize("activation", SEPARATE.values(), ids=SEPARATE)
def test_an_activation_whose_result_says_less_keeps_its_input(activation):
    h, _, held = after(activation)
    assert held.data_ptr() == h.data_ptr()


def test_small_activations_are_left_alone():
    h = points().requires_grad_() * 1
    with tape.sharing([torch.zeros(1 << 20)], True):
        y = F.leaky_relu(h)
        convolved(y)
    assert y.grad_fn._saved_self.data_ptr() == h.data_ptr()


def test_small_points_and_other_engines_are_not_watched():
    large, small = torch.zeros(1 << 20), torch.zeros(4)
    assert isinstance(tape.sharing([large], True), tape.Sharing)
    for context in (tape.sharing([small], True), tape.sharing([large], False)):
        assert not isinstance(context, tape.Sharing)


def test_the_input_is_freed():
    h = points().requires_grad_() * 1
    freed = threading.Event()
    with all_shared():
        y = F.leaky_relu(h)
        z = convolved(y)
    weakref.finalize(h.untyped_storage(), freed.set)
    del h
    gc.collect()
    assert z.grad_fn is not None
    assert freed.is_set()


@pytest.mark.parametrize("activation", SHARED.values(), ids=SHARED)
def test_autograd_finds_the_graph_that_it_had(activation):
    """To the bit and to the second order, zeros where there were zeros, and twice."""

    def gradients(shared):
        module, x = critic(activation), points().requires_grad_()
        with all_shared() if shared else torch.enable_grad():
            y = module(x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        both = [*torch.autograd.grad(g.square().sum(), module.parameters(), retain_graph=True, allow_unused=True)]
        both += torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
        return both

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("activation", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"norm_dims": (1,)}], ids=str)
def test_the_penalty_is_that_of_the_eager_lines(activation, options, everything_shared):
    agrees(critic(activation), points(), points().flip(0), engines=("tape", "alone"), **options)


def test_a_loss_of_what_left_the_critic(everything_shared):
    class Leaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = critic()

        def forward(self, x):
            y = self.layers(x)
            self.aux = y.square().mean()
            return y

    x, gradients = points(), []
    for engine in ("reference", "tape"):
        module = Leaks()
        options = {"retain_graph": True} if engine == "tape" else {}
        alpha = torch.full((4,), 0.3, dtype=x.dtype)
        penalty = gpfast.gradient_penalty(module, x, x.flip(0), alpha=alpha, engine=engine, **options)
        (penalty + module.aux).backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo(name, everything_shared):
    exact(name, "cpu")


def test_a_result_that_was_written_to_unseen_is_not_taken_for_the_input():
    h = points().requires_grad_() * 1
    with all_shared():
        y = F.leaky_relu(h)
        with torch.no_grad():
            y.neg_()
        convolved(y)
    assert y.grad_fn._saved_self.data_ptr() == h.data_ptr()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_input_that_was_written_to_is_still_autograds_error(when):
    h = points().requires_grad_() * 1
    with all_shared():
        y = F.leaky_relu(h)
        if when == "before":
            h.mul_(2)
        z = convolved(y)
        if when == "after":
            h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_so_is_a_result_that_the_next_layer_saved():
    module = critic()

    def written(x):
        y = module[1](module[0](x))
        z = module[2](y)
        y += 1
        return module[5](module[4](module[3](z)))

    x = points()
    for engine in ("reference", "tape"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"), all_shared():
            gpfast.gradient_penalty(written, x, x.flip(0), engine=engine).backward()


def test_what_hooks_or_checkpoints_saved_is_left_alone(everything_shared):
    module, seen = critic(), []

    def hooked(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t.clone(), lambda t: t):
            return module(x)

    x = points()
    agrees(copy.deepcopy(module), x, x.flip(0))
    penalties = [
        gpfast.gradient_penalty(f, x, x.flip(0), alpha=torch.full((4,), 0.3), engine="tape")
        for f in (module, hooked, lambda x: checkpoint(module, x, use_reentrant=False))
    ]
    assert seen
    torch.testing.assert_close(penalties[1:], [penalties[0]] * 2)


def test_an_error_in_the_critic_ends_it(everything_shared):
    def broken(x):
        raise ArithmeticError("no score")

    x = points()
    with pytest.raises(ArithmeticError):
        gpfast.gradient_penalty(broken, x, x.flip(0), engine="tape")
    h = x.requires_grad_() * 1
    y = F.leaky_relu(h)
    convolved(y)
    assert y.grad_fn._saved_self.data_ptr() == h.data_ptr()


def test_another_thread_is_not_watched():
    h, held = points().requires_grad_() * 1, []

    def work():
        y = F.leaky_relu(h)
        convolved(y)
        held.append(y.grad_fn._saved_self.data_ptr())

    with all_shared():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert held == [h.data_ptr()]


def test_it_is_explained_and_checked(everything_shared):
    module, x = critic(), points()
    rules = [node.rule for node in gpfast.explain(module, x).nodes]
    assert rules.count("gate") == rules.count("convolution") == 2
    assert gpfast.check(module, x, x.flip(0)).ok
