"""The norms, their penalty and its seed: value, derivatives of first and second order, registration, sharp points."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gpfast
from gpfast import reference
from gpfast.layout import dense_rows, rows_are_dense

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1, 1), (2, 2), (37, 3), (5, 64), (3, 127), (2, 129), (3, 1000), (2, 1025), (2, 3, 5, 7), (6,), (2, 17001)]
FORMS = {
    "two-sided": (1.0, False),
    "one-sided": (0.9, True),
    "zero": (0.0, False),
    "zero one-sided": (0.0, True),
    "other": (2.5, False),
}


def named(shape):
    return "x".join(map(str, shape))


def sample(shape, dtype, generator, device="cpu"):
    """Rows whose norms lie around 1."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    width = max(1, math.prod(shape[1:]))
    return (x / width**0.5).to(dtype).to(device)


def oracle(gradient, keep, center, one_sided, eps, reduction):
    """(value, norms, seed) by the eager lines in float64; the seed is what autograd gives for the sum of the value."""
    g = gradient.detach().double().cpu().requires_grad_()
    dims = tuple(range(keep, g.ndim)) if keep else "batch"
    if keep == g.ndim:
        value, stats = reference.penalty(
            [g[..., None]],
            weight=1.0,
            center=center,
            one_sided=one_sided,
            norm_dims=(g.ndim,),
            eps=eps,
            mask=None,
            reduction=reduction,
            return_stats=True,
        )
    else:
        value, stats = reference.penalty(
            [g],
            weight=1.0,
            center=center,
            one_sided=one_sided,
            norm_dims=dims,
            eps=eps,
            mask=None,
            reduction=reduction,
            return_stats=True,
        )
    (seed,) = torch.autograd.grad(value.sum(), g)
    return value.detach(), stats.norms, seed


def check(ends, gradient, keep, center, one_sided, eps, reduction):
    eps_of = torch.finfo(gradient.dtype).eps
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    sums = 16 * torch.finfo(wide).eps  # roundings of a pairwise or laned sum, in the dtype of the sum
    expected = oracle(gradient, keep, center, one_sided, eps, reduction)
    value, norms, seed = ends.gradient_norm(gradient, keep, center, one_sided, eps, reduction, True)
    assert value.dtype == norms.dtype == wide and seed.dtype == gradient.dtype and seed.stride() == gradient.stride()
    assert norms.shape == gradient.shape[:keep]
    torch.testing.assert_close(norms.double().cpu(), expected[1], rtol=sums, atol=0)
    # (n - c)^2 and (n - c) / n lose what n - c cancels, so both are compared at the scale of n and c.
    scale = float((expected[1].max() + center) ** 2)
    torch.testing.assert_close(
        value.double().cpu(),
        expected[0],
        rtol=sums,
        atol=4 * sums * scale * (norms.numel() if reduction == "sum" else 1),
    )
    size = expected[2].abs().max() + center * gradient.abs().max().double().cpu() / norms.min().double().cpu()
    torch.testing.assert_close(
        seed.double().cpu(), expected[2], rtol=eps_of, atol=float(8 * sums * size) + torch.finfo(gradient.dtype).tiny
    )
    again = ends.gradient_norm(gradient, keep, center, one_sided, eps, reduction, False)
    assert torch.equal(again[0], value) and torch.equal(again[1], norms) and again[2].numel() == 0
    cotangent = torch.rand(norms.shape if reduction == "none" else (), dtype=wide).to(ends.device)
    out = ends.gradient_norm_seed(
        gradient, norms, cotangent, keep, center, one_sided, 1 / norms.numel() if reduction == "mean" else 1.0
    )
    by_row = cotangent.reshape(*cotangent.shape, *[1] * (gradient.ndim - cotangent.ndim))
    torch.testing.assert_close(
        out.double(),
        by_row.double() * seed.double(),
        rtol=2 * eps_of,
        atol=float(8 * sums * size) + torch.finfo(gradient.dtype).tiny,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_value_and_seed(ends, shape, dtype, generator):
    check(ends, sample(shape, dtype, generator, ends.device), 1, 1.0, False, 1e-12, "mean")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 7), (3, 129), (3, 16500)], ids=named)
def test_forms(ends, shape, form, reduction, generator):
    check(ends, sample(shape, torch.float32, generator, ends.device), 1, *FORMS[form], 1e-12, reduction)


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_rows_of_any_dimensions(ends, keep, generator):
    check(ends, sample((2, 3, 5), torch.float64, generator, ends.device), keep, 1.0, False, 1e-3, "none")


@pytest.mark.parametrize("width", [33, 200])
def test_channels_last_gives_the_norm_and_keeps_the_layout(ends, width, generator):
    x = sample((2, 3, 5, width), torch.float32, generator, ends.device).contiguous(memory_format=torch.channels_last)
    check(ends, x, 1, 1.0, False, 1e-12, "mean")


