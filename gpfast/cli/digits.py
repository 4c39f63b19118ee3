"""What the demo trains: real 8x8 digits, a class-conditional WGAN-GP that a CPU trains in a minute, and its judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn

import gpfast

LATENT, WIDTH, CLASSES = 32, 256, 10
LABEL_SCALE = 3.0  # of one-hot labels, ten small inputs beside 64 pixels: classes are learned some ten times as fast
CRITIC_STEPS = 5  # for each generator step, as in Algorithm 1 of arXiv 1704.00028
ADAM = {"lr": 1e-4, "betas": (0.0, 0.9), "fused": True}

Penalty = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def eager_gradient_penalty(critic, real, fake, labels):
    """The penalty as WGAN-GP code bases hold it, which `gpfast.gradient_penalty` replaces and is compared with."""
    alpha = torch.rand(real.size(0), 1, 1, 1, device=real.device)
    interpolates = alpha * real + (1 - alpha) * fake
    interpolates.requires_grad_(True)
    scores = critic(interpolates, labels)
    gradients = torch.autograd.grad(
        outputs=scores,
        inputs=interpolates,
        grad_outputs=torch.ones_like(scores),
        create_graph=True,
        retain_graph=True,
    )[0]
    gradients = gradients.view(gradients.size(0), -1)
    norms = torch.sqrt(gradients.square().sum(1) + 1e-12)
    return 10 * ((norms - 1) ** 2).mean()


def gpfast_penalty(engine: str) -> Penalty:
    """penalty(critic, real, fake, labels), the same number by gpfast's `engine`."""

    def penalty(critic, real, fake, labels):
        return gpfast.gradient_penalty(critic, real, fake, args=(labels,), engine=engine)

    return penalty


class Generator(nn.Module):
    """(B, 1, 8, 8) images in [-1, 1] from noise (B, LATENT) and one-hot labels (B, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT + CLASSES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)),
        )  # fmt: skip

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([noise, LABEL_SCALE * labels], 1))


class Critic(nn.Module):
    """Scores (B, 1) of images (B, 1, 8, 8) and one-hot labels. No batch normalisation: the penalty is per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + CLASSES, WIDTH), nn.LeakyReLU(0.2),
            nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2),
            nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2),
            nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([images.flatten(1), LABEL_SCALE * labels], 1))


class Digits:
    """The 1,797 images of scikit-learn, (N, 1, 8, 8) in [-1, 1], their labels, and a classifier that judges samples.

    The classifier (a support vector machine) learns three quarters of them; `real_accuracy` is its share of right
    answers on the last quarter.
    """

    def __init__(self) -> None:
        data = load_digits()
        self.images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
        self.labels = torch.tensor(data.target)
        flat = self.images.flatten(1).numpy()
        held_out = np.arange(len(flat)) % 4 == 0
        self._classifier = SVC(C=10).fit(flat[~held_out], data.target[~held_out])
        self.real_accuracy = self._classifier.score(flat[held_out], data.target[held_out])

    def accuracy(self, samples: Tensor, labels: Tensor) -> float:
        """The share of `samples` that the classifier reads as their `labels`."""
        return self._classifier.score(samples.flatten(1).numpy(), labels.numpy())


class Training:
    """A critic, a generator and their Adams, seeded; each step draws from PyTorch's own random state.

    Two trainings with the same seed and dtype whose steps are not interleaved draw the same numbers.
    """

    def __init__(self, digits: Digits, seed: int, batch: int, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.generator, self.critic = Generator().to(dtype), Critic().to(dtype)
        self.images, self.labels = digits.images.to(dtype), nn.functional.one_hot(digits.labels, CLASSES).to(dtype)
        self.batch = batch
        self._critic_adam = torch.optim.Adam(self.critic.parameters(), **ADAM)
        self._generator_adam = torch.optim.Adam(self.generator.parameters(), **ADAM)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """(real, fake, labels), a batch each; fake detached, of the same classes as real."""
        rows = torch.randint(len(self.images), (self.batch,))
        labels = self.labels[rows]
        with torch.no_grad():
            fake = self.generator(self._noise(), labels)
        return self.images[rows], fake, labels

    def critic_step(self, penalty: Penalty) -> tuple[Tensor, Tensor]:
        """(loss, Wasserstein estimate) of one critic step, detached."""
        real, fake, labels = self.draw()
        wasserstein = self.critic(real, labels).mean() - self.critic(fake, labels).mean()
        loss = penalty(self.critic, real, fake, labels) - wasserstein
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        return loss.detach(), wasserstein.detach()

    def generator_step(self) -> None:
        """One generator step, on the labels of a batch of real digits."""
        labels = self.labels[torch.randint(len(self.images), (self.batch,))]
        loss = -self.critic(self.generator(self._noise(), labels), labels).mean()
        self._generator_adam.zero_grad()
        loss.backward()
        self._generator_adam.step()

    def samples(self, labels: Tensor, seed: int = 0) -> Tensor:
        """Generated images for integer `labels`; the noise is the seed's, the training's own draws are untouched."""
        noise = torch.randn(len(labels), LATENT, generator=torch.Generator().manual_seed(seed))
        self.generator.eval()
        with torch.no_grad():
            images = self.generator(noise, nn.functional.one_hot(labels, CLASSES).to(noise.dtype))
        self.generator.train()
        return images

    def _noise(self) -> Tensor:
        return torch.randn(self.batch, LATENT, dtype=self.images.dtype)
