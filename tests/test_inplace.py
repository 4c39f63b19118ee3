"""Operations that overwrite a view of what another operation made."""

import pytest
import torch
import torch.nn.functional as F
from layouts import LAYOUTS, numbers, weights
from tape_checks import LOSSES, agree, agree_low, penalty_loss, tape_gradients

import gpfast

OVERWRITES = {
    "leaky_relu_": lambda y, w: F.leaky_relu_(y, 0.2),
    "relu_": lambda y, w: y.relu_(),
    "tanh_": lambda y, w: y.tanh_(),
    "clamp_": lambda y, w: y.clamp_(-0.5, 0.75),
    "mul_ by a parameter": lambda y, w: y.mul_(w),
    "add_ of a parameter": lambda y, w: y.add_(w),
    "mul_ by a number": lambda y, w: y.mul_(3),
    "dropout_": lambda y, w: F.dropout(y, 0.0, inplace=True),
}


@pytest.mark.parametrize("name", OVERWRITES)
@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
def test_a_view_of_all_of_it(name, bent):
    w, scale = weights(1, 6), weights(2, 3)

    def function(x):
        y = (x * w).sin() if bent else x * w
        view = OVERWRITES[name](y.view(4, 2, 3), scale)
        return view.flatten(1).cos() if bent else view.flatten(1) * 2

    agree(function, numbers(4, 6), [w, scale])


def test_a_negative_view_is_no_view_of_all_of_it():
    w = weights(1, 6)

    def function(x):
        y = (x * w).sin()
        F.leaky_relu_(torch._neg_view(y), 0.2)
        return y.cos()

    agree(function, numbers(4, 6), [w])


@pytest.mark.parametrize("name", ["leaky_relu_", "mul_ by a parameter"])
def test_the_base_goes_on_as_well(name):
    w, scale = weights(1, 6), weights(2, 3)

    def function(x):
        y = x * w
        view = OVERWRITES[name](y.view(4, 2, 3), scale)
        return view.flatten(1).tanh() + y.sin()

    agree(function, numbers(4, 6), [w, scale])


def test_the_base_is_a_constant():
    w = weights(4, 2, 3)

    def function(x):
        y = torch.zeros(4, 6, dtype=x.dtype)
        y.view(4, 2, 3).add_(x.view(4, 2, 3).sin() * w)
        return y.cos()

    agree(function, numbers(4, 6), [w])


def test_an_activation_behind_an_instance_norm_has_a_rule():
    first, second = weights(5, 3, 3, 3), weights(4, 5, 3, 3)

    def critic(x):
        y = F.leaky_relu_(F.instance_norm(F.conv2d(x, first)), 0.2)
        return F.conv2d(F.relu_(F.instance_norm(y)), second).flatten(1).sum(1)

    x = numbers(2, 3, 8, 8)
    agree(critic, x, [first, second])
    steps = {step[:2] for step in tape_gradients(critic, x, [first, second], penalty_loss)[2]}
    assert ("torch::autograd::CopySlices", "gate") in steps and ("AsStridedBackward0", "view") in steps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolution_s_result_in_any_layout(layout):
    kernel, w = weights(4, 3, 3, 3), weights(1, 4, 1, 1)

    def critic(x):
        y = LAYOUTS[layout](F.conv2d(x, kernel) * w) * 1.5
        F.leaky_relu_(y.view_as(y), 0.2)
        return y.square().flatten(1).sum(1)

    agree(critic, numbers(2, 3, 6, 7), [kernel, w])


PARTS = {
    "a slice": lambda y: y[:, 1:3],
    "every other": lambda y: y[:, ::2],
    "from the end": lambda y: y[..., -2:],
    "one of them": lambda y: y[:, 1],
    "one sample": lambda y: y[0],
    "a slice of a slice": lambda y: y[:, 1:][:, :2, 1::2],
    "transposed": lambda y: y.transpose(1, 2),
    "a slice, transposed": lambda y: y[:, :2].transpose(0, 2),
    "a diagonal": lambda y: y.diagonal(0, 1, 2),
    "a slice of what is flat": lambda y: y.flatten(1)[:, 3:11],
    "windows without overlap": lambda y: y.unfold(2, 2, 2),
    "with more dimensions": lambda y: y[:, None, 1:, None],
    "one element": lambda y: y[0, 1, 2],
    "as_strided": lambda y: y.as_strided((2, 3), (20, 4), 3),
}
WRITES = {
    "relu_": lambda y, s: y.relu_(),
    "leaky_relu_": lambda y, s: F.leaky_relu_(y, 0.2),
    "tanh_": lambda y, s: y.tanh_(),
    "mul_ by a number": lambda y, s: y.mul_(-1.5),
    "mul_": lambda y, s: y.mul_(s),
    "add_": lambda y, s: y.add_(s, alpha=0.5),
    "div_": lambda y, s: y.div_(s * s + 1),
    "copy_": lambda y, s: y.copy_(s),
    "fill_": lambda y, s: y.fill_(0.5),
    "zero_": lambda y, s: y.zero_(),
    "masked_fill_": lambda y, s: y.masked_fill_(s > 0, 0.5),
    "index_fill_": lambda y, s: y.index_fill_(0, torch.tensor([0]), 2.0) if y.ndim else y.neg_(),
}


