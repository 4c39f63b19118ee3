"""Whole trainings side by side: methods, places to take the penalty at, and what the engine is worth.

methods  The curves of figure 3 in "Improved Training of Wasserstein GANs" (arXiv 1704.00028) in small: a classifier's
         score of generated digits over generator steps and over time, for weight clipping, the penalty with RMSProp and
         with Adam, and a plain GAN; those with a penalty by gpfast and by the eager lines.
places   Where the penalty is taken (interpolates; real, Mescheder et al. 2018, arXiv 1801.04406; fake; DRAGAN, Kodali
         et al. 2017, arXiv 1705.07215), two-sided and one-sided, with and without spectral normalisation beside it.
engines  Trainings of three programs, toy, images and text, by gpfast and by the eager lines from the same seed, in
         turns of a few steps, so that both meet the same machine: the ratio of the times of a turn, and its spread.

    python examples/compare.py --steps 400 --out out/compare

Needs scikit-learn, POT, matplotlib and tqdm.
"""

import dataclasses
import statistics
import time
from functools import partial

import image_data
import images
import text
import torch
import toy
from image_networks import ARCHITECTURES, LATENT
from methods import METHODS
from pictures import ACCENT, BLUE, GREY, INK, plt, save
from scores import digit_score, sliced_wasserstein
from tqdm import tqdm
from train import Trainer, fit, make_parser, parse

PARTS = ("methods", "places", "engines")
PLACES = ("interpolates", "real", "fake", "dragan")
ENGINES = ("auto", "reference")
SAMPLES = 500  # that a score is of
RATE = 5e-4  # of the trainings with a penalty: five times the paper's, for some hundreds of steps instead of 200,000
RMSPROP = dataclasses.replace(METHODS["wgan-gp"], optimiser=partial(torch.optim.RMSprop, lr=RATE))
ADAM = dataclasses.replace(METHODS["wgan-gp"], optimiser=partial(torch.optim.Adam, lr=RATE, betas=(0.0, 0.9)))
CURVES = {  # name: (method, engine or None for --engine, colour, line style)
    "weight clipping, RMSProp": (METHODS["wgan"], None, GREY, "-"),
    "penalty, RMSProp": (RMSPROP, None, BLUE, "-"),
    "penalty, RMSProp, eager": (RMSPROP, "reference", BLUE, ":"),
    "penalty, Adam": (ADAM, None, ACCENT, "-"),
    "penalty, Adam, eager": (ADAM, "reference", ACCENT, ":"),
    "GAN, Adam": (METHODS["gan"], None, INK, "-"),
}


def build(options, digits, method, name, engine=None):
    """A DCGAN on digits, the same at the start for every method."""
    torch.manual_seed(options.seed)
    generator, critic = ARCHITECTURES["dcgan"].networks(options.size, 1, options.filters, len(digits.classes))
    noise = lambda count: torch.randn(count, LATENT)  # noqa: E731
    return Trainer(
        generator, critic, method, digits.draw, noise, batch=options.batch, engine=engine or options.engine,
        device=options.device, identity={"name": name, "size": options.size, "filters": options.filters},
    )  # fmt: skip


def score_of(samples, digits):
    return {
        "score": digit_score(samples),
        "sliced Wasserstein": sliced_wasserstein(samples, digits.held_out),
    }


