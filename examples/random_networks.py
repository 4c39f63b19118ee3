"""Random architectures of generators and critics: the set of table 1 in arXiv 1704.00028, for images of 8 to 32 pixels.

`random_architecture(seed)` draws one of 9,216, and `build` makes its two networks:

    generator, critic = build(random_architecture(3), penalised=True)

Both are stacks of convolutions as DCGAN's, whose depth counts every layer with weights. The critic goes through three
resolutions, of `filters`, 2 `filters` and 4 `filters` channels, halving the image twice by strides, to a linear score;
the generator goes the same way backwards. What a depth above 4 adds is spread over the three resolutions.
"""

import random
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

LATENT = 128
DEPTHS = (4, 8, 12, 20)
FILTERS = (32, 64, 128)


class ShiftedSoftplus(nn.Module):
    """softplus(2x + 2) / 2 - 1: a smooth ReLU from -1 upwards."""

    def forward(self, x):
        return F.softplus(2 * x + 2) / 2 - 1


NONLINEARITIES = {
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.2),
    "softplus": ShiftedSoftplus,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Side:
    """One of the two networks: what the set leaves open about it."""

    nonlinearity: str
    depth: int
    filters: int
    norm: bool

    def __str__(self):
        return f"{self.nonlinearity}-{self.depth}x{self.filters}" + ("-norm" if self.norm else "")


@dataclass(frozen=True)
class Architecture:
    """A generator and a critic; `norm` is batch norm, and in a penalised critic layer norm."""

    generator: Side
    critic: Side

    @property
    def name(self):
        """Like "G-relu-8x64-norm_D-tanh-20x128", good for a folder: nonlinearity, depth x filters, normed or not."""
        return f"G-{self.generator}_D-{self.critic}"


def random_architecture(seed):
    """The architecture that belongs to the integer `seed`: every choice is uniform, and independent of the others."""
    draw = random.Random(seed)

    def side():
        return Side(draw.choice(list(NONLINEARITIES)), draw.choice(DEPTHS), draw.choice(FILTERS), draw.random() < 0.5)

    return Architecture(side(), side())


def build(architecture, penalised, size=8, filters_scale=1.0):
    """(generator, critic) for images (1, size, size) in [-1, 1], their weights drawn by PyTorch's global generator.

    A critic that is penalised has layer norm where it would have batch norm, as in the paper: the penalty is a
    sample's own. The generator is given (count, LATENT) standard normal numbers. `size` must be divisible by 4.
    """
    generator = make_generator(architecture.generator, size, filters_scale)
    critic = make_critic(architecture.critic, size, filters_scale, layer_norm if penalised else nn.BatchNorm2d)
    for network in (generator, critic):
        network.apply(he_weights)
    return generator, critic


def layer_norm(channels):
    """Over all of a sample, with one scale and shift a channel: the paper's."""
    return nn.GroupNorm(1, channels)


def make_critic(side, size, filters_scale, norm):
    widths = stage_widths(side, filters_scale)
    layers = [nn.Conv2d(1, widths[0], 3, padding=1), NONLINEARITIES[side.nonlinearity]()]  # no norm on the image
    for stage, (width, extra) in enumerate(zip(widths, extra_layers(side.depth), strict=True)):
        if stage:
            layers += block(nn.Conv2d(widths[stage - 1], width, 4, 2, 1), width, side, norm)
        for _ in range(extra):
            layers += block(nn.Conv2d(width, width, 3, padding=1), width, side, norm)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (size // 4) ** 2, 1), nn.Flatten(0))


def make_generator(side, size, filters_scale):
    widths, start = stage_widths(side, filters_scale)[::-1], size // 4
    layers = [nn.Linear(LATENT, widths[0] * start**2)]
    layers += block(nn.Unflatten(1, (widths[0], start, start)), widths[0], side, nn.BatchNorm2d)
    for stage, (width, extra) in enumerate(zip(widths, extra_layers(side.depth), strict=True)):
        if stage:
            layers += block(nn.ConvTranspose2d(widths[stage - 1], width, 4, 2, 1), width, side, nn.BatchNorm2d)
        for _ in range(extra):
            layers += block(nn.Conv2d(width, width, 3, padding=1), width, side, nn.BatchNorm2d)
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1), nn.Tanh())


def block(layer, width, side, norm):
    return [layer, *([norm(width)] if side.norm else []), NONLINEARITIES[side.nonlinearity]()]


def stage_widths(side, filters_scale):
    filters = max(1, round(side.filters * filters_scale))
    return filters, 2 * filters, 4 * filters


def extra_layers(depth):
    """How many of the layers above 4 each of the three stages gets."""
    return [(depth - 4 + late) // 3 for late in (2, 1, 0)]


def he_weights(module):
    """Weights after He et al. 2015 (arXiv 1502.01852), without which 20 layers hand on nothing; no bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
