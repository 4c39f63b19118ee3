"""Values and gradients on a GPU, against the reference there; every test body runs on the CPU too."""

import copy
import math

import pytest
import torch
from rule_critics import critics
from tape_checks import agree
from test_normalize import shaken
from torch import nn
from zoo_runs import agrees, as_close_as_eager, exact, inputs

import gpfast
from gpfast import _extension, zoo

pytestmark = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
ENGINES = ("autograd", "tape")
NORMS = {
    "layer": (lambda: nn.LayerNorm((3, 4, 5)), (2, 3, 4, 5)),
    "layer of one dimension": (lambda: nn.LayerNorm(5), (2, 3, 5)),
    "group": (lambda: nn.GroupNorm(2, 6), (3, 6, 2, 3)),
    "instance": (lambda: nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 5)),
    "batch": (lambda: nn.BatchNorm2d(3), (4, 3, 2, 3)),
    "frozen batch": (lambda: nn.BatchNorm2d(3).eval(), (2, 3, 2, 3)),
    "RMS": (lambda: nn.RMSNorm(5), (2, 3, 5)),
}


@pytest.fixture(autouse=True)
def no_tensor_float():
    """Products of float32 in float32, so that eager's own error is a yardstick."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# On the CPU these are tests/test_engines.py.


@pytest.mark.gpu
@pytest.mark.parametrize("form", [{}, {"one_sided": True, "center": 0.5}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("at", ["interpolates", "real", "dragan"])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo_in_float64(name, at, form):
    exact(name, "cuda", at=at, **form)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo_is_as_close_as_eager(name, dtype):
    as_close_as_eager(name, "cuda", dtype, small=True, batch=zoo.ZOO[name].small_batch, draws=6)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo_at_real_size(name):
    as_close_as_eager(name, "cuda", torch.float32, small=False, batch=min(zoo.ZOO[name].batch, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", critics())
def test_every_family_of_rules(name, device):
    critic = shaken(critics()[name]).to(device)
    real, fake = (torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
    agrees(critic, zoo.Case(real.to(device), fake.to(device)), engines=["tape"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms_between_curves(name, layout, device):
    """Second adjoints arrive at the norm and leave it, in both layouts; every node alone as well."""
    make, shape = NORMS[name]
    if layout == torch.channels_last and len(shape) != 4:
        pytest.skip("channels_last has four dimensions")
    norm = shaken(make()).to(device)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x.to(device).contiguous(memory_format=layout)
    agree(lambda x: norm(x.tanh()).sin().flatten(1).sum(1), x, norm.parameters())


def scaled_gradients(penalty, critic, case, dtype, device, **options):
    """Value and gradients of one penalty under autocast, with a GradScaler as a training loop has it."""
    critic = copy.deepcopy(critic)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=dtype == torch.float16)
    alpha = torch.linspace(0, 1, len(case.real), device=device)
    with torch.autocast(device, dtype):
        value = penalty(critic, case.real, case.fake, alpha=alpha, args=case.args, output=case.output, **options)
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    gradients = {n: None if p.grad is None else p.grad.double() for n, p in critic.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    return value.detach().double(), gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["toy-mlp", "dcgan64", "layernorm-dcgan", "groupnorm-dcgan", "resnet32", "self-attention"]
)
def test_autocast_with_a_scaler(name, dtype, device):
    """All gradients together are no further from float64 than 1.5 times eager's and 4 eps.

    Where eager overflows, in float16, what is allowed is 4 eps of bfloat16.
    """
    critic = zoo.build(name, small=True, device=device)
    off = {"ours": 0.0, "eager": 0.0, "exact": 0.0}
    for seed in range(3):
        case = inputs(name, True, 4, torch.float32, seed, device)
        wide = zoo.Case(case.real.double(), case.fake.double(), case.args, case.kwargs, case.output)
        high = copy.deepcopy(critic).double()
        alpha = torch.linspace(0, 1, 4, device=device, dtype=torch.float64)
        gpfast.reference.gradient_penalty(high, wide.real, wide.fake, alpha=alpha, output=wide.output).backward()
        there = {n: p.grad for n, p in high.named_parameters() if p.grad is not None}
        _, ours = scaled_gradients(gpfast.gradient_penalty, critic, case, dtype, device, engine="tape")
        _, eager = scaled_gradients(gpfast.reference.gradient_penalty, critic, case, dtype, device)
        off["ours"] += sum(float((ours[n] - g).square().sum()) for n, g in there.items())
        off["eager"] += sum(float((eager[n] - g).square().sum()) for n, g in there.items())
        off["exact"] += sum(float(g.square().sum()) for g in there.values())
    ours, eager, size = (off[side] ** 0.5 for side in ("ours", "eager", "exact"))
    assert dtype == torch.float16 or math.isfinite(eager)
    eps = torch.finfo(dtype if math.isfinite(eager) else torch.bfloat16).eps
    assert 0 < ours <= (1.5 * eager if math.isfinite(eager) else 0) + 4 * eps * size


@pytest.mark.parametrize("device", DEVICES)
def test_random_state_of_the_device(device):
    """Points and dropout are drawn from the device's generator, as the eager lines draw them."""
    critic = zoo.build("tabular-mlp", small=True, device=device, dtype=torch.float64)
    case = inputs("tabular-mlp", True, 4, torch.float64, 1, device)
    values = []
    for seed, engine in ((1, "tape"), (1, "reference"), (2, "tape")):
        torch.manual_seed(seed)
        values.append(gpfast.gradient_penalty(critic, case.real, case.fake, engine=engine).item())
    assert values[0] == pytest.approx(values[1], rel=1e-10) and values[0] != pytest.approx(values[2], rel=1e-6)
    generator = torch.Generator(device).manual_seed(4)
    mine = gpfast.gradient_penalty(critic.eval(), case.real, case.fake, generator=generator)
    theirs = gpfast.gradient_penalty(
        critic, case.real, case.fake, generator=generator.manual_seed(4), engine="reference"
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
