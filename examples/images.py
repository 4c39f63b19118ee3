"""One method, one data set, nine architectures: WGAN-GP trains them all, without settings of their own.

Section 5.2 of "Improved Training of Wasserstein GANs" (arXiv 1704.00028) trains six architectures that other GANs fail
on: the DCGAN baseline, no normalisation at constant width, an MLP as generator, gates everywhere, tanh everywhere, 101
layers of residual blocks. Here they are in small, with the paper's ResNet, a conditional pair (a projection critic,
arXiv 1802.05637) and progressive growing (arXiv 1710.10196). Samples are judged by their sliced Wasserstein distance to
held-out images, digits also by a classifier's score (exp E KL(p(y|x) || p(y)), at most 10), by epoch: an epoch is as
many real samples as there are training images, given to the critic.

    python examples/images.py --steps 400 --out out/images
    python examples/images.py --data folder ~/photographs --size 32 --architecture resnet

Needs scikit-learn, POT, pillow, matplotlib and tqdm.
"""

import dataclasses
from functools import partial

import image_data
import torch
from image_networks import ARCHITECTURES, LATENT, doublings, growth_at
from methods import METHODS
from pictures import plt, save, sheet
from scores import digit_classifier, inception_score, sliced_wasserstein
from train import Trainer, fit, make_parser, parse

DISTANCE, SCORE, AGREEMENT = "sliced Wasserstein", "classifier's score", "as labelled"
SIZES = (8, 16, 32, 64, 128)
SHEET = 100  # images on a picture
RATE = 1e-3  # ten times the paper's: networks this small, trained for minutes


class GrowingTrainer(Trainer):
    """Sets the growth of progressive networks, a function of the step alone, before each step."""

    def __init__(self, *arguments, grow_every, **options):
        super().__init__(*arguments, **options)
        self.grow_every = grow_every

    def step(self, progress=0.0, watch=None):
        for network in (self.generator, self.critic):
            network.growth.fill_(growth_at(self.step_count, self.grow_every, network.doublings))
        super().step(progress, watch)


