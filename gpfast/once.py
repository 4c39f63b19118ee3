"""Critics that PyTorch differentiates only once: which operation it is, in words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from torch import Tensor

from gpfast import graph

_MISSING = re.compile(r"derivative for '?(?:aten::)?_?(\w+?)(?:_backward)?'? is not implemented")


def operation(error: Exception) -> str:
    """What `error` says cannot be differentiated twice; "" where it is another error."""
    if "marked with @once_differentiable" in str(error):
        return "a function that is marked with @once_differentiable"
    missing = _MISSING.search(str(error))
    return missing[1] if missing else ""


def sentence(who: str, what: str) -> str:
    """That `who` cannot differentiate a critic twice, for `what` has no second derivative."""
    return f"{who} cannot differentiate this critic twice: PyTorch has no second derivative of {what}"


@contextlib.contextmanager
def told(who: str, consequence: str = "") -> Iterator[None]:
    """PyTorch's error about a missing second derivative, as a RuntimeError whose message is a sentence about `who`."""
    try:
        yield
    except RuntimeError as error:
        if not (what := operation(error)):
            raise
        raise RuntimeError(f"{sentence(who, what)}{consequence}.") from error


def refusing(value: Tensor) -> list[Tensor]:
    """What `torch.autograd.grad` must be asked for as well, so that it raises where `value.backward()` would.

    A function that is marked with @once_differentiable puts a node that raises where its derivative would be. Only
    leaves of its own lie behind it, so that the gradients of parameters alone pass it by, and are wrong.
    """
    nodes, _ = graph.read(value, 0)
    raising = (node for node in nodes if node.name() == "torch::autograd::Error")
    return [below.variable for node in raising for below, _ in node.next_functions if hasattr(below, "variable")]