def parts_of_a_value(function, *, bent=False):
    """x -> what function(y, s, w) leaves of y: y depends on x as s does, w is a parameter of one sample's sizes."""
    w, v = weights(4, 5), weights(4, 5, seed=2)
    bend = torch.sin if bent else lambda z: 1.5 * z

    def critic(x):
        y = bend(x * w)
        found = function(y, bend(x * v), v)
        return bend((y if found is None else found) * torch.linspace(0.5, 1, 60).double().view(3, 4, 5))

    return critic, numbers(3, 4, 5), [w, v]


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_it(part, name, bent):
    def write(y, s, w):
        WRITES[name](PARTS[part](y), PARTS[part](s))
        return y + s

    critic, x, parameters = parts_of_a_value(write, bent=bent)
    steps = agree(critic, x, parameters)
    assert not [step for step in steps if step[1] == "alone"], steps


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("part", PARTS)
def test_the_view_is_read_afterwards(part, name):
    def write(y, s, w):
        view = WRITES[name](PARTS[part](y), PARTS[part](w.repeat(3, 1, 1)))
        return y + view.sin().mean() * s

    critic, x, parameters = parts_of_a_value(write, bent=True)
    steps = agree(critic, x, parameters)
    assert not [step for step in steps if step[1] == "alone"], steps


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
@pytest.mark.parametrize("name", ["tanh_", "mul_", "add_", "div_", "copy_"])
@pytest.mark.parametrize("part", ["a slice", "one of them", "a diagonal"])
def test_a_part_of_a_constant(part, name, bent):
    def write(y, s, w):
        base = torch.zeros(3, 4, 5, dtype=y.dtype) + 0.5
        WRITES[name](PARTS[part](base), PARTS[part](s))
        return base if name != "tanh_" else base * s

    critic, x, parameters = parts_of_a_value(write, bent=bent)
    agree(critic, x, parameters)


@pytest.mark.parametrize("name", ["mul_", "add_", "copy_"])
@pytest.mark.parametrize("part", ["a slice", "one of them", "a diagonal"])
def test_a_part_of_a_parameter_s_copy(part, name):
    def write(y, s, w):
        base = (w * 1.5).expand(3, 4, 5).clone()
        WRITES[name](PARTS[part](base), PARTS[part](s))
        return base.sin()

    critic, x, parameters = parts_of_a_value(write, bent=True)
    agree(critic, x, parameters)


def put(y, index, value):
    y[index] = value


def read_before(y, write):
    before = (y * 1).sin()
    write()
    return before * y


def two_that_overlap(y, s, w):
    y[:, :3] = s[:, :3]
    y[:, 1:].mul_(2).tanh_()


def two_apart(y, s, w):
    y[:, :2].mul_(s[:, :2])
    y[:, 2:].add_(w[2:])


def over_rows(y, s, w):
    for row, shift in enumerate((0, 1, -2)):
        y[row] = s[row].roll(shift, 1)


