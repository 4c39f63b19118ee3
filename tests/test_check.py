"""check: whether gpfast agrees with the eager lines on a critic, and `python -m gpfast check`."""

import copy
import functools
import json
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gpfast
from gpfast import _extension, compare, undisturbed, zoo
from gpfast.__main__ import main
from gpfast.compare import Outcome

needs_tape = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


def small_critic(activation=nn.LeakyReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.LayerNorm(8), nn.Linear(8, 1))


@pytest.fixture
def critic():
    return small_critic()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 6, generator=generator)


class Wrong(torch.autograd.Function):
    """The identity, whose gradient is `factor` times what it should be."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


@pytest.fixture
def wrong_gradients(monkeypatch):
    """Every engine but the reference hands over gradients that are off; `wrong_gradients[dtype]` is the factor."""
    factors, right = {torch.float64: 1 + 1e-6, torch.float32: 1 + 1e-5}, gpfast.gradient_penalty

    def wrong(critic, real, fake, *, engine, **options):
        value, stats = right(critic, real, fake, engine=engine, **options)
        if engine == "reference":
            return value, stats
        factor = factors[value.dtype]
        return Wrong.apply(value, factor) if factor else value.detach().requires_grad_(), stats

    monkeypatch.setattr(sys.modules["gpfast.check"], "gradient_penalty", wrong)
    return factors


def test_agreement_is_a_table_by_parameter(critic, data):
    found = gpfast.check(critic, *data)
    assert found.ok and found.failures == () and found.notes == ()
    # the last biases have no gradient in the eager lines, and so no row
    names = ["the value", "0.weight", "0.bias", "2.weight", "3.weight"]
    assert [row.name for row in found.rows if row.dtype == "float64"] == names
    assert {row.dtype for row in found.rows} == {"float64", "float32"}
    assert all(row.ok and 0 <= row.error <= row.allowed for row in found.rows)
    assert all(row.allowed == compare.EXACT for row in found.rows if row.dtype == "float64")
    assert next(row.shape for row in found.rows if row.name == "0.weight") == (8, 6)
    text = str(found)
    assert text.startswith("gpfast.check: Sequential on (5, 6), float32, cpu; engine auto: ")
    assert gpfast.__version__ in text and torch.__version__ in text and found.machine in text
    assert text.splitlines()[3].split() == ["shape", "float64", "allowed", "float32", "allowed"]
    assert text.endswith("Everything agrees.")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_critic_of_the_zoo_is_green(name):
    entry = zoo.ZOO[name]
    critic = zoo.build(name, small=True)
    case = entry.inputs(entry.small_batch, True, generator=torch.Generator().manual_seed(0))
    found = gpfast.check(critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output)
    assert found.ok, str(found)
    assert found.notes == (), "float64 was judged, and float32 against it"


def test_wrong_gradients_are_told_by_parameter(critic, data, wrong_gradients):
    found = gpfast.check(critic, *data)
    assert not found.ok
    by_name = {(row.name, row.dtype): row for row in found.rows}
    assert by_name["the value", "float64"].ok, "the value was right"
    assert not by_name["0.weight", "float64"].ok
    assert 1e-8 < by_name["0.weight", "float64"].error < 2e-6
    text = str(found)
    assert "WRONG: " in text and "float64: the gradient of 0.weight is off by" in text
    line = next(line for line in text.splitlines() if line.startswith("0.weight"))
    assert line.endswith("WRONG")


def test_an_error_in_single_precision_only_is_told(critic, data, wrong_gradients):
    wrong_gradients[torch.float64] = 1.0
    runs = []
    found = gpfast.check(critic, *data, draws=3, progress=runs.append)
    assert not found.ok and all(failure.startswith("float32: ") for failure in found.failures)
    assert runs.count("float32, auto") == 3, "judged over every draw before it is called wrong"


def test_a_gradient_that_is_missing_is_told(critic, data, wrong_gradients):
    wrong_gradients[torch.float64] = None
    found = gpfast.check(critic, *data)
    assert "float64: 0.weight has no gradient." in found.failures and " inf " in str(found)


def test_raise_on_failure(critic, data, wrong_gradients):
    with pytest.raises(AssertionError, match="WRONG"):
        gpfast.check(critic, *data, raise_on_failure=True)
    wrong_gradients.update({torch.float32: 1.0, torch.float64: 1.0})
    assert gpfast.check(critic, *data, raise_on_failure=True).ok


def test_nothing_is_touched(critic, data):
    critic.append(nn.utils.parametrizations.spectral_norm(nn.Linear(1, 1)))
    generator = torch.Generator().manual_seed(3)
    real = data[0].requires_grad_()
    fake = (2 * real).sin()
    critic[0].weight.grad = torch.ones_like(critic[0].weight)
    before, state, drawn = copy.deepcopy(critic.state_dict()), torch.get_rng_state(), generator.get_state()
    assert gpfast.check(critic, real, fake, generator=generator).ok
    assert all(torch.equal(x, before[name]) for name, x in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(generator.get_state(), drawn)
    assert torch.equal(critic[0].weight.grad, torch.ones_like(critic[0].weight)) and real.grad is None
    assert all(p.dtype == torch.float32 for p in critic.parameters())
    fake.sum().backward()


@pytest.mark.parametrize(
    "options",
    [
        {"at": "dragan"},
        {"at": "real", "center": 0.0, "weight": 0.5},
        {"at": "fake", "reduction": "sum"},
        {"reduction": "none", "one_sided": True, "center": 0.2},
        {"norm_dims": "batch"},
        {"mask": torch.linspace(0, 1, 6)},
        {"alpha": 0.3, "weight": torch.tensor(3.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["auto", "autograd", "reference"])
def test_every_option_is_checked_as_given(critic, data, options, engine):
    real, fake = (None if options.get("at") == "fake" else data[0]), data[1]
    found = gpfast.check(critic, real, fake, engine=engine, **options)
    assert found.ok and len(found.rows) >= 10, str(found)
    assert f"; engine {engine}: " in str(found)


@needs_tape
def test_chunks_are_checked(critic, data):
    assert gpfast.check(critic, *data, chunks=2).ok


def test_critics_that_write_in_place_and_random_ones(data):
    found = gpfast.check(nn.Sequential(nn.LeakyReLU(inplace=True), nn.Dropout(), nn.Linear(6, 1)), *data)
    assert found.ok and found.notes == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(data, dtype):
    found = gpfast.check(small_critic().to(dtype), *(x.to(dtype) for x in data))
    assert found.ok, str(found)
    assert {row.dtype for row in found.rows} == {"float64", str(dtype).removeprefix("torch.")}


def test_under_autocast_the_yardstick_is_that_of_its_dtype(critic, data):
    with torch.autocast("cpu", torch.bfloat16):
        found = gpfast.check(critic, *data)
    assert found.ok, str(found)
    assert {row.dtype for row in found.rows} == {"float64", "float32, autocast bfloat16"}
    low = [row for row in found.rows if row.dtype != "float64" and row.name != "the value"]
    assert max(row.error for row in low) > 1e-4


def test_methods_partials_and_functions_are_made_double(critic, data):
    def helper(x, shift):
        return critic(x) + shift

    def recursive(x, depth=2):
        return recursive(x, depth - 1) if depth else helper(x, 1.0)

    class Owner:
        def __init__(self):
            self.critic = small_critic()

        def score(self, x):
            return self.critic(x)

    for form in (critic.forward, functools.partial(critic), lambda x: helper(x, 1.0), recursive, Owner().score):
        found = gpfast.check(form, *data)
        assert found.ok and found.notes == (), str(found)
        assert "0.weight" in {row.name for row in found.rows}


def test_a_function_without_modules_is_checked_by_its_leaves(data):
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    data = [x.double() for x in data]
    found = gpfast.check(lambda x: F.linear(x, weight).tanh(), *data)
    assert found.ok and [row.name for row in found.rows] == ["the value", "leaf 0"]
    assert weight.grad is None


def assert_judged_alone(found, why):
    assert found.ok, str(found)
    assert {row.dtype for row in found.rows} == {"float32"}
    (note,) = found.notes
    assert why in note and "so in float32 gpfast is held to the eager lines alone, within 0.0003" in note
    assert why in " ".join(str(found).split())


def test_what_cannot_be_made_double_is_told(critic, data):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = critic

        def forward(self, x):
            return self.inner(x.float() @ torch.eye(6))

    assert_judged_alone(gpfast.check(Narrow(), *data), "cannot be judged in float64 (RuntimeError: ")
    critic.lock = threading.Lock()
    assert_judged_alone(gpfast.check(critic, *data), "cannot be judged in float64 (TypeError: cannot pickle")


def test_a_critic_that_narrows_inside_is_told(data):
    layer = nn.Linear(6, 3)

    def narrow(x):
        return F.linear(x.float(), layer.weight.float()).tanh().to(x.dtype)

    assert_judged_alone(gpfast.check(narrow, *data), "it computes in float32 inside, at TanhBackward0")
    found = gpfast.check(copy_in_double(narrow, layer), *(x.double() for x in data))
    assert found.ok and {row.allowed for row in found.rows} == {torch.finfo(torch.float32).eps ** 0.5}


class Largest(torch.autograd.Function):
    """The largest entry, and which it is."""

    @staticmethod
    def forward(ctx, x):
        value, index = x.max(1, keepdim=True)
        ctx.save_for_backward(index)
        ctx.like = x.shape
        ctx.mark_non_differentiable(index)
        return value, index

    @staticmethod
    def backward(ctx, grad, _):
        return grad.new_zeros(ctx.like).scatter(1, ctx.saved_tensors[0], grad)


def test_indices_that_a_function_returns_do_not_narrow(critic, data):
    found = gpfast.check(lambda x: Largest.apply(critic(x.tanh()))[0], *data)
    assert found.ok and {row.dtype for row in found.rows} == {"float64", "float32"} and not found.notes, str(found)


@needs_tape
def test_a_critic_with_an_autocast_of_its_own_is_held_to_what_that_computes_in(data):
    class Own(nn.Module):
        def __init__(self, last):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.last = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1)), last

        def forward(self, x):
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.last(self.inner(x))

    half = torch.finfo(torch.bfloat16).eps ** 0.5
    found = gpfast.check(Own(torch.Tensor.float), *data)  # in float64 it is float64 until its end
    assert found.ok, str(found)
    assert {row.allowed for row in found.rows} == {half} and {row.dtype for row in found.rows} == {
        "float32, bfloat16 inside"
    }
    assert "(it computes in float32 inside, at ToCopyBackward0)" in found.notes[0]
    found = gpfast.check(Own(nn.Identity()), *data)
    assert found.ok and {row.dtype for row in found.rows} == {"float64", "float32, bfloat16 inside"}, str(found)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_a_script_is_copied_whole(data):
    """PyTorch copies a script under autograd: gradients of the copy would go on to the original."""
    convolution = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 1, 2), nn.Flatten()
    )
    scripted = torch.jit.script(convolution)
    for _ in range(2):
        found = gpfast.check(scripted, *data)
        assert found.ok and {row.dtype for row in found.rows} == {"float64", "float32"}, str(found)
    copy = undisturbed.copied(scripted)
    assert all(p.is_leaf and p.requires_grad for p in copy.parameters())
    gpfast.gradient_penalty(copy, *data).backward()
    assert all(p.grad is None for p in scripted.parameters())
    assert dict(copy.named_parameters())["1.weight"].grad.any()


def copy_in_double(function, layer):
    layer.double()
    return function


def test_random_layers_that_draw_otherwise_in_double_are_told(data):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_critic(nn.Tanh)

        def forward(self, x):
            return self.inner(x + 3 * torch.randn_like(x))

    found = gpfast.check(Noisy(), *data)
    assert found.ok, str(found)
    (note,) = found.notes
    assert "The eager lines themselves are far from float64" in note
    assert {row.dtype for row in found.rows} == {"float64", "float32"}


def test_a_mistake_is_found_without_float64_too(critic, data, wrong_gradients):
    critic.lock = threading.Lock()
    wrong_gradients[torch.float32] = 1.01
    assert not gpfast.check(critic, *data).ok


@needs_tape
def test_backward_hooks_are_named(critic, data):
    def hooked(x):
        h = critic[0](x)
        h.register_hook(lambda g: g)
        return critic[3](h.tanh())

    found = gpfast.check(hooked, *data)
    assert found.ok and "the tape does not run: AddmmBackward0 has a backward hook" in found.engine


@needs_tape
def test_the_tape_is_what_auto_checks(critic, data):
    assert "engine auto: the tape, " in gpfast.check(critic, *data).engine


def test_errors_are_those_of_the_penalty(critic, data):
    with pytest.raises(ValueError, match="`fake` is missing"):
        gpfast.check(critic, data[0])
    with pytest.raises(ValueError, match="`engine` must be one of"):
        gpfast.check(critic, *data, engine="magic")
    with pytest.raises(ValueError, match="`draws` must be an integer of at least 1; got 0"):
        gpfast.check(critic, *data, draws=0)
    with pytest.raises(TypeError, match="`critic` must be callable"):
        gpfast.check("critic", *data)


class Once(torch.autograd.Function):
    """The square, whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@needs_tape
