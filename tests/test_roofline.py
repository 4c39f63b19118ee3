"""The roofline: the model on operators with known answers, the operators of a step, and `python -m gpfast roofline`."""

import contextlib
import copy
import json
from collections import Counter

import pytest
import torch
from torch import nn

from gpfast import _extension, cost, operators, zoo
from gpfast.__main__ import main
from gpfast.cli.competitors import penalty_function, step_function
from gpfast.cuda_kernels import ENDS, SWEEPS
from gpfast.gpus import GPUS, Gpu
from gpfast.operators import Operator, count_step
from gpfast.roofline import Modelled, Roofline

needs_tape = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")

TOY = Gpu("toy", fp32=1e12, tf32=4e12, bf16=8e12, bandwidth=1e11, source="made up")
LAUNCH = 5e-6


def convolution(dtype=torch.float32, flop=4 * 10**9, moved=10**6):
    return Operator("aten.convolution", 1, flop, moved, dtype)


def product(dtype=torch.float32):
    return Operator("aten.mm", 1, 4 * 10**9, 10**6, dtype)


def elementwise(moved, launches=1):
    return Operator("aten.mul", launches, 0, moved, torch.float32)


class Critic(nn.Module):
    """Convolutions in oneDNN's favourite layout, biases without a gradient, a buffer that moves, a random layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.score = nn.Linear(8 * 7 * 7, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        h = nn.functional.dropout(nn.functional.leaky_relu(self.first(x), 0.2), 0.1)
        return self.score(nn.functional.leaky_relu(self.second(h), 0.2).flatten(1))


class Reader(Critic):
    """Reads a value of its points, which a fake tensor does not hold; and cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("this critic holds what cannot be copied")

    def forward(self, x):
        return super().forward(x * (2.0 if float(x.detach().sum()) > 0 else 1.0))


@pytest.fixture
def critic():
    torch.manual_seed(0)
    return Critic()


@pytest.fixture
def real():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def names(step):
    return Counter(operator.name for operator in step.operators)


def total(step):
    return step.launches, step.flop, step.bytes_moved


@pytest.mark.parametrize("name", ["a100", "h100", "b200", "l4", "rtx4090"])
def test_each_gpu_has_its_rates_and_their_source(name):
    gpu = GPUS[name]
    assert gpu.source.startswith("NVIDIA ") and any(word in gpu.source for word in ("datasheet", "whitepaper", "Brief"))
    assert 0 < gpu.bandwidth < gpu.fp32 <= gpu.tf32 < gpu.bf16
    assert gpu.bf16 == pytest.approx(2 * gpu.tf32, rel=0.03), "dense BF16 is twice dense TF32 on all of them"


@pytest.mark.parametrize(
    ("operator", "tf32", "expected"),
    [
        (convolution(), "convolutions", Modelled(arithmetic=1e-3)),
        (convolution(), "none", Modelled(arithmetic=4e-3)),
        (product(), "convolutions", Modelled(arithmetic=4e-3)),
        (product(), "all", Modelled(arithmetic=1e-3)),
        (product(torch.bfloat16), "none", Modelled(arithmetic=0.5e-3)),
        (product(torch.float16), "none", Modelled(arithmetic=0.5e-3)),
        (convolution(moved=5 * 10**8), "convolutions", Modelled(memory=5e-3)),
        (elementwise(10**8), "none", Modelled(memory=1e-3)),
        (elementwise(10**3), "none", Modelled(launches=LAUNCH)),
        (elementwise(10**3, launches=2), "none", Modelled(launches=2 * LAUNCH)),
    ],
)
def test_an_operator_takes_the_largest_of_its_three_terms(operator, tf32, expected):
    found = Roofline(TOY, LAUNCH, tf32).operator(operator)
    for bound in ("arithmetic", "memory", "launches"):
        assert getattr(found, bound) == pytest.approx(getattr(expected, bound)), bound


def test_a_step_is_the_sum_of_its_operators_and_bound_by_most_of_it():
    step = [convolution(), product(), elementwise(10**8), *[elementwise(10)] * 4]
    found = Roofline(TOY, LAUNCH).step(step)
    assert (found.arithmetic, found.memory, found.launches) == pytest.approx((5e-3, 1e-3, 4 * LAUNCH))
    assert found.seconds == pytest.approx(6e-3 + 4 * LAUNCH)
    assert found.bound == "arithmetic"
    assert Roofline(TOY, 1.0).step(step).bound == "launches"
    assert Roofline(TOY, 0.0).step(step[2:]).bound == "memory"
    assert Roofline(TOY, 0.0).step(step[2:]).launches == 0


