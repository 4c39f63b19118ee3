"""Generators and critics of images, by name: those of section 5.2 of arXiv 1704.00028 in small, and some since.

`ARCHITECTURES[name].networks(size, channels, filters, classes)` gives (generator, critic) of images (n, channels, size,
size) in [-1, 1], size a power of two from 8; the generator is given (n, LATENT) of noise. Where `labelled`, both take
labels as their second argument. No penalised critic has batch normalisation, which would couple the samples of a batch:
layer norm instead, over all of a sample, as the paper has it. Critics that `gpfast.zoo` has come from there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from gpfast.zoo.dcgan import DCGAN, GatedDCGAN, per_sample_norm
from gpfast.zoo.progressive import MinibatchStddev
from gpfast.zoo.residual import Projection, ResNet32, ResNet101

LATENT = 64


@dataclass(frozen=True)
class Architecture:
    about: str
    networks: Callable  # (size, channels, filters, classes) -> (generator, critic)
    labelled: bool = False


def doublings(size, start=4):
    """From start x start to size x size."""
    return int(math.log2(size // start))


# -- critics beside those of the zoo


class Colour(nn.Module):
    """Gives a critic of three channels what it expects: a grey image three times."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, x, *args):
        return self.critic(x.expand(-1, 3, -1, -1), *args)


def critic_widths(size, filters):
    """Twice as many filters for each halving, down to 4x4; two halvings at least."""
    return tuple(filters * 2**i for i in range(max(2, doublings(size))))


def dcgan_critic(size, filters, activation=None):
    return Colour(DCGAN(size, critic_widths(size, filters), norm=per_sample_norm, activation=activation))


# -- generators by strided convolutions


class Gate(nn.Module):
    """sigmoid(a) * tanh(b), of the two halves of the channels."""

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return torch.sigmoid(a) * torch.tanh(b)


def unchanged(channels):
    return nn.Identity()


def dcgan_generator(size, channels, widths, norm=nn.BatchNorm2d, activation=nn.ReLU):
    """From 4x4, a transposed convolution for each doubling; norm(width) and an activation before each."""
    gated = 2 if activation is Gate else 1
    layers = [nn.Linear(LATENT, gated * widths[0] * 16), nn.Unflatten(1, (gated * widths[0], 4, 4))]
    for width, narrower in zip(widths, widths[1:], strict=False):
        layers += [norm(gated * width), activation(), nn.ConvTranspose2d(width, gated * narrower, 4, 2, 1)]
    layers += [norm(gated * widths[-1]), activation(), nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers)


def generator_widths(size, filters):
    return tuple(filters * 2**i for i in reversed(range(doublings(size) + 1)))


def dcgan(size, channels, filters, classes):
    return dcgan_generator(size, channels, generator_widths(size, filters)), dcgan_critic(size, filters)


def gated(size, channels, filters, classes):
    generator = dcgan_generator(size, channels, generator_widths(size, filters), activation=Gate)
    return generator, Colour(GatedDCGAN(size, critic_widths(size, filters)))


def tanh(size, channels, filters, classes):
    generator = dcgan_generator(size, channels, generator_widths(size, filters), activation=nn.Tanh)
    return generator, dcgan_critic(size, filters, nn.Tanh)


def he_weights(module):
    """Of generators without normalisation, in which PyTorch's own weights would let the noise fade out."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.ConvTranspose2d):  # each of its outputs sums so many values
        summed = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
        nn.init.normal_(module.weight, std=math.sqrt(2 / summed))


def plain(size, channels, filters, classes):
    width = 2 * filters
    generator = dcgan_generator(size, channels, (width,) * (doublings(size) + 1), norm=unchanged)
    return generator.apply(he_weights), Colour(DCGAN(size, (width,) * len(critic_widths(size, filters))))


def mlp(size, channels, filters, classes):
    layers = [nn.Linear(LATENT, 512), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    image = (channels, size, size)
    layers += [nn.Linear(512, math.prod(image)), nn.Tanh(), nn.Unflatten(1, image)]
    return nn.Sequential(*layers).apply(he_weights), dcgan_critic(size, filters)


# -- residual networks


class UpBlock(nn.Module):
    """Residual block of WGAN-GP's generator: norm, ReLU, doubling, convolution; norm, ReLU, convolution."""

    def __init__(self, channels):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.conv1(doubled(F.relu(self.norm1(x))))
        return doubled(x) + self.conv2(F.relu(self.norm2(y)))


class UpBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a ReLU before each and a norm after, added at 0.3 times their value."""

    def __init__(self, channels, up=False):
        super().__init__()
        self.up = doubled if up else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.conv2(self.up(F.relu(self.conv1(F.relu(x)))))
        return self.up(x) + 0.3 * self.norm(self.conv3(F.relu(y)))


def doubled(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def residual_generator(channels, width, blocks, latent=LATENT):
    return nn.Sequential(
        nn.Linear(latent, width * 16), nn.Unflatten(1, (width, 4, 4)), *blocks,
        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(),
    )  # fmt: skip


def resnet(size, channels, filters, classes):
    blocks = (UpBlock(filters) for _ in range(doublings(size)))
    return residual_generator(channels, filters, blocks), Colour(ResNet32(filters))


def resnet101(size, channels, filters, classes):
    """33 bottlenecks of three convolutions, and one layer at either end, on both sides: most of them at 4x4."""
    stages = doublings(size) + 1
    counts = (33 - 3 * (stages - 1), *(3,) * (stages - 1))
    blocks = [UpBottleneck(filters, up=stage > 0 and i == 0) for stage in range(stages) for i in range(counts[stage])]
    # The zoo's critic has one bottleneck more in every stage but the first: that which halves.
    critic = ResNet101(size, (filters,) * stages, tuple(n - (i > 0) for i, n in enumerate(reversed(counts))))
    return residual_generator(channels, filters, blocks), Colour(critic)


class LabelledGenerator(nn.Module):
    """Appends an embedding of the label to the noise."""

    def __init__(self, generator, classes, embedded):
        super().__init__()
        self.embedding = nn.Embedding(classes, embedded)
        self.generator = generator

    def forward(self, z, labels):
        return self.generator(torch.cat([z, self.embedding(labels)], dim=1))


def conditional(size, channels, filters, classes, embedded=32):
    blocks = (UpBlock(filters) for _ in range(doublings(size)))
    generator = residual_generator(channels, filters, blocks, LATENT + embedded)
    return LabelledGenerator(generator, classes, embedded), Colour(Projection(filters, classes))


# -- progressive growing (Karras et al. 2018, arXiv 1710.10196)


class Growing(nn.Module):
    """Networks of images of a fixed size that work at 4x4 first, then at 8x8, and so on up to that size.

    `growth`, a buffer: its whole part is how often the resolution has doubled, the rest how far the next doubling is
    faded in. Weights are plain, not of the paper's equalised rate, which would need a rate of its own.
    """

    def __init__(self, size):
        super().__init__()
        self.size, self.doublings = size, doublings(size)
        self.register_buffer("growth", torch.zeros(()))

    def grown(self):
        whole = int(self.growth)
        return whole, float(self.growth) - whole


class GrowingGenerator(Growing):
    def __init__(self, size, channels, width):
        super().__init__(size)
        self.first = nn.Sequential(
            nn.Linear(LATENT, width * 16), nn.Unflatten(1, (width, 4, 4)), nn.LeakyReLU(0.2),
            PixelNorm(), nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), PixelNorm(),
        )  # fmt: skip
        self.blocks = nn.ModuleList(convolutions(width, PixelNorm) for _ in range(self.doublings))
        self.to_image = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(self.doublings + 1))

    def forward(self, z):
        whole, fade = self.grown()
        h = self.first(z)
        for block in self.blocks[:whole]:
            h = block(doubled(h))
        image = self.to_image[whole](h)
        if fade:
            image = torch.lerp(doubled(image), self.to_image[whole + 1](self.blocks[whole](doubled(h))), fade)
        return F.interpolate(torch.tanh(image), size=self.size, mode="nearest")


class GrowingCritic(Growing):
    """It averages its images down to the resolution of now by itself, so that training knows one size only."""

    def __init__(self, size, channels, width):
        super().__init__(size)
        self.from_image = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in range(self.doublings + 1))
        self.blocks = nn.ModuleList(convolutions(width, nn.Identity) for _ in range(self.doublings))
        self.score = nn.Sequential(
            MinibatchStddev(), nn.Conv2d(width + 1, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(width * 16, width), nn.LeakyReLU(0.2), nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, x):
        whole, fade = self.grown()
        h = self._features(x, whole)
        if fade:
            finer = F.avg_pool2d(self.blocks[whole](self._features(x, whole + 1)), 2)
            h = torch.lerp(h, finer, fade)
        for block in reversed(self.blocks[:whole]):
            h = F.avg_pool2d(block(h), 2)
        return self.score(h).flatten()

    def _features(self, x, level):
        factor = self.size // (4 * 2**level)
        x = F.avg_pool2d(x, factor) if factor > 1 else x
        return F.leaky_relu(self.from_image[level](x), 0.2)


class PixelNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def convolutions(width, norm):
    layers = [(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), norm()) for _ in range(2)]
    return nn.Sequential(*(layer for group in layers for layer in group))


def growth_at(step, every, doublings):
    """`every` steps at a resolution, `every` steps of fading in the next, and so on: a function of the step alone."""
    whole, part = divmod(step / every, 2)
    return min(float(doublings), whole + max(0.0, part - 1))


def progressive(size, channels, filters, classes):
    return GrowingGenerator(size, channels, filters), GrowingCritic(size, channels, filters)


ARCHITECTURES = {
    "dcgan": Architecture("the baseline: DCGAN, layer norm in the critic", dcgan),
    "plain": Architecture("no normalisation anywhere, a constant number of filters", plain),
    "mlp": Architecture("a generator of 4 layers of 512 ReLUs, the baseline's critic", mlp),
    "gated": Architecture("gates sigmoid(a) * tanh(b) everywhere", gated),
    "tanh": Architecture("tanh everywhere", tanh),
    "resnet101": Architecture("residual bottlenecks, 101 layers on either side", resnet101),
    "resnet": Architecture("the residual networks of the paper's CIFAR-10 results", resnet),
    "conditional": Architecture("given labels: an embedding, a projection critic", conditional, labelled=True),
    "progressive": Architecture("grows from 4x4; minibatch standard deviation in the critic", progressive),
}
