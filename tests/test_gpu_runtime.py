"""What only a GPU has: streams, several devices, CUDA graphs, an allocator with a peak."""

import copy

import pytest
import torch
from zoo_runs import inputs

import gpfast
from gpfast import _extension, cost, zoo
from gpfast.cli.competitors import penalty_function, step_function

needs_extension = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
pytestmark = needs_extension

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CRITICS = ["toy-mlp", "dcgan32", "layernorm-dcgan", "gated-multiplicative"]
SLEEP = 200_000_000  # cycles of the device, a tenth of a second


def critic_step(critic, optimizer, real, fake, alpha, engine):
    """One step of a critic's training; the penalty."""
    penalty = gpfast.gradient_penalty(critic, real, fake, alpha=alpha, engine=engine)
    loss = critic(fake).mean() - critic(real).mean() + penalty
    loss.backward()
    optimizer.step()
    return penalty.detach()


def trained(critic, batches, engine):
    """(penalties, parameters) after a step on each batch, from gradients that are None."""
    critic = copy.deepcopy(critic)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    penalties = []
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        penalties.append(critic_step(critic, optimizer, *batch, engine))
    return torch.stack(penalties), list(critic.parameters())


def batches_of(name, device, steps=3):
    alpha = torch.linspace(0.1, 0.9, 4, dtype=torch.float64, device=device)
    cases = [inputs(name, True, 4, torch.float64, seed, device) for seed in range(steps)]
    return [(case.real, case.fake, alpha) for case in cases]


def alike(ours, theirs):
    for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", CRITICS)
def test_a_few_steps_of_training(name, device):
    critic = zoo.build(name, small=True, dtype=torch.float64, device=device)
    batches = batches_of(name, device)
    alike(trained(critic, batches, "tape"), trained(critic, batches, "reference"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CRITICS)
def test_nothing_runs_before_the_stream_of_the_caller_is_there(name):
    """The data come late on a side stream: a kernel on any other stream would see the NaN that was there before."""
    critic = zoo.build(name, small=True, dtype=torch.float64, device="cuda")
    batches = batches_of(name, "cuda")
    expected = trained(critic, batches, "tape")  # compiles, and picks algorithms
    late = [tuple(torch.full_like(x, torch.nan) for x in batch) for batch in batches]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP)
        for batch, given in zip(late, batches, strict=True):
            for x, value in zip(batch, given, strict=True):
                x.copy_(value)
        ours = trained(critic, late, "tape")
    side.synchronize()
    alike(ours, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CRITICS)
def test_nothing_runs_on_the_default_stream_instead(name):
    """It is asleep meanwhile: what was queued there would come after the results have been looked at."""
    critic = zoo.build(name, small=True, dtype=torch.float64, device="cuda")
    batches = batches_of(name, "cuda")
    expected = [x.cpu() for part in trained(critic, batches, "tape") for x in part]
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        trained(critic, batches, "tape")  # from here on this stream's memory is there
    side.synchronize()
    torch.cuda._sleep(20 * SLEEP)
    with torch.cuda.stream(side):
        ours = [x.cpu() for part in trained(critic, batches, "tape") for x in part]
    assert not torch.cuda.default_stream().query(), "it woke too early to prove anything"
    torch.cuda.synchronize()
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CRITICS)
def test_the_current_device_need_not_be_that_of_the_data(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    critic = zoo.build(name, small=True, dtype=torch.float64, device="cuda:1")
    batches = batches_of(name, "cuda:1")
    with torch.cuda.device(0):
        alike(trained(critic, batches, "tape"), trained(critic, batches, "reference"))
        assert torch.cuda.current_device() == 0


def captured(critic, static, engine="tape"):
    """(graph of one step on the tensors of `static`, its penalty, the critic's parameters), warmed up on a copy."""
    trained(critic, [static] * 3, engine)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        penalty = critic_step(critic, optimizer, *static, engine)
    return graph, penalty, list(critic.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CRITICS)
def test_a_captured_step_replays_on_new_data(name):
    critic = zoo.build(name, small=True, dtype=torch.float64, device="cuda")
    batches = batches_of(name, "cuda")
    expected = trained(critic, batches, "tape")
    static = tuple(x.clone() for x in batches[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graph, penalty, parameters = captured(critic, static)
    torch.cuda.current_stream().wait_stream(side)
    penalties = []
    for batch in batches:
        for x, value in zip(static, batch, strict=True):
            x.copy_(value)
        graph.replay()
        penalties.append(penalty.clone())
    alike((torch.stack(penalties), parameters), expected)


@pytest.mark.gpu
def test_a_captured_penalty_draws_its_points_anew():
    critic = zoo.build("toy-mlp", small=True, device="cuda")
    case = inputs("toy-mlp", True, 4, torch.float32, 1, "cuda")
    for _ in range(3):
        gpfast.gradient_penalty(critic, case.real, case.fake).backward()
    critic.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        penalty = gpfast.gradient_penalty(critic, case.real, case.fake)
        penalty.backward()
    values = set()
    for _ in range(3):
        graph.replay()
        values.add(penalty.item())
    assert len(values) == 3


def peak(name, engine, device, small):
    """Most bytes alive in one step beyond what was there, gradients included."""
    critic = zoo.build(name, small=small, device=device)
    case = zoo.ZOO[name].inputs(8 if small else zoo.ZOO[name].batch, small, device=device)
    step = step_function(penalty_function(engine, critic, case), critic)
    step()
    critic.zero_grad(set_to_none=True)
    return cost.peak_bytes_raw(step, device)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", ["dcgan64", "layernorm-dcgan"])
def test_the_peak_is_no_higher_than_eagers(name, device):
    small = device == "cpu"
    assert 0 < peak(name, "tape", device, small) <= peak(name, "reference", device, small)
