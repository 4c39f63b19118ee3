"""The critic as a ruler of the Wasserstein distance W1: what each way to hold it back reads, beside the exact answer.

W1 is the supremum over 1-Lipschitz critics of E critic(real) - E critic(fake) (Kantorovich and Rubinstein), so a trained
critic's gap is an estimate. Four pairs of distributions have an exact answer:

lines      (0, z) and (theta, z), z uniform, of "Wasserstein GAN" (arXiv 1701.07875, example 1): KL is infinite, JS log 2,
           W1 is theta. Each is held by 64 points; exact by linear programme.
piles      Sand in heaps of 3 2 1 4 shovelfuls, to be moved to heaps of 1 2 4 3 at the same four places, one step apart:
           5 shovelfuls times steps. Exact by linear programme. --piles takes others; both hold the same sand.
gaussians  N(0, I) and N(shift, I), |shift| = 2, in 1 to 64 dimensions: W1 is |shift|.
digits     scikit-learn's 1,797 digits against as many points of uniform noise: exact for these points, by linear
           programme. A critic of this size cannot tell so many points apart one by one, and reads less.

The critics differ in one thing only: gradient penalty (wgan-gp, arXiv 1704.00028), its one-sided form (wgan-lp,
arXiv 1709.08894), clipped weights (wgan), spectral normalisation (sn, arXiv 1802.05957, with the Wasserstein loss).
Each estimate is the last critic's, over all points, of Gaussians over 100,000 fresh ones; nothing is divided or
corrected. A clipped critic reads W1 times a Lipschitz constant that nobody knows: "wgan / slope" divides by the largest
gradient norm found. A penalty of weight w lets slopes pass 1 by about W1 / (2 w), which the paper's 10 makes 10 % at
W1 = 2: hence --weight 100. Two-sided, it also keeps a slope from turning round (through 0), and a critic that began
with the wrong sign keeps it; so the weight begins at --first-weight and rises over the first 60 % of the steps.

Proposition 1 of arXiv 1704.00028: the optimal critic has gradient norm 1, pointing from fake to real, on the lines
between points that the optimal plan couples. It is measured there, and on the lines between random pairs.

    python examples/ruler.py --steps 2000 --out out/ruler

Needs POT, scikit-learn, numpy, matplotlib and tqdm.
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from known_distances import COUPLED, check_masses, digits, gaussians, lines, piles
from methods import METHODS
from pictures import ACCENT, BLUE, GREY, INK, plt, save
from torch import nn
from train import Trainer, fit, make_parser, parse

KINDS = "lines", "piles", "gaussians", "digits"
HELD = "wgan-gp", "wgan-lp", "wgan", "sn"
PILES = "3,2,1,4/1,2,4,3"
COLORS = {"wgan-gp": ACCENT, "wgan-lp": BLUE, "wgan": GREY, "wgan / slope": GREY, "sn": INK}
RISE = 0.1, 0.6  # shares of the training between which the penalty's weight rises


# -- a critic


class Centred(nn.Module):
    """Moves points by a constant: no slope changes, and the kinks of fresh layers lie among the data."""

    def __init__(self, centre):
        super().__init__()
        self.register_buffer("centre", centre)

    def forward(self, x):
        return x - self.centre


def make_critic(centre, width=64):
    hidden = [nn.Linear(len(centre), width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(Centred(centre), *hidden, nn.Linear(width, 1))


def make_method(name, weight):
    """One of METHODS, with the Wasserstein loss, and the optimiser that all four are given here."""
    penalty = METHODS[name].penalty
    return dataclasses.replace(
        METHODS[name],
        critic_loss=METHODS["wgan"].critic_loss,
        optimiser=partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.9)),
        critic_steps=1,
        decay=True,
        penalty=penalty and penalty | {"weight": weight},
    )


class Ruler(Trainer):
    """A critic between two distributions that stay, under a penalty whose weight rises to the method's."""

    def __init__(self, pair, method, first_weight, **options):
        identity = {"pair": pair.name, "exact": f"{pair.exact:.6g}"}
        if method.penalty:
            identity["first weight"] = first_weight
        super().__init__(
            nn.Identity(),
            make_critic(pair.centre),
            method,
            pair.real.draw,
            pair.fake.draw,
            identity=identity,
            **options,
        )
        self.first_weight, self.last_weight = first_weight, (method.penalty or {}).get("weight")

    def step(self, progress=0.0, watch=None):
        if self.method.penalty:
            risen = min(max((progress - RISE[0]) / (RISE[1] - RISE[0]), 0), 1)
            weight = self.first_weight ** (1 - risen) * self.last_weight**risen
            self.method = dataclasses.replace(self.method, penalty=self.method.penalty | {"weight": weight})
        super().step(progress, watch)


