"""Text, character by character, from a WGAN-GP: section 5.4 of arXiv 1704.00028.

A generator of 1-D residual blocks turns noise into a probability of every character at every place, all places at
once; the critic is given these softmaxes beside one-hot windows of real text. Generated points lie inside the simplex
and real ones on its corners, so that a discriminator tells them apart without looking at the language; a critic with a
penalty on the lines between them still says which way language lies. Beside it, with the same networks, a plain GAN.

The score: the Jensen-Shannon divergence, in nats (at most log 2 = 0.693), of the n-grams of generated text from those
of held-out text, beside that of as many windows of the training text (what a perfect generator would reach) and of
characters drawn uniformly. The text is Python's own documentation, which comes with it, or a file of yours.

    python examples/text.py --steps 3000 --out out/text
    python examples/text.py --steps 4000 --text book.txt --width 128 --rate 1e-3

The paper trains networks of width 512 with 10 critic steps at a learning rate of 1e-4 on the Billion Word corpus; these
are of width 32, with 5 critic steps at a higher rate that falls to 0. Needs scipy, matplotlib, tensorboard and tqdm.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from corpus import Corpus, NoCorpus, documentation, text_file
from methods import METHODS
from ngrams import divergence, ngrams
from pictures import ACCENT, BLUE, GREY, INK, plt, save
from torch import nn
from train import Trainer, fit, make_parser, parse

NOISE = 128  # dimensions of the generator's input, as in the paper's code
ORDERS = (1, 2, 3, 4)  # of the n-grams
SCORED = 2000  # generated windows that a score compares with HELD_OUT held-out ones
HELD_OUT = 10_000
SHOWN, PICTURED, PRINTED = 64, 18, 8  # generated windows in samples.txt, in the picture, on the screen
COLORS = INK, ACCENT, BLUE, GREY, "black"
MONOSPACE = {"family": "monospace", "fontsize": 8, "va": "center", "color": INK}


class Block(nn.Module):
    """A residual block of 1-D convolutions, as in the paper's code."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(), nn.Conv1d(width, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, padding=2)
        )

    def forward(self, x):
        return x + 0.3 * self.branch(x)


def make_generator(characters, length, width, blocks):
    """Noise (windows, NOISE) to probabilities (windows, characters, length)."""
    return nn.Sequential(
        nn.Linear(NOISE, width * length), nn.Unflatten(1, (width, length)),
        *(Block(width) for _ in range(blocks)), nn.Conv1d(width, characters, 1), nn.Softmax(1),
    )  # fmt: skip


def make_critic(characters, length, width, blocks):
    return nn.Sequential(
        nn.Conv1d(characters, width, 1), *(Block(width) for _ in range(blocks)),
        nn.Flatten(), nn.Linear(width * length, 1),
    )  # fmt: skip


def make_text_parser():
    quick = {"steps": 250, "length": 16, "blocks": 2, "rate": 8e-3, "score_every": 125}
    parser = make_parser(__doc__, steps=3000, batch=32, out="out/text", quick=quick)
    parser.add_argument(
        "--method", nargs="+", choices=METHODS, default=["wgan-gp", "gan"], help="trainings (default wgan-gp gan)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8 (default: Python's documentation)")
    parser.add_argument("--keep-case", action="store_true", help="capital letters stay; otherwise all are small")
    parser.add_argument("--length", type=int, default=32, help="characters in a window (default 32)")
    parser.add_argument(
        "--characters", type=int, default=48, help="most in the alphabet; the rarest become one (default 48)"
    )
    parser.add_argument("--width", type=int, default=32, help="channels of both networks (default 32; the paper: 512)")
    parser.add_argument("--blocks", type=int, default=5, help="residual blocks of both networks (default 5)")
    parser.add_argument("--score-every", type=int, default=300, metavar="N", help="steps between scores (default 300)")
    parser.add_argument(
        "--critic-steps", type=int, default=5, help="of methods with a penalty (default 5; the paper: 10)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=4e-3,
        help="of Adam, falls to 0; for methods with a penalty (default 4e-3; paper: 1e-4)",
    )
    return parser


SMALLEST = {"length": 4, "characters": 2, "width": 1, "blocks": 0, "score_every": 1, "critic_steps": 1}


def parse_text_options(argv=None):
    """The parsed options and the corpus that they name."""
    parser = make_text_parser()
    options = parse(parser, argv, SMALLEST)
    if not 0 < options.rate < math.inf:
        parser.error(f"--rate must be a positive number; got {options.rate}")
    try:
        return options, read_corpus(options)
    except NoCorpus as error:
        parser.error(f"--text: {error}")


def read_corpus(options):
    train, held_out = text_file(options.text) if options.text else documentation()
    if not options.keep_case:
        train, held_out = train.lower(), held_out.lower()
    return Corpus(train, held_out, options.length, options.characters)


