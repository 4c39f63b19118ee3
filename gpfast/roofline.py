"""The roofline model: how long the operators of a step would take on a GPU, from its datasheet. Modelled, not measured.

    seconds(operator) = max(FLOP / rate, bytes / bandwidth, launches * launch cost)
    seconds(step)     = the sum over its operators

The operators run on one stream, so their times add up. Each is bound by the largest of its three terms: arithmetic,
memory or launches. A step is bound by what most of its modelled time is bound by.

What is assumed, and how it errs:
- Every product reaches the datasheet's peak, every other operator the memory's peak bandwidth. Kernels reach a part.
- Every operator reads and writes memory in full: no cache holds anything between two of them. Of tensors smaller than
  a GPU's L2 that is too much.
- Only products and convolutions have FLOP. All else is taken to wait for memory.
- Each operator waits for its own launch. A CPU that runs ahead while long kernels run hides launches of short ones, of
  which this model knows nothing. With a launch cost of 0 none is waited for, as with a queue that is always full; the
  truth lies between.
- An ATen operator that is several kernels inside has one launch. So has a fused operator of gpfast for which there is
  no CUDA kernel yet, and a norm's, which is one to four.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gpfast.gpus import Gpu
from gpfast.operators import Operator

BOUNDS = ("arithmetic", "memory", "launches")
TF32 = ("none", "convolutions", "all")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Modelled:
    """Modelled seconds of a step, by what bounds the operators that take them."""

    arithmetic: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.arithmetic + self.memory + self.launches

    @property
    def bound(self) -> str:
        """What bounds most of the time: one of `BOUNDS`."""
        return max(BOUNDS, key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Roofline:
    """The model of one GPU.

    launch_seconds  What launching one kernel costs; 0 or more.
    tf32            Which products of float32 run in TF32: "none", "convolutions" (PyTorch's own default), "all".
    """

    gpu: Gpu
    launch_seconds: float
    tf32: str = "convolutions"

    def __post_init__(self) -> None:
        if not self.launch_seconds >= 0:
            raise ValueError(f"`launch_seconds` must be 0 or more; got {self.launch_seconds}.")
        if self.tf32 not in TF32:
            raise ValueError(f"`tf32` must be one of {', '.join(TF32)}; got {self.tf32!r}.")

    def rate(self, operator: Operator) -> float:
        """FLOP per second of the operator's products. Raises ValueError for float64, of which the table has no rate."""
        if operator.dtype in HALVES:
            return self.gpu.bf16
        if operator.dtype != torch.float32:
            raise ValueError(
                f"{operator.name} computes in {operator.dtype}, of which there is no rate; it must be float32, bfloat16"
                " or float16."
            )
        in_tf32 = self.tf32 == "all" or (self.tf32 == "convolutions" and "convolution" in operator.name)
        return self.gpu.tf32 if in_tf32 else self.gpu.fp32

    def operator(self, operator: Operator) -> Modelled:
        """The modelled time of one operator, all of it under what bounds it."""
        terms = {
            "arithmetic": operator.flop / self.rate(operator) if operator.flop else 0.0,
            "memory": operator.bytes_moved / self.gpu.bandwidth,
            "launches": operator.launches * self.launch_seconds,
        }
        bound = max(terms, key=terms.get)
        return Modelled(**{bound: terms[bound]})

    def step(self, operators: Iterable[Operator]) -> Modelled:
        """The modelled time of operators that run one after the other."""
        parts = [self.operator(operator) for operator in operators]
        return Modelled(*(sum(getattr(part, name) for part in parts) for name in BOUNDS))