def test_unaligned_memory(ends, generator):
    for shape in ((3, 100), (2, 1111)):
        x = sample(shape, torch.float32, generator, ends.device)
        odd = torch.empty(x.numel() + 1, device=ends.device)[1:].view(shape).copy_(x)
        for a, b in zip(
            ends.gradient_norm(odd, 1, 1.0, False, 1e-12, "mean", True),
            ends.gradient_norm(x, 1, 1.0, False, 1e-12, "mean", True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_the_same_bits_in_every_run_and_for_any_number_of_threads(ends, generator):
    x = sample((3, 20000), torch.float32, generator, ends.device)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ends.gradient_norm(x, 1, 1.0, False, 1e-12, "mean", True))
    finally:
        torch.set_num_threads(threads)
    if ends.name != "pytorch":  # ATen's own sums depend on the number of threads
        assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3])
@pytest.mark.parametrize("form", FORMS)
def test_zero_gradient_has_a_finite_value_and_a_zero_seed(ends, form, eps):
    center, one_sided = FORMS[form]
    for shape in ((2, 5), (2, 300), (2, 16500)):
        x = torch.zeros(shape, device=ends.device)
        x[1] = 0.1
        value, norms, seed = ends.gradient_norm(x, 1, center, one_sided, eps, "none", True)
        n = math.sqrt(eps)
        expected = eps if center == 0 else max(0.0, n - center) ** 2 if one_sided else (n - center) ** 2
        assert value[0].item() == pytest.approx(expected) and norms[0].item() == pytest.approx(n)
        assert (
            (seed[0] == 0).all()
            and seed.isfinite().all()
            and seed[1].any() == (center == 0 or not one_sided or norms[1] > center)
        )
        again = ends.gradient_norm_seed(x, norms, torch.ones(2, device=ends.device), 1, center, one_sided, 1.0)
        assert (again[0] == 0).all() and again.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 5), (3, 300), (3, 16500)], ids=named)
def test_nan_and_inf_pass(ends, form, shape):
    center, one_sided = FORMS[form]
    x = torch.full(shape, 0.3, device=ends.device)
    x[0, 1], x[1, 2] = math.nan, math.inf
    value, norms, seed = ends.gradient_norm(x, 1, center, one_sided, 1e-12, "none", True)
    expected = oracle(x, 1, center, one_sided, 1e-12, "none")
    torch.testing.assert_close(value.double().cpu(), expected[0], equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norms.double().cpu(), expected[1], equal_nan=True, rtol=1e-5, atol=1e-6)
    assert value[0].isnan() and norms[0].isnan() and value[1].isinf()
    assert seed[0, 1].isnan() and seed[2].isfinite().all() and seed[0].isnan().all() == (center != 0)
    assert ends.gradient_norm(x, 1, center, one_sided, 1e-12, "mean", False)[0].isnan()


def test_huge_and_denormal(ends):
    x = torch.tensor([[1e30] * 5, [1e-30] * 5, [1e-42] * 5], device=ends.device)
    for center in (0.0, 1.0):
        value, norms, seed = ends.gradient_norm(x, 1, center, False, 0.0, "none", True)
        assert value[0].isinf() and norms[0].isinf()
        assert (norms[1:] == 0).all() and (value[1:] == center).all()  # their squares are below the least float32
        assert seed[1:].isfinite().all()
    wide = ends.gradient_norm(x.double(), 1, 1.0, False, 0.0, "none", True)
    assert all(t.isfinite().all() for t in wide)
    torch.testing.assert_close(wide[1].cpu(), torch.tensor([1e30, 1e-30, 1e-42]).double() * 5**0.5, rtol=1e-2, atol=0)


def test_half_precision_sees_eps_and_does_not_overflow(ends):
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((2, 4), 200.0, dtype=dtype, device=ends.device)
        value, norms, seed = ends.gradient_norm(x, 1, 1.0, False, 1e-12, "mean", True)
        assert norms.dtype == torch.float32 and value.item() == pytest.approx(399.0**2) and seed.isfinite().all()
        zero = ends.gradient_norm(torch.zeros_like(x), 1, 1.0, False, 1e-12, "mean", True)
        assert zero[1][0].item() == pytest.approx(1e-6)


def penalties(**options):
    return lambda *g: gpfast.gradient_norm_penalty(g if len(g) > 1 else g[0], **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_derivatives(check, reduction, form, generator):
    center, one_sided = FORMS[form]
    sizes = torch.tensor([0.2, 1.0, 2.0, 5.0], dtype=torch.float64)[:, None, None]  # on both sides of every center
    g = (
        sizes * torch.nn.functional.normalize(sample((4, 6), torch.float64, generator)).reshape(4, 3, 2)
    ).requires_grad_()
    assert check(penalties(center=center, one_sided=one_sided, reduction=reduction, eps=0.0), g)


@pytest.mark.parametrize("norm_dims", [(1,), "batch", (0, 2), 2, (-1, 1)], ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_derivatives_over_other_dimensions(check, norm_dims, generator):
    g = sample((3, 2, 4), torch.float64, generator).requires_grad_()
    assert check(penalties(norm_dims=norm_dims, reduction="none"), g)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_derivatives_of_several_gradients_with_a_mask(check, generator):
    g = (
        sample((3, 2, 4), torch.float64, generator).requires_grad_(),
        sample((3, 5), torch.float64, generator).requires_grad_(),
    )
    mask = torch.rand(3, 1, 4, generator=generator), torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0])
    assert check(penalties(mask=mask), g)


