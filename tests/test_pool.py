"""Pooling on the tape: windows of every shape, ties, layouts, memory, and the two kernels over tiles."""

import pytest
import torch
from map_checks import (
    channels_last,
    everywhere,
    everywhere_and_laid_out,
    nodes_of,
    points,
    stays_channels_last,
    sweeps_of,
)
from tape_checks import agree, agree_low
from torch.library import opcheck
from torch.nn import functional as F

import gpfast
from gpfast import _extension

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")

AVERAGES = {
    "1d": (lambda x: F.avg_pool1d(x, 2), (2, 3, 6)),
    "1d-overlapping": (lambda x: F.avg_pool1d(x, 3, 1, 1), (2, 3, 5)),
    "2d": (lambda x: F.avg_pool2d(x, 2), (2, 3, 4, 6)),
    "2d-3x2": (lambda x: F.avg_pool2d(x, (3, 2)), (2, 3, 6, 4)),
    "2d-5": (lambda x: F.avg_pool2d(x, 5, divisor_override=7), (2, 2, 5, 10)),
    "2d-rest": (lambda x: F.avg_pool2d(x, 2), (2, 3, 5, 5)),
    "2d-ceil": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), (2, 3, 5, 5)),
    "2d-ceil-covered": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), (2, 3, 4, 4)),
    "2d-overlapping": (lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 3, 6, 5)),
    "2d-without-padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 3, 6, 5)),
    "2d-gaps": (lambda x: F.avg_pool2d(x, 1, 2), (2, 3, 5, 5)),
    "2d-divisor": (lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), (2, 3, 6, 5)),
    "2d-negative-divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=-3), (2, 3, 4, 4)),
    "2d-whole-plane": (lambda x: F.avg_pool2d(x, 4), (2, 3, 4, 4)),
    "2d-one-channel": (lambda x: F.avg_pool2d(x, 2), (2, 1, 4, 4)),
    "3d": (lambda x: F.avg_pool3d(x, 2), (2, 3, 2, 4, 4)),
    "3d-1x2x3": (lambda x: F.avg_pool3d(x, (1, 2, 3), divisor_override=2), (2, 2, 2, 4, 3)),
    "3d-overlapping": (lambda x: F.avg_pool3d(x, 3, 2, 1, ceil_mode=True), (2, 2, 4, 3, 4)),
    "3d-without-padding": (lambda x: F.avg_pool3d(x, 3, 2, 1, count_include_pad=False), (2, 2, 4, 3, 4)),
    "adaptive-1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 3, 7)),
    "adaptive-2d": (lambda x: F.adaptive_avg_pool2d(x, 2), (2, 3, 4, 6)),
    "adaptive-2d-uneven": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (2, 3, 5, 4)),
    "adaptive-2d-larger": (lambda x: F.adaptive_avg_pool2d(x, 5), (2, 3, 3, 4)),
    "adaptive-3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (2, 3, 4, 2, 4)),
    "adaptive-3d-uneven": (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 2)), (2, 2, 3, 4, 3)),
}
MAXIMA = {
    "1d": (lambda x: F.max_pool1d(x, 2), (2, 3, 6)),
    "2d": (lambda x: F.max_pool2d(x, 2), (2, 3, 4, 6)),
    "2d-overlapping": (lambda x: F.max_pool2d(x, 3, 1), (2, 3, 5, 4)),
    "2d-padded": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 3, 6, 5)),
    "2d-dilated": (lambda x: F.max_pool2d(x, 2, 1, 1, dilation=2), (2, 3, 5, 5)),
    "2d-ceil": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), (2, 3, 5, 5)),
    "2d-rest": (lambda x: F.max_pool2d(x, 2), (2, 3, 5, 5)),
    "2d-whole-plane": (lambda x: F.max_pool2d(x, 4), (2, 3, 4, 4)),
    "3d": (lambda x: F.max_pool3d(x, 2), (2, 3, 2, 4, 4)),
    "3d-overlapping": (lambda x: F.max_pool3d(x, 3, 1, 1), (2, 2, 3, 3, 3)),
    "3d-dilated": (lambda x: F.max_pool3d(x, 2, 1, dilation=(1, 2, 1), ceil_mode=True), (2, 2, 3, 4, 3)),
    "adaptive-1d": (lambda x: F.adaptive_max_pool1d(x, 3), (2, 3, 7)),
    "adaptive-2d": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (2, 3, 5, 4)),
    "adaptive-2d-1": (lambda x: F.adaptive_max_pool2d(x, 1), (2, 3, 4, 4)),
    "adaptive-3d": (lambda x: F.adaptive_max_pool3d(x, 2), (2, 2, 3, 4, 3)),
    "fractional-2d": (lambda x: F.fractional_max_pool2d(x, 2, output_size=3), (2, 3, 5, 5)),
    "fractional-3d": (lambda x: F.fractional_max_pool3d(x, 2, output_size=2), (2, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_average_pool(name):
    op, shape = AVERAGES[name]
    everywhere_and_laid_out(op, points(*shape), "average_pool")


@pytest.mark.parametrize("name", MAXIMA)
def test_max_pool(name):
    op, shape = MAXIMA[name]
    everywhere_and_laid_out(op, points(*shape), "max_pool")


@pytest.mark.parametrize("name", ["2d", "2d-overlapping", "2d-padded", "2d-dilated", "3d-overlapping", "adaptive-2d"])
def test_ties_go_where_the_forward_found_its_maximum(name):
    op, shape = MAXIMA[name]
    x = points(*shape).round()
    everywhere(lambda x: op(x.clamp(-1, 1)), x, "max_pool")
    agree(lambda x: op(x * 0).sum() + (op(x) * x.sum()).sin(), x, rule="max_pool")


def test_without_a_batch():
    everywhere(lambda x: F.avg_pool2d(x, 2), points(3, 4, 6), "average_pool")
    everywhere(lambda x: F.avg_pool2d(x, 3, 1, 1), points(3, 4, 6), "average_pool")
    everywhere(lambda x: F.max_pool2d(x, 3, 2, 1), points(3, 4, 6), "max_pool")
    everywhere(lambda x: F.adaptive_avg_pool2d(x, 3), points(3, 4, 6), "average_pool")
    everywhere(lambda x: F.avg_pool3d(x, 2), points(3, 2, 4, 6), "average_pool")
    everywhere(lambda x: F.avg_pool3d(x, 2), channels_last(points(3, 2, 4, 6)), "average_pool")
    everywhere(lambda x: F.max_pool3d(x, 2, 1), points(3, 2, 4, 6), "max_pool")
    everywhere(lambda x: F.adaptive_max_pool3d(x, 2), points(3, 2, 4, 6), "max_pool")


def test_indices_that_are_used_have_no_derivative():
    def critic(x):
        largest, indices = F.max_pool2d(x.tanh(), 2, return_indices=True)
        return largest.sin() * indices.to(x.dtype)

    agree(critic, points(2, 3, 4, 4), rule="max_pool")


def test_other_pools_are_made_of_these_or_of_other_nodes():
    assert nodes_of(lambda x: F.adaptive_avg_pool2d(x, 1), points(2, 3, 4, 4)) == ["MeanBackward1"]
    assert "AvgPool2DBackward0" in nodes_of(lambda x: F.lp_pool2d(x, 2.0, 2), points(2, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_low_precision(dtype, layout):
    def make(dtype):
        scale = torch.linspace(-1, 1, 6, dtype=dtype).requires_grad_()

        def critic(x):
            x = channels_last(x) if layout == "channels_last" else x
            x = F.avg_pool2d((x * scale).tanh(), 2)
            return F.max_pool2d(F.avg_pool2d(x, 3, 1, 1).tanh(), 2, 1).flatten(1).sum(1)

        return critic, [scale]

    agree_low(make, points(3, 4, 6, 6), dtype)


@pytest.mark.parametrize("engine", ["tape", "autograd"])
@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
def test_an_input_written_since_is_an_error(pool, engine):
    def critic(x):
        x = x.tanh()
        y = pool(x, 2)
        x.mul_(2)
        return y.sum((1, 2, 3))

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gpfast.input_gradient_loss(critic, points(2, 3, 4, 4), lambda y, g: g.sum(), engine=engine)


def test_channels_last_stays_so():
    tiles = {"sum_tiles", "repeat_tiles"}
    windows = {"avg_pool2d", "avg_pool2d_backward"}
    stays_channels_last(lambda x: F.avg_pool2d(x, 2), points(2, 3, 4, 6), tiles)
    stays_channels_last(lambda x: F.adaptive_avg_pool2d(x, 2), points(2, 3, 4, 6), tiles)
    stays_channels_last(lambda x: F.avg_pool2d(x, 3, 2, 1), points(2, 3, 5, 6), windows)
    stays_channels_last(lambda x: F.max_pool2d(x, 3, 2, 1), points(2, 3, 5, 6), {"max_pool2d_with_indices_backward"})
    stays_channels_last(lambda x: F.adaptive_max_pool2d(x, 2), points(2, 3, 5, 6), {"adaptive_max_pool2d_backward"})


def test_a_sweep_is_one_operator():
    names = [name for name, _ in sweeps_of(lambda x: F.avg_pool2d(x, 2), points(2, 3, 4, 6))]
    assert names.count("repeat_tiles") == 2 and names.count("sum_tiles") == 1 and "clone" not in names


def test_what_is_kept_are_indices():
    x = points(2, 3, 4, 4).requires_grad_()
    y = F.max_pool2d(F.avg_pool2d((x * x), 2, 1), 2, 1).square()
    (g,), *_ = torch.ops.gpfast.input_gradient.default(y, [x], True, True, False)
    kept = {node: int(bytes) for node, *_, bytes in (line.split("\t") for line in torch.ops.gpfast.describe(g))}
    assert kept["AvgPool2DBackward0"] == 0 and kept["MaxPool2DWithIndicesBackward0"] == 2 * 3 * 2 * 2 * 8


def test_sweeps_may_run_twice():
    x = points(2, 3, 4, 4)
    point = x.clone().requires_grad_()
    y = F.max_pool2d(F.avg_pool2d((point * point), 2, 1), 2, 1).square()
    (g,), *_ = torch.ops.gpfast.input_gradient.default(y, [point], True, True, False)
    first, second = (torch.autograd.grad(g.pow(3).sum(), point, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second) and first.any()


PLANES = [(2, 3, 4, 6), (3, 4, 6), (1, 5, 2, 300), (2, 300, 4, 4), (0, 3, 4, 4)]
VOLUMES = [(2, 2, 4, 2, 6), (2, 4, 2, 6)]
TILES = [(s, t) for s in PLANES for t in [(1, 1), (2, 2), (1, 2), (2, 1), (2, 3), (4, 4)]]
TILES += [(s, t) for s in VOLUMES for t in [(2, 3, 2), (1, 1, 2), (1, 2, 2), (2, 1, 2)]]


def spread(x, tile, divisor):
    for i, n in enumerate(tile):
        x = x.repeat_interleave(n, x.ndim - len(tile) + i)
    return x / divisor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, tile", TILES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_tiles(shape, tile, dtype, last):
    small = points(*shape).to(dtype)
    if last and len(shape) == len(tile) + 2:
        small = channels_last(small)
    large = torch.ops.gpfast.repeat_tiles(small, tile, 3, last)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    torch.testing.assert_close(large.double(), spread(small.double(), tile, 3), **close)
    weights = points(*large.shape).to(dtype)
    sums = torch.ops.gpfast.sum_tiles(weights, tile, -2, last)
    leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(spread(leaf, tile, -2), leaf, weights.double())
    torch.testing.assert_close(
        sums.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps
    )
    for result in (large, sums):
        assert result.dtype == dtype
        assert not last or len(shape) < len(tile) + 2 or result.is_contiguous(memory_format=layout_of(result))


def layout_of(x):
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape, tile", [((2, 3, 4, 6), (2, 3)), ((2, 3, 4, 2, 6), (2, 1, 3)), ((3, 4, 6), (2, 2))], ids=str
)
def test_registration_of_tiles(shape, tile, last):
    for op in (torch.ops.gpfast.sum_tiles.default, torch.ops.gpfast.repeat_tiles.default):
        opcheck(op, (points(*shape), tile, 2, last), test_utils=("test_schema", "test_faketensor"))
        plain = op(points(*shape).to("meta"), tile, 2, last)
        assert plain.stride() == op(points(*shape), tile, 2, last).stride()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape, tile", [((2, 3, 4, 6), (2, 3)), ((2, 3, 4, 2, 6), (2, 1, 3)), ((3, 4, 6), (2, 2))], ids=str
)
def test_the_plain_formula_of_tiles(shape, tile, last):
    """What devices without a kernel run."""
    for op in (torch.ops.gpfast.sum_tiles.default, torch.ops.gpfast.repeat_tiles.default):
        composite = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
        plain = op.redispatch(composite, points(*shape), tile, 2, last)
        torch.testing.assert_close(plain, op(points(*shape), tile, 2, last))


def test_tiles_that_do_not_cover_are_an_error():
    with pytest.raises(RuntimeError, match="do not cover"):
        torch.ops.gpfast.sum_tiles(points(2, 3, 5, 4), (2, 2), 1, False)
