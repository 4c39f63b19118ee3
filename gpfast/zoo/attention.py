"""A critic with self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over the positions of a feature map (SAGAN, Zhang et al. 2019).

    gamma starts at 0.5, not at the paper's 0, at which the attention would have no gradient.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        attention = torch.softmax(torch.bmm(query.transpose(1, 2), key), dim=-1)
        return x + self.gamma * torch.bmm(value, attention.transpose(1, 2)).view_as(x)


class AttentionDCGAN(nn.Module):
    """A 64x64 DCGAN critic with self-attention on its 16x16 feature map of 128 channels."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), attend: int = 128):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            if width == attend:
                layers.append(SelfAttention(width))
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


def self_attention(small: bool) -> nn.Module:
    return AttentionDCGAN((4, 8), attend=4) if small else AttentionDCGAN()
