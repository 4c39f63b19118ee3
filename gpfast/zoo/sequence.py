"""Critics of sequences: sound and text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PhaseShuffle(nn.Module):
    """Shifts each sample by up to `radius` steps, drawn at every call, and reflects it at the ends (WaveGAN)."""

    def __init__(self, radius: int = 2):
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        batch, _, length = x.shape
        shift = torch.randint(-self.radius, self.radius + 1, (batch, 1, 1), device=x.device)
        index = (torch.arange(length, device=x.device) + shift).abs()
        index = (length - 1) - ((length - 1) - index).abs()
        return x.gather(2, index.expand_as(x))


class WaveGAN(nn.Module):
    """The critic of WaveGAN (Donahue et al. 2019) on 16,384 samples of sound: kernel 25, stride 4, phase shuffle."""

    def __init__(self, length: int = 16384, widths: tuple[int, ...] = (64, 128, 256, 512, 1024)):
        super().__init__()
        layers, channels = [], 1
        for i, width in enumerate(widths):
            layers += [nn.Conv1d(channels, width, 25, 4, 11), nn.LeakyReLU(0.2)]
            if i < len(widths) - 1:
                layers.append(PhaseShuffle(2))
            length, channels = length // 4, width
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(channels * length, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(x).flatten(1))


class TextBlock(nn.Module):
    """Residual block of the character critic: two convolutions of kernel 5, a ReLU before each, added at 0.3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 5, padding=2)
        self.conv2 = nn.Conv1d(channels, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.conv2(F.relu(self.conv1(F.relu(x))))


class TextResNet(nn.Module):
    """The character critic of Gulrajani et al. 2017: (batch, 32, vocabulary) probabilities, five blocks of 512."""

    def __init__(self, length: int = 32, vocabulary: int = 96, width: int = 512, blocks: int = 5):
        super().__init__()
        self.embed = nn.Conv1d(vocabulary, width, 1)
        self.blocks = nn.Sequential(*[TextBlock(width) for _ in range(blocks)])
        self.score = nn.Linear(length * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.blocks(self.embed(x.transpose(1, 2))).flatten(1))


def audio_1d(small: bool) -> nn.Module:
    return WaveGAN(16, (4, 8)) if small else WaveGAN()


def text_resnet_1d(small: bool) -> nn.Module:
    return TextResNet(length=8, vocabulary=8, width=8, blocks=2) if small else TextResNet()
