"""Rules of layer, group, instance and batch norms, against autograd."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from tape_checks import adjoints_made_again, agree, agree_low, autograd_gradients, cubic_loss, tape_gradients
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import gpfast
from gpfast import _extension, cost

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shaken(module, dtype=torch.float64):
    """The module with parameters and buffers that are not zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return module.to(dtype)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def in_channels_last(y):
    """The same values; the adjoint that arrives from here lies in channels_last."""
    return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


NORMS = {
    "layer norm": [
        (lambda: nn.LayerNorm(5), (3, 5)),
        (lambda: nn.LayerNorm(5, bias=False), (2, 3, 5)),
        (lambda: nn.LayerNorm((4, 3, 5), elementwise_affine=False), (2, 4, 3, 5)),
        (lambda: nn.LayerNorm((4, 3, 5)), (2, 4, 3, 5)),
        (lambda: nn.LayerNorm((3, 5), eps=0.1), (2, 4, 3, 5)),
    ],
    "group norm": [
        (lambda: nn.GroupNorm(2, 6), (3, 6, 2, 3)),
        (lambda: nn.GroupNorm(1, 3), (2, 3, 5)),
        (lambda: nn.GroupNorm(4, 4, affine=False), (2, 4, 3, 2)),
        (lambda: nn.GroupNorm(2, 6), (3, 6)),
        (lambda: nn.GroupNorm(3, 6, eps=0.1), (1, 6, 1, 1)),
        (lambda: nn.GroupNorm(1, 1), (2, 1, 3, 2)),
        (lambda: nn.GroupNorm(2, 4), (2, 4, 2, 3, 2)),
    ],
    "batch norm": [
        (lambda: nn.InstanceNorm2d(3), (2, 3, 3, 4)),
        (lambda: nn.InstanceNorm1d(3, affine=True), (2, 3, 5)),
        (lambda: nn.BatchNorm2d(3), (4, 3, 2, 3)),
        (lambda: nn.BatchNorm1d(5, affine=False), (4, 5)),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), (1, 3, 3, 3)),
        (lambda: nn.BatchNorm1d(1), (4, 1, 3)),
    ],
    "frozen batch norm": [
        (lambda: nn.BatchNorm2d(3).eval(), (2, 3, 2, 3)),
        (lambda: nn.BatchNorm1d(5, affine=False).eval(), (4, 5)),
        (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(), (2, 3, 3, 4)),
    ],
}
CASES = [pytest.param(rule, *case, id=f"{rule} {i}") for rule, cases in NORMS.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize("rule, make, shape", CASES)
def test_alone_on_the_points(rule, make, shape):
    """First and last: the norm of the points is the score."""
    norm = shaken(make())
    agree(norm, randn(*shape), norm.parameters(), rule=rule)


@pytest.mark.parametrize("rule, make, shape", CASES)
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")], ids="-".join)
def test_between_curves(rule, make, shape, frozen):
    """Second adjoints arrive, and go on to parameters below; a frozen parameter has no gradient and no cost."""
    norm = shaken(make())
    for name, parameter in norm.named_parameters():
        parameter.requires_grad_(name not in frozen)
    scale = randn(*shape[1:], seed=1).requires_grad_()

    def critic(x):
        return (norm((x * scale).tanh()) * scale).sin()

    agree(critic, randn(*shape), [scale, *norm.parameters()], rule=rule)


@pytest.mark.parametrize("rule, make, shape", CASES)
def test_below_a_linear_end(rule, make, shape):
    """No second adjoint arrives: all there is comes from the tangent sweep."""
    norm = shaken(make())
    scale = randn(*shape[1:], seed=1).requires_grad_()

    def critic(x):
        return (norm(x * scale) * scale).flatten(1).sum(1)

    agree(critic, randn(*shape), [scale, *norm.parameters()], rule=rule)


LAYOUTS = list(itertools.product([False, True], repeat=4))


@pytest.mark.parametrize("kept, adjoint, tangent, second", LAYOUTS)
@pytest.mark.parametrize(
    "rule, make",
    [
        ("group norm", lambda: nn.GroupNorm(2, 4)),
        ("group norm", lambda: nn.GroupNorm(4, 4)),
        ("group norm", lambda: nn.GroupNorm(1, 4, affine=False)),
        ("batch norm", lambda: nn.BatchNorm2d(4)),
        ("frozen batch norm", lambda: nn.BatchNorm2d(4).eval()),
        ("layer norm", lambda: nn.LayerNorm((4, 3, 2))),
        ("layer norm", lambda: nn.LayerNorm((3, 2))),
        ("layer norm", lambda: nn.LayerNorm(2)),
    ],
)
def test_every_mixture_of_layouts(rule, make, kept, adjoint, tangent, second):
    """What was saved, a, t and b: each in channels_last or not."""
    norm = shaken(make())
    scale = randn(4, 3, 2, seed=1).requires_grad_()

    def critic(x):
        h = (x * scale).tanh()
        h = in_channels_last(h) if tangent else h.contiguous()
        h = channels_last(h) if kept else h.contiguous()
        y = norm(h)
        y = in_channels_last(y) if adjoint else y.contiguous()
        return (in_channels_last(y.sin()) if second else y.sin()) * scale

    agree(critic, randn(3, 4, 3, 2), [scale, *norm.parameters()], rule=rule)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize(
    "make",
    [
        lambda c: nn.InstanceNorm2d(c, affine=True),
        lambda c: nn.GroupNorm(2, c),
        lambda c: nn.GroupNorm(1, c),
        lambda c: nn.BatchNorm2d(c),
        lambda c: nn.BatchNorm2d(c).eval(),
    ],
    ids=["instance", "group", "one group", "batch", "frozen"],
)
def test_convolutional_critic(make, memory_format):
    torch.manual_seed(0)
    critic = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, bias=False),
        make(4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 6, 3, 2, 1),
        make(6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 1),
    )
    critic = shaken(critic).to(memory_format=memory_format)
    x = randn(3, 2, 8, 8).contiguous(memory_format=memory_format)
    agree(critic, x, critic.parameters())


