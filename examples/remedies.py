"""Remedies for the plain GAN, before there was a penalty: each changes one thing in a step of training.

Feature matching, minibatch discrimination, one-sided label smoothing, historical averaging and virtual batch
normalisation are of Salimans et al. 2016 (arXiv 1606.03498, sections 3.1 to 3.5), instance noise of Sonderby et al.
2016 (arXiv 1610.04490) and Arjovsky & Bottou 2017 (arXiv 1701.04862). examples/toy.py compares them:

    python examples/toy.py --steps 8000 --remedies

A trainer calls every method of every remedy it is given; one that a remedy does not override changes nothing.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Remedy:
    def networks(self, generator, critic, draw, noise):
        """The two networks that are trained, called once, before their optimisers are made."""
        return generator, critic

    def seen(self, x, progress):
        """What the critic is given in place of x, real or generated; progress goes from 0 to 1."""
        return x

    def critic_loss(self, method, real_scores, fake_scores):
        """A replacement of method.critic_loss, or None."""

    def generator_loss(self, method, critic, real, fake, args):
        """A replacement of the generator's loss, or None. `fake` carries the generator's graph."""

    def extra(self, side, network):
        """A term added to the loss of a side, "critic" or "generator", or None."""

    def after(self, side, network):
        """Called after each step of a side's optimiser."""

    def state(self):
        """Tensors that going on exactly needs, beside those of the networks and the optimisers."""
        return {}

    def load(self, state):
        """Takes what `state` gave."""


class FeatureMatching(Remedy):
    """The generator aims at the mean of the critic's last features over real samples, not at its score."""

    def generator_loss(self, method, critic, real, fake, args):
        features = layers(critic, "feature-matching", "critic")[:-1]
        wanted = features(real).mean(0).detach()
        return (features(fake).mean(0) - wanted).square().sum()


class MinibatchFeatures(nn.Module):
    """(B, features) -> (B, features + kernels): beside each sample's features, how close the batch is to it.

    closeness_ik = sum_j exp(-|M_ik - M_jk|_1), where M_i = features_i T has `kernels` rows of `depth` numbers.
    """

    def __init__(self, features, kernels=8, depth=4):
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(features, kernels, depth) / features**0.5)

    def forward(self, features):
        rows = torch.einsum("bf,fkd->kbd", features, self.tensor)
        closeness = torch.exp(-torch.cdist(rows, rows, p=1)).sum(2)
        return torch.cat([features, closeness.T], 1)


class MinibatchDiscrimination(Remedy):
    """The critic sees how close the samples of a batch are to each other, so that a generator of one point is found."""

    def networks(self, generator, critic, draw, noise):
        *before, last = layers(critic, "minibatch-discrimination", "critic")
        if not isinstance(last, nn.Linear):
            raise ValueError(
                f"minibatch-discrimination needs a critic that ends in nn.Linear; got {type(last).__name__}"
            )
        closeness = MinibatchFeatures(last.in_features)
        wider = nn.Linear(last.in_features + closeness.tensor.shape[1], last.out_features)
        return generator, nn.Sequential(*before, closeness, wider)


class LabelSmoothing(Remedy):
    """Real samples are real with probability `label`; generated ones stay generated."""

    def __init__(self, label=0.9):
        self.label = label

    def critic_loss(self, method, real_scores, fake_scores):
        wanted = torch.full_like(real_scores, self.label)
        real = F.binary_cross_entropy_with_logits(real_scores, wanted)
        return real + F.binary_cross_entropy_with_logits(fake_scores, torch.zeros_like(fake_scores))


class HistoricalAveraging(Remedy):
    """weight * |parameters - mean of the parameters after all steps so far|^2, for both sides.

    The paper names no weight. On 8 Gaussians 0.01 and more hold the networks where they began.
    """

    def __init__(self, weight=0.001):
        self.weight = weight
        self.steps = {}
        self.means = {}

    def extra(self, side, network):
        if side not in self.means:
            return None
        pairs = zip(network.parameters(), self.means[side], strict=True)
        return self.weight * sum((parameter - mean).square().sum() for parameter, mean in pairs)

    @torch.no_grad()
    def after(self, side, network):
        self.steps[side] = self.steps.get(side, 0) + 1
        if side not in self.means:
            self.means[side] = [parameter.detach().clone() for parameter in network.parameters()]
        for parameter, mean in zip(network.parameters(), self.means[side], strict=True):
            mean += (parameter - mean) / self.steps[side]

    def state(self):
        return {"steps": dict(self.steps), "means": {side: list(means) for side, means in self.means.items()}}

    def load(self, state):
        self.steps = dict(state["steps"])
        self.means = {side: [mean.clone() for mean in means] for side, means in state["means"].items()}


class VirtualBatchNorm(nn.Module):
    """(reference + B, features) -> the same shape: each row by the statistics of the first `reference` rows and itself.

    The reference rows are normalised by their own statistics alone. No row depends on another of the B.
    """

    def __init__(self, features, reference, eps=1e-5):
        super().__init__()
        self.reference, self.eps = reference, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x):
        reference, rest = x[: self.reference], x[self.reference :]
        mean, square = reference.mean(0), reference.square().mean(0)
        share = 1 / (self.reference + 1)
        means = torch.cat([mean.expand_as(reference), mean + share * (rest - mean)])
        squares = torch.cat([square.expand_as(reference), square + share * (rest.square() - square)])
        return (x - means) * torch.rsqrt(squares - means.square() + self.eps) * self.weight + self.bias


class WithReference(nn.Module):
    """Runs a network on a fixed reference batch and on x at once, and returns what it makes of x."""

    def __init__(self, network, reference):
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference)

    def forward(self, x):
        return self.network(torch.cat([self.reference, x]))[len(self.reference) :]


class VirtualBatchNormalisation(Remedy):
    """The generator's hidden layers are normalised by a batch drawn once."""

    def __init__(self, reference=64):
        self.reference = reference

    def networks(self, generator, critic, draw, noise):
        *hidden, last = layers(generator, "virtual-batch-norm", "generator")
        normalised = []
        for layer in hidden:
            normalised.append(layer)
            if isinstance(layer, nn.Linear):
                normalised.append(VirtualBatchNorm(layer.out_features, self.reference))
        return WithReference(nn.Sequential(*normalised, last), noise(self.reference)), critic


class InstanceNoise(Remedy):
    """Gaussian noise on all that the critic sees; its deviation falls from `start` to 0 over the training."""

    def __init__(self, start=0.5):
        self.start = start

    def seen(self, x, progress):
        return x + self.start * (1 - progress) * torch.randn_like(x)


REMEDIES = {
    "feature-matching": FeatureMatching,
    "minibatch-discrimination": MinibatchDiscrimination,
    "label-smoothing": LabelSmoothing,
    "historical-averaging": HistoricalAveraging,
    "virtual-batch-norm": VirtualBatchNormalisation,
    "instance-noise": InstanceNoise,
}


def layers(network, remedy, role):
    if not isinstance(network, nn.Sequential) or len(network) < 2:
        raise ValueError(
            f"{remedy} needs a {role} that is an nn.Sequential of at least two layers; got {type(network).__name__}"
        )
    return network
