"""Scores that bend alone, over one number a sample: no second adjoints below, wherever that is so and nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tape_checks import LOSSES, agree, agree_low, autograd_gradients, tape_gradients
from torch import nn

import gpfast
from gpfast import cost

PRODUCTS = ("convolution", "linear", "matmul")
N = 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(11)


class Of(nn.Module):
    """forward(x) = function(x), or of the parts and x."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(*self.parts, x)


class Affine(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.randn(sizes)), nn.Parameter(torch.randn(sizes))

    def forward(self, x):
        return (x * self.gain + self.bias) / (1 + self.gain.square())


def warmed(norm):
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.weight)
    return norm


def images(*shape):
    return torch.randn(N, *(shape or (3, 6, 6)), dtype=torch.float64)


def features(channels=5, **options):
    return nn.Conv2d(3, channels, 3, padding=1, **options)


ENDS = {
    "sigmoid": nn.Sigmoid(),
    "tanh, squeezed": Of(lambda u: u.squeeze(1).tanh()),
    "softplus": nn.Softplus(),
    "log of a sigmoid": Of(lambda u: u.sigmoid().clamp(1e-6).log()),
    "square": Of(lambda u: (u - u.detach()).square() + u.square() / 3),  # flat at some scores
    "samples mixed": Of(lambda u: u * u.roll(1, 0)),
    "over the batch": Of(lambda u: u.square().mean().expand(1)),
    "softmax of the batch": Of(lambda u: u.softmax(0)),
    "two layers": nn.Sequential(nn.Tanh(), nn.Linear(1, 7), nn.Tanh(), nn.Linear(7, 1)),
    "a slope that is learned": nn.Sequential(nn.PReLU(), nn.ELU()),
}
BODIES = {
    "strided": (lambda: nn.Sequential(features(stride=2), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(5, 1, 3)), ()),
    "pooled": (
        lambda: nn.Sequential(
            features(), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.AvgPool2d(3)
        ),
        (),
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)), (3, 7)),
    "three dimensions": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU(), nn.AvgPool3d(2)), (2, 3, 4, 3)),
    "the other way": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 1, 5)), ()),
    "groups": (lambda: nn.Sequential(features(6, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 3, groups=2, stride=2)), ()),
    "dense": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 9)), ()),
    "dense, without bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Dropout(0.4)), (6,)),
    "residual": (
        lambda: Of(
            lambda a, b, c, x: (lambda h: c(F.avg_pool2d(h + 0.5 * b(h.relu()), 2)))(a(x)),
            features(), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 2, 1),
        ),
        (),
    ),
    "twice the same": (lambda: Of(lambda a, x: a(a(x).relu()), nn.Conv2d(3, 3, 3, padding=1)), ()),
    "weight from parameters": (lambda: nn.utils.parametrizations.weight_norm(features()), ()),
    "joined": (lambda: Of(lambda a, x: a(torch.cat([x, -x, x.abs()], 1)), nn.Conv2d(9, 2, 3)), ()),
    "permuted": (lambda: Of(lambda a, x: a(x.permute(0, 2, 1, 3)).transpose(1, 3), nn.Conv2d(6, 4, 1)), ()),
    "constants added": (lambda: Of(lambda a, x: a(x + 3).clamp(-1, 2) - x.new_ones(N, 5, 1, 1), features()), ()),
    "parts and edges": (
        lambda: Of(lambda a, x: F.pad(a(F.pad(x[:, :, 1:], [1] * 4, "reflect")), (2, 0, 1, 0))[..., 1], features()),
        (),
    ),
    "rows of points": (
        lambda: Of(lambda a, b, x: b(a(x).relu()).max(1)[0], nn.Linear(3, 8), nn.Linear(8, 6, bias=False)),
        (5, 3),
    ),
    "images in a row": (
        lambda: Of(lambda a, x: a(x.view(-1, 3, 6, 6)).relu().view(N, 2, -1).mean(1), features()),
        (2, 3, 6, 6),
    ),
    "gains and biases": (lambda: Of(lambda a, g, x: g(a(x).relu()), features(), Affine(5, 1, 1)), ()),
    "batch norm, frozen": (lambda: nn.Sequential(features(), warmed(nn.BatchNorm2d(5)).eval(), nn.ReLU()), ()),
    "slopes that are learned": (lambda: nn.Sequential(features(), nn.PReLU(5), nn.Conv2d(5, 2, 3), nn.PReLU()), ()),
    "labels": (
        lambda: Of(
            lambda a, e, x: a(torch.cat([x, e.weight.view(N, 1, 6, 6)], 1)).relu(), nn.Conv2d(4, 3, 3), nn.Linear(36, N)
        ),
        (),
    ),
    "rearranged": (
        lambda: Of(
            lambda a, x: torch.stack([h.roll(1, 2) for h in a(x).flip(-1).split(2, 1)], -1).index_select(
                1, torch.tensor([1, 0])
            ),
            features(4),
        ),
        (),
    ),
    "shuffled": (lambda: nn.Sequential(features(4), nn.PixelShuffle(2), nn.ReplicationPad2d(1)), ()),
}  # fmt: skip


