"""Critics whose weights are expressions of their parameters: spectral norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class SpectralDCGAN(nn.Module):
    """The 32x32 critic of SN-GAN (Miyato et al. 2018, table 3): 3x3 and strided 4x4 convolutions, LeakyReLU 0.1.

    In training mode each call runs one step of power iteration on the buffers.
    """

    def __init__(self, size: int = 32, widths: tuple[int, ...] = (64, 128, 256, 512)):
        super().__init__()
        layers = [spectral_norm(nn.Conv2d(3, widths[0], 3, 1, 1)), nn.LeakyReLU(0.1)]
        for width, wider in zip(widths[:-1], widths[1:], strict=True):
            layers += [spectral_norm(nn.Conv2d(width, width, 4, 2, 1)), nn.LeakyReLU(0.1)]
            layers += [spectral_norm(nn.Conv2d(width, wider, 3, 1, 1)), nn.LeakyReLU(0.1)]
            size //= 2
        self.layers = nn.Sequential(*layers)
        self.score = spectral_norm(nn.Linear(widths[-1] * size * size, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(x).flatten(1))


def spectral(small: bool) -> nn.Module:
    return SpectralDCGAN(16, (4, 8)) if small else SpectralDCGAN()
