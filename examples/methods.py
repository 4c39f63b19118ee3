"""Ways to train a critic that the papers compare: a loss for each side, an optimiser, what holds the critic back.

gan      Goodfellow et al. 2014 (arXiv 1406.2661), with the generator's loss that does not saturate.
wgan     Arjovsky et al. 2017 (arXiv 1701.07875): weights clipped to [-0.01, 0.01], RMSProp.
wgan-gp  Gulrajani et al. 2017 (arXiv 1704.00028): the gradient penalty.
wgan-lp  Petzka et al. 2018 (arXiv 1709.08894): its one-sided form.
sn       Miyato et al. 2018 (arXiv 1802.05957): spectral normalisation, with the hinge loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Method:
    """One of them; vary it by `dataclasses.replace(METHODS["wgan"], clip=0.1)`."""

    name: str
    critic_loss: Callable  # (scores of real, scores of fake) -> 0-dim, without the penalty
    generator_loss: Callable  # (scores of fake) -> 0-dim
    optimiser: Callable  # (parameters) -> torch.optim.Optimizer, one for each side
    critic_steps: int = 5  # for each step of the generator
    penalty: dict | None = None  # options of gpfast.gradient_penalty
    clip: float | None = None  # the critic's parameters are kept in [-clip, clip]
    spectral: bool = False  # every weight of the critic is divided by its spectral norm
    decay: bool = False  # learning rates fall linearly to 0 over the training

    def constrained(self, critic):
        """The critic, with spectral normalisation where the method has it. Before optimisers are made."""
        if self.spectral:
            for module in list(critic.modules()):
                if getattr(module, "weight", None) is not None and module.weight.ndim > 1:
                    parametrizations.spectral_norm(module)
        return critic

    @torch.no_grad()
    def clipped(self, critic):
        if self.clip is not None:
            for parameter in critic.parameters():
                parameter.clamp_(-self.clip, self.clip)


def apart(real, fake):
    """The critic of a WGAN minimises -(E critic(real) - E critic(fake))."""
    return fake.mean() - real.mean()


def minus_mean(fake):
    return -fake.mean()


def cross_entropy(real, fake):
    """Scores are logits of "real"."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def not_saturating(fake):
    return F.softplus(-fake).mean()


def hinge(real, fake):
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


wasserstein_adam = partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9))

METHODS = {
    method.name: method
    for method in (
        Method("gan", cross_entropy, not_saturating, partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999)), 1),
        Method("wgan", apart, minus_mean, partial(torch.optim.RMSprop, lr=5e-5), clip=0.01),
        Method("wgan-gp", apart, minus_mean, wasserstein_adam, penalty={"weight": 10.0}),
        Method("wgan-lp", apart, minus_mean, wasserstein_adam, penalty={"weight": 10.0, "one_sided": True}),
        Method("sn", hinge, minus_mean, partial(torch.optim.Adam, lr=2e-4, betas=(0.0, 0.9)), spectral=True),
    )
}
