"""An adversarial motion prior (AMP, arXiv 2104.02180) on synthetic gaits: least squares and a penalty on real data.

A discriminator tells transitions (state, next state) of a reference gait from a policy's, with
E[(D(real) - 1)^2] + E[(D(policy) + 1)^2] + 5 E[||grad D(real)||^2]; the policy is paid max(0, 1 - (D - 1)^2 / 4). Here
the state is four joint angles with their velocities, and the policy, which in AMP learns by reinforcement, follows the
gradient of D through a differentiable step.

    python examples/motion_prior_r1.py --steps 1500 --out out/motion

Needs matplotlib and tqdm.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import nn
from tqdm import trange

import gpfast

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

JOINTS = ("hip left", "knee left", "hip right", "knee right")
LAG = torch.tensor([0.0, 0.9, math.pi, math.pi + 0.9])
SWING = torch.tensor([0.8, 1.0, 0.8, 1.0])
TURN = 2 * math.pi / 30  # thirty frames a gait cycle


def gait(phase):
    """States (..., 8) at `phase` (...): angles, and velocities in units of a frame's turn."""
    angle = phase.unsqueeze(-1) + LAG
    return torch.cat([SWING * angle.sin(), SWING * angle.cos()], -1)


def mlp(inputs, outputs, hidden=(256, 128)):
    sizes = (inputs, *hidden)
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def transitions(policy, state, frames):
    """(frames * B, 16): each state of a roll-out of the policy beside the one before it."""
    pairs = []
    for _ in range(frames):
        following = state + 0.3 * policy(state)
        pairs.append(torch.cat([state, following], -1))
        state = following
    return torch.cat(pairs)


@torch.no_grad()
def rolled_out(policy, frames):
    """(frames, 8): the states that the policy goes through by itself, from the gait's first."""
    return transitions(policy, gait(torch.zeros(1)), frames)[:, :8]


def off_the_gait(policy, frames=30):
    """The root mean square of the angles' error over a cycle."""
    return (rolled_out(policy, frames) - gait(TURN * torch.arange(frames)))[:, :4].square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="(default 1,500)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames", type=int, default=4, help="frames of a roll-out in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="700 steps")
    parser.add_argument(
        "--out", type=Path, default=Path("out/motion"), help="folder of motion.png (default out/motion)"
    )
    args = parser.parse_args()
    steps = (700 if args.quick else 1500) if args.steps is None else args.steps
    if min(steps, args.batch, args.frames) < 1:
        parser.error(f"--steps, --batch and --frames must be at least 1; got {steps}, {args.batch}, {args.frames}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / "motion.png"
    torch.manual_seed(args.seed)

    discriminator, policy = mlp(16, 1), mlp(8, 8)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), lr=5e-4)
    policy_adam = torch.optim.Adam(policy.parameters(), lr=3e-4)

    untrained = off_the_gait(policy)
    for step in (bar := trange(steps, disable=None)):
        phase = 2 * math.pi * torch.rand(args.batch * args.frames)
        real = torch.cat([gait(phase), gait(phase + TURN)], -1)
        start = gait(2 * math.pi * torch.rand(args.batch)) + 0.1 * torch.randn(args.batch, 8)
        played = transitions(policy, start, args.frames)
        penalty = gpfast.r1(discriminator, real, weight=5.0)
        fit = (discriminator(real) - 1).square().mean() + (discriminator(played.detach()) + 1).square().mean()
        discriminator_adam.zero_grad()
        (fit + penalty).backward()
        discriminator_adam.step()

        score = discriminator(played)
        policy_adam.zero_grad()
        (score - 1).square().mean().backward()
        policy_adam.step()
        if step % 20 == 0:
            reward = (1 - (score - 1).square() / 4).clamp(min=0).mean()
            bar.set_postfix_str(f"style reward {reward.item():.2f}, penalty {penalty.item():.3f}")

    frames = 90
    reference, played = gait(TURN * torch.arange(frames)), rolled_out(policy, frames)
    print(
        f"a free cycle is off the gait by {untrained:.3f} rad untrained,"
        f" {off_the_gait(policy):.3f} after {steps:,} steps"
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.4), sharex=True, sharey=True)
    for j, axis in enumerate(axes.T.flat):
        axis.plot(reference[:, j], color="#8d99ae", linewidth=4, alpha=0.6, label="reference gait")
        axis.plot(played[:, j], color="#d1495b", linewidth=1.5, label="policy, free roll-out")
        axis.set_title(JOINTS[j], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("frame")
    for axis in axes[:, 0]:
        axis.set_ylabel("angle, rad")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(picture, dpi=130)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
