"""The normalisation kernels, on blocks larger and stranger than critics have: against autograd and a plain formula."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpfast import _extension, cost

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


PLANES, PIXELS, BATCH = range(3)
# (samples, groups, channels of a group, elements of a channel)
BLOCKS = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 1, 17, 9), (2, 5, 1, 33), (1, 2, 3, 4099), (70, 2, 8, 3), (2, 2, 8, 4100)]
KERNEL_CASES = [
    *((PLANES, block) for block in BLOCKS),
    *((PIXELS, block) for block in BLOCKS),
    *((PIXELS, block) for block in [(3, 1, 7, 1), (4, 3, 5, 1), (200, 1, 700, 1), (2, 1, 4099, 1), (16, 2, 40, 1)]),
    *((BATCH, block) for block in [(3, 5, 1, 1), (4, 3, 1, 7), (1, 6, 1, 11), (5, 2, 1, 4100)]),
]


def shapes_of(order, block):
    """Sizes in memory, of the statistics, of the weights, in four dimensions."""
    n, g, d, i = block
    return {
        PLANES: ((n, g, d, i), (n, g, 1, 1), (1, g, d, 1)),
        PIXELS: ((n, i, g, d), (n, 1, g, 1), (1, 1, g, d)),
        BATCH: ((n, g, 1, i), (1, g, 1, 1), (1, g, 1, 1)),
    }[order]


class Block:
    """Random tensors of a block, and autograd's answers for them in float64."""

    def __init__(self, order, block, *, affine=True, centered=True, dtype=torch.float64):
        self.order, self.block = order, list(block)
        sizes, statistics, weights = shapes_of(order, block)
        self.h, self.z, self.t, self.add = (randn(*sizes, seed=seed, dtype=dtype) for seed in range(4))
        self.h += 0.5
        self.weight = randn(*weights, seed=5, dtype=dtype) if affine else None
        self.dims = [d for d in range(4) if statistics[d] != sizes[d] or sizes[d] == 1]
        wide = self.h.double()
        self.mean = wide.mean(self.dims, keepdim=True) if centered else None
        d = wide - self.mean if centered else wide
        self.rstd = (d.square().mean(self.dims, keepdim=True) + 0.1).rsqrt()

    def norm(self, h, weight):
        d = h - h.mean(self.dims, keepdim=True) if self.mean is not None else h
        y = d * (d.square().mean(self.dims, keepdim=True) + 0.1).rsqrt()
        return y * weight if weight is not None else y

    def expected(self):
        """(J^T z + add, its weight and bias gradients, J t, d/dh <z, J t>, d/dweight <z, J t>)."""
        h = self.h.double().requires_grad_()
        weight = self.weight.double().requires_grad_() if self.weight is not None else None
        z = self.z.double().requires_grad_()
        inputs = [h] if weight is None else [h, weight]
        first = torch.autograd.grad(self.norm(h, weight), inputs, z, create_graph=True)
        (tangent,) = torch.autograd.grad(first[0], z, self.t.double(), retain_graph=True)
        second = torch.autograd.grad(first[0], inputs, self.t.double(), allow_unused=True)
        second = [torch.zeros_like(x) if y is None else y for x, y in zip(inputs, second, strict=True)]
        channels = [d for d in range(4) if shapes_of(self.order, self.block)[2][d] == 1]
        bias = z.detach().sum(channels).flatten()
        of_weight = [first[1].detach().flatten(), second[1].flatten()] if weight is not None else [None, None]
        return first[0].detach() + self.add.double(), of_weight[0], bias, tangent, second[0], of_weight[1]

    def small(self):
        dtype = torch.float64 if self.h.dtype == torch.float64 else torch.float32
        return [None if x is None else x.to(dtype).flatten() for x in (self.mean, self.rstd, self.weight)]

    def run(self, adjoint, tangent):
        affine = self.weight is not None
        out, of_t, bent = (torch.full_like(self.h, math.nan) for _ in range(3))
        mean, rstd, weight = self.small()
        of_weight, of_bias = adjoint(
            out, self.z, self.add, self.h, mean, rstd, weight, None, self.block, self.order, affine, True
        )
        second = tangent(of_t, bent, self.t, self.z, self.h, mean, rstd, weight, self.block, self.order, affine)
        return out, of_weight, of_bias, of_t, bent, second


def cpu_ops():
    return torch.ops.gpfast.normalize_adjoint.default, torch.ops.gpfast.normalize_tangent.default


def plain_ops():
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    return tuple(lambda *args, op=op: op._op_dk(key, *args) for op in cpu_ops())


def assert_near(ours, expected, tolerance):
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine.double() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("order, block", KERNEL_CASES)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("centered", [False, True], ids=["RMS", "centered"])
def test_kernels_and_plain_formula(order, block, affine, centered):
    case = Block(order, block, affine=affine, centered=centered)
    expected = case.expected()
    for ops in (cpu_ops(), plain_ops()):
        assert_near(case.run(*ops), expected, 1e-11)


@pytest.mark.parametrize("order, block", KERNEL_CASES)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
def test_kernels_in_other_dtypes(order, block, dtype, tolerance):
    case = Block(order, block, dtype=dtype)
    assert_near(case.run(*cpu_ops()), case.expected(), tolerance)


