"""The operators that are a convolution's sweeps on a CPU, against PyTorch's own gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gpfast
from gpfast import _extension, cost

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
OPS = torch.ops.gpfast

# Channels, kernel, sizes of the input, options.
CASES = {
    "channels last": ((4, 8), 3, (6, 4, 9, 8), {"padding": 1}),
    "channels last, strided": ((4, 8), 4, (6, 4, 9, 8), {"stride": 2, "padding": 1}),
    "in parts": ((3, 8), 3, (40, 3, 16, 16), {"padding": 1}),
    "a large weight": ((32, 48), 4, (16, 32, 5, 5), {"stride": 2, "padding": 1}),
    "a large weight, few pixels": ((32, 48), 3, (8, 32, 3, 3), {"padding": 1}),
    "a weight in blocks": ((250, 470), 3, (2, 250, 4, 4), {"padding": 1}),
    "of one pixel": ((3, 8), 1, (4, 3, 16, 16), {}),
    "of one pixel, padded": ((3, 8), 1, (4, 3, 16, 16), {"padding": 1}),
    "one channel": ((1, 4), 3, (3, 1, 8, 8), {}),
    "groups": ((4, 8), 3, (3, 4, 9, 8), {"groups": 2}),
    "depthwise": ((4, 4), 3, (3, 4, 9, 8), {"groups": 4, "padding": 1}),
    "of words": ((1, 20), (4, 24), (3, 1, 30, 24), {}),
    "one sample of a map": ((32, 1), 3, (1, 32, 40, 40), {}),
    "1d": ((4, 6), 3, (5, 4, 30), {"stride": 2}),
    "1d, a long kernel": ((16, 20), 17, (4, 16, 11), {"padding": 8, "stride": 2}),
    "1d, dilated": ((16, 20), 3, (4, 16, 200), {"dilation": 4, "padding": 4}),
    "3d": ((3, 4), 3, (3, 3, 6, 5, 7), {"stride": 2}),
    "transposed": ((4, 6), 3, (3, 4, 6, 5), {"transposed": True, "stride": 2, "output_padding": 1}),
    "transposed, 1d, groups": ((4, 6), 3, (3, 4, 12), {"transposed": True, "groups": 2}),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Sweeps:
    """One convolution, what its operators are given, and what they must return in float64."""

    def __init__(self, case, dtype):
        (channels, kernel, sizes, options), self.dtype = case, dtype
        torch.manual_seed(0)
        dims = len(sizes) - 2
        self.options = {"stride": 1, "padding": 0, "dilation": 1, "transposed": False, "output_padding": 0, "groups": 1}
        self.options |= options
        groups, transposed = self.options["groups"], self.options["transposed"]
        first, second = reversed(channels) if not transposed else channels
        kernel = kernel if isinstance(kernel, tuple) else (kernel,) * dims
        self.weight = self.drawn(first, second // groups, *kernel)
        self.h, self.t = self.drawn(*sizes), self.drawn(*sizes)
        for name in ("stride", "padding", "dilation", "output_padding"):
            value = self.options[name]
            self.options[name] = list(value) if isinstance(value, tuple) else [value] * dims
        shape = self.convolved(self.h).shape
        self.a, self.b = self.drawn(*shape), self.drawn(*shape)

    def drawn(self, *sizes):
        return torch.randn(sizes, dtype=torch.float64).div(4).to(self.dtype)

    def convolved(self, h, weight=None):
        weight = self.weight if weight is None else weight
        return torch.convolution(h.double(), weight.double(), None, *self.options.values())

    def gradients(self, above, h):
        """Of <above, w * h>, by the input and by the weight."""
        h, weight = (z.detach().double().clone().requires_grad_() for z in (h, self.weight))
        return torch.autograd.grad(self.convolved(h, weight), (h, weight), above.double())

    @property
    def map(self):
        return self.weight, list(self.h.shape), *self.options.values()

    def adjoint(self, a):
        return OPS.convolution_adjoint(a, self.h if self.options["groups"] > 1 else None, *self.map)

    def tangent(self, t, a, gradient=None, ratio=None, h=None, bent=False, wanted=(True, True, False)):
        return OPS.convolution_tangent(t, a, gradient, ratio, h, *self.map, bent, wanted)

    def second(self, b, h, gradient=None, wanted=(True, True, True)):
        return OPS.convolution_second(b, h, gradient, *self.map, wanted)

    def close(self, found, expected):
        assert found.dtype == self.dtype and found.shape == expected.shape
        error = (found.double() - expected).abs().max()
        assert error <= ROUNDING[self.dtype] * max(1.0, float(expected.abs().max()))


def channels_last(z):
    return (
        z.transpose(1, -1).contiguous().transpose(1, -1)
        if z.dim() == 3
        else z.movedim(1, -1).contiguous().movedim(-1, 1)
    )


@DTYPES
@EVERY
def test_adjoint(case, dtype):
    sweeps = Sweeps(case, dtype)
    expected, _ = sweeps.gradients(sweeps.a, sweeps.h)
    for a in (sweeps.a, channels_last(sweeps.a)):
        below, arranged = sweeps.adjoint(a)
        sweeps.close(below, expected)
        if arranged is not None:
            assert torch.equal(arranged, a) and not arranged.is_set_to(a)
            assert sweeps.adjoint(arranged)[1] is None, "once is enough"


@pytest.mark.parametrize("bent", [False, True])
@DTYPES
@EVERY
def test_tangent(case, dtype, bent):
    sweeps = Sweeps(case, dtype)
    pushed, (_, gradient) = sweeps.convolved(sweeps.t), sweeps.gradients(sweeps.a, sweeps.t)
    there = torch.randn_like(sweeps.weight)
    for t, a in itertools.product((sweeps.t, channels_last(sweeps.t)), (sweeps.a, channels_last(sweeps.a))):
        result, made, sums = sweeps.tangent(t, a, bent=bent)
        sweeps.close(result, pushed)
        sweeps.close(made, gradient)
        assert sums is None and (bent or made.is_contiguous())
        into = there.clone()
        result, made, _ = sweeps.tangent(t, a, into, bent=bent, wanted=(False, True, False))
        assert result is None and made is None, "it is added to what was there"
        sweeps.close(into, gradient + there.double())
    result, made, _ = sweeps.tangent(sweeps.t, None, bent=bent, wanted=(True, False, False))
    sweeps.close(result, pushed)
    assert made is None


@DTYPES
@EVERY
def test_tangent_with_multiples_of_the_adjoints(case, dtype):
    sweeps = Sweeps(case, dtype)
    ratio = sweeps.drawn(len(sweeps.t))
    by = ratio.double().reshape(-1, *[1] * (sweeps.t.dim() - 1))
    _, gradient = sweeps.gradients(sweeps.a, sweeps.t.double() + by * sweeps.h.double())
    sums = (by * sweeps.a.double()).sum((0, *range(2, sweeps.a.dim())))
    for wanted in itertools.product((True, False), repeat=3):
        found = sweeps.tangent(sweeps.t, sweeps.a, ratio=ratio, h=sweeps.h, wanted=wanted)
        for value, expected, is_wanted in zip(found, (sweeps.convolved(sweeps.t), gradient, sums), wanted, strict=True):
            assert (value is not None) == is_wanted
            if is_wanted:
                sweeps.close(value, expected)


@DTYPES
@EVERY
def test_second(case, dtype):
    sweeps = Sweeps(case, dtype)
    expected = *sweeps.gradients(sweeps.b, sweeps.h), sweeps.b.double().sum((0, *range(2, sweeps.b.dim())))
    there = torch.randn_like(sweeps.weight)
    for wanted in itertools.product((True, False), repeat=3):
        for b in (sweeps.b, channels_last(sweeps.b)):
            for value, known, is_wanted in zip(
                sweeps.second(b, sweeps.h, wanted=wanted), expected, wanted, strict=True
            ):
                assert (value is not None) == is_wanted
                if is_wanted:
                    sweeps.close(value, known)
    into = there.clone()
    _, made, _ = sweeps.second(sweeps.b, sweeps.h, into)
    assert made is None
    sweeps.close(into, expected[1] + there.double())


def test_a_gradient_that_lies_otherwise_is_returned_as_its_weight_lies():
    sweeps = Sweeps(CASES["channels last"], torch.float32)
    _, gradient = sweeps.gradients(sweeps.b, sweeps.h)
    into = torch.zeros_like(sweeps.weight, memory_format=torch.channels_last)
    _, made, _ = sweeps.second(sweeps.b, sweeps.h, into)
    assert made.is_contiguous() and not made.is_set_to(into)
    sweeps.close(made, gradient)
    sweeps.weight = sweeps.weight.contiguous(memory_format=torch.channels_last)
    assert sweeps.second(sweeps.b, sweeps.h)[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["channels last", "a large weight", "in parts", "of one pixel", "1d", "transposed"])
def test_they_are_what_their_schemas_say(name):
    sweeps = Sweeps(CASES[name], torch.float32)
    into, ratio = torch.zeros_like(sweeps.weight), torch.randn(len(sweeps.t))
    utils = ("test_schema", "test_faketensor")

    def check(op, *arguments):
        torch.library.opcheck(op.default, arguments, test_utils=utils)

    check(OPS.convolution_adjoint, sweeps.a, None, *sweeps.map)
    for gradient in (None, into):
        check(OPS.convolution_tangent, sweeps.t, sweeps.a, gradient, None, None, *sweeps.map, True, [True, True, False])
        multiples = sweeps.t, sweeps.a, gradient, ratio, sweeps.h
        check(OPS.convolution_tangent, *multiples, *sweeps.map, False, [True, True, True])
        check(OPS.convolution_second, sweeps.b, sweeps.h, gradient, *sweeps.map, [True, True, True])


@pytest.mark.parametrize("name", ["channels last, strided", "a large weight", "groups", "1d, dilated", "transposed"])
def test_their_flop_are_those_of_the_products(name):
    sweeps = Sweeps(CASES[name], torch.float32)
    one = cost.measure(lambda: F.conv2d(torch.ones(2, 3, 4, 4), torch.ones(5, 3, 1, 1))).flop
    assert one == 2 * 2 * 3 * 5 * 16
    smaller = sweeps.h if sweeps.options["transposed"] else sweeps.a
    product = 2 * sweeps.weight.numel() * smaller.numel() // smaller.shape[1]

    def flop(function):
        counted = cost.measure(function)
        assert counted.launches == 1
        return counted.flop

    assert flop(lambda: sweeps.adjoint(sweeps.a)) == product
    assert flop(lambda: sweeps.tangent(sweeps.t, sweeps.a)) == 2 * product
    assert flop(lambda: sweeps.tangent(sweeps.t, sweeps.a, wanted=(False, True, False))) == product
    assert flop(lambda: sweeps.tangent(sweeps.t, None, wanted=(True, False, False))) == product
    assert flop(lambda: sweeps.second(sweeps.b, sweeps.h)) == 2 * product
    assert flop(lambda: sweeps.second(sweeps.b, None, wanted=(False, False, True))) == 0


def test_what_does_not_fit_is_refused():
    sweeps = Sweeps(CASES["channels last"], torch.float32)
    weight, sizes, *options = sweeps.map
    for sizes_, options_ in ((sizes[1:], options), (sizes, [[1], *options[1:]]), (sizes, [[0, 1], *options[1:]])):
        with pytest.raises(RuntimeError, match="gpfast::convolution: a weight of"):
            OPS.convolution_adjoint(sweeps.a, None, weight, sizes_, *options_)


def launches(critic, x):
    counted = {}
    for engine in ("reference", "tape"):

        def step(engine=engine):
            critic.zero_grad(set_to_none=True)
            gpfast.gradient_penalty(critic, x, x + 1, alpha=0.5, engine=engine).backward()

        step()
        critic.zero_grad(set_to_none=True)
        counted[engine] = cost.measure(step, existing=(critic, x)).launches
    return counted["tape"] / counted["reference"]


def layers(norm):
    for channels in ((3, 16), (16, 32), (32, 64)):
        yield nn.Conv2d(*channels, 5, stride=2, padding=2)
        yield from norm(channels[1])
        yield nn.LeakyReLU(0.2)
    yield from (nn.Flatten(), nn.Linear(64 * 4 * 4, 1))


def test_a_critic_takes_at_most_half_of_the_launches_and_with_norms_a_fifth():
    x = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert launches(nn.Sequential(*layers(lambda channels: ())), x) <= 0.5
    assert launches(nn.Sequential(*layers(lambda channels: (nn.GroupNorm(4, channels),))), x) <= 0.2


def test_what_is_rearranged_goes_before_the_product():
    critic = nn.Sequential(nn.Conv2d(3, 32, 3), nn.LeakyReLU(0.2, inplace=True))
    critic += nn.Sequential(
        nn.Conv2d(32, 64, 3), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(64 * 28 * 28, 1)
    )
    x = torch.randn(16, 3, 32, 32)

    def step():
        critic.zero_grad(set_to_none=True)
        gpfast.gradient_penalty(critic, x, x + 1, alpha=0.5, engine="tape").backward()

    step()
    critic.zero_grad(set_to_none=True)
    held = cost.measure(step, existing=(critic, x)).peak_bytes  # by Python, which sees the operators
    critic.zero_grad(set_to_none=True)
    assert cost.peak_bytes_raw(step) < 0.9 * held


def test_what_pytorch_asks_sizes_of_need_not_be_made():
    """The gradient of groups in channels_last is asked for with an input, of which it reads sizes and strides."""
    z, weight = channels_last(torch.randn(8, 64, 16, 16)), torch.randn(64, 8, 3, 3)
    h = torch.randn(8, 64, 32, 32)
    arguments = weight, list(h.shape), [2, 2], [1, 1], [1, 1], False, [0, 0], 8

    def with_input():
        return OPS.convolution_adjoint(z, h, *arguments)

    def without():
        return OPS.convolution_adjoint(z, None, *arguments)

    torch.testing.assert_close(with_input()[0], without()[0], rtol=0, atol=0)
    assert cost.peak_bytes_raw(with_input) <= cost.peak_bytes_raw(without) - h.nbytes
