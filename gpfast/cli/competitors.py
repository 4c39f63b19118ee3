"""The penalties that are measured against each other, each as a function of nothing, on one critic and one case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

import gpfast
from gpfast.inputs import pick_score
from gpfast.layout import accumulate_dtype
from gpfast.penalty import ENGINES
from gpfast.zoo import Case

EAGER = "reference"
COMPILE = "compile"
BARE = "bare"
CHUNKS = "chunks="  # and a number: the tape on a batch in so many parts
COMPETITORS = (*ENGINES, BARE, COMPILE)
DEFAULT = (EAGER, "autograd", "auto", BARE)  # "auto" is "tape" where that can run
# What compile is compared on: dense, convolutional, residual, with norms, of one dimension.
COMPILED = ("toy-mlp", "motion-prior", "dcgan32", "resnet32", "layernorm-dcgan", "audio-1d")
# Its kernels round otherwise, and then an activation beside a ReLU's kink moves the gradient: held to this share of it.
COMPILE_SLACK = 0.01

Penalty = Callable[..., Tensor]


def penalty_function(engine: str, critic: nn.Module, case: Case) -> Penalty:
    """`penalty(alpha=None)`, a 0-dim tensor: that of `engine` with gpfast's defaults; without alpha it draws one.

    `engine` is one of gpfast's, or "chunks=K".
    """
    options = options_of(engine)

    def penalty(alpha: Tensor | None = None) -> Tensor:
        return gpfast.gradient_penalty(
            critic,
            case.real,
            case.fake,
            alpha=alpha,
            args=case.args,
            kwargs=case.kwargs,
            output=case.output,
            **options,
        )

    return penalty


def options_of(engine: str) -> dict[str, Any]:
    """What gradient_penalty is called with for one of gpfast's engines, or for "chunks=K"."""
    return {"engine": "auto" if engine.startswith(CHUNKS) else engine, "chunks": chunks_of(engine)}


def chunks_of(engine: str) -> int:
    """In how many parts the batch goes through."""
    return int(engine.removeprefix(CHUNKS)) if engine.startswith(CHUNKS) else 1


def compiled_penalty(critic: nn.Module, case: Case) -> Penalty:
    """`penalty(alpha=None)`: torch.compile(fullgraph=True) over the eager penalty written with torch.func.grad.

    PyTorch can compile it, where the eager lines themselves would need the double backward of a compiled graph.
    Shapes are static. The first call compiles, which may take a minute, and raises where that cannot be done.
    """
    torch.compiler.reset()
    parameters, buffers = dict(critic.named_parameters()), dict(critic.named_buffers())
    reals, fakes = (x if isinstance(x, tuple) else (x,) for x in (case.real, case.fake))
    batch, dtype = len(reals[0]), accumulate_dtype(reals[0].dtype)

    def total_score(points, parameters, buffers):
        result = functional_call(critic, (parameters, buffers), (*points, *case.args), dict(case.kwargs))
        return pick_score(result, case.output).sum()

    def penalty(parameters, buffers, reals, fakes, alpha):
        rows = [alpha.reshape(-1, *[1] * (x.ndim - 1)) for x in reals]
        points = tuple((a * r + (1 - a) * f).to(r.dtype) for a, r, f in zip(rows, reals, fakes, strict=True))
        gradients = grad(total_score)(points, parameters, buffers)
        squares = sum(g.to(dtype).flatten(1).square().sum(1) for g in gradients)
        return 10.0 * ((squares + 1e-12).sqrt() - 1).square().mean()

    compiled = torch.compile(penalty, fullgraph=True, dynamic=False)

    def call(alpha: Tensor | None = None) -> Tensor:
        if alpha is None:
            alpha = torch.rand(batch, dtype=dtype, device=reals[0].device)
        return compiled(parameters, buffers, reals, fakes, alpha)

    return call


def step_function(penalty: Penalty, critic: nn.Module) -> Callable[[], None]:
    """One step of what is timed: the penalty, and its gradient in every parameter, from gradients that are None."""
    parameters = list(critic.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        penalty().backward()

    return step