def test_what_there_is_no_rate_for_is_refused():
    with pytest.raises(ValueError, match=r"aten.mm computes in torch.float64.*must be float32"):
        Roofline(TOY, LAUNCH).step([product(torch.float64)])
    assert Roofline(TOY, LAUNCH).step([Operator("aten.mul", 1, 0, 10, torch.float64)]).seconds == LAUNCH
    with pytest.raises(ValueError, match=r"`launch_seconds` must be 0 or more; got -1"):
        Roofline(TOY, -1)
    with pytest.raises(ValueError, match=r"`tf32` must be one of none.*'some'"):
        Roofline(TOY, LAUNCH, "some")


@pytest.mark.parametrize("engine", ["reference", "autograd"])
def test_operators_add_up_to_what_a_real_step_costs(critic, real, engine):
    found = count_step(critic, real, real, engine=engine)
    case = zoo.Case(real, real.clone())
    measured = cost.measure(step_function(penalty_function(engine, critic, case), critic), existing=(critic, real))
    assert found.refused == ""
    assert total(found) == (measured.launches, measured.flop, measured.bytes_moved)


@needs_tape
@pytest.mark.parametrize("name", ["mlp-64", "dcgan32", "layernorm-dcgan", "resnet32", "voxel-3d"])
def test_fake_tensors_give_the_operators_of_real_ones(name):
    entry, critic = zoo.ZOO[name], zoo.build(name, small=True)
    case = entry.inputs(entry.small_batch, True)
    fake, data = (count_step(critic, case.real, case.fake, with_data=how) for how in (False, True))
    assert fake.refused == "" and fake.flop == data.flop > 0
    assert names(data) == names(fake)


@needs_tape
def test_the_count_is_of_a_gpu(critic, real, monkeypatch):
    """Without what suits oneDNN; and gradients are scaled, in one launch, by what came in."""
    found = count_step(critic, real, real, with_data=True)
    assert names(found)["gpfast.relayout"] == 0
    assert names(found)["aten._foreach_mul_"] == 1
    assert torch._C._get_mkldnn_enabled(), "it is put back"
    monkeypatch.setattr(operators, "as_on_a_gpu", contextlib.nullcontext)
    on_cpu = count_step(critic, real, real, with_data=True)
    assert names(on_cpu)["gpfast.relayout"] > 0
    assert on_cpu.bytes_moved > found.bytes_moved


@needs_tape
@pytest.mark.parametrize("with_data", [False, True])
def test_without_a_cuda_kernel_an_operator_is_its_plain_formula(with_data):
    entry, critic = zoo.ZOO["layernorm-dcgan"], zoo.build("layernorm-dcgan", small=True)
    case = entry.inputs(entry.small_batch, True)
    fused, plain = (count_step(critic, case.real, case.fake, with_data=with_data, plain=p) for p in (False, True))
    without = {name for name in names(fused) if name.startswith("gpfast.")}
    without -= {f"gpfast.{name}" for name in ENDS | SWEEPS}
    with_kernel = {name for name in names(fused) if name.startswith("gpfast.")} - without
    assert {"gpfast.gate_", "gpfast.gated_", "gpfast.gradient_norm"} <= with_kernel <= set(names(plain))
    assert fused.refused == plain.refused == "" and plain.flop == fused.flop
    assert not without & set(names(plain))
    if without:
        assert plain.launches > fused.launches


@needs_tape
def test_sizes_that_no_memory_holds(critic):
    few, many = (torch.zeros(()).expand(batch, 3, 16, 16) for batch in (4, 4 << 20))
    small, large = (count_step(critic, x, x) for x in (few, many))
    assert small.refused == large.refused == ""
    assert large.flop == small.flop << 20
    assert large.bytes_moved > 10**12


@pytest.mark.parametrize("kind", [Critic, Reader])
def test_nothing_of_the_critic_changes(kind, real):
    critic = kind()
    gradients = [torch.ones_like(parameter) for parameter in critic.parameters()]
    for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
        parameter.grad = gradient
    before, state = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    found = count_step(critic, real, real)
    assert bool(found.refused) == (kind is Reader)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
        assert parameter.grad is gradient and bool((gradient == 1).all())


