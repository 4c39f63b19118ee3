"""Convolutions in the tape: every kind, what is frozen, what has no rule, and the layouts of low precision."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low, autograd_gradients, cubic_loss, penalty_loss, tape_gradients
from torch import nn
from torch.nn.utils import parametrizations

import gpfast
from gpfast import cost
from gpfast.operators import as_on_a_gpu, count_step

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
KINDS = pytest.mark.parametrize("kinds", [CONVOLUTIONS, TRANSPOSED], ids=["straight", "transposed"])
DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": 2, "padding": 1},
    "stride leaves a rest": {"stride": 3},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "stride": 2},
    "depthwise": {"groups": 4, "padding": 1},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Where sums are longest: no two threads have parts of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def points(*sizes):
    return torch.randn(sizes, dtype=torch.float64)


def bent(*layers):
    """The layers with a curved activation between them, in float64."""
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.SiLU())][:-1]).double()


def check(critic, x, *, rule="convolution", alone=None):
    return agree(critic, x, list(critic.parameters()), rule=rule, alone=alone)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@KINDS
@DIMS
def test_alone_in_the_critic(dims, kinds, options):
    check(bent(kinds[dims](4, 8, 3, **options)), points(2, 4, *[7, 6, 5][:dims]))


@KINDS
@DIMS
def test_between_bends(dims, kinds):
    straight = CONVOLUTIONS[dims]
    options = {"output_padding": 1} if kinds is TRANSPOSED else {}
    middle = kinds[dims](4, 6, 3, stride=2, padding=1, groups=2, **options)
    critic = bent(straight(1, 4, 3, padding=1), middle, straight(6, 1, 3, padding=1))
    done = check(critic, points(2, 1, *[6, 5, 4][:dims]))
    assert any(bent for _, rule, _, bent in done if rule == "convolution")


@pytest.mark.parametrize("sizes", [(1, 4, 6, 5), (4, 6, 5)], ids=["batch of 1", "no batch"])
def test_small_batches(sizes):
    check(bent(nn.Conv2d(4, 3, 3), nn.Conv2d(3, 1, 2)), points(*sizes))


@pytest.mark.parametrize("kernel", [1, 5], ids=["of a pixel", "of the image"])
def test_kernels(kernel):
    check(bent(nn.Conv2d(3, 4, kernel), nn.Conv2d(4, 2, 1)), points(2, 3, 5, 5))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_named_padding(padding):
    check(bent(nn.Conv2d(3, 4, 4, padding=padding)), points(2, 3, 6, 5))


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes(mode):
    check(bent(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)), points(2, 3, 6, 5))


def test_one_number_for_every_dimension():
    weight = points(4, 3, 3, 3).requires_grad_()
    options = ([2], [1], [1], False, [0], 1)
    agree(lambda x: torch.convolution(x, weight, None, *options), points(2, 3, 6, 6), [weight], rule="convolution")


def test_layouts():
    critic, x = bent(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), points(2, 3, 8, 7)
    check(critic, x.contiguous(memory_format=torch.channels_last))
    check(critic.to(memory_format=torch.channels_last), x)
    mixed = bent(nn.Conv2d(3, 4, 3))
    parameters = list(mixed.parameters())
    agree(lambda x: mixed(x.flip(0).mT).transpose(1, 3)[:, ::2], x, parameters, rule="convolution")


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]], ids="+".join)
@KINDS
def test_frozen(kinds, frozen):
    critic = bent(nn.Conv2d(3, 4, 3), kinds[2](4, 5, 3, stride=2, padding=1), nn.Conv2d(5, 2, 1))
    for name in frozen:
        getattr(critic[2], name).requires_grad_(False)
    check(critic, points(2, 3, 7, 6))


def test_the_weight_is_an_expression():
    critic = bent(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    parametrizations.weight_norm(critic[0])
    parametrizations.spectral_norm(critic[2]).eval()
    check(critic, points(2, 3, 7, 6))


def test_the_weight_is_shared():
    twice = nn.Conv2d(4, 4, 3, padding=1)
    check(bent(twice, twice), points(2, 4, 5, 5))


def test_only_a_part_is_used():
    critic = bent(nn.Conv2d(4, 6, 3))
    parameters = list(critic.parameters())
    agree(lambda x: critic(x.split(2)[0]).chunk(3, 1)[1], points(4, 4, 5, 5), parameters, rule="convolution")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_traced():
    critic, x = bent(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3)), points(2, 3, 6, 5)
    done = agree(torch.jit.trace(critic, x), x, list(critic.parameters()), rule="convolution")
    assert "ConvolutionBackward1" in [node for node, *_ in done]


def test_a_live_weight_has_no_rule():
    x, constant, weight = points(2, 3, 5, 5), points(2, 4, 6, 6), points(3, 3, 2, 2).requires_grad_()
    alone = "ConvolutionBackward0"
    agree(lambda x: F.conv2d(constant, x[:, :, :4, :4].reshape(2, 4, -1, 3)[:, :, :2]), points(2, 3, 8, 8), alone=alone)
    agree(lambda x: F.conv2d(x, weight * x[:1, :, :2, :2]), x, [weight], alone=alone)
    agree(lambda x: F.conv2d(x, weight, x.mean((0, 2, 3))), x, [weight], alone=alone)


def test_output_padding_beyond_the_stride_has_no_rule():
    critic = bent(nn.ConvTranspose2d(3, 4, 3, dilation=3, output_padding=2, stride=2))
    check(critic, points(2, 3, 4, 5), rule=None, alone="ConvolutionBackward0")


def test_a_weight_that_was_written_to_is_refused():
    critic = bent(nn.Conv2d(3, 4, 3))

    def function(x):
        y = critic(x)
        with torch.no_grad():
            critic[0].weight.mul_(2)
        return y

    for engine in (autograd_gradients, tape_gradients):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            engine(function, points(2, 3, 5, 5), list(critic.parameters()), penalty_loss)


def ambiguous(kinds, dims):
    """One channel, one pixel, a kernel of one: strides leave the layout open. Then a weight larger than its values."""
    straight = CONVOLUTIONS[dims]
    middle = kinds[dims](6, 6, 3, stride=2, padding=1, groups=2)
    small = [straight(1, 6, 3, padding=1), middle, straight(6, 1, 1), straight(1, 3, 3, padding=1)]
    return bent(*small, nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(4), nn.Conv1d(3, 40, 4)), nn.Conv1d(40, 2, 1))


LAYOUTS = {"1d": (1, None), "2d": (2, None), "2d-channels_last": (2, torch.channels_last)}
LAYOUTS |= {"3d": (3, None), "3d-channels_last": (3, torch.channels_last_3d)}


@pytest.mark.parametrize(("dims", "layout"), LAYOUTS.values(), ids=LAYOUTS)
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype, kinds, dims, layout):
    def make(wide):
        torch.manual_seed(0)
        critic = ambiguous(kinds, dims)
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.copy_(parameter.mul_(3).to(dtype))  # tripled, or the gradients are subnormal in float16
        return critic.to(wide) if layout is None else critic.to(wide, memory_format=layout), list(critic.parameters())

    agree_low(make, points(4, 1, *[8, 7, 6][:dims]), dtype)


def check_in_float32(dims, kinds, options, sizes, channels=(4, 8), draws=8):
    def make(dtype):
        torch.manual_seed(0)
        critic = bent(kinds[dims](*channels, **options), CONVOLUTIONS[dims](channels[1], 2, 1, bias=False))
        critic = critic.float().to(dtype)
        return critic, list(critic.parameters())

    agree_low(make, points(*sizes), torch.float32, draws=draws)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@KINDS
@DIMS
def test_every_kind_in_channels_last(dims, kinds, options):
    check_in_float32(dims, kinds, {"kernel_size": 3, **options}, (4, 4, *[15, 8, 5][:dims]))


def test_a_weight_of_few_channels_after_a_transposed_convolution_by_one_thread(one_thread):
    check_in_float32(2, TRANSPOSED, {"kernel_size": 3, "stride": 3}, (4, 4, 15, 8))


# Channels, kernel, options, sizes.
MANY_PIXELS = {
    "of one pixel": ((3, 32), 1, {}, (1, 3, 64, 64)),
    "of one pixel, padded": ((3, 32), 1, {"padding": 1}, (1, 3, 64, 64)),
    "of one pixel, strided": ((3, 16), 1, {"stride": 2}, (4, 3, 64, 64)),  # beyond oneDNN's memory in channels_last
    "of one pixel, to few": ((32, 3), 1, {"stride": 2}, (2, 32, 63, 64)),
    "1d, strided": ((3, 16), 1, {"stride": 2}, (8, 3, 2048)),
    "1d, dilated": ((8, 12), 3, {"dilation": 2, "padding": 1}, (16, 8, 512)),
    "1d, dilated, of many channels": ((64, 48), 2, {"dilation": 8, "padding": 8}, (30, 64, 127)),
    "1d, dilated, in groups": ((32, 48), 3, {"dilation": 2, "padding": 2, "groups": 4}, (16, 32, 512)),
    "1d, dilated and strided": ((20, 24), 3, {"dilation": 4, "stride": 3, "padding": 5}, (8, 20, 400)),
    "1d, dilated beyond its values": ((16, 16), 3, {"dilation": 64, "padding": 64}, (16, 16, 60)),
    "dilated in one dimension": ((16, 20), (1, 3), {"dilation": (1, 4), "padding": (0, 4)}, (4, 16, 8, 100)),
    "dilated in the other": ((16, 20), (3, 1), {"dilation": (4, 1), "stride": (1, 2)}, (4, 16, 80, 9)),
    "dilated": ((8, 4), 3, {"dilation": 2}, (8, 8, 32, 32)),
    "groups": ((4, 20), 5, {"groups": 4, "stride": 2}, (8, 4, 64, 64)),
    "depthwise": ((32, 32), 3, {"groups": 32, "padding": 1}, (4, 32, 32, 32)),
    "3d, of one pixel": ((3, 16), 1, {"stride": 2}, (4, 3, 16, 16, 16)),
}


@pytest.mark.parametrize(("channels", "kernel", "options", "sizes"), MANY_PIXELS.values(), ids=MANY_PIXELS)
@KINDS
def test_few_samples_of_many_pixels(kinds, channels, kernel, options, sizes, one_thread):
    """A gradient summed up one pixel after another would be further from float64 than eager's."""
    check_in_float32(len(sizes) - 2, kinds, {"kernel_size": kernel, **options}, sizes, channels, draws=1)


