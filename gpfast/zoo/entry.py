"""What the zoo knows of a critic, and what a critic is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """The arguments of one penalty: gradient_penalty(critic, real, fake, args=args, kwargs=kwargs, output=output)."""

    real: Tensor | tuple[Tensor, ...]
    fake: Tensor | tuple[Tensor, ...]
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Callable | int | str | None = None


@dataclass(frozen=True)
class Entry:
    """One critic: `build(small)` makes the module, `inputs(batch, small)` draws what it is called with.

    `build` draws its weights from the global generator; `zoo.build` wraps it so that they are the same every time.
    `draw(batch, small, generator)` is the float32 case that `inputs` casts and moves. `batch` suits a benchmark on a
    few CPU cores, `small_batch` a test.
    """

    name: str
    summary: str
    build: Callable[[bool], nn.Module]
    draw: Callable[[int, bool, torch.Generator | None], Case]
    batch: int
    small_batch: int = 4

    def inputs(
        self,
        batch: int,
        small: bool,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> Case:
        """A `Case` of `batch` samples, drawn in float32, so that the values agree between dtypes and devices."""
        case = self.draw(batch, small, generator)
        real, fake, args = (_moved(value, device, dtype) for value in (case.real, case.fake, case.args))
        return Case(real, fake, args, case.kwargs, case.output)


def _moved(value: Tensor | tuple, device: torch.device | str, dtype: torch.dtype) -> Tensor | tuple:
    if isinstance(value, tuple):
        return tuple(_moved(member, device, dtype) for member in value)
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