def build(options, method=None, corpus=None):
    """A Trainer for `method` (a name; default: the first of options.method) on `corpus` (default: what options say)."""
    corpus = corpus or read_corpus(options)
    method = METHODS[method or options.method[0]]
    if method.penalty:
        adam = partial(torch.optim.Adam, lr=options.rate, betas=(0.5, 0.9))
        method = replace(method, optimiser=adam, critic_steps=options.critic_steps, decay=True)
    torch.manual_seed(options.seed)
    sizes = len(corpus.alphabet), corpus.length, options.width, options.blocks
    return Trainer(
        make_generator(*sizes), make_critic(*sizes), method, corpus.draw, lambda count: torch.randn(count, NOISE),
        batch=options.batch, engine=options.engine, device=options.device,
        identity={"text": corpus.fingerprint, "alphabet": corpus.alphabet, "rate": options.rate},
    )  # fmt: skip


class Scores:
    """Divergences of windows of text from held-out ones, by order of the n-grams."""

    def __init__(self, corpus):
        self.corpus = corpus
        windows = corpus.spread("held_out", HELD_OUT)
        self.held_out = {n: ngrams(windows, n) for n in ORDERS}

    def of(self, windows):
        return {f"{n}-grams": divergence(ngrams(windows, n), self.held_out[n]) for n in ORDERS}

    def generated(self, trainer):
        return self.of(self.corpus.read(trainer.samples(SCORED)))

    def floor(self):
        return self.of(self.corpus.spread("train", SCORED))

    def ceiling(self):
        shape = SCORED, self.corpus.length
        codes = torch.randint(len(self.corpus.alphabet), shape, generator=torch.Generator().manual_seed(0))
        return self.of(self.corpus.strings(codes))


def row(name, scores):
    return f"{name:<30}" + "".join(f"{scores[f'{n}-grams']:>10.4f}" for n in ORDERS)


def show(axis, windows, title):
    """The windows, one a line, as a panel of a picture; a space is a dot, so that there is something to see."""
    for place, window in enumerate(windows[:PICTURED]):
        height = 1 - (place + 0.5) / PICTURED
        axis.text(0, height, window.replace(" ", "·"), parse_math=False, **MONOSPACE)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_axis_off()


def draw(path, trainers, floor, ceiling, columns):
    figure = plt.figure(figsize=(13, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    for axis, n in zip(above.subplots(1, len(ORDERS)), ORDERS, strict=True):
        name = f"{n}-grams"
        for (method, trainer), color in zip(trainers.items(), COLORS, strict=False):
            steps = [scores["step"] for scores in trainer.scores]
            axis.plot(steps, [scores[name] for scores in trainer.scores], color=color, label=method)
        axis.axhline(ceiling[name], color=GREY, linestyle=":", linewidth=1, label="random characters")
        axis.axhline(floor[name], color=GREY, linestyle="--", linewidth=1, label="training text")
        axis.set(title=name, xlabel="generator steps", ylim=(0, math.log(2)))
    axis.legend(frameon=False, fontsize=8)
    above.axes[0].set_ylabel("JS from held-out text, nats")
    panels = below.subplots(1, len(columns), squeeze=False).flat
    for axis, (title, windows) in zip(panels, columns.items(), strict=True):
        show(axis, windows, title)
    save(figure, path)


def main(argv=None):
    options, corpus = parse_text_options(argv)
    print(
        f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, an alphabet of"
        f" {len(corpus.alphabet)}; {corpus.rare:.2%} of the characters are rarer"
    )
    scores = Scores(corpus)
    floor, ceiling = scores.floor(), scores.ceiling()
    trainers, columns = {}, {"held-out text": corpus.spread("held_out", SHOWN)}
    print(f"{'Jensen-Shannon, nats':<30}" + "".join(f"{n}-grams".rjust(10) for n in ORDERS))
    print(row("random characters", ceiling))
    for name in dict.fromkeys(options.method):
        trainers[name] = trainer = build(options, name, corpus)
        fit(trainer, options, options.out / name, title=name, score=scores.generated, score_every=options.score_every)
        for found in trainer.scores:
            print(row(f"{name}, step {found['step']:,}", found))
        columns[name] = corpus.read(trainer.samples(SHOWN, seed=1))
    print(row("training text", floor))
    for title, windows in columns.items():
        print("", f"{title}:", *windows[:PRINTED], sep="\n")
    lines = [line for title, windows in columns.items() for line in (f"{title}:", *windows, "")]
    (options.out / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
    draw(options.out / "text.png", trainers, floor, ceiling, columns)
    print(f"\nwrote {options.out / 'samples.txt'} and {options.out / 'text.png'}")


if __name__ == "__main__":
    main()