# Channels, kernel, options, sizes.
MANY_SAMPLES = {
    "strided": ((16, 32), 4, {"stride": 2, "padding": 1}, (128, 16, 16, 16)),
    "few channels": ((3, 16), 3, {"padding": 1}, (128, 3, 28, 28)),
    "of one pixel": ((32, 48), 1, {}, (128, 32, 20, 20)),
    "1d, strided": ((8, 24), 5, {"stride": 2}, (160, 8, 300)),
    "3d, strided": ((4, 16), 3, {"stride": 2}, (96, 4, 7, 7, 7)),
}


@pytest.mark.parametrize(("channels", "kernel", "options", "sizes"), MANY_SAMPLES.values(), ids=MANY_SAMPLES)
@KINDS
def test_many_samples(kinds, channels, kernel, options, sizes, one_thread):
    """PyTorch's double backward adds up at most 16 samples before it adds up sums."""
    check_in_float32(len(sizes) - 2, kinds, {"kernel_size": kernel, **options}, sizes, channels, draws=1)


@DIMS
def test_channels_last_within_and_gradients_that_lie_as_their_weights(dims):
    critic = bent(CONVOLUTIONS[dims](2, 4, 3), CONVOLUTIONS[dims](4, 3, 1), CONVOLUTIONS[dims](3, 3, 3)).float()
    parameters = list(critic.parameters())
    _, gradients, _ = tape_gradients(critic, torch.randn(4, 2, *[9, 8, 7][:dims]), parameters, penalty_loss)
    *ours, at_points = gradients
    for g, parameter in zip(ours, parameters, strict=True):
        assert g.is_contiguous() and parameter.is_contiguous()
    assert at_points.stride(1) == 1


