"""The one warning about batch normalisation in a critic."""

from __future__ import annotations

import os
import sys
import warnings
import weakref

import torch
from torch import nn

from gpfast.modules import facts_of

_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_PACKAGES = tuple(os.path.dirname(p) + os.sep for p in (__file__, torch.__file__))


def warn_of_batch_statistics(modules: list[nn.Module]) -> None:
    """Warns, once a module, where one of a critic's `modules` is or holds a module that normalises by the batch."""
    for module in modules:
        for ref in facts_of(module).batch_norms:
            norm = ref()
            if norm is not None and (norm.training or norm.running_mean is None) and module not in _warned:
                _warned.add(module)
                warnings.warn(
                    f"{type(module).__name__} holds {type(norm).__name__} in training mode. The gradient penalty is a"
                    " term for each sample, but batch statistics make every score depend on the whole batch, so the"
                    " gradient of one sample is no longer its own. Use layer, instance or group normalisation in the"
                    " critic (Gulrajani et al. 2017, section 4).",
                    stacklevel=level_of_the_caller(),
                )


def level_of_the_caller() -> int:
    """The `stacklevel` of the first frame outside this package and PyTorch, for the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame, level = frame.f_back, level + 1
    return level
