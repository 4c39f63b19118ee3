"""Resampling on the tape: filters, padding, shuffling, sampling on a grid, windows."""

import math

import pytest
import torch
from map_checks import everywhere, everywhere_and_laid_out, points, stays_channels_last, sweeps_of
from second_derivatives import needs_that_of_grid_sample
from tape_checks import LOSSES, agree, agree_low, autograd_gradients, tape_gradients
from torch.nn import functional as F

from gpfast import _extension

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")

LINE, PLANE, VOLUME = (2, 3, 5), (2, 3, 4, 5), (2, 2, 3, 3, 4)


def resized(mode, shape, **options):
    return lambda x: F.interpolate(x, mode=mode, **options), shape


FILTERS = {
    "nearest-1d": resized("nearest", LINE, scale_factor=2),
    "nearest-1d-7": resized("nearest", LINE, size=7),
    "nearest-2d": resized("nearest", PLANE, scale_factor=2),
    "nearest-2d-size": resized("nearest", PLANE, size=(8, 20)),
    "nearest-2d-3": resized("nearest", PLANE, scale_factor=3),
    "nearest-2d-down": resized("nearest", PLANE, scale_factor=0.5),
    "nearest-2d-uneven": resized("nearest", PLANE, size=(7, 3)),
    "nearest-2d-same": resized("nearest", PLANE, size=(4, 5)),
    # Twice the size, but sources that are placed by another scale.
    "nearest-2d-scale": resized("nearest", PLANE, scale_factor=(2.2, 2.1), recompute_scale_factor=False),
    "nearest-3d": resized("nearest", VOLUME, scale_factor=(2, 1, 2)),
    "nearest-3d-uneven": resized("nearest", VOLUME, size=(4, 5, 3)),
    "exact-1d": resized("nearest-exact", LINE, scale_factor=4),
    "exact-1d-7": resized("nearest-exact", LINE, size=7),
    "exact-2d": resized("nearest-exact", PLANE, scale_factor=2),
    "exact-2d-uneven": resized("nearest-exact", PLANE, size=(7, 3)),
    "exact-3d": resized("nearest-exact", VOLUME, scale_factor=2),
    "exact-3d-uneven": resized("nearest-exact", VOLUME, size=(4, 5, 3)),
    "linear-1d": resized("linear", LINE, scale_factor=1.7),
    "linear-1d-corners": resized("linear", LINE, size=8, align_corners=True),
    "bilinear": resized("bilinear", PLANE, scale_factor=2),
    "bilinear-corners": resized("bilinear", PLANE, size=(7, 3), align_corners=True),
    "bilinear-scale": resized("bilinear", PLANE, scale_factor=(1.6, 0.7)),
    "bilinear-antialias": resized("bilinear", PLANE, size=(3, 2), antialias=True),
    "bicubic": resized("bicubic", PLANE, scale_factor=1.5),
    "bicubic-corners": resized("bicubic", PLANE, size=(7, 3), align_corners=True),
    "bicubic-antialias": resized("bicubic", PLANE, scale_factor=(0.5, 0.7), antialias=True),
    "trilinear": resized("trilinear", VOLUME, scale_factor=(2, 1.5, 0.8)),
    "trilinear-corners": resized("trilinear", VOLUME, size=(4, 3, 5), align_corners=True),
}


@pytest.mark.parametrize("name", FILTERS)
def test_upsample(name):
    op, shape = FILTERS[name]
    everywhere_and_laid_out(op, points(*shape), "upsample")


def test_area_is_a_pool():
    everywhere(lambda x: F.interpolate(x, size=(2, 3), mode="area"), points(*PLANE), "average_pool")


@pytest.mark.parametrize("mode, rule", [("reflect", "pad"), ("replicate", "pad"), ("circular", None)])
@pytest.mark.parametrize(
    "shape, padding",
    [(LINE, (2, 1)), ((3, 5), (0, 3)), (PLANE, (1, 2, 0, 3)), ((3, 4, 5), (2, 1, 1, 1)), (VOLUME, (1, 2, 0, 1, 2, 1))],
    ids=str,
)
def test_pad(mode, rule, shape, padding):
    everywhere_and_laid_out(lambda x: F.pad(x, padding, mode=mode), points(*shape), rule)


def test_pad_that_crops():
    everywhere(lambda x: F.pad(x, (1, -1, -2, 3), mode="replicate"), points(*PLANE), "pad")


@pytest.mark.parametrize("shape", [(2, 8, 3, 2), (2, 4, 1, 5)], ids=str)
def test_pixel_shuffle(shape):
    everywhere_and_laid_out(lambda x: F.pixel_shuffle(x, 2), points(*shape), "pixel_shuffle")


def test_pixel_unshuffle():
    everywhere_and_laid_out(lambda x: F.pixel_unshuffle(x, 2), points(2, 3, 4, 6), "pixel_unshuffle")
    everywhere(lambda x: F.pixel_unshuffle(x, 3), points(2, 3, 6), "pixel_unshuffle")


@pytest.mark.parametrize("shape", [(2, 6, 2, 3), (2, 6, 4)], ids=str)
def test_channel_shuffle(shape):
    for groups in (2, 3, 6):
        everywhere(lambda x, groups=groups: F.channel_shuffle(x, groups), points(*shape), "channel_shuffle")


def grid(*shape):
    return points(*shape).tanh() * 1.3


