"""Custom autograd Functions: what they keep, leave out or raise the tape handles as eager does."""

import threading

import pytest
import torch
from tape_critics import ENGINES, Critic, KeepsTensors, agrees, data, outcome, refuses
from torch.autograd.function import once_differentiable


def cubed(cls):
    """A critic with `cls` in the middle and curvature around it."""
    return lambda m, x: m.last(torch.tanh(cls.apply(torch.sin(m.first(x)))))


class Cubes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return 3 * h * h * grad


class CubesBySetup(torch.autograd.Function):
    @staticmethod
    def forward(h):
        return h**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Cubes.backward


class SavesItsResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        y = torch.exp(h)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad


class CallsAnother(torch.autograd.Function):
    """Its derivative is a custom Function again."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**4

    @staticmethod
    def backward(ctx, grad):
        return 4 * Cubes.apply(ctx.saved_tensors[0]) * grad


class CallsAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            h = ctx.saved_tensors[0]
            (out,) = torch.autograd.grad(h**3, h, grad, create_graph=True)
        return out


class SkipsTheGraph(torch.autograd.Function):
    """Exact once; what it returns has no derivative, and autograd takes it for a constant."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return (3 * h * h * grad).detach()


@pytest.mark.parametrize(
    "cls", [Cubes, CubesBySetup, SavesItsResult, CallsAnother, CallsAutograd, SkipsTheGraph], ids=lambda c: c.__name__
)
def test_exact(cls):
    agrees(cubed(cls))
    agrees(lambda m, x: m.last(cls.apply(m.first(x))), reduction="none")


class Several(torch.autograd.Function):
    """Two differentiable results, one that is not, and one that nobody uses."""

    @staticmethod
    def forward(ctx, h, scale, number, flag):
        order = h.argsort(1)
        signs = torch.sign(h)
        ctx.save_for_backward(h, scale)
        ctx.mark_non_differentiable(order, signs)
        return h * h * scale, order, torch.sin(h) * number, signs, h * 5

    @staticmethod
    def backward(ctx, first, order, second, signs, third):
        h, scale = ctx.saved_tensors
        return 2 * h * scale * first + torch.cos(h) * 2.0 * second + 5 * third, (first * h * h).sum(0), None, None


def test_several_results_of_which_some_are_not_differentiable():
    def forward(m, x):
        square, order, sine, signs, _ = Several.apply(m.first(x), m.scale, 2.0, None)
        return m.last(square + sine.gather(1, order) * signs)

    agrees(forward)

    def only_one(m, x):
        return m.last(torch.tanh(Several.apply(m.first(x), m.scale, 2.0, None)[2]))

    agrees(only_one)