def test_transformer_block_and_transposed_rows():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=True).double()

    def critic(x):
        with sdpa_kernel(SDPBackend.MATH):  # the one that PyTorch differentiates twice
            return block(x.transpose(0, 1)).mean(0)

    agree(critic, randn(2, 3, 4), block.parameters(), rule="layer norm")


def test_channels_last_block_of_convnext():
    norm = shaken(nn.LayerNorm(4))
    conv = shaken(nn.Conv2d(4, 4, 3, padding=1))

    def critic(x):
        return norm(conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).sin()

    agree(critic, randn(2, 4, 3, 3), [*norm.parameters(), *conv.parameters()], rule="layer norm")


def test_bias_without_weight_and_weight_of_an_expression():
    bias = randn(5, seed=1).requires_grad_()
    gain = randn(1, seed=2).requires_grad_()
    agree(lambda x: F.layer_norm(x, (5,), None, bias).sin(), randn(3, 5), [bias], rule="layer norm")
    agree(lambda x: F.group_norm(x, 2, gain.expand(4), bias[:4]).sin(), randn(3, 4, 2), [bias, gain], rule="group norm")


def test_groups_of_one_element():
    scale = randn(4, 1, seed=1).requires_grad_()
    for norm, rule in ((nn.LayerNorm(1), "layer norm"), (nn.GroupNorm(1, 1), "group norm")):
        norm = shaken(norm)
        agree(lambda x, norm=norm: norm(x * scale).sin() * scale, randn(4, 1), [scale, *norm.parameters()], rule=rule)


def test_a_norm_used_twice_and_a_norm_of_a_norm():
    norm = shaken(nn.GroupNorm(2, 4))
    agree(lambda x: norm(x).sin() * norm(x * 2), randn(2, 4, 3), norm.parameters(), rule="group norm")
    agree(lambda x: norm(norm(x)), randn(2, 4, 3), norm.parameters(), rule="group norm")


