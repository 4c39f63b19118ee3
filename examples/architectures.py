"""Random architectures: which of them a plain GAN trains, and which WGAN-GP, as in section 5.1 of arXiv 1704.00028.

The paper draws 200 pairs of networks from a set (nonlinearity, depth, norm and filters of either side), trains each as
a GAN and with the penalty, and counts how many reach an inception score: with the penalty many that do not without.
Here the images are scikit-learn's digits, 8x8, where the paper has ImageNet at 32x32; a small classifier of digits
stands for Inception, so that a score lies between 1 and 10; networks are an eighth as wide (--filters-scale), training
is short, and its learning rate is higher. A step of WGAN-GP has five updates of the critic, one of the GAN's has one.

--check trains nothing. It holds gpfast to its reference on the penalised critic of every architecture, at full width:
the penalty and each parameter's gradient, in float64 and in float32, as gpfast.check does. Status 1 if one differs.

    python examples/architectures.py --steps 150 --out out/architectures
    python examples/architectures.py --check --n 200

Needs scikit-learn, POT, matplotlib and tqdm.
"""

import argparse
import collections
import csv
import dataclasses
import math
import sys
from functools import partial

import torch
from command_line import make_parser, parse
from image_data import all_digits
from methods import METHODS
from pictures import ACCENT, BLUE, GREY, INK, plt, save, sheet
from random_networks import LATENT, build, random_architecture
from scores import digit_score
from torch.nn.functional import pad
from tqdm import tqdm
from train import Trainer, fit

import gpfast
from gpfast.compare import EXACT

TRAINED = ("gan", "wgan-gp")
OUTCOMES = ("only GAN", "only WGAN-GP", "both", "neither")
SCORED = 1000  # samples


def some(images, count):
    return images[torch.randint(len(images), (count,))]


def noise(count):
    return torch.randn(count, LATENT)


# -- is the penalty right?


def check(options, seeds):
    """{seed: gpfast.Check} of the penalised critic of each architecture, at its first weights."""
    images, found = all_digits()[0], {}
    for seed in (bar := tqdm(seeds, unit="critic", leave=False, disable=None)):
        architecture = random_architecture(seed)
        bar.set_postfix_str(architecture.name, refresh=False)
        torch.manual_seed(seed)
        generator, critic = build(architecture, penalised=True, filters_scale=options.filters_scale)
        with torch.no_grad():
            real, fake = some(images, options.batch), generator(noise(options.batch))
        found[seed] = gpfast.check(critic.to(options.device), *(x.to(options.device) for x in (real, fake)),
                                   engine=options.engine)  # fmt: skip
    return found


def report_checks(options, found):
    """Prints what was compared, what differs most, and what fails; whether nothing does."""
    critics = [random_architecture(seed).critic for seed in found]
    for field in ("nonlinearity", "depth", "filters", "norm"):
        counts = collections.Counter(getattr(critic, field) for critic in critics)
        print(f"{field}: " + ", ".join(f"{value} {counts[value]}" for value in sorted(counts)))
    for words, count in collections.Counter(result.engine.split(",")[0] for result in found.values()).items():
        print(f"{count} by {words}")
    exact = {seed: farthest(result, "float64") for seed, result in found.items()}
    rounded = {seed: farthest(result, "float32") for seed, result in found.items()}
    print(f"tensors compared: {sum(len(result.rows) for result in found.values()):,}")
    words = "of the largest gradient entry, 1e-10 is allowed"
    print(f"float64: at most {max(exact.values())[0] * EXACT:.1e} {words}: {worst(exact)}")
    print(f"float32: at most {max(rounded.values())[0]:.2f} of the error that is allowed: {worst(rounded)}")
    for seed, result in found.items():
        for words in (*result.failures, *result.notes):
            print(f"seed {seed}, {random_architecture(seed).name}, batch {options.batch}: {words}")
        if not result.ok:
            scale = f"--filters-scale {options.filters_scale:g} --batch {options.batch} --engine {options.engine}"
            print(f"again: python examples/architectures.py --check --n 1 --seed {seed} {scale}")
    rows = [(s, random_architecture(s).name, exact[s][0], rounded[s][0], found[s].ok) for s in found]
    write_table(options.out / "check.csv", ("seed", "architecture", "float64", "float32", "agrees"), rows)
    agree = sum(result.ok for result in found.values())
    print(f"{agree} of {len(found)} agree")
    return agree == len(found)


def farthest(result, dtype):
    """(error as a share of what is allowed, name) of the tensor of a check that is farthest off in `dtype`."""

    def share(row):
        return row.error / row.allowed if row.allowed else math.inf if row.error else 0.0

    return max(((share(row), row.name) for row in result.rows if row.dtype == dtype), default=(math.inf, "not judged"))


def worst(shares):
    seed = max(shares, key=shares.get)
    return f"seed {seed}, {random_architecture(seed).name}, {shares[seed][1]}"


