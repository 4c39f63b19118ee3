"""Attention is made of products, softmax and views: exact whichever of their rules there are."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.fixture(autouse=True)
def mathematics():
    """The fused kernels have no second derivative in PyTorch."""
    torch.manual_seed(13)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def points(*sizes):
    return torch.randn(sizes, dtype=torch.float64)


def mask(kind):
    allowed = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    return {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": allowed},
        "added": {"attn_mask": points(3, 3)},
        "scaled": {"scale": 0.3},
        "a row masked out": {"attn_mask": allowed & torch.tensor([[1], [0], [1]], dtype=torch.bool)},
    }[kind]


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "added", "scaled", "a row masked out"])
def test_scaled_dot_product_attention(kind):
    options = mask(kind)
    weights = [points(4, 4).requires_grad_() for _ in range(3)]

    def function(x):
        q, k, v = ((x @ w).view(2, 3, 2, 2).transpose(1, 2) for w in weights)
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).reshape(2, 3, 4)

    steps = agree(function, points(2, 3, 4), weights, rule="matmul")
    assert not [step for step in steps if step[1] == "alone"]


@pytest.mark.parametrize("live", ["query", "key", "value"])
def test_one_live_operand(live):
    operands = {name: points(2, 3, 4).requires_grad_() for name in ("query", "key", "value")}

    def function(x):
        return F.scaled_dot_product_attention(**{**operands, live: x}).tanh()

    agree(function, points(2, 3, 4), [t for name, t in operands.items() if name != live], rule="linear")


def test_mask_that_is_learned():
    bias = points(3, 3).requires_grad_()
    agree(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=bias), points(2, 1, 3, 4), [bias], rule="matmul")


def test_grouped_queries():
    function = lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True)  # noqa: E731
    agree(function, points(2, 4, 3, 2), rule="matmul")


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(need_weights, batch_first):
    module = nn.MultiheadAttention(4, 2, batch_first=batch_first).double()
    function = lambda x: module(x, x, x, need_weights=need_weights)[0]  # noqa: E731
    agree(function, points(2, 3, 4), list(module.parameters()), rule="matmul")


def test_weights_of_attention_are_scored_too():
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    agree(lambda x: torch.cat([y.flatten(1) for y in module(x, x, x)], 1), points(2, 3, 4), list(module.parameters()))


def test_padding_mask():
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    agree(lambda x: module(x, x, x, key_padding_mask=padding)[0], points(2, 3, 4), list(module.parameters()))


def test_transformer_layer():
    module = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0, batch_first=True), nn.Linear(4, 1)).double()
    agree(module, points(2, 3, 4), list(module.parameters()), rule="matmul")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    def make(at):
        torch.manual_seed(5)
        module = nn.MultiheadAttention(8, 2, batch_first=True).to(dtype).to(at)
        return lambda x: module(x, x, x, need_weights=False)[0], list(module.parameters())

    agree_low(make, points(2, 4, 8), dtype)
