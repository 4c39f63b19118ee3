"""The operators of a step, one by one, as a GPU would be given them: what the roofline model is made of.

A step is the penalty and the gradient of every parameter, from gradients that are None. It is counted on fake tensors,
which hold no data: nothing is computed, so any size takes seconds. What does not run on fake tensors (a critic that
reads its values, say) is counted on real ones, and computed.

The count is that of a GPU's run where the CPU's would differ: layouts that suit oneDNN are not asked for, and
gradients are multiplied by what came in, which the tape skips on a CPU where it can read that it is 1.

A fused operator of gpfast counts as one launch, also where there is no CUDA kernel of it; with `plain` such a one
counts as the operators of its plain formula, which is what a GPU runs until there is a kernel. Which have one is a
matter of the sources (gpfast.cuda_kernels), not of this build.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._pytree import tree_iter, tree_map

from gpfast.columns import first_line
from gpfast.cost import Counter
from gpfast.cuda_kernels import ENDS, SWEEPS, has_plain_formula
from gpfast.inputs import Structure
from gpfast.modules import modules_in
from gpfast.penalty import gradient_penalty
from gpfast.undisturbed import copied, detached, device_of, undisturbed


@dataclass(frozen=True)
class Operator:
    """One dispatched operator that writes memory; what its figures count is said in `gpfast.cost.Cost`.

    name         As the dispatcher has it: aten.convolution, gpfast.gradient_norm.
    launches     1, or the kernels of a fused operator of gpfast.
    flop         Of matrix products and convolutions; 0 for all else.
    bytes_moved  Read and written.
    dtype        Of its first floating argument: what products are computed in. None without one.
    """

    name: str
    launches: int
    flop: int
    bytes_moved: int
    dtype: torch.dtype | None


@dataclass(frozen=True)
class CountedStep:
    """The operators of a step in their order; `refused` says why it does not run on fake tensors, "" where it does."""

    operators: tuple[Operator, ...]
    refused: str = ""

    @property
    def launches(self) -> int:
        return sum(operator.launches for operator in self.operators)

    @property
    def flop(self) -> int:
        return sum(operator.flop for operator in self.operators)

    @property
    def bytes_moved(self) -> int:
        return sum(operator.bytes_moved for operator in self.operators)


class OperatorCounter(Counter):
    """Counts as `Counter` does, and keeps what each operator cost."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__(granularity=1)
        self.operators: list[Operator] = []
        self._plain = plain
        self._now: tuple[str, torch.dtype | None] = ("", None)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self._plain and _has_only_a_plain_formula(function):
            with self:
                return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        floats = (x.dtype for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point())
        if not self._inside:
            self._now = str(function._overloadpacket), next(floats, None)
        return super().__torch_dispatch__(function, types, args, kwargs)

    def count(self, launches: int, flop: int, moved: int) -> None:
        super().count(launches, flop, moved)
        name, dtype = self._now
        self.operators.append(Operator(name, launches, flop, moved, dtype))


def count_step(
    critic: Callable,
    real: Structure | None,
    fake: Structure | None = None,
    *,
    engine: str = "auto",
    at: str = "interpolates",
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    output: Callable | int | str | None = None,
    chunks: int = 1,
    with_data: bool = False,
    plain: bool = False,
) -> CountedStep:
    """The operators of one step of `engine` on a copy of `critic`; the arguments are those of `gradient_penalty`.

    with_data  Run on real tensors from the start, which computes everything.
    plain      Fused operators of gpfast without a CUDA kernel count as their plain formula.

    Parameters, `.grad`, buffers, data and PyTorch's random state stay as they are. Raises what the penalty raises on
    real tensors.
    """
    data = tree_map(detached, {"real": real, "fake": fake, "args": args, "kwargs": dict(kwargs or {})})
    options = {"output": output, "engine": engine, "at": at, "chunks": chunks}
    with as_on_a_gpu(), torch.enable_grad():
        refused = ""
        if not with_data:
            try:
                return CountedStep(_on_fake_tensors(critic, data, options, plain))
            except Exception as error:  # the user's own code, which may read what a fake tensor does not hold
                refused = first_line(error)
        with undisturbed(critic, device_of(real, fake)) as twin:
            return CountedStep(_counted(twin, data, options, plain), refused)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Without oneDNN, for which the tape lays out values, and makes gradients of weights, as no GPU wants them."""
    # `flags` would set, and warn of, TF32 as well.
    (before, *_) = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before, _fp32_precision=None)


def _on_fake_tensors(
    critic: Callable, data: dict[str, Any], options: dict[str, Any], plain: bool
) -> tuple[Operator, ...]:
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        twin = copied(critic)
        data = copy.deepcopy(data)
    with mode:
        return _counted(twin, data, options, plain)


def _counted(critic: Callable, data: dict[str, Any], options: dict[str, Any], plain: bool) -> tuple[Operator, ...]:
    before = [(parameter, parameter.grad) for module in modules_in(critic) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    counter = OperatorCounter(plain)
    try:
        with counter:
            penalty = gradient_penalty(critic, **data, **options)
            if penalty.requires_grad:  # else the critic has no parameters
                # Not 1, which the tape sees on a CPU and then scales nothing: what a GPU holds it does not read.
                penalty.backward(torch.full_like(penalty, 2.0))
    finally:
        for parameter, gradient in before:  # of a critic that could not be copied
            parameter.grad = gradient
    return tuple(counter.operators)


def _has_only_a_plain_formula(function) -> bool:
    """On a GPU, whatever this build holds."""
    space, name = function._schema.name.split("::")
    return space == "gpfast" and name not in ENDS | SWEEPS and has_plain_formula(name)
