"""The one warning about batch normalisation in a critic."""

from __future__ import annotations

import dis
import functools
import os
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_norms: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_PACKAGES = tuple(os.path.dirname(p) + os.sep for p in (__file__, torch.__file__))


def warn_of_batch_statistics(critic: Callable) -> None:
    """Warns, once a module, where `critic` is or holds a module that normalises by the batch."""
    if torch.compiler.is_compiling():
        return
    for module in modules_of(critic):
        if module not in _norms:
            _norms[module] = [weakref.ref(m) for m in module.modules() if isinstance(m, _BatchNorm)]
        for ref in _norms[module]:
            norm = ref()
            if norm is not None and (norm.training or norm.running_mean is None) and module not in _warned:
                _warned.add(module)
                warnings.warn(
                    f"{type(module).__name__} holds {type(norm).__name__} in training mode. The gradient penalty is a"
                    " term for each sample, but batch statistics make every score depend on the whole batch, so the"
                    " gradient of one sample is no longer its own. Use layer, instance or group normalisation in the"
                    " critic (Gulrajani et al. 2017, section 4).",
                    stacklevel=_level_of_the_caller(),
                )


def modules_of(critic: Callable) -> list[nn.Module]:
    """A module itself; those that a method, partial or function plainly uses: its owner, closure, names it reads."""
    if isinstance(critic, nn.Module):
        return [critic]
    if isinstance(critic, functools.partial):
        held = [critic.func, *critic.args, *critic.keywords.values()]
        return [m for m in held if isinstance(m, nn.Module)] + modules_of(critic.func)
    function = getattr(critic, "__func__", critic)
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    scope = function.__globals__
    held: list[Any] = [scope[name] for name in _globals_read_by(code) if name in scope]
    held.append(getattr(critic, "__self__", None))
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    owners = [vars(owner) for owner in held if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module | type)]
    held += [fields[name] for fields in owners for name in code.co_names if name in fields]
    return [module for module in held if isinstance(module, nn.Module)]


@functools.lru_cache(maxsize=64)
def _globals_read_by(code: types.CodeType) -> tuple[str, ...]:
    return tuple(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")


def _level_of_the_caller() -> int:
    """The `stacklevel` of the first frame outside this package and PyTorch, for the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame, level = frame.f_back, level + 1
    return level
