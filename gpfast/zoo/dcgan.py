"""Strided convolutions after DCGAN (Radford et al. 2016), with the nonlinearities and norms that critics use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
SMALL_WIDTHS = (4, 8)


class DCGAN(nn.Module):
    """Convolutions of stride 2, each but the first followed by `norm(channels, size)`, then a linear score.

    The critics of Gulrajani et al. 2017 have kernel 5, and keep the bias of a convolution that a layer norm follows; an
    instance norm cancels it, hence `bias`.
    """

    def __init__(
        self,
        size: int = 64,
        widths: tuple[int, ...] = WIDTHS,
        kernel: int = 5,
        norm: Callable[[int, int], nn.Module] | None = None,
        activation: Callable[[], nn.Module] | None = None,
        bias: bool = True,
    ):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            normed = norm is not None and channels != 3
            layers.append(nn.Conv2d(channels, width, kernel, 2, (kernel - 1) // 2, bias=bias or not normed))
            size, channels = size // 2, width
            if normed:
                layers.append(norm(channels, size))
            layers.append(activation() if activation else nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(channels * size * size, 1)
        self.apply(dcgan_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x).flatten(1)).flatten()


class DCGANWithFeatures(DCGAN):
    """Returns (score, features): the score is penalised, the features are for matching (Salimans et al. 2016)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x).flatten(1)
        return self.score(features).flatten(), features


class ConvolutionalDCGAN(nn.Module):
    """DCGAN as PyTorch code has it: kernel 4, activations in place, and a convolution for the score."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4))
        self.apply(dcgan_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).view(-1)


class GatedDCGAN(nn.Module):
    """Gated multiplicative nonlinearities everywhere, sigmoid(a) * tanh(b): Gulrajani et al. 2017, figure 2.

    a and b are the even and the odd channels of a convolution of twice the width; a layer norm comes before the gate.
    """

    def __init__(self, size: int = 64, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for width in widths:
            self.convolutions.append(nn.Conv2d(channels, 2 * width, 5, 2, 2))
            self.norms.append(nn.Identity() if channels == 3 else per_sample_norm(2 * width, size))
            size, channels = size // 2, width
        self.score = nn.Linear(channels * size * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x))
            x = torch.sigmoid(x[:, ::2]) * torch.tanh(x[:, 1::2])
        return self.score(x.flatten(1)).flatten()


class CaptionedDCGAN(nn.Module):
    """Scores an image and its caption (GAN-CLS, Reed et al. 2016): the embedded caption joins the 4x4 feature map."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, caption: int = 1024, embedded: int = 128):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width
        self.image = nn.Sequential(*layers)
        self.caption = nn.Sequential(nn.Linear(caption, embedded), nn.LeakyReLU(0.2))
        self.joint = nn.Sequential(
            nn.Conv2d(channels + embedded, channels, 1), nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 4)
        )
        self.apply(dcgan_weights)

    def forward(self, image: Tensor, caption: Tensor) -> Tensor:
        features = self.image(image)
        caption = self.caption(caption)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        return self.joint(torch.cat([features, caption], dim=1)).flatten()


class PatchGAN(nn.Module):
    """The 70x70 patch critic (Isola et al. 2017), instance norm: a map of scores, each of a 70x70 patch.

    The convolutions have no bias where an instance norm cancels it.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        layers = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels = widths[0]
        for width in widths[1:]:
            stride = 1 if width == widths[-1] else 2
            layers += [nn.Conv2d(channels, width, 4, stride, 1, bias=False), nn.InstanceNorm2d(width)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))
        self.apply(dcgan_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def dcgan_weights(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02^2), as the DCGAN paper prescribes and WGAN-GP's DCGAN critics have."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)


def per_sample_norm(channels: int, size: int) -> nn.Module:
    """The layer norm of Gulrajani et al. 2017: over all of a sample, with one scale and shift a channel."""
    return nn.GroupNorm(1, channels)


def layer_norm(channels: int, size: int) -> nn.Module:
    """Layer norm as PyTorch code has it: over all of a sample, with one scale and shift an element."""
    return nn.LayerNorm([channels, size, size])


def instance_norm(channels: int, size: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def group_norm(channels: int, size: int) -> nn.Module:
    return nn.GroupNorm(max(2, min(32, channels // 4)), channels)


def dcgan32(small: bool) -> nn.Module:
    return DCGAN(16, SMALL_WIDTHS) if small else DCGAN(32, (128, 256, 512))


def dcgan64(small: bool) -> nn.Module:
    return ConvolutionalDCGAN(SMALL_WIDTHS) if small else ConvolutionalDCGAN()


def tanh_everywhere(small: bool) -> nn.Module:
    return _normed(small, per_sample_norm, kernel=5, activation=nn.Tanh)


def layernorm_dcgan(small: bool) -> nn.Module:
    return _normed(small, layer_norm, kernel=5)


def instancenorm_dcgan(small: bool) -> nn.Module:
    return _normed(small, instance_norm, kernel=4, bias=False)


def groupnorm_dcgan(small: bool) -> nn.Module:
    return _normed(small, group_norm, kernel=4)


def gated_multiplicative(small: bool) -> nn.Module:
    return GatedDCGAN(16, (2, 4)) if small else GatedDCGAN()


def patch(small: bool) -> nn.Module:
    return PatchGAN((4, 6, 8)) if small else PatchGAN()


def two_inputs(small: bool) -> nn.Module:
    return CaptionedDCGAN(SMALL_WIDTHS, caption=8, embedded=4) if small else CaptionedDCGAN()


def tuple_output(small: bool) -> nn.Module:
    return DCGANWithFeatures(16, SMALL_WIDTHS) if small else DCGANWithFeatures(32, WIDTHS[:3])


def _normed(small: bool, norm: Callable[[int, int], nn.Module], **options) -> nn.Module:
    size, widths = (16, SMALL_WIDTHS) if small else (64, WIDTHS)
    return DCGAN(size, widths, norm=norm, **options)
