"""Bad data gets an error that names the argument, what was found, and the remedy, before anything is drawn or run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gpfast.inputs import Structure, arrangement, named_tensors, pick_score
from gpfast.layout import reduced_dims
from gpfast.options import Options

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_points(real: Structure | None, fake: Structure | None, options: Options) -> None:
    """Raises unless the data that `at` needs is there, floating, on one device, non-empty, and fits together."""
    if options.at == "fake" and fake is None:
        raise ValueError("`fake` is missing: at='fake' takes the gradient at the generated samples.")
    if options.at != "fake" and real is None:
        raise ValueError(f"`real` is missing: at={options.at!r} needs it (only at='fake' does without).")
    if options.at == "interpolates":
        if fake is None:
            raise ValueError(
                "`fake` is missing: at='interpolates' mixes it with `real`. For a penalty at the real samples alone"
                " pass at='real' (R1) or at='dragan'."
            )
        _check_same_structure(real, fake)
    name = "fake" if options.at == "fake" else "real"
    tensors = named_tensors(fake if options.at == "fake" else real, name)
    check_inputs(tensors, options)
    first = next(iter(tensors))
    for other, x in tensors.items():
        if len(x) != len(tensors[first]):
            raise ValueError(
                f"`{other}` holds {len(x)} samples but `{first}` holds {len(tensors[first])}; a batch is"
                " the first dimension."
            )
        if options.at in ("real", "fake") and x.is_inference():
            raise ValueError(
                f"`{other}` was made under torch.inference_mode(), which autograd cannot follow; pass"
                f" {other}.clone(), made outside of it."
            )
        if options.at == "dragan" and x.numel() < 2:
            raise ValueError(
                f"at='dragan' needs the standard deviation of `{other}`: one value has none; give two or more."
            )
    if options.at == "interpolates":
        for (name, r), (other, f) in zip(tensors.items(), named_tensors(fake, "fake").items(), strict=True):
            check_pair(name, r, other, f)


def check_pair(name: str, real: Tensor, other: str, fake: Any) -> None:
    """Raises unless `fake` is a tensor that can be mixed with `real`, which is checked: of its shape and device."""
    check_tensor(other, fake)
    if real.device != fake.device:
        raise ValueError(f"`{other}` is on {fake.device} but `{name}` is on {real.device}; move them to one device.")
    if real.shape != fake.shape:
        last = real.ndim and real.shape[1:] == fake.shape[1:]
        cut = " Cut both to the smaller batch, as the last batch of an epoch needs." if last else ""
        raise ValueError(
            f"`{name}` and `{other}` must have the same shape; got {tuple(real.shape)} and {tuple(fake.shape)}.{cut}"
        )


def check_tensor(name: str, x: Any) -> None:
    """Raises unless `x` is a dense floating-point tensor with a batch dimension."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor; got {type(x).__name__}.")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"`{name}` must be floating point (float16, bfloat16, float32 or float64), for a gradient is taken with"
            f" respect to it; got {x.dtype}. Convert data with .float(); pass labels through `args` or `kwargs`."
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"`{name}` must be a dense (strided) tensor; got layout {x.layout}. Convert it with .to_dense()."
        )
    if x.ndim == 0:
        raise ValueError(f"`{name}` must have a batch dimension; got a 0-dim tensor.")


def check_inputs(tensors: dict[str, Any], options: Options) -> None:
    """Raises unless one norm can run over all `tensors`: fit for a gradient, of one device, not empty."""
    if not tensors:
        raise ValueError("the critic's input holds no tensor; pass a tensor, or a tuple, list or dict of tensors.")
    kept, (first, model) = {}, next(iter(tensors.items()))
    for name, x in tensors.items():
        check_tensor(name, x)
        if x.numel() == 0:
            raise ValueError(
                f"`{name}` is empty: shape {tuple(x.shape)} has no norm to take the mean of. Skip such a batch."
            )
        if x.device != model.device:
            raise ValueError(f"`{name}` is on {x.device} but `{first}` is on {model.device}; move them to one device.")
        if isinstance(options.norm_dims, tuple):
            for d in options.norm_dims:
                if not -x.ndim <= d < x.ndim:
                    raise ValueError(f"`norm_dims` holds {d}, out of range for `{name}` of shape {tuple(x.shape)}.")
            if len({d % x.ndim for d in options.norm_dims}) != len(options.norm_dims):
                raise ValueError(f"`norm_dims` {options.norm_dims} names a dimension of `{name}` twice.")
        reduced = reduced_dims(x.ndim, options.norm_dims)
        kept[name] = tuple(n for d, n in enumerate(x.shape) if d not in reduced)
    for name, shape in kept.items():
        if shape != kept[first] and options.norm_dims is not None:
            raise ValueError(
                f"one norm runs over all inputs, so `norm_dims` must leave the same shape of each; it leaves {shape} of"
                f" `{name}` and {kept[first]} of `{first}`."
            )
        if shape != kept[first]:
            raise ValueError(
                f"`{name}` holds {shape[0]} samples but `{first}` holds {kept[first][0]}; a batch is the first"
                " dimension."
            )


