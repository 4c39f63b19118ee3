"""The interpolation: value, derivatives of first and second order, registration, layouts, sharp points."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gpfast

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1, 1), (2, 2), (3, 7), (1, 127), (5, 128), (2, 1021), (3, 1024), (2, 1025), (4, 3, 5, 7), (7,), (2, 3, 33)]


def named(shape):
    return "x".join(map(str, shape))


def tolerance(dtype):
    """One rounding of the result, and in float64 a few of the arithmetic."""
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).tiny}


def oracle(real, fake, alpha):
    real, fake, alpha = real.double(), fake.double(), torch.as_tensor(alpha).double()
    alpha = alpha.reshape(-1, *[1] * (real.ndim - 1)) if alpha.ndim == 1 else alpha
    return alpha * real + (1 - alpha) * fake


def sample(shape, dtype, generator, device="cpu"):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


@pytest.mark.parametrize("per_sample", [True, False], ids=["per-sample", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_value(ends, shape, dtype, per_sample, generator):
    real, fake = (sample(shape, dtype, generator, ends.device) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.rand(shape[:1] if per_sample else (), generator=generator, dtype=wide).to(ends.device)
    out = ends.interpolate(real, fake, alpha)
    assert out.dtype == dtype and out.shape == real.shape
    # Cancellation of the two products is bounded by their size, so the comparison is with that, not with the result.
    scale = oracle(real.abs(), fake.abs(), alpha)
    assert ((out.double() - oracle(real, fake, alpha)).abs() <= 2 * torch.finfo(dtype).eps * scale + 1e-37).all()


@pytest.mark.parametrize(
    "pair", [(torch.float32, torch.float16), (torch.bfloat16, torch.float64), (torch.float16, torch.bfloat16)], ids=str
)
def test_dtypes_are_promoted_as_pytorch_does(ends, pair, generator):
    real, fake = sample((3, 37), pair[0], generator, ends.device), sample((3, 37), pair[1], generator, ends.device)
    out = ends.interpolate(real, fake, torch.tensor([0.25, 0.5, 1.0], device=ends.device))
    assert out.dtype == torch.promote_types(*pair)
    expected = oracle(real, fake, torch.tensor([0.25, 0.5, 1.0], device=ends.device))
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 7), (5, 1000), (2, 4097)], ids=named)
def test_bits_are_those_of_the_eager_formula(ends, shape, dtype, generator):
    """A point that differs in its last bit can flip the sign of an activation, and with it a whole gradient."""
    real, fake = (sample(shape, dtype, generator, ends.device) for _ in range(2))
    alpha = torch.rand(shape[:1], generator=generator, dtype=dtype).to(ends.device)
    eager = alpha[:, None] * real + (1 - alpha[:, None]) * fake
    assert torch.equal(ends.interpolate(real, fake, alpha), eager)


def test_ends_of_the_line_are_exact(ends, generator):
    real, fake = (sample((4, 50), torch.float32, generator, ends.device) for _ in range(2))
    alpha = torch.tensor([0.0, 1.0, 0.0, 1.0], device=ends.device)
    out = ends.interpolate(real, fake, alpha)
    assert torch.equal(out[1::2], real[1::2]) and torch.equal(out[::2], fake[::2])


def test_nan_and_inf_pass_as_in_the_formula(ends):
    special = [math.nan, math.inf, -math.inf, 1.0]
    real, fake = torch.meshgrid(torch.tensor(special), torch.tensor(special), indexing="ij")
    real, fake = real.contiguous().to(ends.device), fake.contiguous().to(ends.device)
    for alpha in (0.0, 0.25, 1.0):
        a = torch.tensor(alpha, device=ends.device)
        torch.testing.assert_close(ends.interpolate(real, fake, a), a * real + (1 - a) * fake, equal_nan=True)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 1, 5), (2, 1, 4, 4)], ids=named)
def test_channels_last_is_kept(ends, shape, generator):
    real, fake = (sample(shape, torch.float32, generator, ends.device) for _ in range(2))
    alpha = torch.rand(shape[0], generator=generator).to(ends.device)
    last = {"memory_format": torch.channels_last}
    out = ends.interpolate(real.contiguous(**last), fake.contiguous(**last), alpha)
    assert out.is_contiguous(**last)
    assert torch.equal(out, ends.interpolate(real, fake, alpha))


def views(x):
    """The same values in other layouts: transposed, a slice with gaps, expanded, at an odd offset."""
    odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    gaps = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    gaps[..., ::2] = x
    return {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "gaps": gaps[..., ::2],
        "odd offset": odd,
        "expanded": x[:1].expand_as(x),
    }


@pytest.mark.parametrize("layout", ["transposed", "gaps", "odd offset", "expanded"])
def test_any_layout(layout, generator):
    real, fake = views(sample((3, 4, 5), torch.float32, generator))[layout], sample((3, 4, 5), torch.float32, generator)
    alpha = torch.rand(3, generator=generator)
    for a, b in ((real, fake), (fake, real), (real, real)):
        torch.testing.assert_close(gpfast.interpolate(a, b, alpha), oracle(a, b, alpha).float())


@pytest.mark.parametrize("shape", [(3,), (), (3, 1, 1), (1, 1, 1), (1, 4, 1), (3, 4, 5)], ids=named)
def test_alpha_of_every_shape(shape, generator):
    real, fake = (sample((3, 4, 5), torch.float64, generator) for _ in range(2))
    alpha = torch.rand(shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(gpfast.interpolate(real, fake, alpha), oracle(real, fake, alpha))
    assert gpfast.interpolate(real, fake, 0.25).equal(gpfast.interpolate(real, fake, torch.tensor(0.25)))


def test_alpha_of_data_with_one_dimension_is_per_sample(generator):
    real, fake, alpha = (torch.rand(4, generator=generator) for _ in range(3))
    torch.testing.assert_close(gpfast.interpolate(real, fake, alpha), alpha * real + (1 - alpha) * fake)


@pytest.mark.parametrize("alpha", [(3,), (), (3, 1, 1), (1, 4, 1)], ids=named)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_derivatives(check, alpha, generator):
    real, fake = (sample((3, 4, 2), torch.float64, generator).requires_grad_() for _ in range(2))
    alpha = torch.rand(alpha, generator=generator, dtype=torch.float64).requires_grad_()
    assert check(gpfast.interpolate, (real, fake, alpha))
    assert check(lambda r, f: gpfast.interpolate(r, f, 0.3), (real.detach().mT.contiguous().mT.requires_grad_(), fake))


def test_gradients_keep_the_dtypes_of_the_ends(generator):
    real = sample((3, 4), torch.float16, generator).requires_grad_()
    fake = sample((3, 4), torch.float32, generator).requires_grad_()
    gpfast.interpolate(real, fake, torch.rand(3, generator=generator)).sum().backward()
    assert real.grad.dtype == torch.float16 and fake.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck, from 2.14 on
@pytest.mark.parametrize("alpha", [(3,), ()], ids=named)
@pytest.mark.parametrize("grad", [True, False])
def test_registration(alpha, grad, generator):
    real, fake = (sample((3, 4, 2), torch.float64, generator).requires_grad_(grad) for _ in range(2))
    alpha = torch.rand(alpha, generator=generator, dtype=torch.float64).requires_grad_(grad)
    opcheck(torch.ops.gpfast.interpolate.default, (real, fake, alpha))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"`real` and `fake` must have the same shape.*\(2, 3\) and \(2, 4\)"):
        gpfast.interpolate(torch.zeros(2, 3), torch.zeros(2, 4), 0.5)
    with pytest.raises(ValueError, match=r"`alpha` of one dimension.*must be the batch, 2; got 3"):
        gpfast.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize(
    ("real", "fake", "alpha", "kind", "words"),
    [
        (torch.ones(2, 3).long(), torch.ones(2, 3), 0.5, TypeError, "`real` must be floating point"),
        (torch.ones(2, 3), torch.ones(2, 3).bool(), 0.5, TypeError, "`fake` must be floating point"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), 0.5, ValueError, "`fake` is on meta but `real` is on cpu"),
        ((torch.ones(2, 3),), torch.ones(2, 3), 0.5, TypeError, "`real` must be a tensor; got tuple"),
        (torch.ones(2, 3), torch.ones(2, 3), "0.5", TypeError, "`alpha` must be a number or a tensor; got str"),
        (
            torch.ones(2, 3),
            torch.ones(2, 3),
            torch.ones(2).long(),
            TypeError,
            "`alpha` must be a floating-point tensor",
        ),
        (torch.tensor(1.0), torch.tensor(1.0), 0.5, ValueError, "`real` must have a batch dimension"),
    ],
)
def test_input_that_cannot_be_meant_is_refused(real, fake, alpha, kind, words):
    with pytest.raises(kind, match=words):
        gpfast.interpolate(real, fake, alpha)


def test_no_rows(ends):
    out = ends.interpolate(
        torch.ones(0, 3, device=ends.device), torch.ones(0, 3, device=ends.device), torch.ones(0, device=ends.device)
    )
    assert out.shape == (0, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch.func.jvp
def test_forward_mode_and_torch_func(generator):
    real, fake, tangent = (sample((3, 4), torch.float64, generator) for _ in range(3))
    alpha = torch.rand(3, generator=generator, dtype=torch.float64)
    for mix in (lambda r: gpfast.interpolate(r, fake, alpha), lambda r: torch.ops.gpfast.interpolate(r, fake, alpha)):
        value, slope = torch.func.jvp(mix, (real,), (tangent,))
        torch.testing.assert_close(value, oracle(real, fake, alpha))
        torch.testing.assert_close(slope, alpha[:, None] * tangent)
    slope = torch.func.grad(lambda r: gpfast.interpolate(r, fake, alpha).sum())(real)
    torch.testing.assert_close(slope, alpha[:, None].expand_as(real))