def write_table(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


# -- what does training make of them?


def train(options, seeds):
    """{seed: {"gan": score, "wgan-gp": score}}; a training whose loss is no longer finite has score 1."""
    images, found = all_digits()[0], {}
    for number, seed in enumerate(seeds, 1):
        name = random_architecture(seed).name
        found[seed] = {
            method: trained_score(options, images, seed, method, f"{number} of {len(seeds)} {method}")
            for method in TRAINED
        }
        print(f"seed {seed}, {name}: " + ", ".join(f"{m} {score:.2f}" for m, score in found[seed].items()), flush=True)
    return found


def trained_score(options, images, seed, method, title):
    architecture = random_architecture(seed)
    torch.manual_seed(seed)
    generator, critic = build(architecture, penalised=method == "wgan-gp", filters_scale=options.filters_scale)
    method = METHODS[method]
    method = dataclasses.replace(method, optimiser=partial(method.optimiser, lr=options.rate))
    trainer = Trainer(
        generator, critic, method, partial(some, images), noise, batch=options.batch, engine=options.engine,
        device=options.device, identity={"data": "digits", "architecture": architecture.name, "rate": options.rate},
    )  # fmt: skip
    options.seed = seed  # each training has its own, which its checkpoint is held to
    folder = options.out / f"{architecture.name}-{seed}" / method.name
    try:
        fit(trainer, options, folder, title=title, score=score, score_every=50, picture=picture)
    except SystemExit as end:
        if end.code != 1:  # 1: the loss is not finite; 130: Ctrl-C
            raise
        return 1.0
    return trainer.scores[-1]["inception"]


def score(trainer):
    """Of samples that are not finite it is the least that there is."""
    samples = trainer.samples(SCORED)
    return {"inception": digit_score(samples) if samples.isfinite().all() else 1.0}


def picture(trainer, path):
    images = pad(trainer.samples(100), (1, 1, 1, 1), value=-1)
    plt.imsave(path, sheet(images)[..., 0].repeat(4, 0).repeat(4, 1), cmap="gray_r")


def outcome(scores, threshold):
    """Which of OUTCOMES: a method succeeds where its score, to two digits, is above `threshold`."""
    gan, penalised = (round(scores[method], 2) > threshold for method in TRAINED)
    return OUTCOMES[{(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[gan, penalised]]


def outcomes(found, thresholds):
    """{threshold: {outcome: count}}: the table of section 5.1."""
    return {t: collections.Counter(outcome(scores, t) for scores in found.values()) for t in thresholds}


def report_scores(options, found):
    best = digit_score(all_digits()[0])
    table = outcomes(found, options.thresholds)
    print(f"real digits score {best:.2f}; {len(found)} architectures, {options.steps:,} steps of each method")
    print("score above  " + "  ".join(OUTCOMES))
    for threshold, counts in table.items():
        print(f"{threshold:11g}  " + "  ".join(f"{counts[name]:{len(name)}}" for name in OUTCOMES))
    rows = [(seed, random_architecture(seed).name, *(scores[m] for m in TRAINED)) for seed, scores in found.items()]
    write_table(options.out / "scores.csv", ("seed", "architecture", *TRAINED), rows)
    save(drawn(found, table, best), options.out / "architectures.png")
    print(f"wrote {options.out / 'architectures.png'} and scores.csv")


def drawn(found, table, best):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    for normed, color in ((False, ACCENT), (True, BLUE)):
        chosen = [scores for seed, scores in found.items() if random_architecture(seed).critic.norm == normed]
        left.scatter(*([scores[method] for scores in chosen] for method in TRAINED), color=color, s=28,
                     label=f"critic {'with a' if normed else 'without'} norm")  # fmt: skip
    left.plot([1, 10], [1, 10], color=GREY, linewidth=0.7)
    for line in (left.axhline, left.axvline):
        line(best, color=GREY, linewidth=0.7, linestyle=":")
    left.set(xlim=(0.8, 10), ylim=(0.8, 10), aspect="equal", xlabel="score as GAN", ylabel="score as WGAN-GP")
    left.set_title("Each point an architecture; dotted: real digits")
    left.legend(frameon=False, loc="lower right")
    names, below = [f"{threshold:g}" for threshold in table], [0] * len(table)
    for name, color in zip(OUTCOMES, (INK, ACCENT, BLUE, "#dfe3e8"), strict=True):
        heights = [counts[name] for counts in table.values()]
        right.bar(names, heights, bottom=below, color=color, label=name, width=0.7)
        below = [b + h for b, h in zip(below, heights, strict=True)]
    right.set(xlabel="score to be exceeded", ylabel="architectures", title="Which method succeeds")
    right.yaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.tight_layout()
    return figure


# -- the command line


def whole(text):
    """A number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)


def positive(text):
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text}")
    return value


def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    # --quick: from seed 2494 on, eight critics have all that the set has; from 36 on, two pairs are of depth 4
    checks = "--check" in argv
    parser = make_parser(
        __doc__, steps=150, batch=3 if checks else 32, out="out/architectures" + checks * "-check",
        quick={"n": 8, "seed": 2494} if checks else {"n": 2, "seed": 36, "steps": 40},
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="compare with the reference, and train nothing; batch 3")
    parser.add_argument("--n", type=whole, default=200 if checks else 20, metavar="N",
                        help="architectures, from the one of --seed on (default 20; with --check 200)")  # fmt: skip
    parser.add_argument("--filters-scale", type=positive, default=1.0 if checks else 0.125, metavar="SHARE",
                        help="of the set's 32, 64, 128 filters (default 0.125; with --check 1)")  # fmt: skip
    parser.add_argument("--rate", type=positive, default=1e-3, help="both methods' learning rate (default 0.001)")
    parser.add_argument("--thresholds", type=positive, nargs="+", default=[1, 2, 3, 4, 5, 7, 9], metavar="SCORE",
                        help="to be exceeded (default 1 2 3 4 5 7 9, the paper's and two between)")  # fmt: skip
    options = parse(parser, argv)
    if options.check and options.engine == "reference":
        parser.error("--engine reference is what --check compares with; choose auto, tape or autograd")
    seeds = range(options.seed, options.seed + options.n)
    if not options.check:
        report_scores(options, train(options, seeds))
    elif not report_checks(options, check(options, seeds)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
