"""What `return_stats=True` hands back beside the penalty."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GradientStats(NamedTuple):
    """Gradient norms of one call: detached tensors on the data's device, so that reading none of them costs no wait.

    `mean`, `min` and `max` are 0-dim; `norms` has the shape of the norms, (B,) by default.
    """

    mean: Tensor
    min: Tensor
    max: Tensor
    norms: Tensor

    @classmethod
    def of(cls, norms: Tensor) -> GradientStats:
        """The statistics of `norms`, detached."""
        norms = norms.detach()
        return cls(norms.mean(), norms.min(), norms.max(), norms)
