"""WGAN-GP on the 8x8 digits of scikit-learn, as in Algorithm 1 of arXiv 1704.00028: the whole program.

    python examples/digits_wgan_gp.py --steps 1500 --out out/digits

Needs scikit-learn, matplotlib and tqdm.
"""

import argparse
from pathlib import Path

import matplotlib.image
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import trange

import gpfast

LATENT = 32


def make_generator():
    return nn.Sequential(
        nn.Linear(LATENT, 256), nn.BatchNorm1d(256), nn.ReLU(),
        nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(),
        nn.Linear(256, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)),
    )  # fmt: skip


def make_critic():
    return nn.Sequential(  # no batch normalisation here: the penalty is per sample
        nn.Conv2d(1, 32, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 1),
    )  # fmt: skip


@torch.no_grad()
def generated(generator, count):
    samples = generator.eval()(torch.randn(count, LATENT))
    generator.train()
    return samples


def to_nearest(samples, images):
    return torch.cdist(samples.flatten(1), images.flatten(1)).min(1).values.mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="generator steps, of five critic steps each (default 1,500)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="50 steps")
    parser.add_argument(
        "--out", type=Path, default=Path("out/digits"), help="folder of digits.png (default out/digits)"
    )
    args = parser.parse_args()
    steps = (50 if args.quick else 1500) if args.steps is None else args.steps
    if steps < 1 or args.batch < 2:  # batch norm needs two samples
        parser.error(f"--steps must be at least 1 and --batch 2; got {steps} and {args.batch}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / "digits.png"
    torch.manual_seed(args.seed)

    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    generator, critic = make_generator(), make_critic()
    generator_adam = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.9))
    critic_adam = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))

    before = to_nearest(generated(generator, 200), images)
    for step in (bar := trange(steps, disable=None)):
        for _ in range(5):
            real = images[torch.randint(len(images), (args.batch,))]
            fake = generator(torch.randn(args.batch, LATENT)).detach()
            wasserstein = critic(real).mean() - critic(fake).mean()
            loss = gpfast.gradient_penalty(critic, real, fake) - wasserstein
            critic_adam.zero_grad()
            loss.backward()
            critic_adam.step()
        loss = -critic(generator(torch.randn(args.batch, LATENT))).mean()
        generator_adam.zero_grad()
        loss.backward()
        generator_adam.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"Wasserstein {wasserstein.item():.2f}")

    after = to_nearest(generated(generator, 200), images)
    digits = nn.functional.pad(generated(generator, 100), (1, 1, 1, 1), value=-1)
    sheet = digits.reshape(10, 10, 10, 10).transpose(1, 2).reshape(100, 100).kron(torch.ones(6, 6))
    matplotlib.image.imsave(picture, sheet.numpy(), cmap="gray_r")
    print(
        f"distance from a sample to the nearest real digit: {before:.2f} untrained, {after:.2f} after {steps:,} steps"
    )
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