def test_live_weights_run_alone():
    agree(lambda x: F.layer_norm(x, (5,), x.mean(0), None), randn(3, 5), alone="NativeLayerNormBackward0")
    ones = torch.ones(4, dtype=torch.float64)  # PyTorch cannot differentiate a bias without weights twice
    agree(lambda x: F.group_norm(x, 2, ones, x.mean((0, 2))), randn(3, 4, 2), alone="NativeGroupNormBackward0")


def test_constant_input_of_live_bias_runs_alone():
    h = randn(3, 5, seed=1)
    agree(lambda x: F.layer_norm(h, (5,), x.mean(0).sin(), x.sum(0)), randn(3, 5), alone="NativeLayerNormBackward0")


@pytest.mark.parametrize("rule, make, shape", [c for c in CASES if "frozen" not in c.id])
def test_rows_without_variance(rule, make, shape):
    """Deviation 1 / sqrt(eps): the largest there is. The tolerance is that of such a number cubed."""
    norm = shaken(make())
    norm.eps = 0.01
    agree(norm, torch.full(shape, 2.0, dtype=torch.float64), norm.parameters(), rule=rule)


def test_functional_batch_norms():
    mean, variance = randn(4, seed=1), randn(4, seed=2).abs() + 0.5
    weight, bias = randn(4, seed=3).requires_grad_(), randn(4, seed=4).requires_grad_()
    aten = torch.ops.aten
    calls = {
        "legit": lambda x: aten._native_batch_norm_legit(
            x, weight, bias, mean.clone(), variance.clone(), True, 0.1, 0.1
        ),
        "no stats": lambda x: aten._native_batch_norm_legit.no_stats(x, weight, bias, True, 0.1, 0.1),
        "update": lambda x: aten._batch_norm_with_update(x, weight, bias, mean.clone(), variance.clone(), 0.1, 0.1),
    }
    for call in calls.values():
        agree(lambda x, call=call: call(x)[0].sin(), randn(3, 4, 2), [weight, bias], rule="batch norm")
    calls = {
        "legit": lambda x: aten._native_batch_norm_legit(x, weight, bias, mean, variance, False, 0.1, 0.1),
        "no training": lambda x: aten._native_batch_norm_legit_no_training(x, weight, bias, mean, variance, 0.1, 0.1),
        "no update": lambda x: aten._batch_norm_no_update(x, weight, bias, mean, variance, 0.1, 0.1),
    }
    for call in calls.values():
        agree(lambda x, call=call: call(x)[0].sin(), randn(3, 4, 2), [weight, bias], rule="frozen batch norm")


def test_statistics_that_are_differentiated_are_refused():
    with pytest.raises(RuntimeError, match="statistics of group norm"):
        agree(
            lambda x: torch.cat([y.flatten() for y in torch.native_group_norm(x, None, None, 2, 4, 3, 2, 0.1)]),
            randn(2, 4, 3),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: nn.LayerNorm(37), (6, 37)),
        (lambda: nn.GroupNorm(2, 6), (4, 6, 5, 7)),
        (lambda: nn.InstanceNorm2d(4, affine=True), (3, 4, 7, 5)),
        (lambda: nn.BatchNorm2d(4), (3, 4, 5, 3)),
        (lambda: nn.BatchNorm2d(4).eval(), (3, 4, 5, 3)),
    ],
    ids=["layer", "group", "instance", "batch", "frozen"],
)
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_error_is_no_larger_than_autograds(make, shape, dtype, last):
    if last and len(shape) < 4:
        pytest.skip("rows")

    def make_critic(dtype):
        norm = shaken(make(), dtype)
        scale = randn(*shape[1:], seed=1, dtype=dtype).requires_grad_()

        def critic(x):
            h = channels_last(x * scale) if last else x * scale
            return (norm(h) * scale).sin().flatten(1).sum(1)

        return critic, [scale, *norm.parameters()]

    agree_low(make_critic, randn(*shape) + 0.5, dtype)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: nn.LayerNorm(37), (6, 37)),
        (lambda: nn.GroupNorm(2, 6), (4, 6, 5, 7)),
        (lambda: nn.BatchNorm2d(3), (4, 3, 5, 7)),
        (lambda: nn.BatchNorm2d(3).eval(), (4, 3, 5, 7)),
    ],
    ids=["layer", "group", "batch", "frozen"],
)
def test_low_precision_between_wide_weights(make, shape):
    def make_critic(dtype):
        norm = shaken(make(), torch.float32 if dtype == torch.bfloat16 else dtype)
        return lambda x: norm(x).sin().flatten(1).sum(1), list(norm.parameters())

    agree_low(make_critic, randn(*shape), torch.bfloat16)


