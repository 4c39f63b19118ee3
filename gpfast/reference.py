"""The eager penalty, readable in one screen: the oracle that every engine, rule and kernel is compared with."""

from __future__ import annotations

import torch

from gpfast.inputs import call_critic, pick_score, tensors_of
from gpfast.layout import accumulate_dtype, reduced_dims
from gpfast.stats import GradientStats


def points(real, fake, at, alpha, generator):
    """Where the gradient is taken (Gulrajani et al. 2017, Algorithm 1; DRAGAN: Kodali et al. 2017)."""
    real, fake = (None if s is None else tensors_of(s) for s in (real, fake))
    if at in ("real", "fake"):
        return [
            x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (real if at == "real" else fake)
        ]
    first = real[0]
    wide = torch.promote_types(first.dtype, fake[0].dtype) if at == "interpolates" else first.dtype
    if alpha is None:
        alpha = torch.rand(len(first), dtype=accumulate_dtype(wide), device=first.device, generator=generator)
    if at == "dragan":  # the deviation is over the whole batch, unbiased, and held constant
        noise = [
            torch.rand(x.shape, dtype=accumulate_dtype(x.dtype), device=x.device, generator=generator) for x in real
        ]
        fake = [x + (0.5 * x.detach().to(u.dtype).std() * u).to(x.dtype) for x, u in zip(real, noise, strict=True)]
    mixed = []
    for r, f in zip(real, fake, strict=True):
        dtype = torch.promote_types(r.dtype, f.dtype)
        a = torch.as_tensor(alpha, dtype=accumulate_dtype(dtype), device=r.device)
        a = a.reshape(-1, *[1] * (r.ndim - 1)) if a.ndim == 1 else a
        x = (a * r.to(a.dtype) + (1 - a) * f.to(a.dtype)).to(dtype)
        mixed.append(x if x.requires_grad else x.requires_grad_())
    return mixed


def penalty(gradients, *, weight, center, one_sided, norm_dims, eps, mask, reduction, return_stats):
    """weight * reduction of (norm - center)^2 over the norms of `gradients`, in float32 at least."""
    masks = [mask] * len(gradients) if mask is None or isinstance(mask, torch.Tensor) else tensors_of(mask)
    squares = eps
    for g, m in zip(gradients, masks, strict=True):
        g = g.to(accumulate_dtype(g.dtype))
        square = (g if m is None else g * m.to(g.dtype)).square()
        dims = reduced_dims(g.ndim, norm_dims)
        squares = squares + (square.sum(dims) if dims else square)
    zero = squares == 0  # the one departure from the eager lines: a zero norm gives a zero gradient, never 0/0
    norms = torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())
    excess = (norms - center).relu() if one_sided else norms - center
    penalties = squares if center == 0 else excess.square()
    value = weight * {"mean": torch.mean, "sum": torch.sum, "none": lambda p: p}[reduction](penalties)
    return (value, GradientStats.of(norms)) if return_stats else value


def gradient_penalty(
    critic,
    real,
    fake=None,
    *,
    weight=10.0,
    center=1.0,
    one_sided=False,
    at="interpolates",
    alpha=None,
    generator=None,
    norm_dims=None,
    eps=1e-12,
    mask=None,
    output=None,
    args=(),
    kwargs=None,
    reduction="mean",
    return_stats=False,
):
    """The gradient penalty by PyTorch's own double backward; the options are those of `gpfast.gradient_penalty`.

    It checks nothing and fills the `.grad` of the points, as the eager code does. Differentiable to any order.
    """
    with torch.enable_grad():
        x = points(real, fake, at, alpha, generator)
        edges = [torch.autograd.graph.get_gradient_edge(p) for p in x]  # a critic may write to its input in place
        scores = pick_score(call_critic(critic, fake if at == "fake" else real, x, args, kwargs), output)
        gradients = torch.autograd.grad(scores, edges, torch.ones_like(scores), create_graph=True)
    return penalty(
        gradients,
        weight=weight,
        center=center,
        one_sided=one_sided,
        norm_dims=norm_dims,
        eps=eps,
        mask=mask,
        reduction=reduction,
        return_stats=return_stats,
    )