def check_weight(weight: Any, device: torch.device | None = None) -> None:
    """Raises unless `weight` is a real number or a 0-dim real tensor, on the CPU or on `device`."""
    if not isinstance(weight, Tensor):
        if not isinstance(weight, Real):
            raise TypeError(f"`weight` must be a number or a 0-dim tensor; got {type(weight).__name__}.")
    elif weight.ndim or weight.is_complex():
        raise ValueError(
            f"`weight` must be a number or a 0-dim real tensor; got shape {tuple(weight.shape)}, {weight.dtype}."
        )
    elif device is not None and weight.device.type not in ("cpu", device.type):
        raise ValueError(f"`weight` is on {weight.device} but the data is on {device}; move it with weight.to(...).")


def check_alpha(alpha: Any, real: Structure, options: Options) -> None:
    """Raises unless `alpha` is a number, 0-dim, (B,) or of the data's rank; in [0, 1] where that costs no read."""
    if alpha is None:
        return
    if options.at not in ("interpolates", "dragan"):
        raise ValueError(f"`alpha` mixes two points; at={options.at!r} has one. Leave it out.")
    check_alpha_type(alpha)
    low = high = alpha
    if isinstance(alpha, Tensor):
        for name, x in named_tensors(real, "real").items():
            check_alpha_shape(alpha, name, x)
        if alpha.device.type != "cpu" or not _readable(alpha):
            return
        low, high = alpha.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`alpha` must lie in [0, 1]; got values from {float(low)} to {float(high)}.")


def check_alpha_type(alpha: Any) -> None:
    """Raises unless `alpha` is a number or a floating-point tensor."""
    if isinstance(alpha, Tensor):
        if alpha.dtype not in DTYPES:
            raise TypeError(f"`alpha` must be a floating-point tensor; got {alpha.dtype}.")
    elif not isinstance(alpha, Real):
        raise TypeError(
            f"`alpha` must be a number or a tensor; got {type(alpha).__name__}. Convert an array with"
            " torch.as_tensor(alpha)."
        )


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
                f"`alpha` of one dimension holds one weight a sample, so its length must be the batch, {x.shape[0]};"
                f" got {alpha.shape[0]}. For one weight shared by the batch pass a number or a 0-dim tensor."
            )
    elif alpha.ndim != x.ndim or any(a not in (1, b) for a, b in zip(alpha.shape, x.shape, strict=True)):
        raise ValueError(
            f"`alpha` must be a number, a 0-dim tensor, a 1-D tensor of length {x.shape[0]}, or broadcast to the shape"
            f" of `{name}`, {tuple(x.shape)}, with as many dimensions; got shape {tuple(alpha.shape)}."
        )


def check_generator(generator: Any, device: torch.device) -> None:
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


def check_mask(mask: Structure | None, inputs: Structure, name: str) -> None:
    """Raises unless `mask` is None, a tensor that broadcasts to every input, or one such tensor for each."""
    if mask is None:
        return
    names = named_tensors(inputs, name)
    if isinstance(mask, Tensor):
        masks = {name: mask for name in names}
    else:
        if not isinstance(mask, Mapping | tuple | list):
            raise TypeError(f"`mask` must be a tensor, or be arranged like the inputs; got {type(mask).__name__}.")
        _check_same_structure(inputs, mask, f"`{name}`", "`mask`")
        masks = dict(zip(names, named_tensors(mask, "mask").values(), strict=True))
    for name, m in masks.items():
        x = names[name]
        if not isinstance(m, Tensor):
            raise TypeError(f"`mask` for `{name}` must be a tensor; got {type(m).__name__}.")
        if m.device != x.device:
            raise ValueError(f"`mask` is on {m.device} but `{name}` is on {x.device}; move it to one device.")
        if m.is_complex() or m.layout != torch.strided:
            raise TypeError(f"`mask` must be real or boolean, and dense; got {m.dtype}, {m.layout}.")
        if m.ndim > x.ndim or any(a not in (1, b) for a, b in zip(m.shape[::-1], x.shape[::-1], strict=False)):
            raise ValueError(
                f"`mask` of shape {tuple(m.shape)} does not broadcast to `{name}` of shape {tuple(x.shape)}."
            )


