"""`python -m gpfast demo`: a WGAN-GP trained on real digits, its pictures, and a comparison with the eager lines."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import gpfast
from gpfast import cost
from gpfast.cli import pictures, timing
from gpfast.cli.arguments import positive
from gpfast.cli.digits import CLASSES, CRITIC_STEPS, Digits, Penalty, Training, eager_gradient_penalty, gpfast_penalty
from gpfast.machine import machine_line
from gpfast.penalty import ENGINES

SECONDS = 50.0
JUDGED = 25  # times that samples are judged in a training
COMPARED_STEPS = 20
SHOWN_EVERY = 0.5  # seconds between readings for the progress bar

DESCRIPTION = """\
Trains a class-conditional WGAN-GP on the 1,797 real 8x8 digit images that scikit-learn ships, as in
Algorithm 1 of arXiv 1704.00028: five critic steps for each generator step, Adam with learning rate
1e-4 and betas 0 and 0.9, penalty weight 10. By default it takes about a minute on two cores.

It writes two pictures, samples.png (generated digits beside real ones) and curves.png (Wasserstein
estimate, mean gradient norm, and the share of samples that a classifier reads as the digit that
was asked for), and ends with a table: one critic step with gpfast and with the eager lines that
WGAN-GP code bases hold, and how far the losses of two trainings, one with each, are apart.
Ctrl-C ends the training early; the pictures are still written.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `demo`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "demo",
        help="train a WGAN-GP on real digits, with pictures and a comparison with the eager lines",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=positive(float, finite=True), metavar="S", help=f"how long to train (default {SECONDS:.0f})"
    )
    length.add_argument(
        "--steps",
        type=positive(int),
        metavar="N",
        help="train for N critic steps instead; the same seed then gives the same digits",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default out)")
    parser.add_argument("--batch", type=positive(int), default=64, metavar="B", help="samples a step (default 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, data and noise (default 0)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="gpfast's engine (default auto)")
    parser.add_argument(
        "--threads",
        type=positive(int),
        default=1,
        metavar="N",
        help="PyTorch's CPU threads (default 1: layers this small gain little from more)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Trains, writes the pictures, prints the table; 0, or 130 where Ctrl-C ended it early."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"gpfast demo: --out: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    digits = Digits()
    print(f"WGAN-GP on {len(digits.images):,} real 8x8 digits, engine {args.engine!r}; {machine_line('cpu')}")
    training = Training(digits, args.seed, args.batch)
    history = train(training, digits, args.engine, steps=args.steps, seconds=args.seconds)
    print(
        f"\nAfter {history.done:,} critic steps a classifier reads {history.accuracy[-1]:.1%} of the samples as the"
        f"\ndigit asked for; of real digits that it has not seen, {digits.real_accuracy:.1%}.\n"
    )
    for path, what in write_pictures(args.out, training, digits, history).items():
        print(f"wrote {path}: {what}")
    if history.interrupted:
        print("\nStopped by Ctrl-C, so nothing is measured.")
        return 130
    print("\n" + compare(digits, args))
    return 0


@dataclass
class History:
    """The curves, over critic steps: `wasserstein` and `norms` at `steps`, `accuracy` at `judged_steps`."""

    steps: list[int] = field(default_factory=list)
    wasserstein: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    judged_steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    done: int = 0
    interrupted: bool = False


def train(training: Training, digits: Digits, engine: str, *, steps: int | None, seconds: float | None) -> History:
    """Trains for `steps` critic steps, or else for `seconds` (default SECONDS), or until Ctrl-C."""
    history, readings = History(), []
    labels = torch.arange(500) % CLASSES
    seconds = seconds or SECONDS
    start = shown = time.perf_counter()
    with _bar(steps, seconds) as bar:
        try:
            while (progress := bar.n / bar.total) < 1:
                if progress >= len(history.accuracy) / JUDGED:
                    _judge(history, training, digits, labels)
                count = min(CRITIC_STEPS, steps - history.done) if steps else CRITIC_STEPS
                wasserstein, norm = critic_steps(training, engine, count)
                training.generator_step()
                history.done += count
                readings.append((history.done, wasserstein, norm))
                now = time.perf_counter()
                if now - shown > SHOWN_EVERY:
                    shown = now
                    wasserstein, norm = wasserstein.item(), norm.item()
                    bar.set_postfix_str(f"Wasserstein {wasserstein:.2f}, gradient norm {norm:.2f}", refresh=False)
                bar.update(count if steps else min(now - start, seconds) - bar.n)
        except KeyboardInterrupt:
            history.interrupted = True
    _judge(history, training, digits, labels)
    if readings:
        steps_done, *values = zip(*readings, strict=True)
        history.steps = list(steps_done)
        history.wasserstein, history.norms = (torch.stack(v).tolist() for v in values)
    return history


def critic_steps(training: Training, engine: str, count: int) -> tuple[Tensor, Tensor]:
    """(Wasserstein estimate, mean gradient norm) of the last of `count` critic steps, unread."""
    plain = gpfast_penalty(engine)
    for _ in range(count - 1):
        training.critic_step(plain)
    stats = None

    def with_stats(critic, real, fake, labels):
        nonlocal stats
        penalty, stats = gpfast.gradient_penalty(critic, real, fake, args=(labels,), engine=engine, return_stats=True)
        return penalty

    _, wasserstein = training.critic_step(with_stats)
    return wasserstein, stats.mean


def write_pictures(folder: Path, training: Training, digits: Digits, history: History) -> dict[Path, str]:
    """Writes samples.png and curves.png; what they show, by path."""
    rows = 10
    real = torch.stack([digits.images[digits.labels == label][:: 170 // rows][:rows, 0] for label in range(CLASSES)], 1)
    fake = training.samples(torch.arange(rows * CLASSES) % CLASSES, seed=1).reshape(rows, CLASSES, 8, 8)
    samples, curves = folder / "samples.png", folder / "curves.png"
    pictures.save_samples(samples, real.numpy(), fake.numpy(), f"Generated after {history.done:,} critic steps")
    pictures.save_curves(curves, history, digits.real_accuracy)
    return {
        samples: "real and generated digits, a column for each class",
        curves: "Wasserstein estimate, gradient norm and sample quality over the critic steps",
    }


def compare(digits: Digits, args: argparse.Namespace) -> str:
    """The closing table: a critic step with gpfast and with the eager lines, and the difference of their losses."""
    penalties = {"gpfast": gpfast_penalty(args.engine), "eager": eager_gradient_penalty}
    steps, parts, peak = {}, {}, {}
    for name, penalty in penalties.items():
        training = Training(digits, args.seed, args.batch)
        steps[name] = lambda training=training, penalty=penalty: training.critic_step(penalty)
        parts[name] = _penalty_alone(training, penalty)
        steps[name]()  # so that Adam's state is there, and not counted
        existing = (training.critic, training.generator, training.images, training.labels)
        peak[name] = cost.measure(steps[name], existing=existing).peak_bytes / 1e3
    rounds = {"rounds": 100, "seconds": 5.0, "device": "cpu"}
    with tqdm(total=200, desc="measuring", unit="round", leave=False) as bar:
        step_times = timing.interleaved(steps, on_round=bar.update, **rounds)
        part_times = timing.interleaved(parts, on_round=bar.update, **rounds)
    step, part = ({name: timing.percentiles(t)[1] for name, t in times.items()} for times in (step_times, part_times))
    ratios = [timing.ratio(times["eager"], times["gpfast"]) for times in (step_times, part_times)]
    rows = [
        ("critic step, ms", f"{step['gpfast']:.2f}", f"{step['eager']:.2f}", ratios[0]),
        ("its penalty and gradients, ms", f"{part['gpfast']:.2f}", f"{part['eager']:.2f}", ratios[1]),
        (
            "peak of a critic step, kB",
            f"{peak['gpfast']:,.0f}",
            f"{peak['eager']:,.0f}",
            peak["eager"] / peak["gpfast"],
        ),
    ]
    lines = "\n".join(f"{name:31}{ours:>9}{eager:>14}{ratio:>17.2f}" for name, ours, eager, ratio in rows)
    single, largest = largest_difference(digits, args, torch.float32)
    double, _ = largest_difference(digits, args, torch.float64)
    return f"""\
{"":31}{"gpfast":>9}{"eager lines":>14}{"eager / gpfast":>17}
{lines}

Batch {args.batch}, float32, threads: {args.threads}. Times are medians of interleaved runs, their ratio is the median
of the rounds' ratios; above 1 is in gpfast's favour. Peak: beyond parameters, Adam's state and the data.

Largest difference of the losses of two trainings, one with each, over their first {COMPARED_STEPS} critic steps:
{single:.1e} in float32 and {double:.1e} in float64, for losses of up to {largest:.0f}.
Expected is rounding only, a few units in the last place of the largest loss."""


def largest_difference(digits: Digits, args: argparse.Namespace, dtype: torch.dtype) -> tuple[float, float]:
    """(largest difference of the critic's losses, gpfast against the eager lines from the same seeds; largest loss)."""
    ours, eager = (
        first_losses(digits, penalty, args, dtype) for penalty in (gpfast_penalty(args.engine), eager_gradient_penalty)
    )
    return (ours - eager).abs().max().item(), eager.abs().max().item()


def first_losses(digits: Digits, penalty: Penalty, args: argparse.Namespace, dtype: torch.dtype) -> Tensor:
    """The critic's losses over COMPARED_STEPS critic steps of a fresh training, generator steps between them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the eager lines draw alpha in it
    try:
        training, losses = Training(digits, args.seed, args.batch, dtype), []
        while len(losses) < COMPARED_STEPS:
            losses += [training.critic_step(penalty)[0] for _ in range(CRITIC_STEPS)]
            training.generator_step()
        return torch.stack(losses)
    finally:
        torch.set_default_dtype(before)


def _penalty_alone(training: Training, penalty: Penalty) -> Callable[[], None]:
    real, fake, labels = training.draw()

    def part() -> None:
        training.critic.zero_grad()
        penalty(training.critic, real, fake, labels).backward()

    return part


def _judge(history: History, training: Training, digits: Digits, labels: Tensor) -> None:
    accuracy = digits.accuracy(training.samples(labels), labels)
    history.judged_steps.append(history.done)
    history.accuracy.append(accuracy)


def _bar(steps: int | None, seconds: float) -> tqdm:
    if steps:
        return tqdm(total=steps, unit="step", desc="training")
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    return tqdm(total=seconds, desc="training", bar_format=form)
