"""The compiled PTX executed against the reference: odd lengths, sharp values, unaligned pointers, and bytes moved.

The emulator also faults on accesses out of bounds or misaligned, on races, and on barriers that not every thread meets.
"""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from gpfast.kernels import launch  # noqa: E402
from gpfast.kernels.gradient_norm import gradient_norm, gradient_norm_seed  # noqa: E402
from gpfast.kernels.interpolate import interpolate  # noqa: E402

from gpfast import reference  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FORMS = {"two-sided": (1.0, False), "one-sided": (1.0, True), "zero": (0.0, False)}
# One shape a way to cover (rows, cols), lengths odd and even; rows of 1001 elements are also cut, see `short_chunks`.
SHAPES = {
    "tile of single elements": (600, 1),
    "tile": (37, 3),
    "tile of vectors": (9, 64),
    "widest tile": (5, launch.TILE_COLUMNS - 1),
    "shortest row": (3, launch.TILE_COLUMNS + 1),
    "row": (3, 1001),
    "row of vectors": (2, 1024),
    "longest row": (1, launch.ROW_COLUMNS - 3),
    "split": (2, launch.ROW_COLUMNS + 1),
}


def sample(shape, dtype, seed=0):
    """Rows whose norms lie around 1."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x / max(1, x[0].numel()) ** 0.5).to(dtype)


def oracle(gradient, center, one_sided, eps, reduction):
    """(value, norms, seed) of the reference in float64; the seed is what autograd gives for the sum of the value."""
    g = gradient.double().clone().requires_grad_()
    value, stats = reference.penalty(
        [g], weight=1.0, center=center, one_sided=one_sided, norm_dims=(1,), eps=eps, mask=None, reduction=reduction,
        return_stats=True,
    )  # fmt: skip
    (seed,) = torch.autograd.grad(value.sum(), g)
    return value.detach(), stats.norms, seed


def check(emulator, gradient, center, one_sided, eps, reduction, target="sm_90"):
    """Value, norms and both seeds; the tolerance is that of a sum in the accumulator, and one rounding to the dtype."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    sums, rounding = 16 * torch.finfo(wide).eps, torch.finfo(gradient.dtype).eps
    value, norms, seed = oracle(gradient, center, one_sided, eps, reduction)
    options = center, one_sided
    with emulator.running(target):
        found = gradient_norm(gradient, 1, *options, eps, reduction, True)
        unseeded = gradient_norm(gradient, 1, *options, eps, reduction, False)
        scale = 1 / len(gradient) if reduction == "mean" else 1.0
        cotangent = torch.full((len(gradient),), 0.5, dtype=wide)
        halves = gradient_norm_seed(gradient, found[1], cotangent, 1, *options, scale)
        again = gradient_norm_seed(gradient, found[1], torch.ones((), dtype=wide), 1, *options, scale)
    # n - c cancels, so (n - c)^2 and (n - c)/n are compared at the scale of n and c.
    slack = sums * (1 + float(norms.nan_to_num(0, 0, 0).max()) ** 2)
    close(found[1], norms, rtol=sums, atol=0)
    close(found[0], value, rtol=sums, atol=slack * (len(gradient) if reduction == "sum" else 1))
    largest = float(gradient.double().nan_to_num(0, 0, 0).abs().max())
    close(found[2], seed, rtol=rounding, atol=slack * largest + torch.finfo(gradient.dtype).tiny)
    assert unseeded[2].numel() == 0
    close(unseeded[1], found[1], rtol=sums, atol=0)
    close(unseeded[0], found[0], rtol=sums, atol=slack * len(gradient))
    close(halves, found[2] / 2, rtol=rounding + sums, atol=torch.finfo(gradient.dtype).tiny)
    close(again, found[2], rtol=rounding + sums, atol=torch.finfo(gradient.dtype).tiny)
    return found


def close(found, expected, rtol, atol):
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture
def short_chunks(monkeypatch):
    """Rows of 200 elements and more are split; those of over 512 in chunks of several blocks."""
    monkeypatch.setattr(launch, "ROW_COLUMNS", 200)
    monkeypatch.setattr(launch, "SPLIT_BYTES", 512)
    monkeypatch.setattr(launch, "SPLITS", 4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_norm_at_every_length(emulator, shape):
    gradient = sample(shape, torch.float32)
    _, norms, _ = check(emulator, gradient, 1.0, False, 1e-12, "mean")
    with emulator.running():
        _, unseeded, _ = gradient_norm(gradient, 1, 1.0, False, 1e-12, "mean", False)
    assert torch.equal(unseeded, norms)  # the same bits, whether or not the seed is asked for


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 3), (3, 301)], ids=str)
def test_gradient_norm_in_every_dtype(emulator, shape, dtype):
    check(emulator, sample(shape, dtype), 1.0, False, 1e-12, "sum")


