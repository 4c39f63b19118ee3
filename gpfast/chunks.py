"""A batch in parts, one after the other through the critic: exact where samples are independent, at less memory."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from gpfast.columns import first_line
from gpfast.inputs import Structure, call_critic
from gpfast.modules import modules_of
from gpfast.options import Options

_independent: weakref.WeakSet = weakref.WeakSet()
_unchanging: weakref.WeakKeyDictionary[nn.Module, set[tuple]] = weakref.WeakKeyDictionary()


class Part(NamedTuple):
    """One part of the batch: its share of the samples, and what the critic and the norm are given for it."""

    share: float
    points: list[Tensor]
    mask: Structure | None
    args: tuple
    kwargs: Mapping[str, Any]


def check_chunks(chunks: Any, critic: Callable, options: Options, absence: Callable) -> None:
    """Raises ValueError or RuntimeError, with the reason, where the batch cannot be cut."""
    if not isinstance(chunks, int) or isinstance(chunks, bool) or chunks < 1:
        raise ValueError(f"`chunks` must be an integer of at least 1; got {chunks!r}.")
    if chunks == 1:
        return
    why = None
    if options.engine not in ("auto", "tape"):
        why = f"needs the tape, and `engine` is {options.engine!r}"
    elif absence():
        why = f"needs the tape: {absence()}"
    elif options.norm_dims == "batch":
        why = "cannot cut one norm over the whole batch (norm_dims='batch')"
    elif options.reduction == "none":
        why = (
            "needs a reduction: with 'none' the gradients wait for the incoming weights, and the whole graph with them"
        )
    if why:
        raise ValueError(f"`chunks`={chunks} {why}; leave `chunks` out.")
    for module in modules_of(critic):
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None):
                raise ValueError(
                    f"`chunks`={chunks} would give {type(norm).__name__} in training mode the statistics of a part of"
                    " the batch; put it in eval mode, use another norm, or leave `chunks` out."
                )


def cut(
    points: list[Tensor], mask: Structure | None, args: tuple, kwargs: Mapping | None, chunks: int
) -> Iterator[Part]:
    """The batch in at most `chunks` parts of nearly equal size, and with it the arguments that have its length."""
    batch = points[0].shape[0]
    count = max(1, min(chunks, batch))
    for i in range(count):
        first, last = batch * i // count, batch * (i + 1) // count

        part = functools.partial(_samples, batch=batch, first=first, last=last)
        yield Part(
            (last - first) / batch,
            [part(x) for x in points],
            tree_map(part, mask),
            tuple(tree_map(part, tuple(args))),
            tree_map(part, dict(kwargs or {})),
        )


def _samples(value: Any, *, batch: int, first: int, last: int) -> Any:
    """Those samples of a tensor whose first dimension is the batch; anything else as it is."""
    whole = not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch
    return value if whole else value[first:last]


class Watch:
    """Raises where a forward changes the critic: its parts would not have met the same critic.

    What is written through `.data` leaves no trace but the values: those are compared once a critic and mode, between
    the first part and the second.
    """

    def __init__(self, critic: Callable) -> None:
        self._modules = list(modules_of(critic))
        self._before = self._state()
        self._mode = tuple(m.training for module in self._modules for m in module.modules())
        self._sums: dict[str, Tensor] | None = None

    def check(self) -> None:
        """Call it after every part."""
        for name, state in self._state().items():
            if self._before.get(name) != state:
                raise self._changed(name)
        seen = [_unchanging.setdefault(module, set()) for module in self._modules]
        if all(self._mode in modes for modes in seen):
            return
        if self._sums is None:
            self._sums = self._values()
            return
        for name, value in self._values().items():
            if not torch.equal(self._sums[name].nan_to_num(), value.nan_to_num()):
                raise self._changed(name)
        for modes in seen:
            modes.add(self._mode)

    @staticmethod
    def _changed(name: str) -> RuntimeError:
        return RuntimeError(
            f"`chunks`: the critic's forward changed {name}, so the parts of the batch would not meet the same"
            " critic (spectral norm in training does); leave `chunks` out, or put the critic in eval mode."
        )

    def _state(self) -> dict[str, tuple]:
        return {name: (x._version, x.data_ptr() if _is_plain(x) else None) for name, x in self._tensors()}

    def _values(self) -> dict[str, Tensor]:
        return {
            name: x.detach().sum(dtype=torch.float64)
            for name, x in self._tensors()
            if _is_plain(x) and x.layout == torch.strided and not x.is_complex()
        }

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for module in self._modules:
            for kind, tensors in (("buffer", module.named_buffers()), ("parameter", module.named_parameters())):
                for name, x in tensors:
                    yield f"{type(module).__name__}'s {kind} {name}", x


def _is_plain(x: Tensor) -> bool:
    return not x.is_meta and type(x) in (Tensor, nn.Parameter)


def check_independent(
    critic: Callable, like: Structure, points: list[Tensor], args: tuple, kwargs: Mapping | None, score: Callable
) -> None:
    """Raises where the score of one sample depends on another: two samples, together and apart, once a critic.

    Modules are probed in eval mode, without gradient; the random state is left as it was. A critic that is random even
    then cannot be judged, and is trusted: random layers in parts are exact in distribution. So is every critic on fake
    tensors, which have no values.
    """
    if isinstance(points[0], FakeTensor):
        return
    owners = modules_of(critic)
    key = owners[0] if owners else critic
    try:
        if key in _independent:
            return
    except TypeError:  # no weak references to it: probed every time
        key = None
    if points[0].shape[0] >= 2:
        _probe(critic, like, points, args, kwargs, score, owners)
    if key is not None:
        _independent.add(key)


def _probe(critic, like, points, args, kwargs, score, owners) -> None:
    batch = points[0].shape[0]

    def scores(first: int, last: int) -> Tensor:
        part = functools.partial(_samples, batch=batch, first=first, last=last)
        x = [p.detach()[first:last].clone() for p in points]
        result = call_critic(critic, like, x, tuple(tree_map(part, tuple(args))), tree_map(part, dict(kwargs or {})))
        return score(result).detach().double().flatten()

    training = [m for owner in owners for m in owner.modules() if m.training]
    devices = [points[0].device] if points[0].is_cuda else []
    try:
        for module in training:
            module.training = False
        with torch.random.fork_rng(devices=devices), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a batch of one
            try:
                together, again = scores(0, 2), scores(0, 2)
                apart = torch.cat([scores(0, 1), scores(1, 2)])
            except Exception as error:  # of the critic's own
                raise ValueError(
                    "`chunks`: whether samples are independent is tried on two of them, together and one by one, in"
                    f" eval mode and without gradient, and there the critic raises {first_line(error)}."
                    " Leave `chunks` out, or make the critic run like that."
                ) from error
    finally:
        for module in training:
            module.training = True
    tolerance = 100 * torch.finfo(points[0].dtype).eps ** 0.75
    size = float(together.abs().max()) + 1e-30
    if float((together - again).abs().max()) > tolerance * size:
        return
    if together.shape != apart.shape or not float((together - apart).abs().max()) <= tolerance * size:  # NaN too
        raise ValueError(
            "`chunks`: the critic's score of a sample depends on the other samples of the batch (minibatch"
            " statistics?): two samples score otherwise together than apart. Leave `chunks` out."
        )
