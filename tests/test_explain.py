"""explain: what the tape does with a critic, node by node, and `python -m gpfast explain`."""

import copy
import functools
import json
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gpfast
from gpfast import _extension, cost, zoo
from gpfast.__main__ import main
from gpfast.cli.competitors import step_function

needs_tape = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


class Critic(nn.Module):
    """Two convolutions and a linear layer, with an operation that has no rule and a buffer that moves."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.score = nn.Linear(8 * 3 * 3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        h = torch.special.erfcx(self.first(x))
        return self.score(self.second(h).flatten(1)).tanh()


@pytest.fixture
def critic():
    torch.manual_seed(0)
    return Critic()


@pytest.fixture
def real():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def step_costs(critic, engine, real):
    critic = copy.deepcopy(critic)
    step = step_function(lambda: gpfast.gradient_penalty(critic, real, real.detach(), engine=engine), critic)
    return cost.measure(step, existing=(critic, real))


@needs_tape
def test_rows_say_what_the_tape_does(critic, real):
    found = gpfast.explain(critic, real)
    assert found.refused == "" and found.notes == ()
    rows = {(row.module, row.name): row for row in found.nodes}
    first, second = rows["first", "ConvolutionBackward0"], rows["second", "ConvolutionBackward0"]
    erfcx, score = rows["", "SpecialErfcxBackward0"], rows["score", "AddmmBackward0"]
    assert [row.module for row in found.nodes if row.passes] == ["first", "second", "score"]
    assert erfcx.rule == "alone" and erfcx.bends and erfcx.passes is None
    assert erfcx.kept_bytes >= 2 * 4 * 8 * 8 * 8 * 4, "its adjoint, and what autograd saved for it"
    assert erfcx.launches > 0 and erfcx.moved_bytes > 0
    assert (first.second, second.second, score.second) == (True, True, True), "tanh bends above all of them"
    assert (first.passes, second.passes) == (5, 6), "no second adjoint is wanted of the points"
    assert second.forward_flop == 2 * 4 * 8 * 3 * 3 * (8 * 3 * 3)
    assert second.flop == 6 * second.forward_flop


@needs_tape
def test_totals_are_those_of_a_step(critic, real):
    found = gpfast.explain(critic, real)
    assert found.tape == step_costs(critic, "tape", real)
    eager = step_costs(critic, "reference", real)
    assert (found.reference.flop, found.reference.peak_bytes) == (eager.flop, eager.peak_bytes)
    assert eager.launches - 3 <= found.reference.launches <= eager.launches, "copies into .grad"
    assert sum(row.flop for row in found.nodes) == found.tape.flop


@needs_tape
def test_the_table_reads_from_the_points_up_and_ends_in_advice(critic, real):
    text = str(gpfast.explain(critic, real))
    lines = text.splitlines()
    assert lines[0] == "gpfast.explain: Critic on (4, 3, 8, 8), float32, cpu"
    assert lines[2].split() == "node made in rule bends 2nd adjoint passes GFLOP kept MB".split()
    assert lines[3].startswith("ConvolutionBackward0   first")
    assert text.index("SpecialErfcxBackward0") < text.index("AddmmBackward0") < text.index("TanhBackward0")
    assert any(line.startswith("tape ") for line in lines) and any(line.startswith("reference ") for line in lines)
    prose = " ".join(lines)
    assert "run alone, through PyTorch: SpecialErfcxBackward0" in prose or "SpecialErfcxBackward0, " in prose
    assert "Second adjoints start at TanhBackward0" in prose
    assert all(len(line) <= 120 for line in lines)


@needs_tape
def test_a_linear_critic_has_four_passes_and_three_at_its_end(real):
    found = gpfast.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten()), real)
    assert [row.passes for row in found.nodes if row.passes] == [4, 3]
    assert not any(row.bends or row.second for row in found.nodes)
    assert "Every node has a rule." in str(found) and "Nothing bends" in str(found)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_critic_of_the_zoo_is_explained(name):
    entry = zoo.ZOO[name]
    critic = zoo.build(name, small=True)
    case = entry.inputs(entry.small_batch, True, generator=torch.Generator().manual_seed(0))
    found = gpfast.explain(critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output)
    assert str(found) and found.tape.peak_bytes > 0
    if _extension.available:
        assert found.nodes and sum(row.flop for row in found.nodes) == found.tape.flop
        assert all(row.passes is None or 1 < row.passes <= 9 for row in found.nodes)


def test_nothing_is_touched(critic, real):
    generator = torch.Generator().manual_seed(3)
    real.requires_grad_()
    fake = (2 * real).sin()  # of a graph that somebody else will differentiate
    critic.first.weight.grad = torch.ones_like(critic.first.weight)
    before, state, drawn = copy.deepcopy(critic.state_dict()), torch.get_rng_state(), generator.get_state()
    gpfast.explain(critic, real, fake, generator=generator)
    assert all(torch.equal(x, before[name]) for name, x in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(generator.get_state(), drawn)
    assert torch.equal(critic.first.weight.grad, torch.ones_like(critic.first.weight))
    assert all(p.grad is None for name, p in critic.named_parameters() if name != "first.weight")
    assert not critic.first._forward_hooks and not critic.first._forward_pre_hooks
    assert real.grad is None
    fake.sum().backward()


def test_a_critic_that_cannot_be_copied_gets_its_buffers_back(critic, real):
    critic.lock = threading.Lock()
    calls = critic.calls
    found = gpfast.explain(critic, real)
    assert found.tape.launches > 0
    assert critic.calls is calls and calls == 0
    assert all(p.grad is None for p in critic.parameters())


def test_weights_computed_outside_keep_their_graph(real):
    source = torch.randn(5, 3 * 64, requires_grad=True)
    weight = source.exp()
    found = gpfast.explain(lambda x: F.linear(x.flatten(1), weight).tanh(), real)
    assert found.tape.flop > 0 and source.grad is None
    weight.sum().backward()


@needs_tape
def test_backward_hooks_are_named_as_the_reason(critic, real):
    def hooked(x):
        h = critic.first(x)
        h.register_hook(lambda g: g)
        return critic.second(h).flatten(1)

    found = gpfast.explain(hooked, real)
    assert found.nodes == () and "ConvolutionBackward0 has a backward hook" in found.refused
    assert found.notes == (), "it is said once"
    assert "The tape does not run: ConvolutionBackward0 has a backward hook." in str(found)
    assert "\nautograd " in str(found)


def test_without_the_extension_the_reason_is_that(critic, real, monkeypatch):
    monkeypatch.setattr(_extension, "available", False)
    found = gpfast.explain(critic, real)
    assert "the tape needs the C++ extension" in found.refused and found.nodes == () and found.tape.launches > 0


@needs_tape
def test_methods_partials_and_functions_are_explained_with_their_modules(critic, real):
    expected = [(row.name, row.module) for row in gpfast.explain(critic, real).nodes]
    for form in (critic.forward, functools.partial(critic), lambda x: critic(x)):
        found = gpfast.explain(form, real)
        assert [(row.name, row.module) for row in found.nodes] == expected
        assert critic.calls == 0


@needs_tape
@pytest.mark.filterwarnings("ignore")  # PyTorch warns of torch.jit
def test_scripts_and_checkpoints(critic, real):
    found = gpfast.explain(torch.jit.script(critic), real)
    assert sum(row.flop for row in found.nodes) == found.tape.flop
    found = gpfast.explain(lambda x: checkpoint(critic, x, use_reentrant=False), real)
    assert found.refused == "" and sum(row.flop for row in found.nodes) == found.tape.flop


@needs_tape
def test_parts_of_a_batch_are_added_up(real):
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten())
    whole, parts = (gpfast.explain(critic, real, chunks=n) for n in (1, 2))
    assert [row.name for row in parts.nodes] == [row.name for row in whole.nodes]
    assert [row.flop for row in parts.nodes] == [row.flop for row in whole.nodes]
    assert parts.tape.peak_bytes < whole.tape.peak_bytes and parts.reference == whole.reference


@needs_tape
@pytest.mark.parametrize("at", ["real", "fake", "dragan"])
def test_every_at(critic, real, at):
    found = gpfast.explain(critic, None if at == "fake" else real, real if at == "fake" else None, at=at)
    assert [row.module for row in found.nodes if row.passes] == ["first", "second", "score"]


@needs_tape
def test_several_inputs_and_a_penalty_per_sample():
    layer = nn.Linear(5, 3)
    inputs = {"a": torch.randn(4, 2), "b": torch.randn(4, 3)}
    found = gpfast.explain(lambda a, b: {"s": layer(torch.cat([a, b], 1)).tanh()}, inputs, output="s", reduction="none")
    assert "on (4, 2) and (4, 3)" in str(found)
    assert [row.passes for row in found.nodes if row.name == "AddmmBackward0"] == [5]


def test_a_critic_that_writes_to_its_input(real):
    """The eager lines refuse it on points of their own, so theirs are made of data that requires grad."""
    found = gpfast.explain(nn.Sequential(nn.LeakyReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten()), real)
    assert found.tape.flop > 0 and found.reference.flop >= found.tape.flop


def test_warnings_become_notes(real):
    found = gpfast.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), real)
    (note,) = found.notes
    assert "batch statistics" in note and note[:40] in str(found)


def test_errors_are_those_of_the_penalty(critic, real):
    with pytest.raises(ValueError, match="`engine` must be 'auto' or 'tape'"):
        gpfast.explain(critic, real, engine="reference")
    with pytest.raises(TypeError, match="`real` must be a tensor"):
        gpfast.explain(critic, "real")
    with pytest.raises(TypeError, match="`critic` must be callable"):
        gpfast.explain(3, real)
    with pytest.raises(ValueError, match="`fake` is missing"):
        gpfast.explain(critic, real, at="fake")
    with pytest.raises(TypeError, match="unexpected keyword"):
        gpfast.explain(critic, real, wait=10)


@needs_tape
def test_a_critic_that_the_eager_lines_cannot_differentiate_twice_is_explained_without_them(real):
    found = gpfast.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid(), nn.Flatten()), real)
    assert [row.rule for row in found.nodes][1:] == ["gate", "view"] and found.reference is None
    words = "The eager lines cannot differentiate this critic twice: PyTorch has no second derivative of hardsigmoid"
    assert any(note.startswith(words) for note in found.notes)
    text = " ".join(str(found).split())
    assert words in text and "share" not in text and "tape " in text


def test_a_critic_that_gpfast_cannot_differentiate_twice_is_an_error_that_names_the_operation(real):
    layer = nn.Linear(3 * 8 * 8, 4)
    with pytest.raises(RuntimeError, match="gpfast cannot differentiate this critic twice: .* of embedding_bag"):
        gpfast.explain(lambda x: F.embedding_bag(torch.arange(len(x))[:, None], layer(x.flatten(1))).square(), real)


# the command line


MODULE = """
import torch
from torch import nn

