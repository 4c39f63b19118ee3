"""The one warning about batch normalisation in a critic."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_norms: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_of_batch_statistics(critic: Callable) -> None:
    """Warns, once a module, where `critic` is or holds a module that normalises by the batch."""
    for module in _modules_of(critic):
        if module in _warned:
            continue
        if module not in _norms:
            _norms[module] = [weakref.ref(m) for m in module.modules() if isinstance(m, _BatchNorm)]
        for ref in _norms[module]:
            norm = ref()
            if norm is not None and (norm.training or norm.running_mean is None):
                _warned.add(module)
                warnings.warn(
                    f"{type(module).__name__} holds {type(norm).__name__} in training mode. The"
                    " gradient penalty is a term for each"
                    " sample, but batch statistics make every score depend on the whole batch, so"
                    " the gradient of one sample is no"
                    " longer its own. Use layer, instance or group normalisation in the critic"
                    " (Gulrajani et al. 2017, section 4).",
                    stacklevel=3,
                )
                break


def _modules_of(critic: Callable) -> list[nn.Module]:
    if isinstance(critic, nn.Module):
        return [critic]
    if isinstance(critic, functools.partial):
        return _modules_of(critic.func)
    owner = getattr(critic, "__self__", None)
    if isinstance(owner, nn.Module):
        return [owner]
    cells = getattr(critic, "__closure__", None) or ()
    return [m for m in (cell.cell_contents for cell in cells if _filled(cell)) if isinstance(m, nn.Module)]


def _filled(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
