"""A critic out of a few lines, and whether every engine does with it what the eager lines do."""

import contextlib
import copy
import dataclasses

import torch
from torch import nn

import gpfast
from gpfast import reference

# The tape with its rules, the tape with every node run alone, and PyTorch's double backward.
ENGINES = ("tape", "alone", "autograd")


class KeepsTensors(torch.autograd.Function):
    """h * h, whose derivative reads a tensor that it was not given as an input."""

    @staticmethod
    def forward(ctx, h, holder):
        ctx.holder = holder
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return 2 * h * grad * torch.sin(ctx.holder[0]), None


class Critic(nn.Module):
    """`forward(critic, x)` with two layers, 6 -> 5 -> 1, a scale, and whatever `parts` are given."""

    def __init__(self, forward=None, **parts):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
            self.scale = nn.Parameter(torch.rand(5) + 0.5)
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, x):
        return self.function(self, x)


@dataclasses.dataclass
class Outcome:
    value: torch.Tensor | None
    gradients: dict
    buffers: dict
    critic: nn.Module
    error: BaseException | None = None


def data(*shape, seed=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape or (4, 6), generator=generator, dtype=dtype) for _ in range(2))


@contextlib.contextmanager
def rules(enabled):
    torch.ops.gpfast.set_rules_enabled(enabled)
    try:
        yield
    finally:
        torch.ops.gpfast.set_rules_enabled(True)


def outcome(engine, critic, real, fake, options):
    """What `engine` ("reference" too) makes of a copy of `critic` and of the data, from a fixed random state."""
    critic = copy.deepcopy(critic)
    real, fake = (x.detach().clone().requires_grad_() for x in (real, fake))
    done = Outcome(None, {}, {}, critic)
    torch.manual_seed(3)
    try:
        with rules(engine != "alone"):
            if engine == "reference":
                value = reference.gradient_penalty(critic, real, fake, **options)
            else:
                name = "tape" if engine == "alone" else engine
                value = gpfast.gradient_penalty(critic, real, fake, engine=name, **options)
            weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).reshape(
                value.shape
            )
            (weights * value).sum().backward()
    except Exception as error:
        done.error = error
        return done
    done.value = value.detach()
    done.gradients = {name: p.grad for name, p in critic.named_parameters()} | {"real": real.grad, "fake": fake.grad}
    done.buffers = dict(critic.named_buffers())
    return done


def agrees(critic, real=None, fake=None, *, engines=ENGINES, tolerance=1e-10, **options):
    """Value, every gradient and every buffer of each engine are the reference's in float64; returns that of the tape.

    critic: a module, or the `forward` of a Critic. A parameter that eager leaves without gradient may get zeros.
    """
    critic = critic if isinstance(critic, nn.Module) else Critic(critic)
    if real is None:
        real, fake = data()
    expected = outcome("reference", critic, real, fake, options)
    if expected.error is not None:
        raise expected.error
    assert any(g is not None and g.any() for g in expected.gradients.values()), (
        "a critic without gradient proves nothing"
    )
    outcomes = {engine: outcome(engine, critic, real, fake, options) for engine in engines}
    return {engine: same(ours, expected, engine, tolerance) for engine, ours in outcomes.items()}


def same(ours, expected, engine, tolerance=1e-10):
    if ours.error is not None:
        raise AssertionError(f"{engine} raises") from ours.error
    torch.testing.assert_close(
        ours.value, expected.value, rtol=tolerance, atol=tolerance, msg=lambda m: f"{engine}: {m}"
    )
    largest = max(g.abs().max() for g in expected.gradients.values() if g is not None)
    for name, theirs in expected.gradients.items():
        mine = ours.gradients[name]
        if theirs is None:
            assert mine is None or (engine != "autograd" and not mine.any()), (engine, name)
        else:
            assert mine is not None, (engine, name)
            assert (mine - theirs).abs().max() <= tolerance * largest, (engine, name, mine, theirs)
    for name, buffer in expected.buffers.items():
        assert torch.equal(ours.buffers[name], buffer), f"{engine}: the buffer {name} advanced differently"
    return ours


def refuses(critic, error, match, real=None, fake=None, *, engines=ENGINES, **options):
    """The eager lines raise `error` with words that hold `match`, and so does each engine."""
    critic = critic if isinstance(critic, nn.Module) else Critic(critic)
    if real is None:
        real, fake = data()
    for engine in ("reference", *engines):
        raised = outcome(engine, critic, real, fake, options).error
        assert type(raised) is error and match in str(raised), (engine, type(raised), str(raised))