@needs_that_of_grid_sample
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode, padding, corners):
    places = grid(2, 3, 4, 2)

    def op(x):
        return F.grid_sample(x, places[: len(x)], mode, padding, corners)

    everywhere_and_laid_out(op, points(*PLANE), "grid_sample")


@needs_that_of_grid_sample
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_grid_sample_of_a_volume(mode):
    places = grid(2, 3, 2, 4, 3)
    everywhere(lambda x: F.grid_sample(x, places, mode, align_corners=False), points(*VOLUME), "grid_sample")


PLACES = [(PLANE, mode) for mode in ("bilinear", "nearest", "bicubic")] + [
    (VOLUME, mode) for mode in ("bilinear", "nearest")
]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("shape, mode", PLACES, ids=str)
def test_grid_sample_is_a_matrix(shape, mode, padding, corners):
    """Its gradients are those of a product with that matrix, whatever PyTorch can differentiate."""
    places = grid(shape[0], 3, *shape[2:-1], len(shape) - 2)
    basis = torch.eye(math.prod(shape[1:]), dtype=torch.float64).unflatten(1, shape[1:])

    def sampled(x):
        return F.grid_sample(x, places, mode, padding, corners).flatten(1)

    def by_matrix(x):
        columns = [F.grid_sample(basis, one.expand(len(basis), *one.shape), mode, padding, corners) for one in places]
        return torch.einsum("ni,nio->no", x.flatten(1), torch.stack(columns).flatten(2))

    scale = torch.linspace(0.5, 1.5, shape[-1], dtype=torch.float64).requires_grad_()
    for loss in LOSSES:
        ours, theirs = (lambda x, op=op: op((scale * x).tanh()).tanh() * scale.sum() for op in (sampled, by_matrix))
        value, gradients, steps = tape_gradients(ours, points(*shape), [scale], loss)
        assert "grid_sample" in [rule for _, rule, *_ in steps], steps
        expected = autograd_gradients(theirs, points(*shape), [scale], loss)
        torch.testing.assert_close((value, gradients), expected, rtol=1e-10, atol=1e-11)


@needs_that_of_grid_sample
def test_a_grid_that_depends_on_the_points_or_is_learned_runs_alone():
    node, image, places = "GridSampler2DBackward0", points(*PLANE), grid(2, 3, 4, 2)
    agree(lambda x: F.grid_sample(image, x, align_corners=False).sin(), places, alone=node)
    agree(lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False).sin(), image, alone=node)
    theta = points(2, 2, 3).requires_grad_()

    def transformed(x):
        return F.grid_sample(x.tanh(), F.affine_grid(theta, x.shape, align_corners=False), align_corners=False).tanh()

    agree(transformed, image, [theta], alone=node)
    agree(transformed, image, [theta.requires_grad_(False)], rule="grid_sample")


WINDOWS = [
    {"kernel_size": 2},
    {"kernel_size": (3, 2), "padding": 1, "stride": (2, 1)},
    {"kernel_size": 2, "dilation": (2, 1), "padding": (1, 0)},
]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_unfold(windows):
    everywhere(lambda x: F.unfold(x, **windows), points(*PLANE), "unfold")
    everywhere(lambda x: F.unfold(x, **windows), points(*PLANE[1:]), "unfold")


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_fold(windows):
    columns = F.unfold(points(*PLANE), **windows)
    everywhere(lambda x: F.fold(x, PLANE[2:], **windows), columns, "fold")
    everywhere(lambda x: F.fold(x, PLANE[2:], **windows), columns[0], "fold")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_low_precision(dtype, mode):
    def make(dtype):
        scale = torch.linspace(-1, 1, 5, dtype=dtype).requires_grad_()

        def critic(x):
            x = F.pad((x * scale).tanh(), (1, 1, 1, 1), mode="reflect")
            return F.pixel_unshuffle(F.interpolate(x, scale_factor=2, mode=mode), 2).tanh().flatten(1).sum(1)

        return critic, [scale]

    agree_low(make, points(*PLANE), dtype)


def test_channels_last_stays_so():
    x = points(2, 4, 4, 6)
    stays_channels_last(lambda x: F.interpolate(x, scale_factor=2), x, {"sum_tiles", "repeat_tiles"})
    stays_channels_last(lambda x: F.interpolate(x, size=7), x, {"upsample_nearest2d", "upsample_nearest2d_backward"})
    bilinear = {"upsample_bilinear2d", "upsample_bilinear2d_backward"}
    stays_channels_last(lambda x: F.interpolate(x, size=7, mode="bilinear"), x, bilinear)
    for mode, name in {"reflect": "reflection_pad2d", "replicate": "replication_pad2d"}.items():
        stays_channels_last(lambda x, mode=mode: F.pad(x, (1, 1, 2, 0), mode=mode), x, {name, f"{name}_backward"})
    stays_channels_last(lambda x: F.pixel_unshuffle(x, 2), x, {"pixel_unshuffle", "pixel_shuffle"})


def test_a_sweep_is_one_operator():
    for mode, names in {"nearest": {"repeat_tiles", "sum_tiles"}, "bicubic": {"upsample_bicubic2d"}}.items():
        ran = [
            name
            for name, _ in sweeps_of(lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), points(*PLANE))
        ]
        assert names <= set(ran) and "clone" not in ran
