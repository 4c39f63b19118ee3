"""Critics of linear layers."""

from __future__ import annotations

from torch import Tensor, nn


class ToyMLP(nn.Module):
    """The critic of Gulrajani et al. 2017 for Gaussians and the Swiss roll: three hidden ReLU layers of 512."""

    def __init__(self, width: int = 512, features: int = 2):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TabularMLP(nn.Module):
    """The critic of CTGAN (Xu et al. 2019): a sample is ten rows of the table, packed (Lin et al. 2018)."""

    def __init__(self, rows: int = 10, columns: int = 100, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(rows * columns, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class MotionPrior(nn.Module):
    """The discriminator of adversarial motion priors (Peng et al. 2021): 1024-512 ReLU on two successive states."""

    def __init__(self, states: int = 2, features: int = 105, widths: tuple[int, int] = (1024, 512)):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(states * features, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU()
        )
        self.score = nn.Linear(widths[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.trunk(x))


def toy_mlp(small: bool) -> nn.Module:
    return ToyMLP(8) if small else ToyMLP()


def mlp_64(small: bool) -> nn.Module:
    return ToyMLP(8, features=8) if small else ToyMLP(64, features=64)


def tabular_mlp(small: bool) -> nn.Module:
    return TabularMLP(rows=10, columns=2, width=8) if small else TabularMLP()


def motion_prior(small: bool) -> nn.Module:
    # with fewer features the eight last ReLUs are all off for some samples, whose gradient is then zero
    return MotionPrior(features=6, widths=(8, 8)) if small else MotionPrior()