@pytest.mark.parametrize("cols", [201, 257, 512, 1001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_norm_in_chunks(emulator, short_chunks, dtype, cols):
    assert launch.gradient_norm_plan(cols, 4).kind == "split"
    check(emulator, sample((3, cols), dtype), 0.9, True, 1e-6, "none")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cols", [3, 150, 301])
def test_sharp_values(emulator, short_chunks, form, cols):
    """A row of zeros, one with NaN, two with inf, one below the center, one of large and small numbers; eps = 0."""
    g = sample((6, cols), torch.float32)
    g[0] = 0
    g[1, cols // 2] = torch.nan
    g[2, -1] = torch.inf
    g[3, 0] = -torch.inf
    g[4] /= 100
    g[5, 1::2] *= 1e10
    value, norms, seed = check(emulator, g, *FORMS[form], 0.0, "none")
    assert (seed[0] == 0).all() and norms[1].isnan() and value[1].isnan()
    assert seed[1].isnan().sum() == (1 if form == "zero" else cols)
    if form == "one-sided":
        assert (seed[4] == 0).all() and value[4] == 0


def test_squares_that_underflow_leave_a_zero_norm(emulator):
    g = torch.full((2, 301), 1e-30)
    with emulator.running():
        value, norms, seed = gradient_norm(g, 1, 1.0, False, 0.0, "none", True)
    assert (norms == 0).all() and (value == 1).all() and (seed == 0).all()


def test_eps_keeps_its_digits_in_float64(emulator):
    g = torch.zeros(2, 3, dtype=torch.float64)
    with emulator.running():
        _, norms, _ = gradient_norm(g, 1, 1.0, False, 1e-12, "mean", False)
    assert (norms == torch.tensor(1e-12, dtype=torch.float64).sqrt()).all()


@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_other_architectures(emulator, target):
    check(emulator, sample((3, 301), torch.float32), 1.0, False, 1e-12, "mean", target)


@pytest.mark.parametrize("cols", [3, 301, 1001])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_unaligned_pointers(emulator, monkeypatch, dtype, cols):
    """A slice that starts one element after an aligned address."""
    monkeypatch.setattr(launch, "ROW_COLUMNS", 500)
    monkeypatch.setattr(launch, "SPLIT_BYTES", 1024)
    rows = 3
    g = sample((rows * cols + 1, 1), dtype)[1:].view(rows, cols)
    check(emulator, g, 1.0, False, 1e-12, "mean")
    check_interpolation(emulator, g, sample((rows * cols + 1, 1), dtype, 1)[1:].view(rows, cols), torch.rand(rows))


def check_interpolation(emulator, real, fake, alpha):
    with emulator.running():
        out = interpolate(real, fake, alpha)
    assert out.dtype == torch.promote_types(real.dtype, fake.dtype) and out.stride() == real.stride()
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    a = alpha.to(wide).double()
    a = a.reshape(-1, *[1] * (real.dim() - 1)) if a.dim() else a
    expected = a * real.double() + (1 - a) * fake.double()
    size = float((a * real.double()).nan_to_num(0, 0, 0).abs().max() + fake.double().nan_to_num(0, 0, 0).abs().max())
    rounding = torch.finfo(out.dtype).eps
    close(out, expected, rtol=rounding, atol=2 * torch.finfo(wide).eps * size + torch.finfo(out.dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(700, 3), (5, 1001), (3, 2053)], ids=str)
def test_interpolate(emulator, shape, dtype):
    real, fake = sample(shape, dtype), sample(shape, dtype, 1)
    check_interpolation(emulator, real, fake, torch.rand(shape[0]))
    check_interpolation(emulator, real, fake, torch.rand((), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_interpolate_has_the_bits_of_the_eager_formula(emulator, dtype):
    real, fake, alpha = sample((5, 1001), dtype), sample((5, 1001), dtype, 1), torch.rand(5, 1, dtype=dtype)
    with emulator.running():
        out = interpolate(real, fake, alpha[:, 0])
    assert torch.equal(out, alpha * real + (1 - alpha) * fake)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (2, 1), (3, 2), (1, 3)], ids=str)
def test_interpolate_mixed_dtypes(emulator, pair):
    first, second = (DTYPES[i] for i in pair)
    check_interpolation(emulator, sample((3, 1001), first), sample((3, 1001), second, 1), torch.rand(3))


def test_interpolate_passes_nan_and_inf(emulator):
    real, fake = sample((4, 37), torch.float32), sample((4, 37), torch.float32, 1)
    real[0, 3], fake[1, 5], real[2, 7], fake[3, 36] = torch.nan, torch.nan, torch.inf, -torch.inf
    real[3, 0] = torch.inf
    check_interpolation(emulator, real, fake, torch.tensor([0.3, 1.0, 0.0, 1.0]))


def test_interpolate_channels_last(emulator):
    real, fake = (sample((3, 5 * 7 * 9), torch.float32, i).view(3, 5, 7, 9) for i in (0, 1))
    real, fake = (x.contiguous(memory_format=torch.channels_last) for x in (real, fake))
    check_interpolation(emulator, real, fake, torch.rand(3))
