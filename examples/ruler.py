"""The critic as a ruler of the Wasserstein distance W1: what each way to hold it back reads, beside the exact answer.

W1 is the supremum over 1-Lipschitz critics of E critic(real) - E critic(fake) (Kantorovich and Rubinstein), so this gap
of a trained critic is an estimate. The exact answer is known for

lines      (0, z) and (theta, z), z uniform, of "Wasserstein GAN" (arXiv 1701.07875, example 1): KL is infinite, JS
           log 2, W1 theta. Each line is held by 64 points; by linear programme.
piles      heaps of 3 2 1 4 shovelfuls of sand that shall be heaps of 1 2 4 3 at the same four places, one step apart:
           5 shovelfuls times steps; by linear programme. --piles takes others, of as much sand before and after.
gaussians  N(m, I) and N(0, I), |m| = 2, in 1 to 64 dimensions: W1 is |m|.
digits     scikit-learn's 1,797 digits and as many points of uniform noise; by linear programme, for these very points,
           which a critic of this size cannot tell apart one by one: it reads less.

The critics differ in one thing only: gradient penalty (wgan-gp, arXiv 1704.00028), its one-sided form (wgan-lp,
arXiv 1709.08894), clipped weights (wgan), spectral normalisation (sn, arXiv 1802.05957, here with a Wasserstein loss).
An estimate is the gap of the last critic, over all points, or over 100,000 fresh ones of each Gaussian. It is not
corrected: a clipped critic reads W1 times a Lipschitz constant that nobody knows; "wgan / slope" divides by the largest
gradient norm found. A penalty of weight w lets slopes pass 1 by about W1 / (2 w): 10 % for W1 = 2 and the paper's 10,
hence --weight 100. The two-sided penalty also keeps slopes from turning round, through 0, so that a critic which began
with a wrong sign would keep it: the weight begins at --first-weight, and rises until 60 % of the steps are done.

By proposition 1 of arXiv 1704.00028 an optimal critic has gradient norm 1, towards the real point, on the lines between
points that the optimal plan couples (between Gaussians: the plan between 1,000 samples of each). Both are measured
there, and on the lines of random pairs.

    python examples/ruler.py --steps 2000 --out out/ruler

Needs POT, scipy, scikit-learn, matplotlib and tqdm.
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import torch
from known_distances import COUPLED, check_masses, digits, gaussians, lines, piles
from methods import METHODS
from ruler_picture import draw
from torch import nn
from train import Trainer, fit, make_parser, parse

KINDS = "lines", "piles", "gaussians", "digits"
HELD = "wgan-gp", "wgan-lp", "wgan", "sn"
PILES = "3,2,1,4/1,2,4,3"
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
        if pair.kind == "piles":
            identity["heaps"] = [held.weights.tolist() for held in (pair.real, pair.fake)]
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


def slopes(critic, real, fake, points=20):
    """(norms, cosines), each (points, n): of the critic's gradient on the lines from fake to real; with their way."""
    share = (torch.arange(points)[:, None, None] + 0.5) / points
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


def header(columns):
    return f"{'pair':13} {'exact by':16} {'W1':>8}" + "".join(f"{column:>19}" for column in columns)


def row(pair, columns):
    line = f"{pair.name:13} {pair.exact_by:16} {pair.exact:8.4f}"
    for estimate in columns.values():
        line += f"{estimate:10.4f} {100 * (estimate / pair.exact - 1):+6.1f} %"
    return line


def slopes_in_words(norms, cosines):
    low, high = norms.quantile(0.1), norms.quantile(0.9)
    return f"norm {norms.mean():.3f} ({low:.3f} to {high:.3f}), cosine with the way {cosines.mean():.3f}"


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
        "steps": 500,
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
    pairs, columns, readings = [], {}, {}
    for make in makers(options):
        torch.manual_seed(options.seed)
        pair = make()
        found = {name: measure(pair, name, options) for name in methods}
        pairs.append(pair)
        columns[pair.name], readings[pair.name] = estimates(found), found[methods[0]]
        if len(pairs) == 1:
            print(header(columns[pair.name]))
        print(row(pair, columns[pair.name]), flush=True)
    for pair in pairs:
        for where, found in (("the plan", readings[pair.name].coupled), ("random pairs", readings[pair.name].random)):
            print(f"{methods[0]} on {pair.name}, lines of {where}: {slopes_in_words(*found)}")
    draw(options.out / "ruler.png", pairs, columns, readings, methods[0])
    print(f"wrote {options.out / 'ruler.png'}")


if __name__ == "__main__":
    main()
