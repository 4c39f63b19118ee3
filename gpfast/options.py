"""The words and numbers that shape the penalty, in canonical form, checked once."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from numbers import Real

import numpy

POINTS = ("interpolates", "real", "fake", "dragan")
REDUCTIONS = ("mean", "sum", "none")
ENGINES = ("auto", "tape", "autograd", "reference")


@dataclass(frozen=True)
class Options:
    """The options that shape the mathematics; tensors and callables travel beside it."""

    center: float
    one_sided: bool
    at: str
    norm_dims: tuple[int, ...] | str | None
    eps: float
    reduction: str
    engine: str


def checked(*, center, one_sided, norm_dims, eps, reduction, at="interpolates", engine="auto") -> Options:
    """The options in canonical form; raises ValueError or TypeError for the first that cannot be meant."""
    dims = None if norm_dims is None else _dimensions(norm_dims)  # first: (1,) and (1.0,) are one key
    try:
        return _checked(center, one_sided, dims, eps, reduction, at, engine)
    except TypeError:  # something that cannot be hashed, or cannot be meant: looked at anew, so as to say what
        return _checked.__wrapped__(center, one_sided, dims, eps, reduction, at, engine)


@functools.lru_cache(maxsize=256, typed=True)  # by type, so that equal keys mean the same
def _checked(center, one_sided, norm_dims, eps, reduction, at, engine) -> Options:
    for name, value, words in (("at", at, POINTS), ("reduction", reduction, REDUCTIONS), ("engine", engine, ENGINES)):
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, words))}; got {value!r}.")
    if not isinstance(center, Real) or not math.isfinite(center):
        raise ValueError(f"`center` must be a finite number; got {center!r}.")
    if not isinstance(eps, Real) or not 0 <= eps < math.inf:
        raise ValueError(f"`eps` must be a finite number of at least 0; got {eps!r}.")
    if not isinstance(one_sided, bool | numpy.bool_):
        raise TypeError(f"`one_sided` must be True or False; got {one_sided!r}.")
    return Options(float(center), bool(one_sided), at, norm_dims, float(eps), reduction, engine)


def _dimensions(norm_dims) -> tuple[int, ...] | str | None:
    if norm_dims is None or isinstance(norm_dims, str) and norm_dims == "batch":
        return norm_dims
    try:
        dims = tuple(map(operator.index, norm_dims if isinstance(norm_dims, tuple | list) else (norm_dims,)))
    except TypeError:
        dims = ()
    if not dims:
        raise ValueError(
            "`norm_dims` must be None (per sample), 'batch' (one norm over everything), or one or more dimensions as"
            f" integers; got {norm_dims!r}."
        )
    return dims