def test_an_operation_that_pytorch_differentiates_only_once_is_named(data):
    critic = small_critic(nn.Hardsigmoid)
    words = "The eager lines .* cannot differentiate this critic twice: .* no second derivative of hardsigmoid"
    with pytest.raises(RuntimeError, match=f"{words}, so there is nothing"):
        gpfast.check(critic, *data)
    with pytest.raises(RuntimeError, match=f"{words}, so there is nothing"):
        gpfast.check(critic.double(), *(x.double() for x in data))


@pytest.mark.parametrize("engine", ["tape", "autograd", "reference"])
@pytest.mark.parametrize("name", ["a function", "embedding_bag"])
def test_what_no_engine_can_differentiate_twice_is_told(data, name, engine):
    if engine == "tape" and not _extension.available:
        pytest.skip("needs the C++ extension")
    first, last = nn.Linear(6, 4), nn.Linear(4, 1)
    after, operation = {
        "a function": (Once.apply, "a function that is marked with @once_differentiable"),
        "embedding_bag": (lambda h: h * F.embedding_bag(torch.tensor([[0, 1]]), h).mean(), "embedding_bag"),
    }[name]
    with pytest.raises(RuntimeError, match=f"cannot differentiate this critic twice: .* derivative of {operation}"):
        gpfast.check(lambda x: last(after(first(x))), *data, engine=engine)


