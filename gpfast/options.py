"""Every option of the penalty, checked once, with errors that name the argument, what was found, and the remedy."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gpfast.inputs import Structure, named_tensors
from gpfast.layout import reduced_dims

POINTS = ("interpolates", "real", "fake", "dragan")
REDUCTIONS = ("mean", "sum", "none")
ENGINES = ("auto", "autograd", "reference")


@dataclass(frozen=True)
class Options:
    """The options that shape the mathematics, in canonical form; tensors and callables travel beside it."""

    center: float
    one_sided: bool
    at: str
    norm_dims: tuple[int, ...] | str | None
    eps: float
    reduction: str
    engine: str

    @classmethod
    def checked(cls, *, center, one_sided, norm_dims, eps, reduction, at="interpolates", engine="auto") -> Options:
        """The options in canonical form; raises ValueError or TypeError for the first that cannot be meant."""
        if isinstance(norm_dims, list):
            norm_dims = tuple(norm_dims)
        try:
            return _checked(center, one_sided, at, norm_dims, eps, reduction, engine)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
        return _checked.__wrapped__(center, one_sided, at, norm_dims, eps, reduction, engine)

    def check_weight(self, weight: float | Tensor) -> None:
        """Raises TypeError or ValueError unless `weight` is a number or a 0-dim tensor."""
        if isinstance(weight, Tensor):
            if weight.ndim:
                raise ValueError(
                    f"`weight` must be a number or a 0-dim tensor; got a tensor of shape {tuple(weight.shape)}."
                )
        elif not isinstance(weight, Real):
            raise TypeError(f"`weight` must be a number or a 0-dim tensor; got {type(weight).__name__}.")

    def check_points(self, real: Structure | None, fake: Structure | None) -> None:
        """Raises unless the data that `at` needs is there, floating, on one device, non-empty, and fits together."""
        if self.at == "fake":
            if fake is None:
                raise ValueError("`fake` is missing: at='fake' takes the gradient at the generated samples.")
            return self.check_tensors(named_tensors(fake, "fake"))
        if real is None:
            raise ValueError(f"`real` is missing: at={self.at!r} needs it (only at='fake' does without).")
        reals = named_tensors(real, "real")
        if self.at == "interpolates":
            if fake is None:
                raise ValueError(
                    "`fake` is missing: at='interpolates' mixes it with `real`. For a penalty at the real samples alone"
                    " pass at='real' (R1) or at='dragan'."
                )
            fakes = named_tensors(fake, "fake")
            _check_same_structure(real, fake)
            self.check_tensors(reals | fakes)
            for (name, r), (other, f) in zip(reals.items(), fakes.items(), strict=True):
                if r.shape != f.shape:
                    cut = (
                        " Cut both to the smaller batch, as the last batch of an epoch needs."
                        if r.shape[1:] == f.shape[1:]
                        else ""
                    )
                    raise ValueError(
                        f"`{name}` and `{other}` must have the same shape; got {tuple(r.shape)} and"
                        f" {tuple(f.shape)}.{cut}"
                    )
        else:
            self.check_tensors(reals)
            if self.at == "dragan":
                for name, r in reals.items():
                    if r.numel() < 2:
                        raise ValueError(
                            f"at='dragan' needs the standard deviation of `{name}`: one value has"
                            " none; give two or more."
                        )

    def check_tensors(self, tensors: dict[str, Any]) -> None:
        """Raises unless all are strided, floating, of one device and one non-empty batch, with the dims of the norm."""
        if not tensors:
            raise ValueError("the critic's input holds no tensor; pass a tensor, or a tuple, list or dict of tensors.")
        kept, (first_name, first) = {}, next(iter(tensors.items()))
        for name, x in tensors.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"`{name}` must be a tensor; got {type(x).__name__}.")
            if not x.is_floating_point():
                raise TypeError(
                    f"`{name}` must be floating point, for a gradient is taken with respect to it; got {x.dtype}."
                    " Convert data with .float(); pass labels through `args` or `kwargs`."
                )
            if x.layout != torch.strided:
                raise TypeError(
                    f"`{name}` must be a dense (strided) tensor; got layout {x.layout}. Convert it with .to_dense()."
                )
            if x.ndim == 0:
                raise ValueError(f"`{name}` must have a batch dimension; got a 0-dim tensor.")
            if x.numel() == 0:
                raise ValueError(
                    f"`{name}` is empty: shape {tuple(x.shape)} has no norm to take the mean of. Skip such a batch."
                )
            if x.device != first.device:
                raise ValueError(
                    f"`{name}` is on {x.device} but `{first_name}` is on {first.device}; move them to one device."
                )
            if x.shape[0] != first.shape[0] and self.norm_dims != "batch":
                raise ValueError(
                    f"`{name}` holds {x.shape[0]} samples but `{first_name}` holds {first.shape[0]};"
                    " a batch is the first dimension."
                )
            if isinstance(self.norm_dims, tuple):
                for d in self.norm_dims:
                    if not -x.ndim <= d < x.ndim:
                        raise ValueError(f"`norm_dims` holds {d}, out of range for `{name}` of shape {tuple(x.shape)}.")
                if len({d % x.ndim for d in self.norm_dims}) != len(self.norm_dims):
                    raise ValueError(f"`norm_dims` {self.norm_dims} names a dimension of `{name}` twice.")
            reduced = reduced_dims(x.ndim, self.norm_dims)
            kept[name] = tuple(n for d, n in enumerate(x.shape) if d not in reduced)
        for name, shape in kept.items():
            if shape != kept[first_name]:
                raise ValueError(
                    "one norm runs over all inputs, so `norm_dims` must leave the same shape of"
                    f" each; it leaves {shape} of"
                    f" `{name}` and {kept[first_name]} of `{first_name}`."
                )

    def check_alpha(self, alpha: Any, real: Structure) -> None:
        """Raises unless `alpha` is a number, 0-dim, (B,) or of the data's rank; in [0, 1] where that costs no read."""
        if alpha is None:
            return
        if self.at not in ("interpolates", "dragan"):
            raise ValueError(f"`alpha` mixes two points; at={self.at!r} has one. Leave it out.")
        if not isinstance(alpha, Tensor):
            if not isinstance(alpha, Real):
                raise TypeError(f"`alpha` must be a number or a tensor; got {type(alpha).__name__}.")
            low = high = alpha
        else:
            if not alpha.is_floating_point():
                raise TypeError(f"`alpha` must be a floating-point tensor; got {alpha.dtype}.")
            for name, x in named_tensors(real, "real").items():
                check_alpha_shape(alpha, name, x)
            if alpha.device.type != "cpu" or not _readable(alpha):
                return
            low, high = alpha.detach().aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"`alpha` must lie in [0, 1]; got values from {float(low)} to {float(high)}.")

    def check_generator(self, generator: Any, device: torch.device) -> None:
        """Raises unless `generator` is None or a torch.Generator of the data's device."""
        if generator is None:
            return
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator; got {type(generator).__name__}.")
        if generator.device.type != device.type:
            raise ValueError(
                f"`generator` is on {generator.device} but the data is on {device}; make it with"
                f" torch.Generator({str(device)!r}), or draw `alpha` yourself and pass it."
            )

    def check_mask(self, mask: Structure | None, inputs: Structure) -> None:
        """Raises unless `mask` is None, a tensor that broadcasts to every input, or one such tensor for each."""
        if mask is None:
            return
        names = named_tensors(inputs, "inputs")
        if isinstance(mask, Tensor):
            masks = {name: mask for name in names}
        else:
            if not isinstance(mask, Mapping | tuple | list):
                raise TypeError(f"`mask` must be a tensor, or be arranged like the inputs; got {type(mask).__name__}.")
            _check_same_structure(inputs, mask, "the inputs", "`mask`")
            masks = dict(zip(names, named_tensors(mask, "mask").values(), strict=True))
        for name, m in masks.items():
            x = names[name]
            if not isinstance(m, Tensor):
                raise TypeError(f"`mask` for `{name}` must be a tensor; got {type(m).__name__}.")
            if m.device != x.device:
                raise ValueError(f"`mask` is on {m.device} but the data is on {x.device}; move it to one device.")
            if m.is_complex():
                raise TypeError(f"`mask` must be real or boolean; got {m.dtype}.")
            if m.ndim > x.ndim or any(a not in (1, b) for a, b in zip(m.shape[::-1], x.shape[::-1], strict=False)):
                raise ValueError(
                    f"`mask` of shape {tuple(m.shape)} does not broadcast to the data's shape {tuple(x.shape)}."
                )


