"""Running a critic so that nothing of it changes: a copy, or where there can be none, what moved is put back."""

from __future__ import annotations

import contextlib
import copy
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpfast.inputs import Structure, tensors_of
from gpfast.modules import holds, modules_in
from gpfast.tape import REFUSED


def copied(critic: Callable) -> Callable:
    """A copy that shares no tensor with `critic`: a module, a method, a partial, or a function that uses modules.

    Raises whatever stands against it. What a function holds beside modules (tensors of its own) stays shared.
    """
    memo: dict[int, Any] = {}
    for owner in modules_in(critic):
        for module in owner.modules():  # what a forward left behind, a normalised weight say: deepcopy refuses those
            left = [x for x in vars(module).values() if isinstance(x, Tensor) and not x.is_leaf]
            memo.update((id(x), x.detach()) for x in left)
    mine = _copied(critic, memo)
    for owner in modules_in(mine):
        for parameter in owner.parameters():
            if not parameter.is_leaf:  # a script is copied under autograd: its gradients would go to the original
                parameter.detach_().requires_grad_()
    return mine


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if not isinstance(value, types.FunctionType):
        return copy.deepcopy(value, memo)
    if id(value) in memo:
        return memo[id(value)]
    names = {name: value.__globals__.get(name) for name in value.__code__.co_names}
    modules = {name: x for name, x in names.items() if isinstance(x, nn.Module)}
    cells = [cell for cell in value.__closure__ or () if holds(cell)]
    if not modules and not any(isinstance(cell.cell_contents, _TO_COPY) for cell in cells):
        return value
    scope = value.__globals__ | {name: copy.deepcopy(x, memo) for name, x in modules.items()}
    fresh = tuple(types.CellType() for _ in value.__closure__ or ())
    again = types.FunctionType(value.__code__, scope, value.__name__, value.__defaults__, fresh)
    again.__kwdefaults__ = value.__kwdefaults__
    memo[id(value)] = again  # before its cells, one of which may hold it
    for cell, filled in zip(fresh, value.__closure__ or (), strict=True):
        if holds(filled):
            held = filled.cell_contents
            cell.cell_contents = _copied(held, memo) if isinstance(held, _TO_COPY) else held
    return again


_TO_COPY = nn.Module | types.MethodType | types.FunctionType


def name_of(critic: Callable) -> str:
    """What to call `critic` in words."""
    named = critic if hasattr(critic, "__qualname__") else type(critic)
    return named.__qualname__.rpartition("<locals>.")[2]


def device_of(*data: Structure | None) -> torch.device:
    """The device of the first tensor, the CPU where there is none."""
    tensors = (x for structure in data if structure is not None for x in tensors_of(structure))
    return next((x.device for x in tensors if isinstance(x, Tensor)), torch.device("cpu"))


def about(critic: Callable, like: Structure) -> str:
    """A critic and its input in words."""
    tensors = tensors_of(like)
    shapes = " and ".join(str(tuple(x.shape)) for x in tensors)
    return f"{name_of(critic)} on {shapes}, {str(tensors[0].dtype).removeprefix('torch.')}, {tensors[0].device}"


def detached(x: Any) -> Any:
    """`x` without its graph, where it is a tensor."""
    return x.detach() if isinstance(x, Tensor) else x


def as_made(x: Any) -> Any:
    """`x`, requiring grad: so the points that the eager lines mix of it are no leaf, and a critic may write to them."""
    return x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def cloned(generator: Any) -> Any:
    """A generator that draws what `generator` would; anything else is handed back."""
    return generator.clone_state() if isinstance(generator, torch.Generator) else generator


def without_tape(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `gradient_penalty` without those that need the tape."""
    return {name: value for name, value in options.items() if name not in ("chunks", "retain_graph")}


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """Yields a list to which, in the end, what was warned of inside is added, each once, instead of being shown."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    heard = dict.fromkeys(str(w.message) for w in caught)
    notes += [message for message in heard if not message.startswith(REFUSED)]


@contextlib.contextmanager
def undisturbed(critic: Callable, device: torch.device, *, double: bool = False) -> Iterator[Callable]:
    """Yields a copy of `critic` to run, or itself where it cannot be copied; then buffers are put back in the end.

    PyTorch's random state, of the CPU and of `device`, is that of before afterwards. With `double` the modules of the
    copy are float64; then what cannot be copied raises.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            mine, buffers = copied(critic), []
            for module in modules_in(mine) if double else ():
                module.double()
        except Exception:  # anything may stand against a copy
            if double:
                raise
            mine, buffers = critic, _buffers_of(critic)
        try:
            yield mine
        finally:
            for module, name, tensor, value in buffers:
                tensor.data.copy_(value)  # not seen by graphs that hold it: the value is theirs again
                module._buffers[name] = tensor


def _buffers_of(critic: Callable) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (module, name, tensor, tensor.detach().clone())
        for owner in modules_in(critic)
        for module in owner.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