@pytest.mark.parametrize("rule, make, shape", CASES)
def test_sweeps_that_run_again(rule, make, shape):
    """A graph that is retained: the last two sweeps run once for each backward."""
    norm, scale = shaken(make()), randn(*shape[1:], seed=1).requires_grad_()
    inputs = [scale, *norm.parameters()]

    def critic(x):
        return (norm((x * scale).tanh()) * scale).sin()

    value = gpfast.input_gradient_loss(critic, randn(*shape), cubic_loss, engine="tape")
    expected = autograd_gradients(critic, randn(*shape), inputs, cubic_loss)[1]
    for factor in (1.0, 2.0, 3.0):
        found = torch.autograd.grad(factor * value, inputs, retain_graph=True)
        for mine, theirs in zip(found, expected[: len(inputs)], strict=True):
            torch.testing.assert_close(mine, factor * theirs, rtol=1e-9, atol=1e-9)


class Gatings(TorchDispatchMode):
    """Counts the passes of gates over tangents and second adjoints."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.passes += function.overloadpacket in (torch.ops.gpfast.gated, torch.ops.gpfast.gated_)
        return function(*args, **(kwargs or {}))


class ScaledByWhatItWasNotGiven(torch.autograd.Function):
    """z times the tensor in `beside`, on which its derivative depends and for which it has no gradient."""

    @staticmethod
    def forward(ctx, z, beside):
        ctx.beside = beside
        return z * beside[0].detach()

    @staticmethod
    def backward(ctx, a):
        return a * ctx.beside[0], None


@pytest.mark.parametrize("rule, make, shape", CASES)
def test_a_gate_above_is_the_norms_own_work(rule, make, shape):
    norm, scale = shaken(make()), randn(*shape[1:], seed=1).requires_grad_()
    parameters = [scale, *norm.parameters()]

    def critic(x):
        return F.leaky_relu(norm((x * scale).tanh()) - 0.0, 0.2).sin()

    def gated(x):
        return F.leaky_relu(norm((x * scale).tanh()), 0.2).sin()

    for function in (critic, gated):
        agree(function, randn(*shape), parameters, rule="gate")
        with adjoints_made_again():
            agree(function, randn(*shape), parameters, rule="gate")
    if rule == "frozen batch norm":
        return
    passes = []
    for function in (critic, gated):
        with Gatings() as gatings:
            tape_gradients(function, randn(*shape), parameters, cubic_loss, again=True)
        passes.append(gatings.passes)
    assert passes == [4, 0], "two a run, and none where the norm does it"


@pytest.mark.parametrize(
    "above",
    [
        pytest.param(lambda y: F.relu(y) * y, id="another reader"),
        pytest.param(lambda y: F.relu(y) + F.leaky_relu(y, 0.3), id="two gates"),
        pytest.param(lambda y: F.prelu(y, torch.full((4,), 0.3, dtype=y.dtype)), id="a slope a channel"),
        pytest.param(lambda y: F.relu(in_channels_last(y)), id="another layout between"),
        pytest.param(lambda y: in_channels_last(F.relu(y)), id="another layout above"),
        pytest.param(lambda y: F.relu(F.hardtanh(y, -0.7, 0.7)), id="a gate over a gate"),
        pytest.param(lambda y: F.relu(y, inplace=True), id="in place"),
        pytest.param(lambda y: F.hardshrink(y, 0.2) ** 2, id="hardshrink"),
    ],
)
@pytest.mark.parametrize("last", [lambda y: y.sin(), lambda y: y], ids=["bent", "flat"])
def test_what_reads_a_norm(above, last):
    norm, convolution = shaken(nn.GroupNorm(2, 4)), shaken(nn.Conv2d(4, 3, 2))
    parameters = [*norm.parameters(), *convolution.parameters()]

    def critic(x):
        return last(convolution(above(norm(x.tanh()))))

    agree(critic, randn(2, 4, 3, 5), parameters, rule="group norm")
    with adjoints_made_again():
        agree(critic, randn(2, 4, 3, 5), parameters, rule="group norm")


def test_second_adjoints_that_pass_by_the_gate_are_not_gated():
    norm = shaken(nn.LayerNorm(5))

    def critic(x):
        y = norm(x.tanh())
        return ScaledByWhatItWasNotGiven.apply(F.relu(y), [y]).sin()

    agree(critic, randn(3, 5), norm.parameters(), rule="layer norm")


def test_a_norm_that_is_a_score_itself():
    norm = shaken(nn.LayerNorm(5))
    agree(lambda x: norm(x.tanh()), randn(3, 5), norm.parameters(), rule="layer norm")
    agree(lambda x: torch.cat([y := norm(x.tanh()), F.relu(y)]), randn(3, 5), norm.parameters(), rule="gate")


@pytest.mark.gpu
def test_rms_norm_on_a_gpu():
    """Only there does F.rms_norm record a node of its own."""
    norm = shaken(nn.RMSNorm(5)).cuda()
    agree(lambda x: norm(x.tanh()).sin(), randn(4, 5).cuda(), norm.parameters(), rule="RMS norm")


def test_below_a_frozen_norm_no_adjoint_is_held():
    """The convolution's is made again from the norm's, which its weight's gradient needs."""
    layers = [
        part
        for _ in range(4)
        for part in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).eval(), nn.LeakyReLU(0.2, inplace=True))
    ]
    critic, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 1)), torch.randn(8, 4, 8, 8)

    def step():
        gpfast.gradient_penalty(critic, x, x.flip(0), alpha=0.3).backward()

    def peak():
        critic.zero_grad(set_to_none=True)
        return cost.measure(step, existing=(critic, x)).peak_bytes

    held = peak()
    with adjoints_made_again():
        again = peak()
    assert held - again >= x.nbytes


