"""Toy distributions: what samples come of a GAN, of clipping and of the penalty, and what becomes of the critic.

Section 3 and figure 1 of "Improved Training of Wasserstein GANs" (arXiv 1704.00028) on 8 Gaussians, 25 Gaussians and a
Swiss roll, with the one-sided penalty (WGAN-LP, arXiv 1709.08894) and spectral normalisation (arXiv 1802.05957) beside
it. A mode is covered if it has a fifth of the samples due to it within 3 standard deviations, where a sample is good;
W1 is exact, between 2,000 samples and as many points, and the first row has that of fresh data. Then critics alone:
their surfaces, the gradient by layer of a deep one, their weights. With --remedies, a table of what was done for the
plain GAN before there was a penalty (sources in examples/remedies.py).

    python examples/toy.py --steps 8000 --remedies --out out/toy

--steps are those on 25 Gaussians; the others take half of them. The penalty's weight is 0.1, as in that paper's own
program for toy data; learning rates fall linearly to 0.
Needs POT, scikit-learn, matplotlib and tqdm.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from methods import METHODS
from remedies import REMEDIES
from toy_critics import (
    CLIP,
    DEEP,
    DEEP_LAYERS,
    SURFACES,
    at_the_ends,
    gradients_in_training,
    mlp,
    optimal_critic,
    told_apart,
    weights,
)
from toy_data import DATA, coverage, wasserstein
from toy_pictures import draw_critics, draw_samples
from train import Trainer, fit, make_parser, parse

LATENT = 2
COUNTED, MOVED = 10_000, 2_000  # samples of which modes are counted, samples between which W1 is computed

ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.9))
# What differs from METHODS: of a few learning rates the one that did best on 8 Gaussians; one step of the critic for
# each of the generator, but for clipping, which with one covers no mode.
TOY = {
    "gan": {"optimiser": partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))},
    "wgan": {"optimiser": partial(torch.optim.RMSprop, lr=1e-3), "critic_steps": 3},
    "wgan-gp": {"optimiser": ADAM, "penalty": {"weight": 0.1}, "critic_steps": 1},
    "wgan-lp": {"optimiser": ADAM, "penalty": {"weight": 0.1, "one_sided": True}, "critic_steps": 1},
    "sn": {"optimiser": ADAM, "critic_steps": 1},
}


def noise(count):
    return torch.randn(count, LATENT)


def build(options, data, method, remedies=()):
    """The `Trainer` of a generator by a method of TOY; `options` as `read_options` has them."""
    torch.manual_seed(options.seed)
    return Trainer(
        mlp(LATENT, 2, 4, options.width),
        mlp(2, 1, 4, options.width),
        replace(METHODS[method], decay=True, clip=METHODS[method].clip and options.clip, **TOY[method]),
        DATA[data].draw,
        noise,
        batch=options.batch,
        engine=options.engine,
        device=options.device,
        remedies=[REMEDIES[name]() for name in remedies],
        identity={"data": data},
    )


def trained(options, data, method, remedies, folder):
    trainer = build(options, data, method, remedies)
    steps = math.ceil(options.steps * DATA[data].share)
    fit(trainer, options, folder, title=" ".join([data, method, *remedies]), steps=steps)
    return trainer


def report(name, data, points):
    """Prints the figures of samples that should be the distribution's."""
    distribution = DATA[data]
    torch.manual_seed(1)
    words = f"{data} {name}: W1 {wasserstein(points[:MOVED], distribution.draw(MOVED)):.3f}"
    if distribution.modes is not None:
        modes, good = coverage(points, distribution)
        words += f", {modes} of {len(distribution.modes)} modes, {100 * good:.1f} % good samples"
    print(words, flush=True)


def compare(options, data, choices, done):
    """{title: (critic, samples, device)} of a training for each {title: (method, remedies)}, with a line printed.

    `done` holds the trainings so far: none is done twice.
    """
    torch.manual_seed(2)
    report("fresh data", data, DATA[data].draw(COUNTED))
    panels = {}
    for title, (method, remedies) in choices.items():
        folder = options.out / data / "-".join([method, *remedies])
        if folder not in done:
            trainer = trained(options, data, method, remedies, folder)
            together = "minibatch-discrimination" in remedies  # no value is a point's own
            done[folder] = None if together else trainer.critic, trainer.samples(COUNTED).cpu(), trainer.device
        panels[title] = done[folder]
        report(title, data, panels[title][1])
    return panels


