"""What the kernels of csrc/ops/activation.cu must give; `library` runs their launchers, as simt.Library does."""

import ctypes
import math

import torch
import torch.nn.functional as F


def exponential(h, p, q):
    return torch.exp(p * h) - q


# In the order of gpfast::Activation: the activation of h, its parameters, whether its result is saved, the ends of h.
ACTIVATIONS = {
    "tanh": (torch.tanh, (), True, (-3, 3)),
    "sigmoid": (torch.sigmoid, (), True, (-4, 4)),
    "softplus": (lambda h, p, q: F.softplus(h, p, q), (2.5, 20.0), False, (-4, 4)),
    "elu": (lambda h, p, q, r: torch.where(h <= 0, p * torch.expm1(q * h), r * h), (0.7, 1.3, 1.1), False, (-4, 4)),
    "elu of result": (
        lambda h, p, q, r: torch.where(h <= 0, p * torch.expm1(q * h), r * h), (0.7, 1.3, 1.1), True, (-4, 4),
    ),
    "silu": (F.silu, (), False, (-9, 9)),
    "gelu": (F.gelu, (), False, (-9, 9)),
    "gelu tanh": (lambda h: F.gelu(h, approximate="tanh"), (), False, (-9, 9)),
    "mish": (F.mish, (), False, (-25, 60)),
    "hardswish": (F.hardswish, (), False, (-5, 5)),
    "exponential": (exponential, (0.7, 1.0), True, (-1, 4)),
    "logarithm": (lambda h, p, q: p * torch.log(h + q), (1.3, 0.5), False, (0.1, 4)),
    "sqrt": (torch.sqrt, (), True, (0.1, 4)),
    "rsqrt": (torch.rsqrt, (), True, (0.1, 4)),
    "reciprocal": (torch.reciprocal, (), True, (0.1, 4)),
    "square": (torch.square, (), False, (-4, 4)),
    "cube": (lambda h: h**3, (), False, (-4, 4)),
    "tan": (torch.tan, (), True, (-1.4, 1.4)),
    "atan": (torch.atan, (), False, (-4, 4)),
    "erf": (torch.erf, (), False, (-4, 4)),
    "power": (lambda h, p: h**p, (2.5,), False, (0.1, 4)),
    "sin": (torch.sin, (), False, (-4, 4)),
    "cos": (torch.cos, (), False, (-4, 4)),
    "sinh": (torch.sinh, (), False, (-4, 4)),
    "cosh": (torch.cosh, (), False, (-4, 4)),
}  # fmt: skip
KINDS = list(ACTIVATIONS)
FAR = ["softplus", "silu", "gelu", "gelu tanh", "mish", "elu"]  # flat far from zero


class Curve(ctypes.Structure):
    """gpfast::Curve."""

    _fields_ = [("kind", ctypes.c_int64)] + [(name, ctypes.c_double) for name in "pqr"]


def parameters(name):
    given = ACTIVATIONS[name][1]
    return given + (0.0,) * (3 - len(given))


def curve(name):
    return Curve(KINDS.index(name), *parameters(name))


def numbers(n, dtype, seed, start=0):
    """n numbers that begin `start` elements behind a 16-byte bound."""
    return torch.randn(n + start, generator=torch.Generator().manual_seed(seed)).to(dtype)[start:]