def test_draws_are_compared_together():
    one = torch.ones((), dtype=torch.float64)
    draws = [Outcome(k * one, {"w": k * one, "b": None}, norms=k * torch.ones(3)) for k in (1.0, 2.0)]
    both = compare.stacked(draws)
    assert both.value.tolist() == [1, 2] and both.gradients["b"] is None and both.norms.shape == (2, 3)
    lucky = compare.stacked([draws[0], Outcome(2.1 * one, {"w": 2.1 * one, "b": None}, norms=2.1 * torch.ones(3))])
    found = compare.compared_rounded(lucky, lucky, both, torch.float32)
    assert [c.name for c in found] == ["the value", "w"] and not any(c.failure for c in found)
    assert not compare.is_yardstick(compare.stacked([draws[1], draws[1]]), compare.stacked([draws[0], draws[0]]))


class NormOfZeros(nn.Module):
    """A norm has no derivative at zero, and PyTorch's second one is NaN."""

    def __init__(self):
        super().__init__()
        self.dead, self.alive = nn.Parameter(torch.ones(6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return ((x - 100).relu() * self.dead).norm(dim=1) + x @ self.alive


def test_eager_lines_that_are_not_finite_are_no_yardstick():
    with pytest.raises(
        RuntimeError, match="eager lines .* give NaN or infinity in float64, for dead, .* at zero inside"
    ):
        gpfast.check(NormOfZeros(), torch.randn(5, 6), at="real")
    dead, alive = torch.ones(6, requires_grad=True), torch.randn(6)  # a function that stays in float32
    with pytest.raises(RuntimeError, match="eager lines .* give NaN or infinity in float32, for leaf 0, so"):
        gpfast.check(lambda x: ((x - 100).relu() * dead).norm(dim=1) + x @ alive, torch.randn(5, 6), at="real")


# the command line


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"critics_of_{tmp_path.name.replace('-', '_')}"
    text = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(6, 3), nn.ReLU())\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_command_checks_what_a_module_makes(module, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(["check", f"{module}:make", "--input", "5,6", "--at", "real", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Sequential on (5, 6), float32, cpu" in printed and "Everything agrees." in printed
    found = json.loads(file.read_text())
    assert found["ok"] and found["rows"][0]["name"] == "the value" and found["versions"]["gpfast"] == gpfast.__version__


def test_command_exits_1_on_disagreement(module, capsys, wrong_gradients):
    assert main(["check", f"{module}:make", "--input", "5,6", "--dtype", "float64", "--engine", "autograd"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_command_exits_2_where_the_critic_cannot_be_run(module, capsys):
    assert main(["check", f"{module}:make", "--input", "5,7"]) == 2
    words = capsys.readouterr().err
    assert "gpfast check: the critic cannot be run on --input 5,7: RuntimeError: mat1 and mat2" in words