ASSIGNMENTS = {
    "a constant": lambda y, s, w: put(y, (slice(None), slice(2)), torch.ones(2, 5).double()),
    "all of it, transposed": lambda y, s, w: y.transpose(0, 2).mul_(s.transpose(0, 2)),
    "all of it, by broadcasting": lambda y, s, w: put(y.transpose(0, 2), slice(None), s[:, 0, 0]),
    "all of it, by one": lambda y, s, w: put(y.permute(1, 0, 2), slice(None), s[0, 0, 0]),
    "a number": lambda y, s, w: put(y, (slice(None), slice(2)), 0.5),
    "a parameter": lambda y, s, w: put(y, (slice(None), slice(2)), w[:2]),
    "a value that is broadcast": lambda y, s, w: put(y, (slice(None), slice(2)), s[:, :1]),
    "one element of a value": lambda y, s, w: put(y, (slice(None), 3), s[0, 0, 0]),
    "an activation": lambda y, s, w: put(y, (slice(None), slice(1, 3)), F.relu(s[:, 1:3])),
    "itself": lambda y, s, w: put(y, (slice(None), slice(1, 3)), F.relu(y[:, 1:3])),
    "two that overlap": two_that_overlap,
    "two apart": two_apart,
    "more of it": lambda y, s, w: y[:, 0].add_(y[:, 2]),
    "row by row": over_rows,
    "its old value is read as well": lambda y, s, w: read_before(y, lambda: y[:, :2].mul_(2)),
    "a value read before": lambda y, s, w: put(y, (slice(None), slice(2)), y[:, 2:] * 2),
    "a float32 value": lambda y, s, w: put(y, (slice(None), slice(2)), s[:, :2].float().double().float()),
    "a slice of a view": lambda y, s, w: y.view(3, 2, 2, 5)[:, 1].mul_(w.view(2, 2, 5)[0]),
}


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "bent"])
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignments(name, bent):
    def write(y, s, w):
        found = ASSIGNMENTS[name](y, s, w)
        return found if found is not None and found.shape == y.shape else None

    critic, x, parameters = parts_of_a_value(write, bent=bent)
    steps = agree(critic, x, parameters, tolerance=1e-5 if "float32" in name else 1e-10)
    assert not [step for step in steps if step[1] == "alone"], steps


def test_y_plus_equals():
    def write(y, s, w):
        y[:, 0] += s[:, 1]
        y[:, 1:3] *= w[1:3]
        y[..., 2] -= y[..., 3]

    critic, x, parameters = parts_of_a_value(write, bent=True)
    steps = agree(critic, x, parameters)
    assert not [step for step in steps if step[1] == "alone"], steps