def saved_numbers(name, n, dtype, start=0):
    """What the activation saves, in dtype, and its slope and curve there, in float64, by autograd."""
    function, given, of_result, (low, high) = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(3)
    h = low + (high - low) * torch.rand(n + start, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        saved = (function(h, *given) if of_result else h).to(dtype)[start:]
    h = inverse(name, saved.double()) if of_result else saved.double()
    h.requires_grad_()
    (slope,) = torch.autograd.grad(function(h, *given).sum(), h, create_graph=True)
    bend = torch.autograd.grad(slope.sum(), h)[0] if slope.requires_grad else torch.zeros_like(h)
    return saved, slope.detach(), bend


def inverse(name, y):
    """h of the result that was saved, which the rounding to dtype has moved."""
    p, q, r = parameters(name)
    return {
        "tanh": torch.atanh,
        "sigmoid": torch.logit,
        "elu of result": lambda y: torch.where(y <= 0, torch.log1p(y / p) / q, y / r),
        "exponential": lambda y: torch.log(y + q) / p,
        "sqrt": torch.square,
        "rsqrt": lambda y: y**-2,
        "reciprocal": torch.reciprocal,
        "tan": torch.atan,
    }[name](y)


def close(found, expected, scale):
    """One rounding to the dtype, and a few of the arithmetic, relative to the largest term."""
    wide = torch.float64 if found.dtype == torch.float64 else torch.float32
    # float64: 1e-12 as the oracle itself, an inverse and two derivatives, rounds
    arithmetic = 1e-12 if wide == torch.float64 else 64 * torch.finfo(wide).eps
    allowed = torch.finfo(found.dtype).eps * expected.abs() + arithmetic * scale + torch.finfo(found.dtype).tiny
    assert ((found.double() - expected).abs() <= allowed).all()


def largest(slope, bend):
    return max(1.0, float(slope.abs().max()), float(bend.abs().max()))


def check_activation(library, name, dtype, n, start=0):
    """Each of the three kernels, against autograd in float64."""
    saved, slope, bend = saved_numbers(name, n, dtype, start)
    z, a = numbers(n, dtype, 1, start), numbers(n, dtype, 2, start)
    top = largest(slope, bend)
    out = torch.full_like(z, torch.nan)
    library.run("gpfast_slope_cuda", dtype, z, saved, out, n, curve(name))
    close(out, slope * z.double(), top * z.double().abs())
    first, second = torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)
    library.run("gpfast_slope_and_curve_cuda", dtype, z, a, saved, first, second, n, curve(name))
    assert torch.equal(first, out)
    product = a.double() * z.double()
    close(second, bend * product, top * product.abs())
    into = a.clone()
    library.run("gpfast_add_slope_cuda", dtype, into, z, saved, n, curve(name))
    close(into, a.double() + slope * z.double(), a.double().abs() + top * z.double().abs())


def check_in_place(library, name, dtype, n, start=0):
    """All that can be written over is."""
    saved, slope, bend = saved_numbers(name, n, dtype, start)
    t, a = numbers(n, dtype, 1, start), numbers(n, dtype, 2, start)
    into, out, second = a.clone(), t.clone(), a.clone()
    library.run("gpfast_add_slope_cuda", dtype, into, t, saved, n, curve(name))
    library.run("gpfast_slope_and_curve_cuda", dtype, out, second, saved, out, second, n, curve(name))
    t, a = t.double(), a.double()
    close(into, a + slope * t, a.abs() + t.abs())
    close(out, slope * t, t.abs())
    close(second, bend * a * t, (a * t).abs())
    out = t.to(dtype, copy=True)
    library.run("gpfast_slope_cuda", dtype, out, saved, out, n, curve(name))
    close(out, slope * t, t.abs())


def check_far_from_zero(library, name, dtype):
    saved = torch.tensor([-math.inf, -6e4, -700.0, -88.0, 88.0, 700.0, 6e4, math.inf]).to(dtype)
    finite = saved.isfinite()
    z = torch.ones_like(saved)
    out, second = torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)
    library.run("gpfast_slope_and_curve_cuda", dtype, z, z, saved, out, second, z.numel(), curve(name))
    assert out[finite].isfinite().all() and second[finite].isfinite().all()
    high = 1.1 if name == "elu" else 1.0
    assert (out[finite & (saved > 0)].double() - high).abs().max() < 0.01
    assert out[finite & (saved < 0)].double().abs().max() < 1e-3 and second[finite].double().abs().max() < 1e-3


def check_large_arguments(library, name, dtype):
    """sin and cos far from zero, where multiples of pi are taken off with as many digits as that needs."""
    largest_power = math.log2(torch.finfo(dtype).max) - 0.01
    generator = torch.Generator().manual_seed(4)
    saved = torch.exp2(largest_power * torch.rand(300, generator=generator, dtype=torch.float64)).to(dtype)
    saved *= torch.tensor([1, -1]).repeat(150)
    z = torch.ones_like(saved)
    out, second = torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)
    library.run("gpfast_slope_and_curve_cuda", dtype, z, z, saved, out, second, z.numel(), curve(name))
    sine, cosine = saved.double().sin(), saved.double().cos()
    slope, bend = (cosine, -sine) if name == "sin" else (-sine, -cosine)
    close(out, slope, torch.ones_like(slope))
    close(second, bend, torch.ones_like(slope))
