"""What clipping and the penalty make of a critic: the two parts of figure 1 in arXiv 1704.00028.

The surface of a critic trained towards its optimum against a fixed generator (real points plus unit Gaussian noise)
with its weights, and the gradient by layer of a critic of twelve layers in training. examples/toy.py shows them:

    python examples/toy.py --steps 8000 --methods wgan-gp --out out/toy
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from methods import METHODS
from sklearn.metrics import roc_auc_score
from torch import nn
from toy_data import DATA
from train import Trainer, fit

CLIP = 0.1
SURFACES = {
    "clipping": replace(METHODS["wgan"], optimiser=partial(torch.optim.RMSprop, lr=5e-4), clip=CLIP, critic_steps=1),
    "penalty": replace(
        METHODS["wgan-gp"],
        optimiser=partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.9)),
        penalty={"weight": 0.1},
        critic_steps=1,
        decay=True,
    ),
}
DEEP = {f"clip {c:g}": replace(SURFACES["clipping"], clip=c, critic_steps=2) for c in (0.001, 0.01, 0.1)} | {
    "penalty": replace(SURFACES["penalty"], penalty={"weight": 10.0}, critic_steps=2)
}
DEEP_LAYERS, DEEP_WIDTH, DEEP_BATCH = 12, 64, 64
END = 0.05  # a weight is at an end of [-c, c] within this part of c


def mlp(inputs, outputs, layers, width):
    sizes = [inputs, *[width] * (layers - 1)]
    hidden = [part for pair in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def optimal_critic(options, data, name, folder):
    """The trainer of a critic that was trained against a fixed generator."""
    torch.manual_seed(options.seed)
    draw = DATA[data].draw
    trainer = Trainer(
        nn.Identity(),
        mlp(2, 1, 4, options.width),
        SURFACES[name],
        draw,
        lambda count: draw(count) + torch.randn(count, 2),
        batch=options.batch,
        engine=options.engine,
        device=options.device,
        identity={"data": data, "generator": "data plus noise"},
    )
    fit(trainer, options, folder, title=f"{data}, critic by {name}", steps=options.surface_steps)
    return trainer


@torch.no_grad()
def told_apart(critic, real, fake):
    """The share of pairs of a real and a generated point in which the critic gives the real one the higher value."""
    scores = critic(torch.cat([real, fake])).squeeze(1)
    return roc_auc_score([1] * len(real) + [0] * len(fake), scores.cpu())


def weights(critic):
    return torch.cat([parameter.detach().flatten() for parameter in critic.parameters()]).cpu()


def at_the_ends(values, end):
    return (values.abs() >= (1 - END) * end).double().mean().item()


def layer_gradients(critic, method, real, fake):
    """Norms of the gradient of the critic's loss by each hidden layer's output, that nearest to the data first.

    In double precision: what clipping leaves after ten layers is below the smallest float32.
    """
    outputs, x = [], torch.cat([real, fake]).double()
    for layer in copy.deepcopy(critic).double():
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            outputs.append(x)
    loss = method.critic_loss(x[: len(real)], x[len(real) :])
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, outputs)]


def gradients_in_training(options, name, folder):
    """A deep critic's `layer_gradients`: geometric means over the second half of its training on the Swiss roll."""
    torch.manual_seed(options.seed)
    method, draw = DEEP[name], DATA["swissroll"].draw

    def score(trainer):
        real, fake = draw(DEEP_BATCH).to(trainer.device), trainer.samples(DEEP_BATCH)
        found = layer_gradients(trainer.critic, method, real, fake)
        return {f"gradient at layer {layer}": value for layer, value in enumerate(found, 1)}

    trainer = Trainer(
        mlp(2, 2, DEEP_LAYERS, DEEP_WIDTH),
        mlp(2, 1, DEEP_LAYERS, DEEP_WIDTH),
        method,
        draw,
        lambda count: torch.randn(count, 2),
        batch=DEEP_BATCH,
        engine=options.engine,
        device=options.device,
        identity={"data": "swissroll"},
    )
    fit(trainer, options, folder, title=f"deep critic, {name}", score=score, score_every=10, steps=options.deep_steps)
    found = torch.tensor([[s[key] for key in s if key.startswith("gradient")] for s in trainer.scores]).double()
    return found[len(found) // 2 :].log().mean(0).exp().tolist()