def slopes(critic, real, fake, points=21):
    """(norms, cosines), each (points, n): the critic's gradient on the lines from fake to real, and it with their way."""
    share = torch.linspace(0, 1, points)[:, None, None]
    x = (fake + share * (real - fake)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    return gradient.norm(dim=2), nn.functional.cosine_similarity(gradient, (real - fake).expand_as(x), dim=2)


@dataclass
class Reading:
    """What a critic says of a pair: its estimate, and `slopes` on lines of the plan and between random pairs."""

    estimate: float
    coupled: tuple
    random: tuple

    def steepest(self):
        return max(self.coupled[0].max(), self.random[0].max()).item()


def read(critic, pair, seed):
    critic = critic.cpu().eval()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        coupled = slopes(critic, *pair.couples)
        random = slopes(critic, pair.real.draw(COUPLED), pair.fake.draw(COUPLED))
        with torch.no_grad():
            return Reading(pair.real.sum(critic) - pair.fake.sum(critic), coupled, random)


def measure(pair, name, options):
    torch.manual_seed(options.seed)  # so that every method begins with the same critic
    method = make_method(name, options.weight)
    trainer = Ruler(
        pair, method, options.first_weight, batch=options.batch, engine=options.engine, device=options.device
    )
    fit(trainer, options, options.out / pair.name.replace(" ", "-") / name, title=f"{name} on {pair.name}")
    return read(trainer.critic, pair, options.seed + 1)


def estimates(found):
    """{column of the table: estimate}, of {method: Reading}"""
    columns = {}
    for name, reading in found.items():
        columns[name] = reading.estimate
        if name == "wgan":
            columns["wgan / slope"] = reading.estimate / reading.steepest()
    return columns


# -- what is shown


def header(found):
    return f"{'pair':13} {'exact by':16} {'W1':>8}" + "".join(f"{column:>19}" for column in estimates(found))


def row(pair, found):
    line = f"{pair.name:13} {pair.exact_by:16} {pair.exact:8.4f}"
    for estimate in estimates(found).values():
        line += f"{estimate:10.4f} {100 * (estimate / pair.exact - 1):+6.1f} %"
    return line


def slopes_in_words(slopes):
    norms, cosines = slopes
    low, high = norms.quantile(0.1), norms.quantile(0.9)
    return f"norm {norms.mean():.3f} ({low:.3f} to {high:.3f}), cosine with the way {cosines.mean():.3f}"


def panels(pairs, readings, method):
    """[function that draws on an axis]"""
    found = []
    for kind, along, title in (("lines", "theta", "Two lines"), ("gaussians", "dimensions", "Two Gaussians")):
        chosen = [pair for pair in pairs if pair.kind == kind]
        if chosen:
            found.append(partial(draw_ratios, chosen, readings, along, f"{title}: estimate / exact"))
    return [*found, partial(draw_norms, pairs, readings, method), partial(draw_cosines, pairs, readings, method)]


def draw_ratios(pairs, readings, along, title, axis):
    axis.axhspan(0.95, 1.05, color=GREY, alpha=0.25, linewidth=0)
    over = [float(pair.name.split()[1]) for pair in pairs]
    ratios = [{name: e / pair.exact for name, e in estimates(readings[pair.name]).items()} for pair in pairs]
    for name in ratios[0]:
        style = "o:" if "/" in name else "o-"
        axis.plot(over, [r[name] for r in ratios], style, color=COLORS[name], markersize=4, label=name)
    axis.set(xscale="log", xlabel=along, ylim=(-0.05, 1.2), title=title)
    axis.set_xticks(over, [f"{x:g}" for x in over])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)


def draw_norms(pairs, readings, method, axis):
    last = {pair.kind: pair for pair in pairs}
    for pair, color in zip(last.values(), (INK, ACCENT, BLUE, GREY), strict=False):
        for (norms, _), style in (
            (readings[pair.name][method].coupled, "-"),
            (readings[pair.name][method].random, ":"),
        ):
            share = np.linspace(0, 1, len(norms))
            axis.plot(share, norms.mean(1), style, color=color, label=pair.name if style == "-" else None)
    axis.set(xlabel="share of the way from fake to real", ylim=(0, 1.3))
    axis.set_title(f"{method}: gradient norm on lines\nof the plan (full), between random pairs (dotted)", fontsize=11)
    axis.legend(frameon=False, fontsize=8, loc="lower center")


