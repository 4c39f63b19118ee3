"""Dropout on the tape: a product with its mask, or PyTorch's own node for it, which CUDA records."""

import pytest
import torch
import torch.nn.functional as F
from layouts import numbers
from tape_checks import agree

DROPOUTS = {
    "dropout": lambda h: F.dropout(h, 0.4),
    "dropout, all": lambda h: F.dropout(h, 1.0) + h,
    "dropout, none": lambda h: F.dropout(h, 0.0) + h,
    "in evaluation": lambda h: F.dropout(h, 0.4, training=False) + h,
    "in place": lambda h: F.dropout(h * 1, 0.4, inplace=True),
    "alpha": lambda h: F.alpha_dropout(h, 0.4, training=True),
    "features": lambda h: F.dropout1d(h, 0.4),
    "alpha of features": lambda h: F.feature_alpha_dropout(h, 0.4, training=True),
    "native": lambda h: torch.native_dropout(h, 0.4, True)[0],
    "native, all": lambda h: torch.native_dropout(h, 1.0, True)[0] + h,
    "native in evaluation": lambda h: torch.native_dropout(h, 0.4, False)[0],
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_with_the_mask_that_was_drawn(name):
    drop = DROPOUTS[name]
    u, w = numbers(4, 5, seed=1).requires_grad_(), numbers(5, 6, seed=2).requires_grad_()
    x = numbers(3, 4, 4)
    rule = "dropout" if name.startswith("native") else None
    for function in (lambda x: drop(x @ u) @ w, lambda x: torch.tanh(drop(x @ u) @ w), drop):
        done = agree(function, x, [u, w], rule=rule)
        assert all(how != "alone" for _, how, *_ in done)
