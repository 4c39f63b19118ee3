"""examples/scores.py: scores whose value is known."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs scikit-learn")
pytest.importorskip("ot", reason="needs POT")

from scores import digit_classifier, inception_score, sliced_wasserstein  # noqa: E402


def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1, found.target


def test_inception_score_of_rows_that_are_alike():
    assert inception_score(np.full((7, 10), 0.1)) == pytest.approx(1, abs=1e-12)
    assert inception_score(np.tile([0.5, 0.3, 0.2], (4, 1))) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_inception_score_of_balanced_certainty(classes):
    assert inception_score(np.eye(classes).repeat(3, axis=0)) == pytest.approx(classes, rel=1e-12)


def test_inception_score_by_hand():
    """Two rows (p, 1 - p) and (1 - p, p): log 2 less the entropy of p."""
    p = 0.9
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert inception_score([[p, 1 - p], [1 - p, p]]) == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-12)


@pytest.mark.parametrize("bad", [np.ones((3, 10)), np.full(10, 0.1), np.empty((0, 10))])
def test_inception_score_refuses_what_are_no_probabilities(bad):
    with pytest.raises(ValueError, match="probabilities: expected rows that sum to 1"):
        inception_score(bad)


def test_classifier_knows_digits_at_either_size():
    images, labels = digits()
    assert digit_classifier() is digit_classifier()
    assert 0.95 < digit_classifier().accuracy <= 1
    at8 = digit_classifier().probabilities(images)
    assert at8.shape == (len(images), 10) and np.allclose(at8.sum(axis=1), 1)
    assert (at8.argmax(axis=1) == labels).mean() > 0.97
    at24 = digit_classifier().probabilities(images.repeat_interleave(3, 2).repeat_interleave(3, 3))
    assert np.abs(at24 - at8).max() < 1e-9


def test_classifier_tells_digits_from_noise():
    images, _ = digits()
    noise = torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    probabilities = digit_classifier().probabilities
    assert inception_score(probabilities(images)) > 8.5
    assert inception_score(probabilities(noise)) < 3


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 12, 8), (2, 64), (2, 1, 0, 8)])
def test_classifier_refuses_other_images(shape):
    with pytest.raises(ValueError, match="images: expected grey ones"):
        digit_classifier().probabilities(torch.zeros(shape))


def test_sliced_wasserstein_of_a_shift():
    """Each direction u sees |u . shift|, whose mean square is |shift|^2 / dimensions."""
    a = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert sliced_wasserstein(a, a, seed=0) == 0
    assert sliced_wasserstein(a, torch.cat([a, a]), seed=0) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(a, a + shift, seed=0) == pytest.approx(5 / math.sqrt(4), rel=0.1)


def test_sliced_wasserstein_repeats_by_seed():
    a, b = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(b.numpy(), a.numpy(), seed=1)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)


@pytest.mark.parametrize("b", [torch.zeros(5, 3), torch.zeros(0, 4)])
def test_sliced_wasserstein_refuses_other_shapes(b):
    with pytest.raises(ValueError, match="a, b: expected samples of the same shape"):
        sliced_wasserstein(torch.zeros(5, 4), b)