@needs_tape
@pytest.mark.parametrize("name", ["dcgan32", "dcgan64", "layernorm-dcgan"])
def test_gpfast_moves_two_thirds_of_eagers_bytes_at_most(name):
    entry, critic = zoo.ZOO[name], zoo.build(name)
    case = entry.inputs(entry.batch, False)
    eager, ours = (count_step(critic, case.real, case.fake, engine=engine) for engine in ("reference", "auto"))
    assert ours.bytes_moved <= 0.65 * eager.bytes_moved


def test_the_command_calls_every_modelled_line_modelled(capsys):
    assert main(["roofline", "zoo:mlp-64", "--gpu", "h100", "--gpu", "L4", "--operators"]) == 0
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        if any(word in line for word in ("H100", "L4", "TFLOP/s", " ms", " us")):
            assert "modelled" in line, line
    assert "H100 SXM" in printed and GPUS["l4"].source in printed
    assert all(f"{engine}  " in printed for engine in ("eager", "gpfast", "eager / gpfast"))
    assert "aten.addmm" in printed


def test_a_critic_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "roofline_models.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(6, 1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["roofline", "roofline_models:make", "--input", "5,6"]) == 0
    assert "modelled, not measured: Linear on (5, 6), float32, cpu" in capsys.readouterr().out


def test_a_critic_that_reads_values_is_counted_on_real_tensors(tmp_path, monkeypatch, capsys):
    (tmp_path / "roofline_readers.py").write_text(
        "def critic(x):\n    return x.square().flatten(1).sum(1) * (1 if float(x.detach().sum()) > 0 else 2)\n"
        "def make():\n    return critic\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = main(["roofline", "roofline_readers:make", "--input", "5,6"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "eager: counted on real tensors, for on fake ones it raised DataDependent" in said.out


def test_the_table_has_a_line_for_each_critic_and_gpu(capsys, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", {name: zoo.ZOO[name] for name in ("toy-mlp", "mlp-64")})
    assert main(["roofline", "--gpu", "all"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 * len(GPUS)
    assert "modelled eager / gpfast" in rows[0]
    assert all("modelled" in row for row in rows[2:])


def test_json_can_be_modelled_again(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(["roofline", "zoo:mlp-64", "--batch", "8", "--launch-us", "2", "--json", str(file)]) == 0
    capsys.readouterr()
    data = json.loads(file.read_text())
    assert data["modelled"] is True and data["gpus"]["h100"]["gpu"]["source"] == GPUS["h100"].source
    (found,) = data["critics"]
    assert "(8, 64)" in found["about"]
    for engine in ("eager", "gpfast"):
        counted, modelled = found["counted"][engine], found["modelled"]["h100"][engine]
        step = [Operator(**x | {"dtype": getattr(torch, x["dtype"], None)}) for x in counted["operators"]]
        assert sum(x.launches for x in step) == counted["launches"]
        assert Roofline(GPUS["h100"], 2e-6).step(step).seconds == pytest.approx(modelled["seconds"])
    assert found["modelled"]["h100"]["eager"]["bound"] == "launches"


def test_half_the_bytes_in_half_precision(tmp_path, capsys):
    moved = []
    for dtype in ("float32", "bfloat16"):
        file = tmp_path / f"{dtype}.json"
        assert main(["roofline", "zoo:motion-prior", "--dtype", dtype, "--json", str(file)]) == 0
        moved.append(json.loads(file.read_text())["critics"][0]["counted"]["eager"]["bytes_moved"])
    assert 0.4 < moved[1] / moved[0] < 0.65
    capsys.readouterr()


def test_an_unknown_gpu_is_named_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["roofline", "zoo:mlp-64", "--gpu", "h1000"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "--gpu" in said and "h1000" in said and all(name in said for name in GPUS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zoo:mlp-64", "--dtype", "float64"], "--dtype float64: the table of GPUs has rates of"),
        (["all", "--input", "4,64"], "--input and --output belong to one critic"),
        (["zoo:nothing"], "there is no critic 'nothing' in the zoo"),
        (["zoo:mlp-64", "--input", "4,5"], "zoo:mlp-64 cannot be run on its data (reference)"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, said, capsys):
    assert main(["roofline", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == ""


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "many"])
def test_a_launch_costs_a_number_of_microseconds(value, capsys):
    with pytest.raises(SystemExit):
        main(["roofline", "zoo:mlp-64", f"--launch-us={value}"])
    assert "--launch-us" in capsys.readouterr().err