def critic(body, end=None):
    """`body`, a linear layer to one number a sample, `end`."""
    make, shape = BODIES[body]
    body, x = make().double(), images(*shape)
    layers = [body, nn.Flatten(), nn.Linear(body(x)[0].numel(), 1)]
    return nn.Sequential(*layers, *([end] if end else [])).double(), x


def taken(steps):
    """Whether products have no second adjoints of their own although something bends above."""
    return not any(bent for _, rule, _, bent in steps if rule in PRODUCTS)


@pytest.mark.parametrize("end", ENDS)
def test_scores_that_bend(end):
    D, x = critic("strided", ENDS[end])
    steps = agree(D, x, D.parameters())
    assert taken(steps[-5:]), steps  # of the body


@pytest.mark.parametrize("body", BODIES)
def test_bodies(body):
    D, x = critic(body, nn.Sigmoid())
    steps = agree(D, x, D.parameters(), rule="activation")
    assert taken(steps), steps


@pytest.mark.parametrize("body", ["strided", "dense"])
def test_losses_of_the_outputs(body):
    """Without an end it is the loss that bends: second adjoints arrive at the scores."""
    D, x = critic(body)
    steps = agree(D, x, D.parameters())
    assert taken(steps) and not any(bends for _, _, bends, _ in steps)


MIXED = {  # of N values in each row, so that sizes tell nothing
    "turned": lambda a, b, x: b(a(x).t().relu()),
    "turned as a view": lambda a, b, x: b(a(x).relu().as_strided((N, N), (1, N))),
    "permuted": lambda a, b, x: b(a(x).view(N, N, 1).permute(1, 0, 2).relu().flatten(1)),
    "transposed": lambda a, b, x: b(a(x).transpose(0, 1).relu()),
    "summed over samples": lambda a, b, x: b(a(x).relu().view(N, 1, N).sum(0).expand(N, N)),
    "broadcast over samples": lambda a, b, x: b(a(x).relu() + a(x).relu().mean(1)),
    "joined along samples": lambda a, b, x: b(torch.cat([a(x[1:]).relu(), a(x[:1])], 0)),
    "products of samples": lambda a, b, x: b(a(x).relu() @ torch.ones(N, N).double()) + b(torch.eye(N).double() @ x),
    "rolled": lambda a, b, x: b(a(x).relu().roll(1, 0)),
    "bent below as well": lambda a, b, x: b(a(x).tanh()),
    "regrouped": lambda a, b, x: b(a(x.view(2, 2, N).transpose(0, 1).reshape(N, N)).relu()),
    "regrouped, pairs turned": lambda a, b, x: b(a(x.view(2 * N, 2).flip(0).view(N, N)).relu()),
    "read below": lambda a, b, x: b(a(x).relu()) * a(x).relu().mean(1, True),
    "a node alone above": lambda a, b, x: torch.linalg.det(b(a(x).relu()).view(N, 1, 1)),
}


@pytest.mark.parametrize("mix", MIXED)
def test_where_it_is_not_so(mix):
    a, b = nn.Linear(N, N).double(), nn.Linear(N, 1).double()
    D = Of(lambda a, b, x: MIXED[mix](a, b, x).sigmoid(), a, b)
    assert not taken(agree(D, torch.randn(N, N, dtype=torch.float64), D.parameters()))


