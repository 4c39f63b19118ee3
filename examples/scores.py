"""How good samples are: a classifier's opinion of generated digits, and a distance between two sets of samples.

    digit_classifier()                   a classifier of scikit-learn's digits; .probabilities(images), .accuracy
    digit_score(images)                  the classifier's inception score of them
    inception_score(probabilities)       exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, arXiv 1606.03498)
    sliced_wasserstein(a, b, seed)       W2, its root mean square over random directions, by POT

Needs scikit-learn and POT (pip install scikit-learn pot).
"""

import functools
import math

import numpy as np
import ot
import torch
from scipy.special import rel_entr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch.nn import functional as F

SIDE = 8
DIRECTIONS = 256


@functools.cache
def digit_classifier():
    """A `DigitClassifier`, trained in a second, the same every time."""
    return DigitClassifier()


class DigitClassifier:
    """A small neural network on two thirds of the 1,797 digits; `accuracy` is its share of the others it names."""

    def __init__(self):
        digits = load_digits()
        pixels = digits.data / digits.data.max()
        train, held_out, train_labels, labels = train_test_split(
            pixels, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0
        )
        self._network = MLPClassifier((64,), alpha=1e-2, max_iter=1000, random_state=0).fit(train, train_labels)
        self.accuracy = float(self._network.score(held_out, labels))

    def probabilities(self, images):
        """(n, 10), float64, for images (n, 1, h, w) in [-1, 1], h and w multiples of 8: averaged down to 8x8."""
        if images.dim() != 4 or images.shape[1] != 1 or any(side == 0 or side % SIDE for side in images.shape[2:]):
            raise ValueError(
                f"images: expected grey ones, (n, 1, h, w) with h and w multiples of {SIDE}, found "
                f"{tuple(images.shape)}; average channels, resize"
            )
        small = F.adaptive_avg_pool2d(images.detach().cpu().double(), SIDE)
        return self._network.predict_proba((small.flatten(1).numpy() + 1) / 2)


def digit_score(images):
    """The `inception_score` of images of digits, as `DigitClassifier.probabilities` takes them."""
    return inception_score(digit_classifier().probabilities(images))


def inception_score(probabilities):
    """exp(E KL(p(y|x) || p(y))) of (n, classes) probabilities: 1 where all rows are alike, at most the classes."""
    probabilities = np.asarray(probabilities, dtype=float)
    if probabilities.ndim != 2 or not len(probabilities) or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-4):
        raise ValueError(
            f"probabilities: expected rows that sum to 1, (n, classes), found {probabilities.shape}; apply a softmax"
        )
    return math.exp(rel_entr(probabilities, probabilities.mean(axis=0)).sum(axis=1).mean())


def sliced_wasserstein(a, b, seed=0):
    """Sliced W2 of samples (n, ...) and (m, ...), tensors or arrays: a mean over 256 directions drawn by `seed`."""
    a, b = (_rows(samples) for samples in (a, b))
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"a, b: expected samples of the same shape, found {a.shape} and {b.shape} as (n, elements)")
    return float(ot.sliced_wasserstein_distance(a, b, n_projections=DIRECTIONS, seed=seed))


def _rows(samples):
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu().numpy()
    samples = np.asarray(samples, dtype=float)
    return samples.reshape(len(samples), math.prod(samples.shape[1:]))