@pytest.mark.filterwarnings("ignore:.*BatchNorm")
@pytest.mark.parametrize(
    "norm, samples",
    [(nn.BatchNorm2d, 1), (lambda c: nn.GroupNorm(1, c), 1), (lambda c: nn.BatchNorm2d(c).eval(), 4)],
    ids=["batch norm", "group norm", "frozen batch norm"],
)
def test_sums_over_many_pixels_round_no_more_than_those_of_the_eager_lines(norm, samples):
    """Of the norms' weights: each is a sum over all pixels, or a difference of such."""
    errors = {"reference": 0.0, "tape": 0.0}
    for seed in range(12):
        torch.manual_seed(seed)
        layers, channels = [], 3
        for _ in range(4):
            layers += [nn.Conv2d(channels, 4, 3), norm(4), nn.LeakyReLU(0.2)]
            channels = 4
        critic, x = nn.Sequential(*layers, nn.Conv2d(4, 1, 3)), torch.rand(2, samples, 3, 40, 40)

        def gradients(engine, dtype, critic=critic, x=x):
            own = copy.deepcopy(critic).to(dtype)
            gpfast.gradient_penalty(own, *x.to(dtype), alpha=0.5, engine=engine).backward()
            return [part.weight.grad.double() for part in own[1::3]]

        exact = gradients("reference", torch.float64)
        for engine in errors:
            for g, e in zip(gradients(engine, torch.float32), exact, strict=True):
                errors[engine] += ((g - e).norm() / e.norm()).square().item()
    assert errors["tape"] <= errors["reference"]