def train(options, digits, method, name, folder, engine=None):
    trainer = build(options, digits, method, name, engine)
    score = lambda trainer: score_of(trainer.samples(SAMPLES), digits)  # noqa: E731
    fit(trainer, options, folder, title=name, score=score, score_every=max(1, options.steps // 20))
    return trainer


def compare_methods(options, digits):
    folder = options.out / "methods"
    found = {
        name: train(options, digits, method, name, folder / name.replace(", ", "-"), engine)
        for name, (method, engine, *_) in CURVES.items()
    }
    real = score_of(digits.train[:SAMPLES], digits)["score"]
    print(f"real digits: score {real:.2f}\n\n{'method':<28}{'score':>8}{'best':>8}{'sliced W':>10}{'seconds':>10}")
    for name, trainer in found.items():
        scores = [s["score"] for s in trainer.scores]
        distance = trainer.scores[-1]["sliced Wasserstein"]
        print(f"{name:<28}{scores[-1]:>8.2f}{max(scores):>8.2f}{distance:>10.3f}{trainer.seconds:>10.1f}")
    print()
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharey=True)
    for axis, over, label in zip(axes, ("step", "seconds"), ("generator steps", "seconds of training"), strict=True):
        for name, trainer in found.items():
            _, _, color, style = CURVES[name]
            x, y = [s[over] for s in trainer.scores], [s["score"] for s in trainer.scores]
            axis.plot(x, y, color=color, linestyle=style, label=name)
        axis.axhline(real, color=GREY, linewidth=0.7, linestyle="--")
        axis.set(xlabel=label)
    axes[0].set(ylabel="classifier's score (dashed: real digits)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, options.out / "methods.png")


def compare_places(options, digits):
    rows = {}
    print(f"{'penalty at':<16}{'':<12}{'spectral norm':<16}{'score':>8}{'sliced W':>10}{'gradient norm':>16}")
    for place in options.places:
        for one_sided in (False, True):
            for spectral in (False, True):
                penalty = {"weight": 10.0, "at": place, "one_sided": one_sided}
                method = dataclasses.replace(ADAM, penalty=penalty, spectral=spectral)
                words = (place, "one-sided" if one_sided else "two-sided", "sn" if spectral else "no sn")
                name = " ".join(words)
                trainer = train(options, digits, method, name, options.out / "places" / name.replace(" ", "-"))
                rows[name] = trainer.scores
                last, norms = trainer.scores[-1], trainer.history["norm"]
                norm = statistics.mean(norms[-len(norms) // 10 :])
                print(
                    f"{words[0]:<16}{words[1]:<12}{'yes' if spectral else 'no':<16}{last['score']:>8.2f}"
                    f"{last['sliced Wasserstein']:>10.3f}{norm:>16.2f}"
                )
    print()
    count = len(options.places)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4), sharey=True, squeeze=False)
    for axis, place in zip(axes.flat, options.places, strict=True):
        for name, scores in rows.items():
            if name.startswith(place):
                color, style = (ACCENT if "one-sided" in name else INK), ("-" if "no sn" in name else ":")
                label = name[len(place) + 1 :]
                axis.plot([s["step"] for s in scores], [s["score"] for s in scores], style, color=color, label=label)
        axis.set(title=f"at {place}", xlabel="generator steps")
    axes[0, 0].set(ylabel="classifier's score")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, options.out / "places.png")


def programs(options, engine):
    """{name: Trainer}: what these programs train with their own defaults, by `engine`."""
    words = ["--engine", engine, "--seed", options.seed, "--device", options.device, *(["--quick"] * options.quick)]

    def said(name):
        return [*words, "--out", options.out / "engines" / name]

    text_options, corpus = text.parse_text_options(said("text"))
    loaded, image_options = images.read_options(said("images"))
    return {
        "toy": toy.build(toy.read_options(said("toy")), "8gaussians", "wgan-gp"),
        "images": images.build(image_options, "resnet", loaded),
        "text": text.build(text_options, "wgan-gp", corpus),
    }


def compare_engines(options):
    """In turns of a few steps: which engine goes first changes from turn to turn."""
    trainers = {engine: programs(options, engine) for engine in ENGINES}
    ratios = {}
    for name in trainers["auto"]:
        pair = {engine: trainers[engine][name] for engine in ENGINES}
        for trainer in pair.values():
            turn(trainer, 2)  # what is made at the first steps is not measured
        ratios[name] = []
        for number in tqdm(range(options.turns), desc=name, leave=False, disable=None):
            order = ENGINES if number % 2 else ENGINES[::-1]
            seconds = {engine: turn(pair[engine], options.turn) for engine in order}
            ratios[name].append(seconds["reference"] / seconds["auto"])
        begun = {engine: trainer.history["critic"][:2] for engine, trainer in pair.items()}
        apart = max(abs(ours - eager) / abs(eager) for ours, eager in zip(*begun.values(), strict=True))
        low, *_, high = statistics.quantiles(ratios[name], n=5)
        steps = len(pair["auto"].history["critic"])
        print(
            f"whole training, {name}: eager / gpfast {statistics.median(ratios[name]):.2f} (20 % to 80 %: {low:.2f} to"
            f" {high:.2f}) over {options.turns} turns of {options.turn} steps; losses of the first"
            f" two {apart:.0e} apart at most, {steps} steps each"
        )
    return ratios


def turn(trainer, steps):
    """The seconds that `steps` take, what is left on the device included."""
    start = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - start


def draw_engines(path, ratios):
    figure, axis = plt.subplots(figsize=(6, 3.6))
    axis.boxplot(list(ratios.values()), tick_labels=list(ratios), whis=(10, 90), showfliers=False)
    axis.axhline(1, color=GREY, linewidth=0.7, linestyle="--")
    axis.set(ylabel="eager / gpfast, whole steps", title="What the engine is worth to a whole training")
    figure.tight_layout()
    save(figure, path)


def main(argv=None):
    quick = {"steps": 40, "batch": 16, "places": ["interpolates"], "turns": 6, "turn": 2}
    parser = make_parser(__doc__, steps=400, batch=32, out="out/compare", quick=quick)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="which comparisons (default all)")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES, help="in part places (default all)")
    parser.add_argument("--size", type=int, choices=(8, 16), default=8, help="of the digits (default 8)")
    parser.add_argument("--filters", type=int, default=8, help="of the DCGAN's widest maps (default 8)")
    parser.add_argument("--turns", type=int, default=40, help="of each engine, in part engines (default 40)")
    parser.add_argument("--turn", type=int, default=4, help="steps of a turn (default 4)")
    options = parse(parser, argv, smallest={"filters": 1, "turns": 2, "turn": 1})
    digits = image_data.load(["digits"], options.size)
    if "methods" in options.part:
        compare_methods(options, digits)
    if "places" in options.part:
        compare_places(options, digits)
    if "engines" in options.part:
        draw_engines(options.out / "engines.png", compare_engines(options))
    print(f"wrote {', '.join(str(options.out / f'{part}.png') for part in options.part)}")


if __name__ == "__main__":
    main()