def build(options, architecture, images=None):
    """The `Trainer` of an architecture by name, its weights a function of --seed; `options` as `read_options` has them.

    `images` are those of --data, where they are loaded already.
    """
    images = images or image_data.load(options.data, options.size, options.skip_unreadable)
    check_labels(architecture, images)
    about = ARCHITECTURES[architecture]
    torch.manual_seed(options.seed)
    networks = about.networks(options.size, images.train.shape[1], options.filters, len(images.classes))
    method = METHODS[options.method]
    identity = {"architecture": architecture, "data": options.data, "size": options.size, "images": len(images.train)}
    rate = options.rate or (RATE if method.penalty else None)
    if rate:
        method = dataclasses.replace(method, optimiser=partial(method.optimiser, lr=rate))
        identity["rate"] = rate
    kind = Trainer
    if architecture == "progressive":
        grow_every = options.grow_every or max(1, options.steps // (2 * doublings(options.size) + 2))
        identity["grow_every"] = grow_every
        kind = partial(GrowingTrainer, grow_every=grow_every)
    return kind(
        *networks,
        method,
        images.draw_labelled if about.labelled else images.draw,
        lambda count: torch.randn(count, LATENT),
        batch=options.batch,
        engine=options.engine,
        device=options.device,
        identity=identity,
    )


def check_labels(architecture, images):
    """Raises DataError where the architecture needs labels and the images have none."""
    if ARCHITECTURES[architecture].labelled and not images.classes:
        raise image_data.DataError(
            f"the images have no labels, which --architecture {architecture} needs; put those of each class into a "
            "folder of its own, or choose other architectures"
        )


def judged(samples, images, labels=None, classifier=None):
    """{name: float}: what is said of samples, given with the labels they were asked for where there are some."""
    found = {DISTANCE: sliced_wasserstein(samples, images.held_out)}
    if classifier:
        probabilities = classifier.probabilities(samples)
        found[SCORE] = inception_score(probabilities)
        if labels is not None:
            found[AGREEMENT] = float((probabilities.argmax(axis=1) == labels.cpu().numpy()).mean())
    return found


def train(options, architecture, images, classifier):
    """Trains one architecture in a folder of its own; the trainer, and SHEET of its samples."""
    trainer = build(options, architecture, images)
    labelled = ARCHITECTURES[architecture].labelled
    asked = (images.held_out_labels.to(trainer.device),) if labelled else ()
    shown = (torch.arange(SHEET, device=trainer.device) % len(images.classes),) if labelled else ()

    def score(trainer):
        return judged(trainer.samples(len(images.held_out), *asked), images, *(asked or (None,)), classifier)

    def picture(trainer, path):
        plt.imsave(path, enlarged(trainer.samples(SHEET, *shown)))

    folder = options.out / architecture
    fit(trainer, options, folder, title=architecture, score=score, score_every=options.score_every, picture=picture)
    return trainer, trainer.samples(SHEET, *shown).cpu()


def enlarged(images, columns=10):
    """A sheet of them in colour, each pixel four times as wide and high."""
    found = sheet(torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0), columns)
    return found.repeat(4, axis=0).repeat(4, axis=1).repeat(3 // found.shape[2], axis=2)


def epochs(trainer, images):
    """The epoch at each of the trainer's scores."""
    seen = trainer.batch * trainer.method.critic_steps
    return [score["step"] * seen / len(images.train) for score in trainer.scores]


def print_table(trainers, images, classifier):
    count = len(images.held_out)
    real = judged(images.train[:count], images, None if not classifier else images.train_labels[:count], classifier)
    words = f"real images: {DISTANCE} {real[DISTANCE]:.4f} from training to held-out images"
    print(words + (f", {SCORE} {real[SCORE]:.2f}" if classifier else ""))
    some = next(iter(trainers.values()))
    shown = sorted({round(i * (len(some.scores) - 1) / 4) for i in range(5)})
    header = "".join(f"{epochs(some, images)[i]:>9.0f}" for i in shown)
    print(f"\n{DISTANCE + ' at epoch':<28}{header}" + (f"{SCORE:>20}" if classifier else "") + f"{'seconds':>9}")
    for name, trainer in trainers.items():
        at = [min(i, len(trainer.scores) - 1) for i in shown]
        row = "".join(f"{trainer.scores[i][DISTANCE]:>9.4f}" for i in at)
        score = f"{trainer.scores[-1][SCORE]:>20.2f}" if classifier else ""
        print(f"{name:<28}{row}{score}{trainer.seconds:>9.1f}")
    for name, trainer in trainers.items():
        if AGREEMENT in trainer.scores[-1]:
            print(f"{name}: the classifier sees the label that was asked for in {trainer.scores[-1][AGREEMENT]:.1%}")


def draw_curves(path, trainers, images):
    names = [n for n in (DISTANCE, SCORE) if n in next(iter(trainers.values())).scores[0]]
    figure, axes = plt.subplots(1, len(names), figsize=(6.2 * len(names), 4.2), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=True):
        for color, (architecture, trainer) in zip(plt.cm.tab10.colors, trainers.items(), strict=False):
            values = [score[name] for score in trainer.scores]
            axis.plot(epochs(trainer, images), values, color=color, linewidth=1.2, label=architecture)
        axis.set(xlabel="epoch", title=name)
        if name == DISTANCE:
            axis.set_yscale("log")
            for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                formatted("{x:g}")
    axes.flat[-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, path)


def draw_sheets(path, sheets):
    """All sheets side by side, 5 in a row."""
    columns = min(5, len(sheets))
    rows = -(-len(sheets) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, samples) in zip(axes.flat, sheets.items(), strict=False):
        axis.imshow(enlarged(samples), interpolation="nearest")
        axis.set_title(name)
    figure.tight_layout()
    save(figure, path)


def read_options(argv=None):
    """(images, options): the command line, checked, and the data that it names."""
    parser = make_parser(
        __doc__,
        steps=400,
        batch=64,
        out="out/images",
        quick={"steps": 60, "size": 8, "filters": 8, "architecture": ["dcgan", "gated"], "score_every": 20},
    )
    parser.add_argument(
        "--architecture",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="one or several, or all: " + "; ".join(f"{name}, {a.about}" for name, a in ARCHITECTURES.items()),
    )
    parser.add_argument("--method", choices=METHODS, default="wgan-gp", help="how to train (default wgan-gp)")
    parser.add_argument(
        "--data", nargs="+", default=["digits"], metavar="NAME", help="digits, patches or folder PATH (default digits)"
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="with --data folder: leave out such files")
    parser.add_argument("--size", type=int, choices=SIZES, default=16, help="of the images (default 16)")
    parser.add_argument("--filters", type=int, default=16, help="of the first convolution (default 16)")
    parser.add_argument("--rate", type=float, help=f"of learning (default {RATE} with a penalty, else the method's)")
    parser.add_argument(
        "--grow-every",
        type=int,
        metavar="N",
        help="steps of a phase of progressive growing (default: --steps / 6 for 16x16)",
    )
    parser.add_argument("--score-every", type=int, default=20, metavar="N", help="steps between scores (default 20)")
    options = parse(parser, argv)
    for name in ("filters", "rate", "grow_every", "score_every"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0; got {value}")
    unknown = [name for name in options.architecture if name not in (*ARCHITECTURES, "all")]
    if unknown:
        parser.error(f"--architecture: there is no {unknown[0]!r}; there are all, {', '.join(ARCHITECTURES)}")
    try:
        images = image_data.load(options.data, options.size, options.skip_unreadable)
        if "all" in options.architecture:
            options.architecture = [name for name, a in ARCHITECTURES.items() if images.classes or not a.labelled]
        for name in options.architecture:
            check_labels(name, images)
    except image_data.DataError as error:
        parser.error(f"--data: {error}")
    return images, options


def main(argv=None):
    images, options = read_options(argv)
    classifier = digit_classifier() if options.data == ["digits"] else None
    trainers, sheets = {}, {"real": images.train[:SHEET]}
    for architecture in options.architecture:
        trainers[architecture], sheets[architecture] = train(options, architecture, images, classifier)
    print_table(trainers, images, classifier)
    draw_curves(options.out / "scores.png", trainers, images)
    draw_sheets(options.out / "images.png", sheets)
    print(f"\nwrote {options.out / 'images.png'}, {options.out / 'scores.png'}, and a folder for each architecture")


if __name__ == "__main__":
    main()