@functools.lru_cache(maxsize=256)
def _checked(center, one_sided, at, norm_dims, eps, reduction, engine) -> Options:
    for name, value, words in (("at", at, POINTS), ("reduction", reduction, REDUCTIONS), ("engine", engine, ENGINES)):
        if value not in words:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, words))}; got {value!r}.")
    if not isinstance(center, Real) or not math.isfinite(center):
        raise ValueError(f"`center` must be a finite number; got {center!r}.")
    if not isinstance(eps, Real) or not 0 <= eps < math.inf:
        raise ValueError(f"`eps` must be a finite number of at least 0; got {eps!r}.")
    if isinstance(norm_dims, int):
        norm_dims = (norm_dims,)
    if isinstance(norm_dims, tuple) and norm_dims and all(isinstance(d, int) for d in norm_dims):
        pass
    elif norm_dims is not None and norm_dims != "batch":
        raise ValueError(
            "`norm_dims` must be None (per sample), 'batch' (one norm over everything), or one or"
            " more dimensions as integers;"
            f" got {norm_dims!r}."
        )
    return Options(float(center), bool(one_sided), at, norm_dims, float(eps), reduction, engine)


def _check_same_structure(first: Structure, second: Structure, name: str = "`real`", other: str = "`fake`") -> None:
    def shape_of(structure):
        if isinstance(structure, Mapping):
            return f"a dict with keys {list(structure)}"
        if isinstance(structure, tuple | list):
            return f"a {'list' if isinstance(structure, list) else 'tuple'} of {len(structure)}"
        return "a tensor" if isinstance(structure, Tensor) else type(structure).__name__

    keys = [
        list(s) if isinstance(s, Mapping) else len(s) if isinstance(s, tuple | list) else None for s in (first, second)
    ]
    if keys[0] != keys[1]:
        raise ValueError(f"{name} and {other} must be arranged alike; got {shape_of(first)} and {shape_of(second)}.")


