"""One call of a critic and the penalty at its points: the whole batch, or part after part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gpfast import autograd
from gpfast.backend import under_functions
from gpfast.checks import checked_score
from gpfast.chunks import Watch, check_independent, cut
from gpfast.engines import differentiated, takes_tape
from gpfast.gradient_norm import penalty_of
from gpfast.inputs import Structure, call_critic, named_tensors, pick_score
from gpfast.options import Options
from gpfast.points import Target, rooted
from gpfast.tape import sharing


class Call(NamedTuple):
    """What stays the same from one part of a batch to the next."""

    critic: Callable
    like: Structure
    name: str
    output: Callable | int | str | None
    options: Options
    retain_graph: bool

    @property
    def ours(self) -> bool:
        return self.options.at in ("interpolates", "dragan")

    def rooted(self, points: list[Tensor]) -> list[tuple[Tensor, Target | None]]:
        return [(x, None) if under_functions() else rooted(x, self.ours) for x in points]

    def penalty(
        self,
        starts: list[tuple[Tensor, Target]],
        mask: Structure | None,
        args: tuple,
        kwargs: Mapping | None,
        weight: float,
        onto: Tensor | None = None,
        whole: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """(weight * penalty, norms) at the rooted points, which are used up."""
        targets = [target for _, target in starts]
        points = [point for point, _ in starts]
        starts.clear()
        if under_functions():
            return self._transformed(points, mask, args, kwargs, weight)
        with_graph = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)
        try:
            with sharing(points, takes_tape(self.options.engine)):
                result = call_critic(self.critic, self.like, points, args, kwargs)
            scores = checked_score(result, self.output)
        except RuntimeError as error:
            if self.ours or not writes_to_its_input(error):
                raise
            raise RuntimeError(
                f"the critic writes to its input, or a view of it, in place, and with at={self.options.at!r} that is"
                f" your `{self.name}`; pass {self.name}.clone(), or make the critic's first operation not in-place."
            ) from error
        finally:
            torch._C._set_grad_enabled(with_graph)
        del result, points
        called = "the interpolates" if self.options.at == "interpolates" else self.name
        named = dict(zip(named_tensors(self.like, called), targets, strict=True))
        release = not self.retain_graph
        return differentiated(scores, named, mask, self.options, weight, release=release, onto=onto, whole=whole)

    def _transformed(self, points, mask, args, kwargs, weight: float) -> tuple[Tensor, Tensor]:
        takes_tape(self.options.engine)

        def scores(points):
            return checked_score(call_critic(self.critic, self.like, points, args, kwargs), self.output)

        _, gradients = autograd.transformed(scores, points)
        value, norms = penalty_of(gradients, mask, self.options)
        return weight * value, norms


def writes_to_its_input(error: RuntimeError) -> bool:
    """Whether `error` is autograd's, of a critic that writes to points that are the caller's own tensors."""
    words = str(error)
    return "is a view and is being modified inplace" in words and "inside a custom Function" in words


def in_parts(call: Call, points, mask, args, kwargs, weight: float, chunks: int) -> tuple[Tensor, Tensor]:
    """As `call.penalty`, the batch cut into `chunks` parts: the gradients of a part are added to those before it."""
    parts = list(cut(points, mask, args, kwargs, chunks))
    if len(parts) > 1:
        check_independent(call.critic, call.like, points, args, kwargs, lambda r: pick_score(r, call.output))
    watch, total, norms = Watch(call.critic), None, []
    for part in parts:
        share = part.share if call.options.reduction == "mean" else 1.0
        total, n = call.penalty(
            call.rooted(part.points),
            part.mask,
            part.args,
            part.kwargs,
            weight * share,
            onto=total,
            whole=len(parts) == 1,
        )
        norms.append(n)
        watch.check()
    return total, torch.cat(norms)
