"""Critic inputs and outputs: one tensor, or a tuple, list or dict of tensors, in; a score to pick, out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Structure = Tensor | tuple | list | Mapping


def named_tensors(structure: Structure, name: str) -> dict[str, Any]:
    """The members of `structure` by the name an error message gives them: `real`, `real[0]`, `real['image']`."""
    if isinstance(structure, Tensor):
        return {name: structure}
    if isinstance(structure, Mapping):
        return {f"{name}[{key!r}]": value for key, value in structure.items()}
    if isinstance(structure, tuple | list):
        return {f"{name}[{i}]": value for i, value in enumerate(structure)}
    return {name: structure}


def tensors_of(structure: Structure) -> list[Tensor]:
    """The tensors of `structure`, in order."""
    return [structure] if isinstance(structure, Tensor) else list(named_tensors(structure, "").values())


def arrangement(structure: Any) -> list | int | None:
    """What structures that are arranged alike have in common: the keys of a dict, the length of a tuple or list."""
    if isinstance(structure, Mapping):
        return list(structure)
    return len(structure) if isinstance(structure, tuple | list) else None


def arranged(like: Structure, tensors: Sequence[Any]) -> Any:
    """`tensors` as `like` is arranged."""
    if isinstance(like, Mapping):
        return dict(zip(like, tensors, strict=True))
    if hasattr(like, "_fields"):  # a named tuple
        return type(like)(*tensors)
    return type(like)(tensors) if isinstance(like, tuple | list) else tensors[0]


def call_critic(critic: Callable, like: Structure, tensors: list[Tensor], args: tuple, kwargs: Mapping | None) -> Any:
    """What `critic` returns on `tensors` arranged like `like`.

    One tensor is the first argument; a tuple or list gives the first arguments; a dict gives keyword arguments.
    """
    if isinstance(like, Tensor) and not args and not kwargs:
        return critic(tensors[0])
    kwargs = kwargs or {}
    if isinstance(like, Mapping):
        return critic(*args, **dict(zip(like, tensors, strict=True)), **kwargs)
    return critic(*tensors, *args, **kwargs)


def pick_score(result: Any, output: Callable | int | str | None) -> Any:
    """The score in what a critic returned: a callable is applied, anything else is an index, a key or an attribute."""
    if output is None:
        return result
    if callable(output):
        return output(result)
    if isinstance(output, str) and not isinstance(result, Mapping):
        return getattr(result, output)
    return result[output if isinstance(result, Mapping) else operator.index(output)]
