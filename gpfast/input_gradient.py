"""Any loss of a function's outputs and of their gradient with respect to the inputs: the penalty is one case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gpfast import autograd, tape
from gpfast.backend import under_functions
from gpfast.call import writes_to_its_input
from gpfast.checks import check_arguments, check_autograd, check_tensor, checked_score
from gpfast.engines import takes_tape
from gpfast.inputs import Structure, arranged, call_critic, named_tensors, tensors_of
from gpfast.options import ENGINES
from gpfast.points import edge, rooted
from gpfast.running import one_graph_break, twice_differentiable


@one_graph_break
def input_gradient_loss(
    function: Callable,
    inputs: Structure,
    loss: Callable[..., Tensor],
    *,
    output: Callable | int | str | None = None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    engine: str = "auto",
) -> Tensor:
    """`loss(y, g)` of the outputs y = function(inputs) and of g = d(sum of y)/d(inputs), differentiable in parameters.

    function  Any callable, given the inputs as a critic is: `function(x, *args, **kwargs)`.
    inputs    A tensor (any shape of floating dtype), or a tuple or list (first arguments) or dict (keyword arguments)
              of them. They need not require grad; where they do, they receive theirs.
    loss      Given y and g (a tensor, or a structure like `inputs` of them); may use anything else. What it returns is
              returned: an energy-and-forces loss of a potential (g = -forces), Sobolev training (Czarnecki et al. 2017,
              arXiv 1706.04859), a penalty of one's own.
    output    Picks y out of what the function returns: an index, a key, an attribute's name or a callable.
    engine    "auto", "tape": the sweeps, whose last two run in backward; "autograd", "reference": PyTorch's double
              backward.

    With the tape, what the graph of y saved is let go of, so y is differentiable through what `loss` is given, once;
    "autograd" differentiates to any order. Raises TypeError, ValueError or RuntimeError, naming the argument.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(map(repr, ENGINES))}; got {engine!r}.")
    check_autograd("the gradient with respect to the inputs")
    check_arguments(function, args, kwargs, output, "function")
    if not callable(loss):
        raise TypeError(f"`loss` must be callable; got {type(loss).__name__}.")
    named = named_tensors(inputs, "inputs")
    if not named:
        raise ValueError("`inputs` holds no tensor; pass a tensor, or a tuple, list or dict of tensors.")
    for name, x in named.items():
        check_tensor(name, x)
    derivatives = torch.is_grad_enabled()

    def outputs(points):
        try:
            return checked_score(call_critic(function, inputs, points, args, kwargs), output)
        except RuntimeError as error:
            if not writes_to_its_input(error):
                raise
            raise RuntimeError(
                "`function` writes to its input, or a view of it, in place, and that is your `inputs`; pass a clone, or"
                " make the first operation not in-place."
            ) from error

    by_tape = takes_tape(engine)
    with twice_differentiable(function, tensors_of(inputs)[0], by_tape=by_tape):
        if under_functions() and not by_tape:
            y, gradients = autograd.transformed(outputs, tensors_of(inputs))
        else:
            with torch.enable_grad():
                points, targets = zip(*(rooted(x, False) for x in tensors_of(inputs)), strict=True)
                with tape.sharing(points, by_tape):
                    y = outputs(points)
            targets = dict(zip(named, targets, strict=True))
            y, gradients = _outputs_and_gradients(y, points, targets, by_tape, derivatives)
            del points
    return loss(y, arranged(inputs, gradients))


def _outputs_and_gradients(
    y: Tensor, points: tuple, targets: dict, by_tape: bool, derivatives: bool
) -> tuple[Tensor, list[Tensor]]:
    if by_tape:
        with torch._C.DisableTorchFunctionSubclass():
            gradients, again, refused = tape.input_gradient_op(y, list(targets.values()), True, derivatives, True)
        if not refused:
            autograd.check_used(targets, gradients)
            dtypes = [x.dtype for x in points]
            gradients = [g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)]
            return again if derivatives else again.detach(), gradients
        tape.say_refused(refused)
    if derivatives:
        autograd.check_static_graph(y)
    gradients = torch.autograd.grad(
        y, [edge(t) for t in targets.values()], torch.ones_like(y), create_graph=derivatives, allow_unused=True
    )
    autograd.check_used(targets, gradients)
    return y if derivatives else y.detach(), list(gradients)