class Critic(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten())

class Wide(Critic):
    def __init__(self, channels):
        super().__init__()

def make():
    return Critic()

def hooked():
    class Hooked(Critic):
        def forward(self, x):
            y = super().forward(x)
            y.register_hook(lambda g: g)
            return y * 1.0
    return Hooked()

def broken():
    raise RuntimeError("no weights\\nhere")

def pairs():
    first = nn.Linear(2, 3)
    return lambda a, b: (first(a) + b, 0)

ready = Critic()
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of critics; its name is new, so that no test meets another's."""
    name = f"critics_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@needs_tape
@pytest.mark.parametrize("factory", ["Critic", "make", "ready"])
def test_command_explains_what_a_module_makes(folder, factory, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(["explain", f"{folder}:{factory}", "--input", "2,3,6,6", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "gpfast.explain: Critic on (2, 3, 6, 6), float32, cpu" in printed and "TanhBackward0" in printed
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["nodes"]] == ["ConvolutionBackward0", "TanhBackward0", "ViewBackward0"]
    assert found["tape"]["launches"] > 0 and found["advice"]


@needs_tape
def test_command_takes_critics_of_the_zoo_and_several_inputs(folder, capsys):
    assert main(["explain", "zoo:toy-mlp", "--batch", "4", "--dtype", "float64"]) == 0
    assert "ToyMLP on (4, 2), float64, cpu" in capsys.readouterr().out
    assert main(["explain", f"{folder}:pairs", "--input", "4,2", "--input", "4,3", "--output", "0"]) == 0
    assert "on (4, 2) and (4, 3)" in capsys.readouterr().out


@needs_tape
def test_command_exits_1_where_the_tape_does_not_run(folder, capsys):
    assert main(["explain", f"{folder}:hooked", "--input", "2,3,6,6"]) == 1
    assert "has a backward hook" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nocolon", "--input", "2,3"], "MODULE:FACTORY must be as in models:Critic"),
        (["zoo:nobody"], "there is no critic 'nobody' in the zoo"),
        (["no_such_module:Critic", "--input", "2,3"], "there is no module 'no_such_module'"),
        (["{}:Crtic", "--input", "2,3"], "has no 'Crtic'; it has Critic, Wide, make"),
        (["{}:Wide", "--input", "2,3"], "cannot be called without arguments (missing a required argument: 'channels')"),
        (["{}:broken", "--input", "2,3"], ":broken() failed: RuntimeError: no weights"),
        (["{}:number", "--input", "2,3"], "is a int; name a critic"),
        (["{}:Critic"], "--input is missing"),
        (["{}:Critic", "--input", "2,1,6,6"], "cannot be run on --input 2,1,6,6: RuntimeError: Given groups=1"),
        (["{}:pairs", "--input", "4,2", "--input", "4,3"], "say which part is the score"),
        (["{}:Critic", "--input", "2,3,6,6", "--json", "missing/f.json"], "No such file"),
    ],
)
def test_command_refuses_in_words_what_cannot_be_run(folder, arguments, words, capsys):
    assert main(["explain", *(a.format(folder) for a in arguments)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["3,x", "0,3", ""])
def test_command_refuses_shapes_that_are_none(shape, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", "zoo:toy-mlp", "--input", shape])
    assert stop.value.code == 2 and "as in 64,3,32,32" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["coo", "csr", "through"])
def test_sparse_tensors_within_count_by_their_parts(layout):
    some = torch.eye(6).roll(1, 0)
    weight = nn.Parameter(torch.randn(4, 3))

    def critic(x):
        h = x @ weight
        if layout == "through":
            return (h.to_sparse() * 2).to_dense().tanh().sum(1)
        return ((some.to_sparse() if layout == "coo" else some.to_sparse_csr()) @ h).tanh().sum(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that CSR is in beta
        assert "alone" in str(gpfast.explain(critic, torch.randn(6, 4), at="real"))
