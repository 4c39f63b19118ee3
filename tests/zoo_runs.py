"""One penalty of a critic of the zoo, from a fixed random state."""

import copy

import torch

from gpfast.zoo import ZOO


def run(penalty, critic, case, **options):
    """(values, {name: gradient or None}, critic) of one call on a copy of `critic`, from a fixed random state."""
    critic = copy.deepcopy(critic)
    torch.manual_seed(11)
    values = penalty(critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output, **options)
    weights = torch.linspace(0.5, 1.5, values.numel(), dtype=values.dtype).reshape(values.shape)
    (weights * values).sum().backward()
    return values.detach(), {name: p.grad for name, p in critic.named_parameters()}, critic


def inputs(name, small, batch, dtype, seed):
    return ZOO[name].inputs(batch, small, dtype=dtype, generator=torch.Generator().manual_seed(seed))