def check_autograd(what: str) -> None:
    """Raises under torch.inference_mode(); `what` needs autograd."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{what} needs autograd, which torch.inference_mode() switches off for good; use torch.no_grad()."
        )


def check_arguments(critic: Any, args: Any, kwargs: Any, output: Any, name: str = "critic") -> None:
    """Raises unless the critic can be called with `args` and `kwargs`, and `output` is a way to pick a score."""
    if not callable(critic):
        raise TypeError(f"`{name}` must be callable; got {type(critic).__name__}.")
    if type(args) is not tuple and not isinstance(args, tuple | list):
        raise TypeError(f"`args` must be a tuple; got {type(args).__name__}. For one argument write args=(labels,).")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"`kwargs` must be a dict or None; got {type(kwargs).__name__}.")
    if output is None:
        return
    if not (isinstance(output, int | str) or hasattr(output, "__index__") or callable(output)):
        raise TypeError(
            f"`output` must be None, an index, a key, an attribute's name or a callable; got {type(output).__name__}."
        )


def checked_score(result: Any, output: Callable | int | str | None) -> Tensor:
    """The score that `output` picks out of what the critic returned; raises unless it is one, with a graph."""
    if output is None and not isinstance(result, Tensor):
        holds, remedy = f"a {type(result).__name__}", "output='name of the attribute' or output=lambda result: ..."
        if isinstance(result, Mapping):
            holds, remedy = f"{holds} with keys {list(result)}", f"output={next(iter(result), 'score')!r}"
        elif isinstance(result, tuple | list):
            holds, remedy = f"{holds} of {len(result)}", "output=0"
        raise TypeError(f"the critic returned {holds}; say which part is the score, for instance {remedy}.")
    if not (output is None or callable(output)):
        if isinstance(result, Tensor):
            raise TypeError(
                f"`output`={output!r} picks from a tuple or a dict, but the critic returned a tensor of shape"
                f" {tuple(result.shape)}; leave it out, or pass a callable such as output=lambda scores: scores[:, 0]."
            )
        try:
            score = pick_score(result, output)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            holds = f"is a {type(result).__name__}"
            if isinstance(result, Mapping | tuple | list):
                holds = f"holds {list(result) if isinstance(result, Mapping) else f'{len(result)} items'}"
            raise ValueError(f"`output`={output!r} is not in the critic's result, which {holds}.") from error
    else:
        score = pick_score(result, output)
    check_score(score, "the critic's score", "was the critic run under torch.no_grad(), or its result detached?")
    return score


def check_score(score: Any, name: str, hint: str) -> None:
    """Raises unless `score` is a floating-point tensor that holds something and carries a graph."""
    if not isinstance(score, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(score).__name__}.")
    if not score.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {score.dtype}.")
    if score.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(score.shape)}.")
    if not score.requires_grad:
        raise RuntimeError(f"{name} carries no graph to the input ({hint}).")


def _check_same_structure(first: Structure, second: Structure, name: str = "`real`", other: str = "`fake`") -> None:
    def words(structure):
        if isinstance(structure, Mapping):
            return f"a dict with keys {list(structure)}"
        if isinstance(structure, tuple | list):
            return f"a {'list' if isinstance(structure, list) else 'tuple'} of {len(structure)}"
        return "a tensor" if isinstance(structure, Tensor) else f"a {type(structure).__name__}"

    if arrangement(first) != arrangement(second):
        raise ValueError(f"{name} and {other} must be arranged alike; got {words(first)} and {words(second)}.")


def _readable(tensor: Tensor) -> bool:
    """Whether the values can be looked at: not under a compiler's or a fake tensor's trace."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, torch._subclasses.FakeTensor)
