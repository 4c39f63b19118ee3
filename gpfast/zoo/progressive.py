"""The critic of progressive growing: equalised learning rate and minibatch standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EqualizedConv2d(nn.Module):
    """A convolution whose weight ~ N(0, 1) is scaled by sqrt(2 / fan in) when it runs (Karras et al. 2018)."""

    def __init__(self, channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = math.sqrt(2 / (channels * kernel * kernel))
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualizedLinear(nn.Module):
    """The same for a linear layer, with gain / sqrt(fan in)."""

    def __init__(self, features: int, out_features: int, gain: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class MinibatchStddev(nn.Module):
    """Appends a channel that holds the mean, over features, of the standard deviation over a group of samples.

    Groups have `group` samples, or all of a batch that it does not divide.
    """

    def __init__(self, group: int = 4):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        group = self.group if batch % self.group == 0 else batch
        y = x.reshape(group, -1, *x.shape[1:])
        y = y - y.mean(dim=0, keepdim=True)
        deviation = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        channel = deviation.repeat(group)[:, None, None, None].expand(batch, 1, height, width)
        return torch.cat([x, channel], dim=1)


class ProgressiveCritic(nn.Module):
    """The critic of Karras et al. 2018 for 32x32 images, fully grown: 512 channels, average pooling down to 4x4."""

    def __init__(self, size: int = 32, width: int = 512):
        super().__init__()
        layers = [EqualizedConv2d(3, width, 1), nn.LeakyReLU(0.2)]
        while size > 4:
            for _ in range(2):
                layers += [EqualizedConv2d(width, width, 3), nn.LeakyReLU(0.2)]
            layers.append(nn.AvgPool2d(2))
            size //= 2
        layers += [MinibatchStddev(), EqualizedConv2d(width + 1, width, 3), nn.LeakyReLU(0.2), nn.Flatten()]
        layers += [EqualizedLinear(width * size * size, width, math.sqrt(2)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, EqualizedLinear(width, 1, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def minibatch_stddev(small: bool) -> nn.Module:
    return ProgressiveCritic(8, 6) if small else ProgressiveCritic()
