"""Critics of three-dimensional grids."""

from __future__ import annotations

from torch import Tensor, nn


class VoxelCritic(nn.Module):
    """The critic of 3D-IWGAN (Smith & Meger 2017) on 32x32x32 grids: kernel 4, stride 2, 32 to 256 channels."""

    def __init__(self, size: int = 32, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        layers, channels = [], 1
        for width in widths:
            layers += [nn.Conv3d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            size, channels = size // 2, width
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(channels * size**3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(x).flatten(1))


def voxel_3d(small: bool) -> nn.Module:
    return VoxelCritic(8, (4, 8)) if small else VoxelCritic()
