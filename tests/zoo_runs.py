"""Penalties of the zoo's critics from a fixed random state, on any device, and what the engines must agree in."""

import copy

import torch

import gpfast
from gpfast import reference
from gpfast.zoo import ZOO, build

ENGINES = ["autograd", "tape"]


def run(penalty, critic, case, **options):
    """(values, {name: gradient or None}, critic) of one call on a copy of `critic`, from a fixed random state."""
    critic = copy.deepcopy(critic)
    torch.manual_seed(11)
    values = penalty(critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output, **options)
    weights = torch.linspace(0.5, 1.5, values.numel(), dtype=values.dtype, device=values.device).reshape(values.shape)
    (weights * values).sum().backward()
    return values.detach(), {name: p.grad for name, p in critic.named_parameters()}, critic


def inputs(name, small, batch, dtype, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return ZOO[name].inputs(batch, small, dtype=dtype, device=device, generator=generator)


def exact(name, device, **options):
    """Value, every parameter's gradient and the buffers of the small form in float64, against the reference there."""
    critic = build(name, small=True, dtype=torch.float64, device=device)
    agrees(critic, inputs(name, True, ZOO[name].small_batch, torch.float64, 1, device), **options)


def agrees(critic, case, engines=ENGINES, **options):
    """Whether the engines have the reference's value, gradients and buffers, all float64."""
    expected, oracle, left = run(reference.gradient_penalty, critic, case, **options)
    largest = max(g.abs().max() for g in oracle.values() if g is not None)
    assert largest > 0 or options.get("one_sided"), "a critic without gradient proves nothing"
    for engine in engines:
        values, ours, after = run(gpfast.gradient_penalty, critic, case, engine=engine, **options)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
        for parameter, g in oracle.items():
            assert present_alike(ours[parameter], g, engine), parameter
            assert g is None or (ours[parameter] - g).abs().max() <= 1e-10 * largest, parameter
        for (buffer, a), b in zip(after.named_buffers(), left.buffers(), strict=True):
            assert torch.equal(a, b), f"{buffer} advanced differently"


def as_close_as_eager(name, device, dtype, *, small, batch, draws=3):
    """||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64|| for the value and each parameter.

    The norms run over a few draws of the data, for a parameter of one element has one rounding error a draw, and
    eager's may be small by luck.
    """
    low = build(name, small=small, dtype=dtype, device=device)
    high = copy.deepcopy(low).double()
    alpha = torch.linspace(0, 1, batch, device=device)
    exact, eager, ours = [], [], {engine: [] for engine in ENGINES}
    for seed in range(draws):
        case = inputs(name, small, batch, dtype, seed, device)
        exact.append(flat(run(reference.gradient_penalty, high, as_float64(case), alpha=alpha)))
        eager.append(flat(run(reference.gradient_penalty, low, case, alpha=alpha)))
        for engine in ENGINES:
            ours[engine].append(flat(run(gpfast.gradient_penalty, low, case, alpha=alpha, engine=engine)))
    for engine, results in ours.items():
        for parameter in exact[0]:
            fp64, theirs, here = ([draw[parameter] for draw in side] for side in (exact, eager, results))
            assert {g is None for g in fp64} == {g is None for g in theirs}, parameter
            assert all(present_alike(g, exact, engine) for g, exact in zip(here, fp64, strict=True)), parameter
            if fp64[0] is not None:
                fp64, theirs, here = (torch.stack([g.double() for g in side]) for side in (fp64, theirs, here))
                allowed = 1.5 * (theirs - fp64).norm() + 4 * torch.finfo(dtype).eps * fp64.norm()
                assert (here - fp64).norm() <= allowed, (engine, parameter)


def present_alike(ours, theirs, engine):
    """Where eager gives None for a gradient that is zero for certain (the last bias), the tape gives a zero."""
    if theirs is None and ours is not None:
        return engine == "tape" and not ours.any()
    return (ours is None) == (theirs is None)


def flat(result):
    value, gradients, _ = result
    return {"the value": value, **gradients}


def as_float64(case):
    """The same numbers in float64."""

    def wide(x):
        if isinstance(x, tuple):
            return tuple(map(wide, x))
        return x.double() if x.is_floating_point() else x

    return type(case)(wide(case.real), wide(case.fake), wide(case.args), case.kwargs, case.output)