def test_a_buffer_of_a_layer_and_a_bias():
    w, bias = weights(6, 3), weights(2, seed=2)

    def critic(x):
        buffer = torch.zeros(len(x), 5, dtype=x.dtype)
        buffer[:, :3] = x @ w
        buffer[:, 3:] = bias
        return (F.relu(buffer) * buffer).sum(1)

    agree(critic, numbers(4, 6), [w, bias], rule="copy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_in_any_layout(layout):
    kernel, w = weights(4, 3, 3, 3), weights(1, 4, 1, 1)

    def critic(x):
        y = LAYOUTS[layout](F.conv2d(x, kernel) * w) * 1.5
        y[:, 1:3] *= w.flatten()[0]
        y[:, 0] = y[:, 1].clone().square()
        y.transpose(0, 1)[1].mul_(2)
        F.leaky_relu_(y[:, 1:3], 0.2)
        return y.square().flatten(1).sum(1)

    steps = agree(critic, numbers(2, 3, 6, 7), [kernel, w])
    assert not [step for step in steps if step[1] == "alone"], steps


def test_parts_of_a_convolution_that_is_channels_last():
    kernel, second = weights(4, 3, 3, 3), weights(2, 4, 3, 3)

    def critic(x):
        y = F.conv2d(x.contiguous(memory_format=torch.channels_last), kernel)
        y[:, 2:] = y[:, 2:].clone().sin()
        y[:, :, ::2].diagonal(0, 1, 2).mul_(2)
        y[:, :2].relu_()
        return F.conv2d(y, second).flatten(1).sum(1)

    agree(critic, numbers(2, 3, 8, 8), [kernel, second])


def shuffled(x, shifts):
    """WaveGAN's phase shuffle, row by row, written into a tensor of the same sizes."""
    y = torch.empty_like(x)
    for shift in range(-2, 3):
        rows = (shifts == shift).nonzero()[:, 0]
        if shift > 0:
            y[rows, :, :-shift] = x[rows, :, shift:]
            y[rows, :, -shift:] = x[rows, :, -shift - 1 : -1].flip(-1)
        elif shift < 0:
            y[rows, :, -shift:] = x[rows, :, :shift]
            y[rows, :, :-shift] = x[rows, :, 1 : 1 - shift].flip(-1)
        else:
            y[rows] = x[rows]
    return y


@pytest.mark.parametrize("activation", [lambda y: F.leaky_relu_(y, 0.2), torch.tanh], ids=["linear", "bent"])
def test_phase_shuffle(activation):
    kernels = [weights(4, 1, 5), weights(3, 4, 5)]
    shifts = torch.tensor([1, -2, 0, 1, 2])

    def critic(x):
        for kernel in kernels:
            x = shuffled(activation(F.conv1d(x, kernel, stride=2, padding=2)), shifts)
        return x.flatten(1).sum(1)

    steps = agree(critic, numbers(5, 1, 24), kernels, rule="index_put")
    assert not [step for step in steps if step[1] == "alone"], steps


# Dimension, step or dtype of a view that is no part of its base.
@pytest.mark.parametrize(
    "write",
    [
        lambda y: torch._neg_view(y[:, :2]).tanh_(),
        lambda y: y[:, :2].erfinv_(),
        lambda y: y[:, 1:1].tanh_(),
        lambda y: Square.apply(y[:, :2]),
    ],
    ids=["a negative view", "an operation without a rule", "of nothing", "a custom Function"],
)
def test_what_runs_alone(write):
    def narrowed(y, s, w):
        write(y.mul_(0.1))

    critic, x, parameters = parts_of_a_value(narrowed, bent=True)
    agree(critic, x, parameters, alone="torch::autograd::CopySlices")


class Square(torch.autograd.Function):
    """In place, without a rule."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y.clone())
        ctx.mark_dirty(y)
        return y.square_()

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_the_sweeps_run_again():
    def write(y, s, w):
        y[torch.tensor([0, 2])] *= w
        y[:, 1:] = s[:, 1:].sin()
        y[:, :2].mul_(s[:, :2]).sigmoid_()

    critic, x, parameters = parts_of_a_value(write, bent=True)
    for loss in LOSSES:
        once = tape_gradients(critic, x, parameters, loss)[1]
        again = tape_gradients(critic, x, parameters, loss, again=True)[1]
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_what_was_saved_and_written_to_since_raises_as_in_autograd():
    def critic(x):
        y = x * 2
        y[:, :2].tanh_()
        y[:, 1:].mul_(2)
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(critic, numbers(3, 4, 5), [], LOSSES[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    w, v = numbers(4, 5, seed=1), numbers(4, 5, seed=2)

    def make(kind):
        parameters = [p.to(dtype).to(kind).requires_grad_() for p in (w, v)]

        def function(x):
            y, s = x * parameters[0], (x * parameters[1]).tanh()
            y[:, 1:] += s[:, :3]
            y[:, ::2] = y[:, 1::2].clone() * parameters[1][:2]
            y[:, :2].tanh_()
            return y

        return function, parameters

    agree_low(make, numbers(3, 4, 5), dtype)


class Parts(torch.nn.Module):
    """Halves of a layer's units, each with another activation, in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 1)
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, 2))

    def forward(self, x):
        y = self.first(x)
        y[:, 4:6] = torch.tanh(y[:, 4:6])
        y[:, 6:] = self.bias.to(y.dtype)
        y[:, 0] += y[:, 5]
        y[:, :4].relu_()
        return self.second(y)


def gradients(critic, **options):
    torch.manual_seed(5)
    real, fake = torch.randn(2, 7, 6, dtype=critic.bias.dtype)
    return torch.autograd.grad(
        gpfast.gradient_penalty(critic, real, fake, **options), critic.parameters(), allow_unused=True
    )


def far(ours, theirs):
    zero = torch.zeros(())
    return max(
        ((zero if a is None else a) - (zero if b is None else b)).abs().max().item()
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"chunks": 3}], ids=["whole", "in chunks"])
def test_the_penalty(options):
    torch.manual_seed(0)
    critic = Parts().double()
    ours = gradients(critic, engine="tape", at="real", **options)
    assert far(ours, gradients(critic, engine="reference", at="real")) < 1e-12


def test_the_penalty_under_autocast():
    torch.manual_seed(0)
    critic = Parts()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (gradients(critic, engine=engine) for engine in ("tape", "reference"))
    exact = gradients(critic.double(), engine="reference")
    largest = max(g.abs().max().item() for g in exact if g is not None)
    assert far(ours, exact) <= 1.5 * far(theirs, exact) + 0.02 * largest


def test_the_peak_is_below_that_of_the_eager_lines():
    torch.manual_seed(0)
    explained = gpfast.explain(Parts(), torch.randn(512, 6))
    assert not [node for node in explained.nodes if node.rule == "alone"]
    assert explained.tape.peak_bytes <= explained.reference.peak_bytes
    assert explained.tape.launches < explained.reference.launches
