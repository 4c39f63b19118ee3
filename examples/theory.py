"""Why a critic with a penalty, in four figures: divergences that saturate, steps that circle, gradients that vanish.

1. KL and JS between two Gaussians as one moves away: KL depends on the order of its arguments, JS ends at log 2.
2. The two lines of "Wasserstein GAN" (arXiv 1701.07875, example 1): KL is infinite, JS log 2, W1 the distance theta.
3. The game min over x, max over y of x y: simultaneous gradient steps circle outwards.
4. A discriminator (Goodfellow et al. 2014, arXiv 1406.2661) trained to perfection leaves its generator no gradient; the
   critic of a WGAN-GP (arXiv 1704.00028) leaves a steady one.

    python examples/theory.py --steps 600 --out out/theory

Needs numpy, scipy, matplotlib and tqdm.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from pictures import ACCENT, BLUE, GREY, INK, plt, save
from scipy import integrate, stats
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import gpfast
from gpfast.penalty import ENGINES


def gaussians(shifts, deviation=2.0):
    """{name: values} of divergences between p = N(0, 1) and q = N(shift, deviation^2)."""
    shifts = np.asarray(shifts, dtype=float)
    variance = deviation**2
    return {
        "KL(p, q)": math.log(deviation) + (1 + shifts**2) / (2 * variance) - 0.5,
        "KL(q, p)": -math.log(deviation) + (variance + shifts**2) / 2 - 0.5,
        "JS": np.array([jensen_shannon(stats.norm(0, 1), stats.norm(shift, deviation)) for shift in shifts]),
    }


def jensen_shannon(p, q):
    """In nats, of two densities on the line, by quadrature."""

    def integrand(x):
        a, b = p.pdf(x), q.pdf(x)
        middle = (a + b) / 2
        return sum(0.5 * d * math.log(d / middle) for d in (a, b) if d > 0)

    ends = [d.mean() + s * 12 * d.std() for d in (p, q) for s in (-1, 1)]
    return integrate.quad(integrand, min(ends), max(ends), points=[p.mean(), q.mean()], limit=400)[0]


def two_lines(thetas, points=64):
    """{name: values} between (0, z) and (theta, z), z uniform, each held by the same `points` values of z.

    KL and JS compare the mass at each place that has some, in nats; W1 is of the best assignment.
    """
    z = np.linspace(0, 1, points)
    found = {"KL": [], "JS": [], "W1": []}
    for theta in thetas:
        places = [(x, y) for x in (0.0, theta) for y in z]
        _, at = np.unique(places, axis=0, return_inverse=True)
        p, q = (np.bincount(half, minlength=at.max() + 1) / points for half in np.split(at.ravel(), 2))
        found["KL"].append(rel_entr(p, q).sum())
        found["JS"].append(rel_entr(p, (p + q) / 2).sum() / 2 + rel_entr(q, (p + q) / 2).sum() / 2)
        cost = np.hypot(theta, z[:, None] - z)
        found["W1"].append(cost[linear_sum_assignment(cost)].mean())
    return {name: np.array(values) for name, values in found.items()}


def game(steps, rate=0.1):
    """(steps + 1, 2): the points of simultaneous gradient steps on x y, x downwards and y upwards, from (1, 0)."""
    x, y = 1.0, 0.0
    path = [(x, y)]
    for _ in range(steps):
        x, y = x - rate * y, y + rate * x
        path.append((x, y))
    return np.array(path)


def mlp():
    return nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))


def gradients_left(steps, seed, engine):
    """{name: values}: the mean norm of the gradient that a generator's samples get, after each step of the other side.

    Real and generated samples are two Gaussians that do not overlap. The generator's loss is log(1 - D) for the
    discriminator and -D for the critic, a sample.
    """
    losses = {
        "discriminator": (
            lambda critic, real, fake: F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean(),
            lambda scores: -F.softplus(scores),
        ),
        "critic with penalty": (
            lambda critic, real, fake: (
                critic(fake).mean() - critic(real).mean() + gpfast.gradient_penalty(critic, real, fake, engine=engine)
            ),
            lambda scores: -scores,
        ),
    }
    found = {}
    for name, (loss, of_generator) in losses.items():
        torch.manual_seed(seed)
        critic = mlp()
        adam = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
        found[name] = []
        for _ in tqdm(range(steps), desc=name, leave=False, disable=None):
            real, fake = 0.2 * torch.randn(2, 128, 2) + torch.tensor([[[-2.0, 0.0]], [[2.0, 0.0]]])
            adam.zero_grad()
            loss(critic, real, fake).backward()
            adam.step()
            fake.requires_grad_()
            (gradient,) = torch.autograd.grad(of_generator(critic(fake)).sum(), fake)
            found[name].append(gradient.norm(dim=1).mean().item())
    return found


def draw(path, shifts, moved, thetas, lines, circle, left):
    figure, axes = plt.subplots(1, 4, figsize=(19, 4.4))
    first, second, third, fourth = axes
    for (name, values), color in zip(moved.items(), (BLUE, GREY, ACCENT), strict=True):
        first.plot(shifts, values, color=color, label=name)
    first.axhline(math.log(2), color=ACCENT, linewidth=0.7, linestyle=":")
    first.set(yscale="log", xlabel="shift of q", title="One Gaussian moves away")
    second.plot(thetas, lines["W1"], color=BLUE, label="W1")
    apart = thetas != 0
    for side in (thetas < 0, thetas > 0):
        second.plot(thetas[side], lines["JS"][side], color=ACCENT, label="JS" if side[-1] else None)
    second.plot(thetas[~apart], lines["JS"][~apart], "o", color=ACCENT, markersize=4)
    second.set(xlabel="theta", title="Two lines at distance theta (KL: infinite)")
    third.plot(*circle.T, color=INK, linewidth=0.8)
    third.plot(*circle[0], "o", color=ACCENT)
    third.set(xlabel="x", ylabel="y", title="min over x, max over y of x y", aspect="equal")
    for (name, values), color in zip(left.items(), (GREY, ACCENT), strict=True):
        fourth.plot(range(1, len(values) + 1), values, color=color, label=name)
    fourth.set(yscale="log", xlabel="steps of the other side", title="Gradient left to the generator")
    for axis in (first, second, fourth):
        axis.legend(frameon=False)
    figure.tight_layout()
    save(figure, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of discriminator and critic in figure 4 (default 600)")
    parser.add_argument("--quick", action="store_true", help="150 steps, fewer points: the same claims in seconds")
    parser.add_argument("--seed", type=int, default=0, help="of figure 4's networks and samples (default 0)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of the gradient penalty (default auto)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/theory"), help="folder of theory.png (default out/theory)"
    )
    arguments = parser.parse_args(argv)
    steps = (150 if arguments.quick else 600) if arguments.steps is None else arguments.steps
    if steps < 1:
        parser.error(f"--steps must be at least 1; got {arguments.steps}")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")

    shifts = np.linspace(0, 20, 11 if arguments.quick else 81)
    thetas = np.linspace(-2, 2, 9 if arguments.quick else 41)
    moved, lines, circle = gaussians(shifts), two_lines(thetas), game(120)
    left = gradients_left(steps, arguments.seed, arguments.engine)
    picture = arguments.out / "theory.png"
    draw(picture, shifts, moved, thetas, lines, circle, left)

    print(f"shift {shifts[-1]:g}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in moved.items()))
    error = np.abs(lines["W1"] - np.abs(thetas)).max()
    print(f"two lines: W1 is |theta| within {error:.1e}, JS off theta = 0 is {lines['JS'][0]:.4f}, KL {lines['KL'][0]}")
    print(f"game: radius {np.hypot(*circle[0]):.4f} grows to {np.hypot(*circle[-1]):.4f} in {len(circle) - 1} steps")
    for name, values in left.items():
        print(f"{name}: gradient {values[0]:.2e} after 1 step, {values[-1]:.2e} after {steps}")
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
