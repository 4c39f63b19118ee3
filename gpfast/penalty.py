"""The public penalty: `gradient_penalty`, its presets, its module, and the form for scores that are there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpfast import reference, tape
from gpfast.call import Call, in_parts
from gpfast.checks import (
    check_alpha,
    check_arguments,
    check_autograd,
    check_generator,
    check_inputs,
    check_mask,
    check_points,
    check_score,
    check_weight,
    checked_score,
)
from gpfast.chunks import check_chunks
from gpfast.engines import differentiated, takes_tape
from gpfast.inputs import Structure, named_tensors, tensors_of
from gpfast.options import ENGINES, Options, checked
from gpfast.points import draw, plain_start
from gpfast.running import one_graph_break, twice_differentiable
from gpfast.stats import GradientStats

__all__ = ["ENGINES", "GradientPenalty", "dragan", "gradient_penalty", "gradient_penalty_from", "r1", "r2", "wgan_lp"]


@one_graph_break
def gradient_penalty(
    critic: Callable,
    real: Structure | None,
    fake: Structure | None = None,
    *,
    weight: float | Tensor = 10.0,
    center: float = 1.0,
    one_sided: bool = False,
    at: str = "interpolates",
    alpha: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    norm_dims: tuple[int, ...] | int | str | None = None,
    eps: float = 1e-12,
    mask: Structure | None = None,
    output: Callable | int | str | None = None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
    engine: str = "auto",
    chunks: int = 1,
    retain_graph: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, GradientStats]:
    """The gradient penalty of a critic, weight * mean_i phi(n_i), ready to be added to the critic's loss.

        x = alpha * real + (1 - alpha) * fake,  g = d(sum of scores)/dx,  n_i = sqrt(||mask * g_i||^2 + eps),
        phi(n) = (n - center)^2, or max(0, n - center)^2 where one_sided

    critic      Any callable. Given the points as `critic(x, *args, **kwargs)`.
    real, fake  A tensor (B, ...) of any rank of at least 1, or a tuple or list of them (the critic's first arguments)
                or a dict (keyword arguments): several inputs share alpha, and the norm runs over all of them. `fake`
                is needed for at="interpolates" and "fake", `real` for all but "fake"; what `at` does not need is
                ignored. Detach `fake` unless the generator shall receive gradient. Dtypes that differ are promoted as
                PyTorch does.
    weight      A number or 0-dim tensor, which may require grad.
    center      The norm aimed at: 1 for WGAN-GP, 0 for R1 and R2.
    one_sided   Only norms above `center` cost (WGAN-LP, Petzka et al. 2018).
    at          "interpolates"; "real" (R1 with center=0), "fake" (R2, Mescheder et al. 2018); "dragan" (Kodali et al.
                2017: real + noise 0.5 * std(real) * U[0, 1), mixed with real by alpha; the deviation is that of the
                whole batch, held constant).
    alpha       The weight on `real`, in [0, 1]: a number or 0-dim tensor is shared by the batch; a 1-D tensor of
                length B is per sample, always; otherwise it has the data's rank and broadcasts. Default: one uniform
                draw a sample, on the data's device, float32 (float64 for float64 data). The range is checked for
                numbers and CPU tensors, where that costs no wait.
    generator   Draws alpha, then DRAGAN's noise; default: PyTorch's own. It must be of the data's device.
    norm_dims   None: a norm per sample over all other dimensions. A dimension or a tuple: over those, say (1,) for a
                norm per pixel of an image. "batch": one norm over everything.
    eps         Under the square root. A zero norm gives a zero gradient for every eps >= 0.
    mask        Multiplies the gradient before its norm: a tensor that broadcasts to each input, or one for each input.
    output      Picks the score out of what the critic returns: an index into a tuple, a key of a dict, an attribute's
                name, or a callable. A map of scores is summed.
    reduction   "mean" | "sum" | "none", over the norms; "none" has the shape of the norms: (B,), the map for other
                norm_dims, 0-dim for "batch".
    engine      "tape": four sweeps over autograd's graph; "autograd": PyTorch's double backward between fused ends;
                "reference": the eager lines; "auto": the tape where the extension is built, else "autograd".
    chunks      The batch goes through the critic in so many parts, one after the other, at a part of the memory (tape
                only): exact where the critic treats samples independently, which is tried once on two samples. Tensors
                in `args` and `kwargs` whose first dimension is the batch are cut too. Random layers draw for each
                part: exact in distribution.
    retain_graph  The tape frees what the critic's graph saved; True keeps it, for other losses on tensors that left the
                critic (`self.aux`).
    return_stats  Also return `GradientStats(mean, min, max, norms)`, detached, without waiting for the device.

    Returns a 0-dim tensor (or the shape of the norms), float32 at least: norm, eps and penalty are never computed in
    half precision. Gradients reach the critic's parameters, and `real`, `fake`, `alpha` and `weight` where they
    require grad; the points' `.grad` is never filled. Under `torch.no_grad()` only the value is computed.
    The tape computes the parameters' gradients with the value and hands them over in backward: a parameter that takes
    part and whose gradient is zero for certain receives zeros, and a third derivative is an error; engine="autograd" is
    differentiable to any order that the critic is.

    Raises TypeError, ValueError or RuntimeError, naming the argument, for input that cannot be meant. Warns once of a
    critic with batch normalisation in training mode. A critic that autograd differentiates only once (a raw kernel in
    its backward) gives a penalty without gradient, as in PyTorch.
    Source: Gulrajani et al. 2017 (arXiv 1704.00028), equation 3 and Algorithm 1.
    """
    options = checked(
        center=center, one_sided=one_sided, at=at, norm_dims=norm_dims, eps=eps, reduction=reduction, engine=engine
    )
    check_autograd("a gradient penalty")
    check_arguments(critic, args, kwargs, output)
    check_chunks(chunks, critic, options, tape.absence)
    like, name = (fake, "fake") if at == "fake" else (real, "real")
    start = None
    if chunks == 1 and engine != "reference" and mask is None and norm_dims is None and type(weight) in (float, int):
        start = plain_start(real, fake, at, alpha, generator)
    if start is None:
        _check_data(real, fake, weight, alpha, generator, mask, options)
    running = twice_differentiable(
        critic, tensors_of(like)[0], by_sample=options.norm_dims != "batch", by_tape=takes_tape(engine)
    )
    if engine == "reference":
        with running:
            return reference.gradient_penalty(
                critic,
                real,
                fake,
                weight=weight,
                center=options.center,
                one_sided=one_sided,
                at=at,
                alpha=alpha,
                generator=generator,
                norm_dims=options.norm_dims,
                eps=options.eps,
                mask=mask,
                output=lambda result: checked_score(result, output),
                args=args,
                kwargs=kwargs,
                reduction=reduction,
                return_stats=return_stats,
            )
    factor = 1.0 if isinstance(weight, Tensor) else float(weight)
    call = Call(critic, like, name, output, options, retain_graph)
    with running:
        if chunks == 1:
            starts = call.rooted(draw(real, fake, at, alpha, generator)) if start is None else start
            start = None
            penalty, norms = call.penalty(starts, mask, args, kwargs, factor)
        else:
            points = draw(real, fake, at, alpha, generator)
            penalty, norms = in_parts(call, points, mask, args, kwargs, factor, chunks)
    return _finished(penalty, norms, weight, return_stats)


def _finished(penalty: Tensor, norms: Tensor, weight: float | Tensor, return_stats: bool):
    penalty = weight * penalty if isinstance(weight, Tensor) else penalty
    return (penalty, GradientStats.of(norms)) if return_stats else penalty


@one_graph_break
def gradient_penalty_from(
    outputs: Tensor,
    inputs: Structure,
    *,
    weight: float | Tensor = 10.0,
    center: float = 1.0,
    one_sided: bool = False,
    norm_dims: tuple[int, ...] | int | str | None = None,
    eps: float = 1e-12,
    mask: Structure | None = None,
    reduction: str = "mean",
    engine: str = "auto",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, GradientStats]:
    """The penalty on the gradient of `outputs` with respect to `inputs`, for code that has run the critic already.

    `outputs`: the scores, any shape, summed. `inputs`: the tensor the critic was given, which required grad then, or
    a tuple, list or dict of them. The other options, the result and its differentiability are those of
    `gradient_penalty`. As with any leaf in PyTorch, `inputs.grad` is filled by a later `.backward()`; the graph of
    `outputs` is kept.

    Raises TypeError, ValueError or RuntimeError, naming the argument.
    """
    options = checked(
        center=center, one_sided=one_sided, norm_dims=norm_dims, eps=eps, reduction=reduction, engine=engine
    )
    tensors = named_tensors(inputs, "inputs")
    check_inputs(tensors, options)
    check_weight(weight, next(iter(tensors.values())).device)
    check_mask(mask, inputs, "inputs")
    check_score(outputs, "`outputs`", "compute them with grad mode on, from inputs that require grad")
    for name, x in tensors.items():
        if not x.requires_grad:
            raise ValueError(
                f"`{name}` does not require grad; call {name}.requires_grad_() before the critic runs on it."
            )
    if engine == "reference":
        gradients = torch.autograd.grad(outputs, list(tensors.values()), torch.ones_like(outputs), create_graph=True)
        return reference.penalty(
            gradients,
            weight=weight,
            center=options.center,
            one_sided=one_sided,
            norm_dims=options.norm_dims,
            eps=options.eps,
            mask=mask,
            reduction=reduction,
            return_stats=return_stats,
        )
    factor = 1.0 if isinstance(weight, Tensor) else float(weight)
    penalty, norms = differentiated(outputs, tensors, mask, options, factor, release=False)
    return _finished(penalty, norms, weight, return_stats)


@one_graph_break
def r1(critic: Callable, real: Structure, *, weight: float | Tensor = 1.0, **options) -> Any:
    """R1: weight * mean_i ||g_i||^2 at the real samples; `weight` is the gamma / 2 of Mescheder et al. 2018."""
    return gradient_penalty(critic, real, weight=weight, center=0.0, eps=0.0, at="real", **options)


@one_graph_break
def r2(critic: Callable, fake: Structure, *, weight: float | Tensor = 1.0, **options) -> Any:
    """R2: weight * mean_i ||g_i||^2 at the generated samples; `weight` is the gamma / 2 of Mescheder et al. 2018."""
    return gradient_penalty(critic, None, fake, weight=weight, center=0.0, eps=0.0, at="fake", **options)


@one_graph_break
def dragan(critic: Callable, real: Structure, **options) -> Any:
    """The penalty at noisy real samples, at="dragan" of `gradient_penalty` (Kodali et al. 2017, arXiv 1705.07215)."""
    return gradient_penalty(critic, real, at="dragan", **options)


@one_graph_break
def wgan_lp(critic: Callable, real: Structure, fake: Structure, **options) -> Any:
    """The one-sided penalty of WGAN-LP, weight * mean_i max(0, n_i - 1)^2 (Petzka et al. 2018, arXiv 1709.08894)."""
    return gradient_penalty(critic, real, fake, one_sided=True, **options)


class GradientPenalty(nn.Module):
    """`gradient_penalty` with its options held: `GradientPenalty(weight=10.0)(critic, real, fake)`.

    Takes the options of `gradient_penalty` that stay the same from step to step; a `weight` given as a tensor moves
    with the module, and as a parameter trains with it. What changes from step to step (`alpha`, `mask`, `args`,
    `kwargs`) is given to the call.
    """

    def __init__(
        self,
        *,
        weight: float | Tensor = 10.0,
        center: float = 1.0,
        one_sided: bool = False,
        at: str = "interpolates",
        generator: torch.Generator | None = None,
        norm_dims: tuple[int, ...] | int | str | None = None,
        eps: float = 1e-12,
        output: Callable | int | str | None = None,
        reduction: str = "mean",
        engine: str = "auto",
        return_stats: bool = False,
    ):
        super().__init__()
        checked(
            center=center, one_sided=one_sided, at=at, norm_dims=norm_dims, eps=eps, reduction=reduction, engine=engine
        )
        check_weight(weight)
        check_generator(generator, getattr(generator, "device", None))
        if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
            self.register_buffer("weight", weight, persistent=False)
        else:
            self.weight = weight
        self.options = {
            "center": center,
            "one_sided": one_sided,
            "at": at,
            "generator": generator,
            "norm_dims": norm_dims,
            "eps": eps,
            "output": output,
            "reduction": reduction,
            "engine": engine,
            "return_stats": return_stats,
        }

    @one_graph_break
    def forward(
        self,
        critic: Callable,
        real: Structure | None,
        fake: Structure | None = None,
        *,
        alpha: float | Tensor | None = None,
        mask: Structure | None = None,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, GradientStats]:
        """The penalty of `critic`, as `gradient_penalty` gives it."""
        return gradient_penalty(
            critic, real, fake, weight=self.weight, alpha=alpha, mask=mask, args=args, kwargs=kwargs, **self.options
        )

    def extra_repr(self) -> str:
        """The options that say what is computed."""
        shown = {
            "weight": self.weight,
            **{k: self.options[k] for k in ("center", "one_sided", "at", "norm_dims", "reduction", "engine")},
        }
        return ", ".join(f"{k}={v}" for k, v in shown.items())


def _check_data(real, fake, weight, alpha, generator, mask, options: Options) -> None:
    check_points(real, fake, options)
    like, name = (fake, "fake") if options.at == "fake" else (real, "real")
    device = tensors_of(like)[0].device
    check_weight(weight, device)
    check_alpha(alpha, like, options)
    check_generator(generator, device)
    check_mask(mask, like, name)