def test_frozen_in_channels_last():
    critic = bent(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2), nn.Conv2d(5, 2, 1, bias=False)).float()
    critic[2].weight.requires_grad_(False)
    x, parameters = torch.randn(2, 3, 12, 12), list(critic.parameters())
    _, ours, _ = tape_gradients(critic, x, parameters, penalty_loss)
    _, theirs = autograd_gradients(critic, x, parameters, penalty_loss)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("size, kernel, stride, padding, dilation", [(8, 4, 2, 1, 1), (9, 5, 2, 2, 1), (7, 3, 3, 0, 2)])
def test_a_weight_larger_than_its_values_in_float32(size, kernel, stride, padding, dilation, curved):
    """Where the weight gradient is a convolution of its own."""
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 32, kernel, kernel, dtype=torch.float64) / 20, torch.randn(48, dtype=torch.float64)
    x = torch.randn(16, 32, size, size, dtype=torch.float64)

    def make(dtype):
        w, b = (p.to(dtype).requires_grad_() for p in (weight.float(), bias.float()))

        def critic(x):
            y = F.conv2d(x, w, b, stride, padding, dilation)
            return (y.tanh() if curved else F.leaky_relu(y, 0.2)).flatten(1).square().sum(1)

        return critic, [w, b]

    agree_low(make, x, torch.float32)