@pytest.mark.parametrize("order, block", KERNEL_CASES)
def test_kernels_write_in_place_and_only_what_is_wanted(order, block):
    case = Block(order, block)
    whole = case.run(*cpu_ops())
    adjoint, tangent = cpu_ops()
    mean, rstd, weight = case.small()
    rest = case.h, mean, rstd, weight
    for target in (0, 1):
        z, add = case.z.clone(), case.add.clone()
        out = (z, add)[target]
        found = adjoint(out, z, add, *rest, torch.ones_like(weight), case.block, order, True, False)
        assert torch.equal(out, whole[0]) and torch.allclose(found[0], whole[1] + 1) and found[1] is None
    found = adjoint(None, case.z, None, *rest, None, case.block, order, False, True)
    assert found[0] is None and torch.equal(found[1], whole[2])
    t, a = case.t.clone(), case.z.clone()
    assert tangent(t, a, t, a, *rest, case.block, order, False) is None
    assert torch.equal(t, whole[3]) and torch.equal(a, whole[4])
    bent, out = torch.empty_like(t), torch.empty_like(t)
    assert torch.equal(tangent(None, bent, case.t, case.z, *rest, case.block, order, True), whole[5])
    tangent(out, None, case.t, None, *rest, case.block, order, False)
    assert torch.equal(bent, whole[4]) and torch.allclose(out, whole[3], rtol=1e-12, atol=1e-12)
    assert torch.equal(tangent(None, None, case.t, case.z, *rest, case.block, order, True), whole[5])


def test_kernels_have_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append([Block(order, block, dtype=torch.float32).run(*cpu_ops()) for order, block in KERNEL_CASES])
    finally:
        torch.set_num_threads(threads)
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(x, y) for other in others for x, y in zip(first, other, strict=True))


def test_kernels_refuse_what_is_not_the_block():
    adjoint, _ = cpu_ops()
    z, small = randn(2, 3, 4, 5), randn(6)
    last = z.contiguous(memory_format=torch.channels_last)
    for other, block in ((last, [2, 3, 1, 20]), (z, [2, 3, 1, 19]), (z.float(), [2, 3, 1, 20]), (z[:1], [2, 3, 1, 20])):
        with pytest.raises(RuntimeError, match="normalize"):
            adjoint(None, other, None, z, small, small, None, None, block, PLANES, False, False)


def test_one_launch_a_sweep():
    case = Block(PLANES, (2, 2, 2, 64), dtype=torch.float32)
    small, out, bent = case.small(), torch.empty_like(case.h), torch.empty_like(case.h)
    adjoint, tangent = cpu_ops()
    rest = case.h, *small
    first = cost.measure(lambda: adjoint(out, case.z, None, *rest, None, case.block, PLANES, True, True))
    second = cost.measure(lambda: tangent(out, bent, case.t, case.z, *rest, case.block, PLANES, True))
    assert first.launches == second.launches == 1


@pytest.mark.parametrize("order, block", KERNEL_CASES)
def test_shapes_of_fake_tensors(order, block):
    case = Block(order, block, dtype=torch.bfloat16)
    real = case.h, case.z, *case.small()
    with FakeTensorMode() as mode:
        h, z, mean, rstd, weight = (mode.from_tensor(x) for x in real)
        adjoint, tangent = cpu_ops()
        norm = h, mean, rstd, weight
        of_weight, of_bias = adjoint(z, z, None, *norm, None, case.block, order, True, True)
        assert of_weight.shape == of_bias.shape == weight.shape and of_weight.dtype == torch.float32
        assert adjoint(z, z, None, *norm, None, case.block, order, False, False) == (None, None)
        assert tangent(None, h, z, z, *norm, case.block, order, True).shape == weight.shape


@pytest.mark.parametrize("order, block", KERNEL_CASES)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_a_gate_is_passed_on_the_way_in_and_out(order, block, affine):
    case = Block(order, block, affine=affine)
    mean, rstd, weight = case.small()
    rest = case.h, mean, rstd, weight
    _, bits = torch.ops.gpfast.gate(case.z, randn(*case.z.shape, seed=8), None, 0, 0.0, 0.0, 1.5, 0.25)
    gated = torch.ops.gpfast.gated(case.z, bits, None, 1.5, 0.25)
    for adjoint, tangent in (cpu_ops(), plain_ops()):
        outs = [torch.full_like(case.h, math.nan) for _ in range(4)]
        wanted = (None, case.block, order, affine, True)
        parameters = adjoint(outs[0], case.z, case.add, *rest, *wanted, bits, 1.5, 0.25)
        assert_near((outs[0], *parameters), (outs[1], *adjoint(outs[1], gated, case.add, *rest, *wanted)), 1e-12)
        assert_near(adjoint(None, case.z, None, *rest, *wanted, bits, 1.5, 0.25), parameters, 1e-12)
        of_weight = tangent(*outs[:2], case.t, case.z, *rest, case.block, order, affine, bits, 1.5, 0.25)
        expected = tangent(*outs[2:], case.t, case.z, *rest, case.block, order, affine)
        outs[2] = torch.ops.gpfast.gated(outs[2], bits, None, 1.5, 0.25)
        assert_near((*outs[:2], of_weight), (*outs[2:], expected), 1e-12)
