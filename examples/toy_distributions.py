"""Value surfaces of critics on toy distributions: the experiment of figure 1 in arXiv 1704.00028.

The generator is held fixed at the real distribution plus noise of unit variance, and a critic (three layers of 512
ReLUs) is trained towards its optimum. With the penalty its contours follow the shape of the data.

    python examples/toy_distributions.py --steps 400 --out toy.png

Needs scikit-learn, matplotlib and tqdm.
"""

import argparse
import math

import matplotlib
import torch
from sklearn.datasets import make_swiss_roll
from torch import nn
from tqdm import tqdm

import gpfast

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def eight_gaussians(count):
    angle = torch.randint(8, (count,)) * (math.pi / 4)
    return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * torch.randn(count, 2)


def twenty_five_gaussians(count):
    return (torch.randint(-2, 3, (count, 2)) + 0.025 * torch.randn(count, 2)) / math.sqrt(2)


def swiss_roll(count):
    points, _ = make_swiss_roll(count, noise=0.25, random_state=int(torch.randint(2**31 - 1, ())))
    return torch.tensor(points[:, [0, 2]], dtype=torch.float32) / 7.5


DATA = {"8 Gaussians": eight_gaussians, "25 Gaussians": twenty_five_gaussians, "Swiss roll": swiss_roll}


def train_critic(draw, steps, width, batch, bar):
    critic = nn.Sequential(
        nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 1),
    )  # fmt: skip
    adam = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for step in range(steps):
        real = draw(batch)
        fake = draw(batch) + torch.randn(batch, 2)
        wasserstein = critic(real).mean() - critic(fake).mean()
        penalty, stats = gpfast.gradient_penalty(critic, real, fake, return_stats=True)
        adam.zero_grad()
        (penalty - wasserstein).backward()
        adam.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"Wasserstein {wasserstein.item():.2f}, gradient norm {stats.mean.item():.2f}")
        bar.update()
    return critic


def draw_surface(axis, critic, points, reach=2.2, cells=160):
    line = torch.linspace(-reach, reach, cells)
    x, y = torch.meshgrid(line, line, indexing="xy")
    with torch.no_grad():
        value = critic(torch.stack([x, y], -1).reshape(-1, 2)).reshape(cells, cells)
    axis.contourf(x, y, value, levels=24, cmap="Blues", alpha=0.75)
    axis.contour(x, y, value, levels=24, colors="#16324f", linewidths=0.4, linestyles="solid")
    axis.scatter(*points.T, s=4, color="#d1495b", linewidths=0)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="critic steps for each distribution")
    parser.add_argument("--width", type=int, default=512, help="of the critic's three layers")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="toy.png")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    figure, axes = plt.subplots(1, len(DATA), figsize=(12, 4.4))
    with tqdm(total=args.steps * len(DATA)) as bar:
        for axis, (name, draw) in zip(axes, DATA.items(), strict=True):
            bar.set_description(name)
            critic = train_critic(draw, args.steps, args.width, args.batch, bar)
            draw_surface(axis, critic, draw(600))
            axis.set_title(name)
    figure.suptitle("Critic value (darker is higher) and real samples", y=0.04, fontsize=10, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(args.out, dpi=130)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
