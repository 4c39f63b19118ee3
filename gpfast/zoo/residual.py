"""Residual critics of images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Residual block, ReLU before each 3x3 convolution, mean pooling after: appendix of Gulrajani et al. 2017."""

    def __init__(self, channels: int, down: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, channels, 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(F.relu(x))))
        if self.shortcut is None:
            return x + y
        return F.avg_pool2d(self.shortcut(x), 2) + F.avg_pool2d(y, 2)


class FirstBlock(nn.Module):
    """The first block: no ReLU on the image, and the shortcut pools before its convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2)) + F.avg_pool2d(self.conv2(F.relu(self.conv1(x))), 2)


class ResNet32(nn.Module):
    """The CIFAR-10 critic of Gulrajani et al. 2017: four blocks of 128 channels, two of them down, a global mean."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.blocks = nn.Sequential(FirstBlock(width), Block(width, down=True), Block(width), Block(width))
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(F.relu(self.blocks(x)).mean(dim=(2, 3))).flatten()


class Projection(nn.Module):
    """A projection discriminator (Miyato & Koyama 2018) on the same blocks: linear(h) + <embedding(label), h>.

    h is a global sum, the 10 classes are CIFAR-10's. The paper's spectral norm is left to a critic of its own.
    """

    def __init__(self, width: int = 128, classes: int = 10):
        super().__init__()
        self.blocks = nn.Sequential(FirstBlock(width), Block(width, down=True), Block(width), Block(width))
        self.score = nn.Linear(width, 1)
        self.embedding = nn.Embedding(classes, width)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.relu(self.blocks(x)).sum(dim=(2, 3))
        return self.score(h).flatten() + (self.embedding(labels) * h).sum(dim=1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a ReLU before each, a layer norm after, added at 0.3 times their value.

    The layer norm is the paper's: over all of a sample, with one scale and shift a channel.
    """

    def __init__(self, channels: int, out_channels: int, down: bool = False):
        super().__init__()
        stride = 2 if down else 1
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels // 2, out_channels // 2, 3, stride, 1)
        self.conv3 = nn.Conv2d(out_channels // 2, out_channels, 1, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(x))
        y = self.conv2(F.relu(y))
        y = self.norm(self.conv3(F.relu(y)))
        return self.shortcut(x) + 0.3 * y


class ResNet101(nn.Module):
    """The 101-layer critic of Gulrajani et al. 2017, figure 2: 33 bottlenecks, 64x64 to 4x4, 32 to 512 channels."""

    def __init__(
        self,
        size: int = 64,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        blocks: tuple[int, ...] = (5, 6, 6, 6, 6),
    ):
        super().__init__()
        layers = [nn.Conv2d(3, widths[0], 1)]
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage > 0:
                layers.append(Bottleneck(channels, width, down=True))
                size //= 2
            channels = width
            layers += [Bottleneck(channels, channels) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(channels * size * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(self.layers(x).flatten(1)) / 5).flatten()


def resnet32(small: bool) -> nn.Module:
    return ResNet32(8) if small else ResNet32()


def resnet101(small: bool) -> nn.Module:
    return ResNet101(16, (4, 8, 8), (1, 1, 1)) if small else ResNet101()


def projection(small: bool) -> nn.Module:
    return Projection(8, classes=4) if small else Projection()