def test_other_precisions_below():
    """Products in float64 of a critic in float32."""
    a, b = nn.Linear(N, N), nn.Linear(N, 1).double()
    for mixed in (
        lambda h: h.double(),
        lambda h: h * torch.ones(N).double(),
        lambda h: torch.cat([h[:, 1:], h.double()[:, :1]], 1),
    ):
        D = Of(lambda a, x, mixed=mixed: b(mixed(a(x).relu()).double()).sigmoid().to(x.dtype), a)
        parameters = [*a.parameters(), *b.parameters()]
        agree_low(lambda dtype, D=D, held=parameters: (D.to(dtype), held), torch.randn(N, N).double(), torch.float32)


def test_sparse_weights():
    w = (torch.randn(N, N).double() * (torch.rand(N, N) > 0.5)).requires_grad_()
    b = nn.Linear(N, 1).double()
    agree(lambda x: b((x @ w.to_sparse()).relu()).sigmoid(), torch.randn(N, N).double(), [w, *b.parameters()])


def test_scores_that_are_a_map():
    D = nn.Sequential(features(), nn.ReLU(), nn.Conv2d(5, 1, 3), nn.Sigmoid()).double()
    assert not taken(agree(D, images(), D.parameters()))


@pytest.mark.parametrize(
    "frozen", ["0.0.weight", "0.0.bias", "0.2.weight", "2.weight", "2.bias", "0.0.weight 0.0.bias", "all"]
)
@pytest.mark.parametrize("body", ["strided", "dense"])
def test_frozen_parameters(body, frozen):
    D, x = critic(body, nn.Sigmoid())
    for name, p in D.named_parameters():
        p.requires_grad_(frozen != "all" and name.replace("0.1", "0.0").replace("0.3", "0.2") not in frozen.split())
    agree(D, x, D.parameters())


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples(samples):
    D, x = critic("pooled", nn.Sigmoid())
    agree(D, x[:samples], D.parameters())


@pytest.mark.parametrize("body", BODIES)
def test_sweeps_again(body):
    D, x = critic(body, nn.Sigmoid())
    for loss in LOSSES:
        _, expected = autograd_gradients(D, x, D.parameters(), loss)
        _, found, _ = tape_gradients(D, x, D.parameters(), loss, again=True)
        for a, b in zip(found, expected, strict=True):
            assert (a is None or not a.any()) if b is None else torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 3e3])
def test_flat_scores(scale):
    """Sigmoids that have no slope any more, and squares that have none yet: of all samples, or of some."""
    for end in (nn.Sigmoid(), Of(torch.square), nn.Softplus(beta=4)):
        D, x = critic("dense", end)
        with torch.no_grad():
            D[2].weight.mul_(scale)
            D[2].bias.zero_()
            x[0] = 0
        agree(D, x, D.parameters())


def of_penalties(D, real, fake, **options):
    torch.manual_seed(3)
    D.zero_grad()
    value = gpfast.gradient_penalty(D, real, fake, **options)
    value.sum().backward()
    inputs = [x.grad for x in (real, fake) if x.requires_grad]
    found = [value.detach(), *(p.grad for p in D.parameters()), *inputs]
    for x in (real, fake):
        x.grad = None
    return found


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"norm_dims": 1}, {"one_sided": True}], ids=str)
@pytest.mark.parametrize("body", ["strided", "pooled", "dense"])
def test_penalties(body, options):
    D, real = critic(body, nn.Sigmoid())
    fake = torch.randn_like(real, requires_grad=True)
    ours = of_penalties(D, real.requires_grad_(), fake, **options)
    theirs = of_penalties(D, real, fake, engine="reference", **options)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b if b is not None else torch.zeros_like(a), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("chunks", [2, 3])
