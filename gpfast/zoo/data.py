"""Samples at the scale of the data that each kind of critic sees.

Each function is a `draw(batch, small, generator)` of an `Entry` once its keywords are bound; `shape` and `small_shape`
are those of one sample in the two forms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gpfast.zoo.entry import Case


def vectors(
    batch: int, small: bool, generator: torch.Generator | None, *, shape: tuple, small_shape: tuple | None = None
) -> Case:
    """Normal rows, the generated ones shifted and narrower."""
    shape = small_shape if small and small_shape else shape
    return Case(_normal(generator, batch, *shape), 0.5 + 0.7 * _normal(generator, batch, *shape))


def signals(
    batch: int,
    small: bool,
    generator: torch.Generator | None,
    *,
    shape: tuple,
    small_shape: tuple,
    output: int | None = None,
) -> Case:
    """Images or sound in [-1, 1]."""
    shape = small_shape if small else shape
    return Case(_signal(generator, batch, *shape), torch.tanh(_normal(generator, batch, *shape)), output=output)


def labelled_images(
    batch: int,
    small: bool,
    generator: torch.Generator | None,
    *,
    shape: tuple,
    small_shape: tuple,
    classes: int,
    small_classes: int,
) -> Case:
    """Images with a class label each, passed to the critic as its second argument."""
    case = signals(batch, small, generator, shape=shape, small_shape=small_shape)
    return Case(case.real, case.fake, args=(_integers(generator, small_classes if small else classes, batch),))


def captioned_images(
    batch: int,
    small: bool,
    generator: torch.Generator | None,
    *,
    shape: tuple,
    small_shape: tuple,
    caption: int,
    small_caption: int,
) -> Case:
    """Pairs of an image and the embedding of its caption."""
    case = signals(batch, small, generator, shape=shape, small_shape=small_shape)
    real, fake = (_normal(generator, batch, small_caption if small else caption) for _ in range(2))
    return Case((case.real, real), (case.fake, fake))


def voxels(batch: int, small: bool, generator: torch.Generator | None, *, shape: tuple, small_shape: tuple) -> Case:
    """Occupancy grids: 0 or 1 where real, a probability where generated."""
    shape = small_shape if small else shape
    real = (_normal(generator, batch, *shape) > 1).float()
    return Case(real, torch.sigmoid(2 * _normal(generator, batch, *shape)))


def characters(batch: int, small: bool, generator: torch.Generator | None, *, shape: tuple, small_shape: tuple) -> Case:
    """Sequences of characters, (length, vocabulary): one-hot where real, a softmax where generated."""
    length, vocabulary = small_shape if small else shape
    real = F.one_hot(_integers(generator, vocabulary, batch, length), vocabulary).float()
    return Case(real, torch.softmax(2 * _normal(generator, batch, length, vocabulary), dim=-1))


def _normal(generator: torch.Generator | None, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=_device(generator))


def _signal(generator: torch.Generator | None, *shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float32, device=_device(generator)) - 1


def _integers(generator: torch.Generator | None, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=_device(generator))


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