def test_second_derivative_at_a_zero_norm_is_that_of_the_reference():
    for center in (0.0, 1.0):
        for eps in (0.0, 1e-2):
            hessians = []
            for penalty in (
                penalties(center=center, eps=eps, weight=1.0),
                lambda g, c=center, e=eps: reference.penalty(
                    [g],
                    weight=1.0,
                    center=c,
                    one_sided=False,
                    norm_dims=None,
                    eps=e,
                    mask=None,
                    reduction="mean",
                    return_stats=False,
                ),
            ):
                g = torch.zeros(2, 3, dtype=torch.float64)
                g[1, 0] = 0.5
                hessians.append(torch.autograd.functional.hessian(penalty, g))
            torch.testing.assert_close(*hessians)
            assert hessians[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck, from 2.14 on
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("with_seed", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_registration(keep, grad, with_seed, reduction, generator):
    g = sample((3, 4, 2), torch.float64, generator).requires_grad_(grad)
    opcheck(torch.ops.gpfast.gradient_norm.default, (g, keep, 1.0, False, 1e-12, reduction, with_seed))


def test_registration_of_the_seed(generator):
    g = sample((3, 4, 2), torch.float32, generator)
    opcheck(torch.ops.gpfast.gradient_norm_seed.default, (g, torch.rand(3), torch.rand(()), 1, 1.0, True, 0.5))


def test_norms_and_seed_are_said_to_be_constant(generator):
    g = sample((3, 4), torch.float64, generator).requires_grad_()
    value, norms, seed = torch.ops.gpfast.gradient_norm(g, 1, 1.0, False, 1e-12, "mean", True)
    assert value.requires_grad and not norms.requires_grad and not seed.requires_grad


def test_the_seed_op_refuses_to_be_differentiated(generator):
    g = sample((3, 4), torch.float64, generator).requires_grad_()
    with pytest.raises(RuntimeError, match=r"no derivative.*gradient_norm_penalty"):
        torch.ops.gpfast.gradient_norm_seed(g, g.detach().norm(dim=1), torch.ones(()).double(), 1, 1.0, False, 1.0)


@pytest.mark.parametrize(
    ("make", "keep", "dense"),
    [
        (lambda: torch.zeros(2, 3, 4, 5), 1, True),
        (lambda: torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 1, True),
        (lambda: torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 2, False),
        (lambda: torch.zeros(3, 2, 4).transpose(0, 1), 1, False),
        (lambda: torch.zeros(2, 4, 3).mT, 1, True),
        (lambda: torch.zeros(2, 8)[:, ::2], 1, False),
        (lambda: torch.zeros(4, 8)[::2], 1, False),
        (lambda: torch.zeros(1, 8).expand(4, 8), 1, False),
        (lambda: torch.zeros(1, 8)[:, 2:], 1, True),
        (lambda: torch.zeros(5).expand(1, 5), 0, True),
    ],
)
def test_which_rows_are_dense(make, keep, dense):
    x = make()
    assert rows_are_dense(x, keep) == dense
    assert (dense_rows(x, keep) is x) == dense and rows_are_dense(dense_rows(x, keep), keep)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch.func.jvp
def test_works_under_torch_func(generator):
    g = sample((3, 4), torch.float64, generator)
    expected = oracle(g, 1, 1.0, False, 1e-12, "mean")[2]
    torch.testing.assert_close(torch.func.grad(penalties(weight=1.0))(g), expected)
    _, slope = torch.func.jvp(penalties(weight=1.0), (g,), (torch.ones_like(g),))
    torch.testing.assert_close(slope, expected.sum())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(ends, reduction):
    g = torch.ones(0, 3, device=ends.device)
    value, norms, seed = ends.gradient_norm(g, 1, 1.0, False, 1e-12, reduction, True)
    assert norms.shape == (0,) and seed.shape == (0, 3)
    torch.testing.assert_close(value, norms if reduction == "none" else getattr(norms, reduction)(), equal_nan=True)
    assert ends.gradient_norm_seed(g, norms, torch.ones((), device=ends.device), 1, 1.0, False, 1.0).shape == (0, 3)


def test_a_flat_norm_has_no_seed_whatever_arrives(ends):
    """Rows below a one-sided center, and zero rows: 0 even for an infinite cotangent."""
    g = torch.tensor([[0.1, 0.1], [0.0, 0.0], [3.0, 4.0]], device=ends.device)
    _, norms, _ = ends.gradient_norm(g, 1, 1.0, True, 0.0, "none", False)
    cotangent = torch.tensor([math.inf, math.inf, 1.0], device=ends.device)
    seed = ends.gradient_norm_seed(g, norms, cotangent, 1, 1.0, True, 1.0)
    torch.testing.assert_close(seed.cpu(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.8, 6.4]]))