@pytest.fixture
def no_onednn():
    with as_on_a_gpu():
        yield


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@KINDS
@DIMS
def test_every_kind_without_onednn(dims, kinds, options, no_onednn):
    critic = bent(CONVOLUTIONS[dims](2, 4, 1), kinds[dims](4, 8, 3, **options), CONVOLUTIONS[dims](8, 2, 1))
    done = check(critic, points(2, 2, *[7, 6, 5][:dims]))
    assert any(bent for _, rule, _, bent in done if rule == "convolution")


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]], ids="+".join)
@KINDS
def test_frozen_without_onednn(kinds, frozen, no_onednn):
    test_frozen(kinds, frozen)


def test_a_shared_weight_without_onednn(no_onednn):
    test_the_weight_is_shared()


def test_a_loss_twice_without_onednn(no_onednn):
    critic, x = bent(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, stride=2)), points(2, 3, 8, 7)
    parameters = list(critic.parameters())
    once, twice = (tape_gradients(critic, x, parameters, cubic_loss, again=again)[1] for again in (False, True))
    torch.testing.assert_close(twice, once)


def test_the_bias_of_a_very_large_weight_without_onednn(no_onednn):
    layer = nn.Conv2d(1024, 1056, 3)  # 74 MiB in float64: its gradient is made in blocks
    critic, x = bent(nn.Conv2d(2, 1024, 1), layer, nn.Conv2d(1056, 1, 1)), points(2, 2, 3, 3)
    expected, found = (run(critic, x, [layer.bias], cubic_loss)[1][0] for run in (autograd_gradients, tape_gradients))
    assert expected.any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", [1, 3])