def show_samples(options, done):
    chosen = {" with ".join([m, *options.remedy]): (m, options.remedy) for m in options.methods}
    rows = {data: compare(options, data, chosen, done) for data in options.data}
    draw_samples(options.out / "samples.png", rows)


def show_remedies(options, done):
    """On the first of the distributions."""
    data = options.data[0]
    chosen = {"no remedy": ("gan", [])} | {name: ("gan", [name]) for name in REMEDIES} | {"penalty": ("wgan-gp", [])}
    print("\nremedies of the plain GAN")
    panels = list(compare(options, data, chosen, done).items())
    half = len(panels) // 2
    draw_samples(options.out / "remedies.png", {data: dict(panels[:half]), "": dict(panels[half:])})
    print()


def show_critics(options):
    """Critics alone: what they tell apart, their surfaces, weights, and gradients by layer."""
    rows, shown = {name: {} for name in SURFACES}, {}
    for data in options.data:
        told = []
        for name, row in rows.items():
            trainer = optimal_critic(options, data, name, options.out / data / f"critic by {name}")
            torch.manual_seed(3)
            real, fake = trainer.draw(2000).to(trainer.device), trainer.noise(2000).to(trainer.device)
            told.append(f"{name} {100 * told_apart(trainer.critic, real, fake):.1f} %")
            row[data] = trainer.critic, real, trainer.device
            shown[name] = weights(trainer.critic)
        print(f"{data} pairs told apart by a critic alone: {', '.join(told)}", flush=True)
    draw_samples(options.out / "surfaces.png", rows)
    ends = {"clipping": CLIP, "penalty": shown["penalty"].abs().max().item()}
    for name, values in shown.items():
        print(f"weights, {name}: {100 * at_the_ends(values, ends[name]):.1f} % within 5 % of +-{ends[name]:.3g}")

    gradients = {name: gradients_in_training(options, name, options.out / "deep" / name) for name in DEEP}
    for name, norms in gradients.items():
        print(f"gradient, {name}: {norms[-1]:.1e} at layer {len(norms)}, {norms[0]:.1e} at layer 1, ", end="")
        print(f"ratio {norms[0] / norms[-1]:.1e}")
    draw_critics(options.out / "critics.png", gradients, {name: (shown[name], ends[name]) for name in shown})


def read_options(argv=None):
    """The command line, checked."""
    parser = make_parser(
        __doc__, steps=8000, batch=128, out="out/toy",
        quick={"steps": 3000, "data": ["8gaussians"], "methods": ["wgan-gp"],
               "surface_steps": 300, "deep_steps": 60},
    )  # fmt: skip
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="distributions (default: all)")
    parser.add_argument("--methods", nargs="+", choices=TOY, default=list(TOY), help="ways to train (default: all)")
    parser.add_argument("--remedy", nargs="+", choices=REMEDIES, default=[], help="for --methods gan alone")
    parser.add_argument("--remedies", action="store_true", help="also compares each remedy for gan, and wgan-gp")
    parser.add_argument(
        "--clip", type=float, default=CLIP, help=f"of wgan (default {CLIP}; the paper's 0.01 covers no mode here)"
    )
    parser.add_argument("--width", type=int, default=128, help="of the hidden layers (default 128)")
    parser.add_argument("--surface-steps", type=int, default=1000, help="of critics alone (default 1,000)")
    parser.add_argument("--deep-steps", type=int, default=300, help=f"of critics of {DEEP_LAYERS} layers (default 300)")
    options = parse(parser, argv, smallest={"width": 1, "surface_steps": 1, "deep_steps": 1})
    if not options.clip > 0:
        parser.error(f"--clip must be above 0; got {options.clip}")
    if options.remedy and options.methods != ["gan"]:
        parser.error(f"--remedy is for --methods gan alone; got {' '.join(options.methods)}")
    return options


def main(argv=None):
    options, done = read_options(argv), {}
    show_samples(options, done)
    if options.remedies:
        show_remedies(options, done)
    show_critics(options)
    print(f"wrote samples.png, surfaces.png and critics.png in {options.out}")


if __name__ == "__main__":
    main()
