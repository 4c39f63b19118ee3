"""Critics at random, out of every operation that has a rule and some that have none: the tape against autograd.

What fails is printed as a program. The slow one draws others in each run: GPFAST_RANDOM_GRAPHS=50000 as many.
"""

import math
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import drawn
from tape_checks import LOSSES, adjoints_made_again, autograd_gradients, tape_gradients

TOLERANCE, FLOOR = 1e-10, 1e-2


class Broken(Exception):
    """The program does not run, which is a defect of the one who wrote it."""


def outcome(program, run, loss, nudge=0.0, **options):
    """([value, gradients...] with None for zeros, or the exception). nudge: how far everything is moved, relatively."""
    leaves = program.parameters()
    x = program.x()
    for tensor in (x, *leaves.values()) if nudge else ():
        noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(5))
        tensor.detach().mul_(1 + nudge * noise)
    try:
        value, gradients, *_ = run(program.critic(leaves), x, leaves.values(), loss, **options)
    except (RuntimeError, NotImplementedError) as error:
        return error
    return [value, *gradients]


def distance(ours, theirs):
    """The largest difference, of zeros where there is None."""
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a is not None or b is not None:
            difference = -b if a is None else a if b is None else a - b
            most = max(most, difference.abs().amax().item() if difference.numel() else 0.0)
    return most


def largest(results):
    return max(r.abs().amax().item() for r in results if r is not None and r.numel())


def verdict(program, modes):
    """What is wrong with the tape on this program, or None."""
    try:
        x = program.x().requires_grad_()
        program.critic(program.parameters())(x.view_as(x))
    except Exception as error:
        raise Broken(f"{error!r} in\n{program}") from error
    for loss in LOSSES:
        expected = outcome(program, autograd_gradients, loss)
        if isinstance(expected, list) and not math.isfinite(largest(expected)):
            continue
        for name, options in modes.items():
            ours = outcome(program, tape_gradients, loss, **options)
            words = f"{loss.__name__}, {name}"
            if isinstance(expected, Exception) or isinstance(ours, Exception):
                if overwritten(expected) and isinstance(ours, list):
                    # What autograd would have needed for a gradient of zero, which the tape does not compute.
                    with torch.autograd.graph.allow_mutation_on_saved_tensors():
                        exact = outcome(program, autograd_gradients, loss)
                    if distance(ours, exact) <= TOLERANCE * max(largest(exact), FLOOR):
                        continue
                if type(ours) is not type(expected):
                    return f"raises otherwise: {words}: {shown(ours)} and not {shown(expected)}"
                continue
            off = distance(ours, expected)
            allowed = TOLERANCE * max(largest(expected), FLOOR)
            if off <= allowed:
                continue
            # Not where a nudge in the thirteenth digit moves autograd's own result as far.
            slack = distance(outcome(program, autograd_gradients, loss, nudge=1e-13), expected)
            if not off <= allowed + 3 * slack:
                return f"differs: {words}: by {off:.2g} of {largest(expected):.2g} (slack {slack:.2g})"
    return None


def overwritten(result):
    return "modified by an inplace operation" in str(result)


def shown(result):
    return repr(result) if isinstance(result, Exception) else "a result"


MODES = {
    "rules": {},
    "rules again": {"again": True},
    "alone": {"rules": False},
    "alone again": {"rules": False, "again": True},
}


@st.composite
def programs(draw):
    return drawn(lambda n: draw(st.integers(0, n - 1)))


def disagreement(program, mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use of index_put_ on expanded")
        with adjoints_made_again():
            wrong = verdict(program, {name: MODES[name] for name in ("rules", mode)})
    return wrong and f"{wrong}\n{program!r}"


usual = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
drawing = given(programs(), st.sampled_from([*MODES][1:]))


@settings(usual, max_examples=1000, derandomize=True)
@drawing
def test_random_graphs(program, mode):
    assert not (wrong := disagreement(program, mode)), wrong


@pytest.mark.slow
@settings(usual, max_examples=int(os.environ.get("GPFAST_RANDOM_GRAPHS", 10_000)))
@drawing
def test_other_random_graphs(program, mode):
    assert not (wrong := disagreement(program, mode)), wrong
