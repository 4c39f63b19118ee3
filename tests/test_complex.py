"""Rules on complex values: between real and complex, arithmetic, products, shapes; what declines runs alone."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low

import gpfast

SIZES = (4, 3, 6)


def numbers(*sizes, seed=0, grad=False):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(grad)


def complex_numbers(*sizes, seed=0, grad=False):
    made = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return made.requires_grad_(grad)


X = numbers(*SIZES)
MIXING = complex_numbers(6, 6, seed=1, grad=True)
TURNING = complex_numbers(6, seed=2, grad=True)


def spectrum(x):
    """Complex values that depend on x in a straight line."""
    return torch.complex(x, x.roll(1, -1) * 0.5)


def parts(z):
    return torch.view_as_real(z.resolve_conj())


def energy(z):
    """A number for each entry, curved in both parts."""
    z = parts(z)
    return torch.tanh(z[..., 0] + 0.3 * z[..., 1]) * z[..., 1]


def everywhere(operation, x=X, parameters=(), *, rule=None, alone=None):
    """The operation on complex values: below and above curvature, with linear maps around it, and with frozen ones."""
    seen = []
    for leaves in (list(parameters), []) if parameters else ([],):
        for function in (
            lambda x: energy(operation(spectrum(x))),
            lambda x: energy(operation(spectrum(torch.tanh(x) + x) * TURNING)),
            lambda x: parts(operation(spectrum(x) @ MIXING)).sum(-1),
        ):
            seen += agree(function, x, [*leaves, MIXING, TURNING], rule=rule, alone=alone)
    return seen


UNARY = {
    "conj": (lambda z: z.conj(), "conjugate"),
    "conj_physical": (lambda z: z.conj_physical(), "conjugate"),
    "conj_physical_": (lambda z: z.clone().conj_physical_(), "conjugate"),
    "conj of conj": (lambda z: (z.conj() * 2).conj(), "conjugate"),
    "real": (lambda z: z.real + 0j, "select"),
    "imag": (lambda z: z.imag * 1j, "select"),
    "real of conj": (lambda z: z.conj().real + 0j, "conjugate"),
    "imag of conj": (lambda z: z.conj().imag + z, "conjugate"),
    "power": (lambda z: z.real**2 + z.imag**2 + 0j, "view as real"),
    "power by conj": (lambda z: z * z.conj(), "product"),
    "abs": (lambda z: torch.complex(z.abs(), z.conj().abs().log()), "modulus"),
    "angle": (lambda z: torch.complex(z.angle(), z.conj().angle()), "angle"),
    "phase": (lambda z: z / z.abs(), "quotient"),
    "view_as_real": (lambda z: torch.view_as_complex(torch.view_as_real(z).flip(-1)), "view as complex"),
    "view_as_complex of a view": (
        lambda z: torch.view_as_complex(torch.view_as_real(z).transpose(0, 1).flatten(1)[:, 2:8].reshape(3, 3, 2)),
        "view as complex",
    ),
    "complex of parts": (lambda z: torch.complex(z.imag, z.real.sin()), "complex"),
    "complex of one part": (lambda z: torch.complex(numbers(6), z.real[0, 0]) + z, "complex"),
    "neg": (lambda z: -z, "scale"),
    "times a real number": (lambda z: z * 0.7, "product"),
    "times i": (lambda z: z * 1j, "product"),
    "over a complex number": (lambda z: z / (1 + 2j), "quotient"),
    "plus a number": (lambda z: z + (1 + 2j), "add"),
    "added by a factor": (lambda z: torch.add(z, z.sin(), alpha=-0.5), "add"),
    "subtracted": (lambda z: torch.rsub(z, z * 2, alpha=2), "sub"),
    "lerp": (lambda z: torch.lerp(z, z * TURNING.detach(), 0.3), "lerp"),
    "clone": (lambda z: z.clone(), "pass"),
    "copy": (lambda z: torch.zeros(2, *z.shape, dtype=z.dtype).copy_(z), "copy"),
    "cast to real": (lambda z: z.conj() * z.to(torch.complex64).to(torch.complex128), "product"),
    "sum": (lambda z: z.sum(-1) + z.sum(), "sum"),
    "mean": (lambda z: z.mean((0, 1)) + z.mean(), "mean"),
    "where": (lambda z: torch.where(numbers(3, 6, seed=5) > 0, z, 0.5 * z.conj()), "where"),
    "masked_fill": (lambda z: z.masked_fill(numbers(3, 6, seed=5) > 0, 1), "masked_fill"),
}


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    operation, rule = UNARY[name]
    if name == "cast to real":
        agree(lambda x: energy(operation(spectrum(x))), X, rule=rule, tolerance=1e-6)
    else:
        everywhere(operation, rule=rule)


@pytest.mark.parametrize("name", ["mul", "div", "add", "sub"])
@pytest.mark.parametrize("sizes", [SIZES, (6,), (3, 1), (), (2, 1, 1, 6)], ids=str)
def test_arithmetic_with_a_parameter(name, sizes):
    operation = getattr(torch, name)
    rule = {"mul": "product", "div": "quotient"}.get(name, name)
    for w in (complex_numbers(*sizes, seed=3, grad=True), numbers(*sizes, seed=3, grad=True)):
        everywhere(lambda z, w=w: operation(z, w), parameters=[w], rule=rule)
        everywhere(lambda z, w=w: operation(w, z + 2), parameters=[w], rule=rule)


def test_real_values_with_complex_parameters():
    w = complex_numbers(3, 1, seed=3, grad=True)
    agree(lambda x: energy(x * w + x.tanh() / w - w), X, [w], rule="product")
    agree(lambda x: energy(w / (x.exp() + w)), X, [w], rule="quotient")
    agree(lambda x: energy((x.tanh() - w) * 1j), X, [w], rule="sub")


PAIRS = {
    "same sizes": lambda z: (z.sin(), z),
    "one tensor": lambda z: (z + 1,) * 2,
    "with its conjugate": lambda z: (z, z.conj()),
    "row": lambda z: (z, z[0] * z[0]),
    "crossed": lambda z: (z[:, :1], z[:1] + 1j),
    "real and complex": lambda z: (z.real.exp(), z),
    "complex and real": lambda z: (z, z.imag.exp()),
    "scalar": lambda z: (z.sum(), z + 3),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_live_values(name):
    everywhere(lambda z: torch.mul(*PAIRS[name](z)), rule="square" if name == "one tensor" else "product")
    if name != "one tensor":
        everywhere(lambda z: torch.div(*PAIRS[name](z)), rule="quotient")


W = complex_numbers(6, 5, seed=3, grad=True)
BIAS = complex_numbers(5, seed=4, grad=True)
MIX = complex_numbers(3, 6, 5, seed=5, grad=True)
VECTOR = complex_numbers(6, seed=6, grad=True)

LINEAR = {
    "mm": (lambda z: z[0] @ W, [W]),
    "mm with a conjugate": (lambda z: z[0] @ W.conj(), [W]),
    "mm with an adjoint": (lambda z: W.mH @ z[0].mT, [W]),
    "conjugate in mm": (lambda z: z[0].conj() @ W, [W]),
    "linear": (lambda z: F.linear(z, W.mT, BIAS), [W, BIAS]),
    "bmm": (lambda z: torch.bmm(z.transpose(0, 1), MIX), [MIX]),
    "baddbmm": (lambda z: torch.baddbmm(BIAS.expand(3, 4, 5), z.transpose(0, 1), MIX, beta=0.5, alpha=2), [MIX, BIAS]),
    "einsum": (lambda z: torch.einsum("bci,cio->bco", z, MIX), [MIX]),
    "mv": (lambda z: z[0].mv(VECTOR), [VECTOR]),
    "dot": (lambda z: z[0, 0].dot(VECTOR).expand(4, 1), [VECTOR]),
    "outer": (lambda z: torch.outer(z[0, 0], VECTOR), [VECTOR]),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_maps(name):
    operation, parameters = LINEAR[name]
    everywhere(operation, parameters=parameters)
    seen = agree(lambda x: energy(operation(spectrum(x))), X, parameters)
    assert not any(step[1] == "alone" for step in seen), seen


def test_products_of_two_live_matrices():
    everywhere(lambda z: z @ z.mT, rule="matmul")
    everywhere(lambda z: z @ z.mH, rule="matmul")
    everywhere(lambda z: torch.einsum("bci,bdi->bcd", z, z.conj() * z), rule="matmul")
    everywhere(lambda z: torch.baddbmm(z @ z.mT, z.conj(), z.mT.sin(), alpha=0.5), rule="matmul")
    everywhere(lambda z: z[0].mv(z[0, 0].sin()), rule="matmul")


INDEX = torch.tensor([2, 0, 2, 1])

SHAPES = {
    "view": lambda z: z.flatten(1).unsqueeze(1).squeeze(1),
    "transpose": lambda z: z.transpose(0, 2),
    "permute": lambda z: z.permute(2, 0, 1),
    "expand": lambda z: z[:, None].expand(-1, 2, -1, -1),
    "repeat": lambda z: z.repeat(2, 1, 2),
    "flip": lambda z: z.flip(-1),
    "roll": lambda z: z.roll(2, -1),
    "rot90": lambda z: torch.rot90(z, 1, (0, 2)),
    "slice": lambda z: z[:, :, 1:4],
    "select": lambda z: z[:, 1],
    "diagonal": lambda z: z.diagonal(1, 1, 2),
    "unfold": lambda z: z.unfold(2, 3, 2),
    "pad": lambda z: F.pad(z, (1, 2)),
    "triangle": lambda z: z.triu(1),
    "index": lambda z: z[:, INDEX],
    "index_select": lambda z: z.index_select(2, INDEX),
    "gather": lambda z: z.gather(1, INDEX.expand(3, 1, 4).mT),
    "take": lambda z: z.take(INDEX),
    "cat": lambda z: torch.cat([z, z.conj()], 1),
    "stack": lambda z: torch.stack([z, z * 1j], 1),
    "split": lambda z: z.split(4, 2)[1],
    "unbind": lambda z: z.unbind(1)[2],
    "overlap-add": lambda z: torch.ops.aten.unfold_backward(z, [4, 8], 1, 6, 1),
}


@pytest.mark.parametrize("rule", SHAPES)
def test_shapes(rule):
    everywhere(SHAPES[rule], rule=rule)
    everywhere(lambda z: SHAPES[rule](z.conj()), rule=rule)


def test_overlap_add_of_real_values():
    w = numbers(1, 8, seed=8, grad=True)
    for size, step in ((6, 1), (6, 2), (4, 5)):
        windows = numbers(2, 3, size)
        length = size + 2 * step
        add = lambda x, s=size, t=step, n=length: torch.ops.aten.unfold_backward(x, [2, n], 1, s, t)  # noqa: E731
        agree(
            lambda x, add=add, n=length: (add(x.tanh()) * w[:, :1].expand(1, n)).tanh(),
            windows,
            [w],
            rule="overlap-add",
        )
        agree(lambda x, add=add: add(x), windows, rule="overlap-add")


def test_written_in_place():
    def chosen(z):
        out = torch.zeros(4, 3, 8, dtype=z.dtype)
        out[:, :, :4] = z[:, :, :4] * 2
        return out + 1

    everywhere(chosen)
    everywhere(lambda z: z.clone().mul_(TURNING.detach()), rule="product")
    everywhere(lambda z: z.conj().clone().conj().mul_(2), rule="product")


VIEWS = {
    "real part": lambda z: z.real,
    "imaginary part": lambda z: z.imag,
    "of the conjugate": lambda z: z.conj().imag,
    "both parts": torch.view_as_real,
    "slice": lambda z: z[:, 1:],
    "slice of real parts": lambda z: z[:, 1:].real[:, :, 1:],
    "conjugate": lambda z: z.conj(),
}


@pytest.mark.parametrize("read", ["base", "view", "both"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_that_are_written_to(name, read):
    def written(write):
        def function(x):
            z = spectrum(x.sin())
            view = write(VIEWS[name](z), z)
            parts = {"base": [z], "view": [view], "both": [z, view]}[read]
            return torch.cat([p.abs().square().flatten(1) for p in parts], 1)

        return function

    agree(written(lambda view, z: view.exp_()), X)
    agree(written(lambda view, z: view.mul_(2)), X)
    agree(written(lambda view, z: view.mul_(view + 1)), X)
    agree(written(lambda view, z: view.mul_(z.clone().abs().mean())), X)


def test_a_value_that_is_negated_lazily():
    for function in (torch.tanh, F.silu, torch.relu, lambda h: h * h, lambda h: h.softmax(-1), lambda h: h.std(-1)):
        agree(lambda x, f=function: f((spectrum(x) @ MIXING).conj().imag), X, [MIXING])


ALONE = {
    "TanhBackward0": lambda z: z.tanh(),
    "ExpBackward0": lambda z: (z * 1j).exp(),
    "SgnBackward0": lambda z: z.sgn(),
    "ReciprocalBackward0": lambda z: 1 / (z + 4),
    "PowBackward0": lambda z: z**2,
    "SqrtBackward0": lambda z: (z + 8).sqrt(),
    "SigmoidBackward0": lambda z: (0.1 * z).sigmoid(),
    "VarBackward0": lambda z: z.var(1) + 0j,
    "LinalgVectorNormBackward0": lambda z: torch.linalg.vector_norm(z, dim=1) + 0j,
    "PolarBackward0": lambda z: torch.polar(z.real.exp(), z.imag),
    "VdotBackward0": lambda z: torch.vdot(z[0, 0], z[1, 0]).expand(4, 1),
    "ProdBackward1": lambda z: z.prod(1),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_has_no_rule_for_complex_values_runs_alone(name):
    everywhere(ALONE[name], alone=name)


FURTHER = {
    "reflection": lambda z: F.pad(z, (2, 1), mode="reflect"),
    "replication": lambda z: F.pad(z, (2, 1), mode="replicate"),
    "convolution": lambda z: F.conv1d(z, complex_numbers(2, 3, 3, seed=9), complex_numbers(2, seed=8)),
    "scatter": lambda z: z.scatter_add(1, INDEX[:3].expand(6, 4, 3).permute(1, 2, 0), z * 2),
    "index_put": lambda z: z.index_put((INDEX[:2],), z[:2].sin()),
    "logsumexp by hand": lambda z: (z * 0.1).exp().sum(-1).log(),
    "addcmul": lambda z: torch.addcmul(z, z, z.conj(), value=0.5),
    "cosine": lambda z: z.real.cos() * z.imag.sin() + 0j,
    "norm over all": lambda z: z / z.norm(),
    "softmax of magnitudes": lambda z: z.abs().softmax(-1) * z,
    "complex addition by a complex factor": lambda z: torch.add(z, z * 2, alpha=1 + 1j),
    "complex product by a complex factor": lambda z: torch.addmm(z[0], z[0], MIXING, alpha=1j),
    "running sum": lambda z: z.cumsum(1),
    "differences": lambda z: z.diff(dim=-1),
    "sum of a diagonal": lambda z: z[0].trace() * z,
    "outer sum": lambda z: torch.kron(z[0], z[0, :1]),
}


@pytest.mark.parametrize("name", FURTHER)
def test_other_operations_on_complex_values(name):
    everywhere(FURTHER[name])


def test_derivatives_at_zero_are_those_of_autograd():
    mask = (numbers(3, 6, seed=5) > 0).double()
    agree(lambda x: (spectrum(x) * mask).abs().tanh(), X, rule="modulus")
    agree(
        lambda x: torch.view_as_real((spectrum(x * mask) * (1 + 1j)).abs() * TURNING).sum(-1),
        X,
        [TURNING],
        rule="modulus",
    )
    agree(lambda x: (spectrum(x * 0)).abs() + x.tanh(), X, rule="modulus")


@pytest.mark.parametrize("scale", [1e-25, 1e18])
def test_magnitudes_of_any_size_in_single_precision(scale):
    def make(dtype):
        turning = TURNING.detach().to(dtype.to_complex()).requires_grad_()
        return lambda x: (spectrum(x) * scale * turning).abs() / scale, [turning]

    agree_low(make, X, torch.float32)


def critic_of(dtype):
    kind = dtype.to_complex()
    w, v, b = (p.detach().to(kind).requires_grad_() for p in (MIXING, TURNING, BIAS))
    u = W.detach().to(kind).requires_grad_()

    def critic(x):
        z = torch.tanh(spectrum(x) @ w) * v / (v.conj() + 3)
        return (F.linear(z, u.mT, b).abs() + (z * z.conj()).real[..., :5] + z.angle()[..., :5]).flatten(1).sum(1)

    return critic, [w, v, u, b]


def test_low_precision():
    agree_low(critic_of, X, torch.float32)


def test_repeated_backward():
    critic, parameters = critic_of(torch.float64)
    loss = gpfast.input_gradient_loss(critic, X.clone().requires_grad_(), lambda y, g: (g**2).sum() + (y * y).sum())
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(3)]
    for again in gradients[1:]:
        assert all(map(torch.equal, gradients[0], again))


@pytest.mark.parametrize("chunks", [1, 2])
def test_penalty_of_a_critic_with_complex_parameters(chunks):
    critic, parameters = critic_of(torch.float64)
    real, fake = X, numbers(*SIZES, seed=9)
    found = []
    for options in ({"engine": "reference"}, {"engine": "tape", "chunks": chunks}):
        penalty = gpfast.gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(1), **options)
        found.append([penalty, *torch.autograd.grad(penalty, parameters, allow_unused=True)])
    for theirs, ours in zip(*found, strict=True):
        theirs, ours = (torch.zeros(5) if g is None else g for g in (theirs, ours))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_complex_bias_without_a_gradient():
    b = complex_numbers(3, seed=3, grad=True)
    bias = numbers(3, seed=3, grad=True)
    agree(lambda x: spectrum(x).real.sum(-1) * 2 + (b + bias).real, X, [b, bias])
    agree(lambda x: torch.view_as_real((spectrum(x).sum(-1) + b + bias) * 1j).sum(-1), X, [b, bias])