def check_alpha_shape(alpha: Tensor, name: str, x: Tensor) -> None:
    """Raises ValueError unless `alpha` is 0-dim, of length B, or of x's rank and broadcasts to x, on x's device."""
    if alpha.ndim == 0:
        return
    if alpha.device != x.device:
        raise ValueError(
            f"`alpha` is on {alpha.device} but `{name}` is on {x.device}; move it with alpha.to({name}.device)."
        )
    if alpha.ndim == 1:
        if alpha.shape[0] != x.shape[0]:
            raise ValueError(
                "`alpha` of one dimension holds one weight a sample, so its length must be the"
                f" batch, {x.shape[0]}; got"
                f" {alpha.shape[0]}. For one weight shared by the batch pass a number or a 0-dim tensor."
            )
    elif alpha.ndim != x.ndim or any(a not in (1, b) for a, b in zip(alpha.shape, x.shape, strict=True)):
        raise ValueError(
            f"`alpha` must be a number, a 0-dim tensor, a 1-D tensor of length {x.shape[0]}, or"
            f" broadcast to the shape of `{name}`,"
            f" {tuple(x.shape)}, with as many dimensions; got shape {tuple(alpha.shape)}."
        )


def _readable(tensor: Tensor) -> bool:
    """Whether the values can be looked at: not under a compiler's or a fake tensor's trace."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, torch._subclasses.FakeTensor)