def test_chunks(chunks):
    D, real = critic("pooled", nn.Sigmoid())
    fake = torch.randn_like(real)
    whole, parts = of_penalties(D, real, fake), of_penalties(D, real, fake, chunks=chunks)
    for a, b in zip(parts, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.pose, self.score = nn.Conv2d(3, 4, 6), nn.Linear(2, 4), nn.Linear(8, 1)

        def forward(self, image, pose):
            return self.score(torch.cat([self.image(image).flatten(1), self.pose(pose).relu()], 1)).sigmoid()

    D = Two().double()
    real, fake = ((images(), torch.randn(N, 2).double()) for _ in range(2))

    def found(engine):
        torch.manual_seed(3)
        D.zero_grad()
        value = gpfast.gradient_penalty(D, real, fake, engine=engine)
        value.backward()
        return [value.detach(), *(p.grad for p in D.parameters())]

    for a, b in zip(found("auto"), found("reference"), strict=True):
        assert torch.allclose(a, b if b is not None else torch.zeros_like(a), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "body, dtype",
    [(body, torch.float32) for body in ("strided", "pooled", "dense", "one dimension", "groups")]
    + [(body, torch.bfloat16) for body in ("strided", "dense")],
    ids=str,
)
def test_rounds_no_more_than_eager(body, dtype):
    _, x = critic(body)

    def make(dtype):
        torch.manual_seed(11)
        D = critic(body, nn.Sigmoid())[0].to(dtype)
        return D, list(D.parameters())

    agree_low(make, x, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("body", ["strided", "pooled", "dense"])
def test_autocast(body, dtype):
    _, x = critic(body)

    def cast(D, x):
        with torch.autocast("cpu", dtype):  # which leaves float64 as it is
            return D(x).float() if x.dtype == torch.float32 else D(x)

    def make(kind):
        torch.manual_seed(11)
        D = critic(body, nn.Sigmoid())[0].to(kind)
        return Of(cast, D), list(D.parameters())

    agree_low(make, x, torch.float32)
    D, parameters = make(torch.float32)
    *_, steps = tape_gradients(D, x.float(), parameters, LOSSES[0])
    assert taken(steps) == (dtype == torch.bfloat16), "tangents in float16 have a scale of their own"


def test_passes():
    """Four products a layer, as without the sigmoid, and not six."""
    D, x = critic("strided", nn.Sigmoid())

    def flop(D):
        return cost.measure(lambda: gpfast.gradient_penalty(D, x, x.flip(0)).backward()).flop

    reference = cost.measure(lambda: gpfast.gradient_penalty(D, x, x.flip(0), engine="reference").backward()).flop
    assert flop(D) <= flop(D[:-1]) < 0.75 * reference


STEPS = {
    "convolution": lambda: features(3),
    "without bias": lambda: features(3, bias=False),
    "turned": lambda: nn.ConvTranspose2d(3, 3, 3, padding=1),
    "relu": nn.ReLU,
    "leaky": lambda: Of(lambda x: F.leaky_relu_(x + 0, 0.3)),
    "clamped": nn.ReLU6,
    "dropout": lambda: nn.Dropout(0.2),
    "pool": lambda: nn.MaxPool2d(2, 1, 1),
    "resampled": lambda: nn.Upsample(scale_factor=2),
    "residual": lambda: Of(lambda a, x: x + a(x.relu()), features(3)),
    "joined": lambda: Of(lambda a, x: a(torch.cat([x, x.abs()], 1)), nn.Conv2d(6, 3, 1)),
    "permuted": lambda: Of(lambda x: x.transpose(-1, -2)),
    "scaled": lambda: Of(lambda x: x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)),
    "normed": lambda: nn.InstanceNorm2d(3),
    "bent": nn.Tanh,
    "pixels mixed": lambda: Of(lambda x: x.softmax(-1)),
    "samples mixed": lambda: Of(lambda x: x + x.flip(0)),
}


@settings(database=None, deadline=None, derandomize=True, max_examples=150)
@given(st.lists(st.sampled_from([*STEPS]), min_size=1, max_size=5), st.sampled_from([*ENDS]))
def test_random_chains(steps, end):
    torch.manual_seed(7)
    x = images(3, 4, 4)
    body = nn.Sequential(*(STEPS[step]() for step in steps)).double()
    D = nn.Sequential(body, nn.Flatten(), nn.Linear(body(x)[0].numel(), 1), ENDS[end]).double()
    agree(D, x, D.parameters())