@DIMS
def test_onednn_is_switched_off_before_backward(dims, kernel):
    critic = bent(CONVOLUTIONS[dims](3, 8, kernel), CONVOLUTIONS[dims](8, 4, kernel), CONVOLUTIONS[dims](4, 1, 1))
    x, parameters = points(2, 3, *[9] * dims), list(critic.parameters())
    _, (*expected, _) = autograd_gradients(critic, x, parameters, cubic_loss)
    critic.float()
    value = gpfast.input_gradient_loss(critic, x.float(), cubic_loss, engine="tape")
    with as_on_a_gpu():
        found = torch.autograd.grad(value, list(critic.parameters()))
    for ours, exact in zip(found, expected, strict=True):
        assert exact.any()
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


def launches(critic, *sizes):
    x = torch.zeros(sizes)
    return Counter(operator.name.removeprefix("aten.") for operator in count_step(critic, x, x + 1).operators)


def three_layers(kinds):
    layers = kinds[2](3, 8, 4, 2, 1), kinds[2](8, 8, 4, 2, 1), nn.Conv2d(8, 1, 4)
    return nn.Sequential(*bent(*layers).float(), nn.Flatten(), nn.LazyLinear(1))


@KINDS
def test_a_gpu_is_asked_for_all_gradients_of_a_sweep_at_once(kinds):
    critic = three_layers(kinds)
    critic(torch.zeros(4, 3, 32, 32))
    counted = launches(critic, 4, 3, 32, 32)
    assert counted["convolution"] == 3 + 3  # values and adjoints
    assert counted["convolution_backward"] == 3 + 2  # tangents, with gradients; second adjoints, with the rest of them
    assert counted["add_"] == 2 and counted["sum"] == 0


def test_only_the_gradient_of_a_very_large_weight_is_made_in_blocks_on_a_gpu():
    def added(channels):
        critic = nn.Sequential(nn.Conv2d(3, 1024, 1), nn.SiLU(), nn.Conv2d(1024, channels, 3), nn.SiLU(), nn.Flatten())
        critic = nn.Sequential(critic, nn.Linear(channels, 1))
        return launches(critic, 2, 3, 3, 3)["add_"]

    assert added(1792) == 2  # 63 MiB, and the first layer's
    assert added(1856) == 1 + 2


def held(function, x):
    """The bytes that each convolution holds after the adjoint sweep, from the scores down."""
    steps = []

    def loss(y, g):
        steps.extend(line.split("\t") for line in torch.ops.gpfast.describe(g))
        return g.square().sum()

    gpfast.input_gradient_loss(function, x, loss, engine="tape")
    return [int(kept) for _, rule, *_, kept in steps if rule == "convolution"]


READERS = {
    "layer norm": nn.LayerNorm((8, 48, 48)),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "norm and activation": nn.Sequential(nn.GroupNorm(2, 8), nn.Tanh()),
    "activation": nn.Softplus(),
}


@pytest.mark.parametrize("name", READERS)
def test_an_adjoint_that_the_reader_makes_again_is_not_held(name):
    """Above a size, and only where nobody else reads the result."""
    torch.manual_seed(0)
    below, reader, above = nn.Conv2d(2, 8, 3, padding=1).double(), READERS[name].double(), nn.Conv2d(8, 2, 3).double()
    parameters = [*below.parameters(), *reader.parameters(), *above.parameters()]
    x = torch.randn(2, 2, 48, 48, dtype=torch.float64)

    def alone(x):
        return above(reader(below(x))).sin()

    def shared(x):
        y = below(x)
        return above(reader(y) + 0.1 * y).sin()

    for function in (alone, shared):
        agree(function, x, parameters, rule="convolution")
        agree(lambda x, function=function: function(x.tanh()), x, parameters, rule="convolution")
    values = 2 * 8 * 48 * 48 * 8
    assert [held(function, x)[-1] >= values for function in (alone, shared)] == [False, True]
    if name != "layer norm":
        small = x[..., :8, :8].clone()
        assert held(alone, small)[-1] >= values // 36, "a small one is held"