class Unmaterialized(torch.autograd.Function):
    """Gets None for a result nobody uses, and gives None for an input."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, b)
        return a * b, a.exp()

    @staticmethod
    def backward(ctx, product, exponential):
        a, b = ctx.saved_tensors
        if product is None:
            return a.exp() * exponential, None
        return product * b, product * a


def test_gradients_that_are_none():
    agrees(lambda m, x: m.last(Unmaterialized.apply(m.first(x), torch.sigmoid(m.first(x)))[0]))
    agrees(lambda m, x: m.last(Unmaterialized.apply(m.first(x), m.scale.expand(len(x), 5))[1]))
    agrees(lambda m, x: m.last(Unmaterialized.apply(torch.cos(m.first(x)), m.first(x))[1]))


def keeps_a_parameter(m, x):
    return m.last(KeepsTensors.apply(m.first(x), [m.scale]))


def keeps_a_parameter_that_is_used_elsewhere(m, x):
    return m.last(KeepsTensors.apply(m.first(x) * m.scale, [m.scale]) * m.scale)


def keeps_an_expression_of_parameters(m, x):
    return m.last(KeepsTensors.apply(m.first(x), [torch.tanh(m.scale) * m.first.bias]))


def keeps_a_tensor_of_the_critic_below(m, x):
    h = m.first(x)
    return m.last(KeepsTensors.apply(torch.tanh(h), [h]))


def keeps_a_tensor_that_nothing_else_uses(m, x):
    h = m.first(x)
    return m.last(KeepsTensors.apply(torch.tanh(h), [torch.cos(h) * m.scale]))


def keeps_the_points(m, x):
    return m.last(KeepsTensors.apply(m.first(x), [x[:, :5]]))


def keeps_views_of_its_input(m, x):
    h = torch.tanh(m.first(x))
    return m.last(KeepsTensors.apply(h, [h.t()[:].t()]))


@pytest.mark.parametrize(
    "forward",
    [
        keeps_a_parameter,
        keeps_a_parameter_that_is_used_elsewhere,
        keeps_an_expression_of_parameters,
        keeps_a_tensor_of_the_critic_below,
        keeps_a_tensor_that_nothing_else_uses,
        keeps_the_points,
        keeps_views_of_its_input,
    ],
    ids=lambda f: f.__name__,
)
def test_a_function_that(forward):
    agrees(forward)
    agrees(forward, reduction="none", at="real")


def keeps_a_tensor_of_the_critic_above(m, x):
    holder = []
    y = KeepsTensors.apply(m.first(x), holder)
    holder.append(torch.tanh(y) * m.scale)
    return m.last(holder[0] + y)


def keeps_a_tensor_of_the_critic_beside(m, x):
    h = m.first(x)
    side = torch.cos(h) * m.scale
    return m.last(KeepsTensors.apply(torch.tanh(h), [side]) + side)


@pytest.mark.parametrize("forward", [keeps_a_tensor_of_the_critic_above, keeps_a_tensor_of_the_critic_beside])
def test_a_function_that_keeps_a_tensor_whose_rule_was_made_already(forward):
    """An error that says what to do: never another gradient. Nodes that run alone need no rule."""
    agrees(forward, engines=["alone", "autograd"])
    done = outcome("tape", Critic(forward), *data(), {})
    assert isinstance(done.error, RuntimeError)
    assert "depends on a tensor that it was not given" in str(done.error) and 'engine="autograd"' in str(done.error)


class GivesTheFirstOnly(torch.autograd.Function):
    """Of a product, or of a sum, with a second factor that the author holds constant."""

    @staticmethod
    def forward(ctx, a, b, multiplies):
        ctx.save_for_backward(b)
        ctx.multiplies = multiplies
        return a * b if multiplies else a + b

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0] if ctx.multiplies else grad, None, None


def depends_on_what_gets_no_gradient(m, x):
    return m.last(GivesTheFirstOnly.apply(torch.tanh(m.first(x)), torch.sin(x[:, :5] * m.scale), True))


def keeps_what_gets_no_gradient(m, x):
    h, kept = torch.tanh(m.first(x)), torch.sin(x[:, :5] * m.scale)
    return m.last(torch.sin(GivesTheFirstOnly.apply(KeepsTensors.apply(h, [kept]), kept, False)))


def keeps_what_was_made_of_what_gets_no_gradient(m, x):
    h, kept = torch.tanh(m.first(x)), torch.sin(x[:, :5] * m.scale)
    return m.last(torch.sin(GivesTheFirstOnly.apply(KeepsTensors.apply(h, [torch.cos(kept)]), kept, False)))


@pytest.mark.parametrize(
    "forward",
    [depends_on_what_gets_no_gradient, keeps_what_gets_no_gradient, keeps_what_was_made_of_what_gets_no_gradient],
    ids=lambda f: f.__name__,
)
def test_derivatives_that_depend_on_what_no_gradient_reaches(forward):
    """The gradient, or an error where the place has been passed: never another gradient."""
    for options in ({}, {"reduction": "none"}):
        for engine in ENGINES:
            done = outcome(engine, Critic(forward), *data(), options)
            if done.error is None:
                agrees(forward, engines=[engine], **options)
            else:
                assert forward is not depends_on_what_gets_no_gradient and 'engine="autograd"' in str(done.error)


@pytest.mark.parametrize("through_a_product", [False, True])
def test_a_kept_parameter_with_a_hook(through_a_product):
    """The hook sees the whole gradient, once."""

    def forward(m, x):
        h = m.first(x)
        m.scale.register_hook(lambda g: g * g)
        side = torch.cos(h) * m.scale if through_a_product else m.scale
        return m.last(KeepsTensors.apply(torch.tanh(h) * m.scale, [side]))

    agrees(forward)


class ByAThread(torch.autograd.Function):
    """Differentiated by a thread of its own, whose nodes autograd numbers apart."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, grad):
        (h,), out = ctx.saved_tensors, []
        thread = threading.Thread(target=lambda: out.append(3 * h * h * grad))
        thread.start()
        thread.join()
        return out[0]


def test_a_function_differentiated_by_another_thread():
    agrees(cubed(ByAThread))


class Once(torch.autograd.Function):
    forward = Cubes.forward

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return 3 * h * h * grad


def test_once_differentiable():
    refuses(cubed(Once), RuntimeError, "once_differentiable")


class Raises(torch.autograd.Function):
    error: type = ValueError

    @staticmethod
    def forward(ctx, h):
        return h * 2

    @staticmethod
    def backward(ctx, grad):
        raise Raises.error("not today")


class RaisesLater(torch.autograd.Function):
    """The derivative raises when it is differentiated."""

    @staticmethod
    def forward(ctx, h):
        return h * 2

    @staticmethod
    def backward(ctx, grad):
        return 2 * Raises.apply(grad)


class Custom(Exception):
    """Somebody's own."""


@pytest.mark.parametrize("error", [ValueError, KeyError, Custom, RuntimeError])
def test_an_exception_reaches_the_user_as_it_is(error, monkeypatch):
    monkeypatch.setattr(Raises, "error", error)
    refuses(cubed(Raises), error, "not today")
    refuses(cubed(RaisesLater), error, "not today")
    refuses(cubed(RaisesLater), error, "not today", reduction="none")


class GivesTheWrongShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * 2

    @staticmethod
    def backward(ctx, grad):
        return grad[:, :2]


class GivesTooMuch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * 2

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def test_a_function_that_returns_nonsense():
    refuses(cubed(GivesTheWrongShape), RuntimeError, "invalid gradient at index 0")
    refuses(cubed(GivesTooMuch), RuntimeError, "incorrect number of gradients")


class Broadcasts(torch.autograd.Function):
    """Leaves the sum over the batch, and the cast, to autograd."""

    @staticmethod
    def forward(ctx, h, scale):
        ctx.save_for_backward(h, scale)
        return h * scale

    @staticmethod
    def backward(ctx, grad):
        h, scale = ctx.saved_tensors
        return grad * scale, (grad * h).float()


def test_a_gradient_that_autograd_reduces_and_casts():
    agrees(lambda m, x: m.last(torch.tanh(Broadcasts.apply(m.first(x).float().double(), m.scale))))