def draw_cosines(pairs, readings, method, axis):
    for which, color in (("random", GREY), ("coupled", ACCENT)):
        cosines = [getattr(readings[pair.name][method], which)[1].mean() for pair in pairs]
        label = "lines of the plan" if which == "coupled" else "random pairs"
        axis.plot(cosines, range(len(pairs)), "o", color=color, label=label)
    axis.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.05), title=f"{method}: cosine of gradient and way")
    axis.legend(frameon=False, fontsize=8)


def draw(path, pairs, readings, method):
    drawn = panels(pairs, readings, method)
    figure, axes = plt.subplots(1, len(drawn), figsize=(4.8 * len(drawn), 4.4))
    for panel, axis in zip(drawn, axes, strict=True):
        panel(axis)
    figure.tight_layout()
    save(figure, path)


# -- the command line


def positive(number):
    def convert(word):
        value = number(word)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0 and finite; got {word}")
        return value

    convert.__name__ = f"positive {number.__name__}"
    return convert


def two_piles(words):
    try:
        piles = [[float(heap) for heap in pile.split(",")] for pile in words.split("/")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; two rows of heaps look like {PILES}") from error
    if len(piles) != 2 or len(piles[0]) != len(piles[1]):
        raise argparse.ArgumentTypeError(f"got {words}; two rows of as many heaps look like {PILES}")
    if not all(0 <= heap < math.inf for pile in piles for heap in pile) or not any(piles[0]):
        raise argparse.ArgumentTypeError(f"got {words}; heaps are numbers of shovelfuls, 0 or more, and not all 0")
    if piles[0] == piles[1]:
        raise argparse.ArgumentTypeError(f"got {words}; there is nothing to move")
    try:
        check_masses(*piles)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {words}; {error}") from error
    return piles


def options_of(argv):
    quick = {
        "steps": 600,
        "pairs": ["lines", "piles", "gaussians"],
        "methods": ["wgan-gp", "wgan"],
        "thetas": [1.0],
        "dimensions": [1, 2],
    }
    parser = make_parser(__doc__, steps=2000, batch=256, out="out/ruler", quick=quick)
    add = parser.add_argument
    add("--pairs", nargs="+", choices=KINDS, default=list(KINDS), help="of distributions (default all)")
    add("--methods", nargs="+", choices=HELD, default=list(HELD), help="what holds the critic back (default all)")
    add("--thetas", nargs="+", type=positive(float), default=[0.25, 0.5, 1, 2], help="between lines (0.25 0.5 1 2)")
    add("--dimensions", nargs="+", type=positive(int), default=[1, 2, 4, 8, 16, 32, 64], help="of Gaussians (1 to 64)")
    add("--piles", type=two_piles, default=PILES, help=f"heaps before and after, as much sand (default {PILES})")
    add("--weight", type=positive(float), default=100.0, help="of the penalty at the end (default 100)")
    add("--first-weight", type=positive(float), default=0.1, help="of the penalty at the start (default 0.1)")
    return parse(parser, argv)


def makers(options):
    made = {
        "lines": [partial(lines, theta) for theta in sorted(set(options.thetas))],
        "piles": [partial(piles, *options.piles)],
        "gaussians": [partial(gaussians, dimension) for dimension in sorted(set(options.dimensions))],
        "digits": [digits],
    }
    return [make for kind in KINDS if kind in options.pairs for make in made[kind]]


def main(argv=None):
    options = options_of(argv)
    methods = [name for name in HELD if name in options.methods]
    pairs, readings = [], {}
    for make in makers(options):
        torch.manual_seed(options.seed)
        pair = make()
        found = {name: measure(pair, name, options) for name in methods}
        print(row(pair, found) if pairs else f"{header(found)}\n{row(pair, found)}", flush=True)
        pairs.append(pair)
        readings[pair.name] = found
    for pair in pairs:
        reading = readings[pair.name][methods[0]]
        print(f"{methods[0]} on {pair.name}, lines of the plan: {slopes_in_words(reading.coupled)}")
        print(f"{methods[0]} on {pair.name}, lines between random pairs: {slopes_in_words(reading.random)}")
    draw(options.out / "ruler.png", pairs, readings, methods[0])
    print(f"wrote {options.out / 'ruler.png'}")


if __name__ == "__main__":
    main()