@pytest.mark.parametrize("name", READERS)
def test_an_adjoint_is_made_again_in_every_run(name):
    torch.manual_seed(0)
    below, reader, above = nn.Conv2d(2, 8, 3, padding=1).double(), READERS[name].double(), nn.Conv2d(8, 2, 3).double()
    critic = nn.Sequential(below, reader, above)
    x = torch.randn(2, 2, 48, 48, dtype=torch.float64)
    expected = gpfast.gradient_penalty(critic, x, x + 1, alpha=0.5, reduction="none", engine="autograd")
    found = gpfast.gradient_penalty(critic, x, x + 1, alpha=0.5, reduction="none", engine="tape")
    for weights in torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64):
        wanted = torch.autograd.grad(expected, list(critic.parameters()), weights, retain_graph=True, allow_unused=True)
        mine = torch.autograd.grad(found, list(critic.parameters()), weights, retain_graph=True)
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-9)


class Repeated(nn.Module):
    """One layer, used several times between curves."""

    def __init__(self, layer, times):
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x).tanh()
        return x


def peak_of(critic, x, engine):
    def step():
        critic.zero_grad(set_to_none=True)
        gpfast.gradient_penalty(critic, x, x.flip(0), alpha=0.3, engine=engine).backward()

    step()
    critic.zero_grad(set_to_none=True)
    return cost.measure(step, existing=(critic, x)).peak_bytes


SHARED = {
    "convolution": lambda: (nn.Conv2d(8, 8, 3, padding=1), (2, 8, 3, 3)),
    "height added": lambda: (nn.Conv1d(8, 8, 3, padding=1), (2, 8, 5)),
    "transposed": lambda: (nn.ConvTranspose2d(8, 8, 3, padding=1), (2, 8, 3, 3)),
    "linear": lambda: (nn.Linear(16, 16), (14, 16)),  # of fewer samples than a run has
}


@pytest.mark.parametrize("name", SHARED)
def test_a_weight_of_several_uses_has_one_gradient(name):
    layer, shape = SHARED[name]()
    critic = Repeated(layer.double(), 4)
    agree(critic, torch.randn(shape, dtype=torch.float64), critic.parameters())
    x = torch.randn(shape)
    peaks = [peak_of(Repeated(layer.float(), times), x, "tape") for times in (8, 16)]
    assert peaks[1] - peaks[0] < 8 * (4 * x.nbytes + layer.weight.nbytes // 2)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_kernels_of_few_channels(channels, curved, batch):
    """As over the embeddings of words, in the layout that suits the sweep."""
    layers = [nn.Conv2d(channels, 20, (4, 24)), nn.Softplus() if curved else nn.LeakyReLU(0.2), nn.Flatten()]
    critic = nn.Sequential(*layers, nn.Linear(20 * 37, 1))
    x = torch.randn(batch, channels, 40, 24, dtype=torch.float64)
    agree(critic.double(), x, critic.parameters(), rule="convolution")
    agree_low(lambda dtype: (critic.to(dtype), list(critic.parameters())), x, torch.float32)


def test_one_sample_of_a_map_of_scores_is_not_unfolded():
    critic = nn.Sequential(nn.Conv2d(3, 32, 3), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(32, 1, 3))
    x = torch.randn(1, 3, 64, 64)
    raw = {}
    for engine in ("reference", "tape"):

        def step(engine=engine):
            gpfast.gradient_penalty(critic, x, x.flip(2), alpha=0.3, engine=engine).backward()

        step()
        critic.zero_grad(set_to_none=True)
        raw[engine] = cost.peak_bytes_raw(step)
        critic.zero_grad(set_to_none=True)
    assert raw["tape"] < raw["reference"]
    agree(critic.double(), x.double(), critic.parameters(), rule="convolution")
    agree_low(lambda dtype: (critic.to(dtype), list(critic.parameters())), x.double(), torch.float32)
