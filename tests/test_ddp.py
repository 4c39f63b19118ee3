"""Two gloo processes under DistributedDataParallel have the gradients of one process; FSDP is refused in words."""

import datetime
import itertools
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

import gpfast
from gpfast import reference

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")

STEPS, BATCH = 3, 8
SWITCHES = [(unused, static) for unused in (False, True) for static in (False, True)]


class Critic(nn.Module):
    """With a last bias that no penalty reaches; `spare` is used by nobody."""

    def __init__(self, spare=False, pair=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.LeakyReLU(0.2))
        self.head, self.pair = nn.Linear(5, 1), pair
        if spare:
            self.spare = nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        h = self.body(x)
        return (h, self.head(h)) if self.pair else self.head(h)


def score(critic, x):
    result = critic(x)
    return result[1] if isinstance(result, tuple) else result


def penalty(engine, critic, real, fake, alpha, **options):
    if engine == "reference":
        return reference.gradient_penalty(critic, real, fake, alpha=alpha, **options)
    return gpfast.gradient_penalty(critic, real, fake, alpha=alpha, engine=engine, **options)


def first(engine, critic, real, fake, alpha, **options):
    value = penalty(engine, critic, real, fake, alpha, **options)
    return value + score(critic, fake).mean() - score(critic, real).mean()


def last(engine, critic, real, fake, alpha, **options):
    loss = score(critic, fake).mean() - score(critic, real).mean()
    return loss + penalty(engine, critic, real, fake, alpha, **options)


def within(engine, critic, real, fake, alpha, **options):
    loss = score(critic, fake).mean() + penalty(engine, critic, real, fake, alpha, **options)
    return loss - score(critic, real).mean()


def by_itself(engine, critic, real, fake, alpha, **options):
    """A regularisation step of its own: the eager lines fail under DDP here, for the last bias gets no gradient."""
    return penalty(engine, critic, real, fake, alpha, **options)


def by_sample(engine, critic, real, fake, alpha):
    return (
        first(engine, critic, real, fake, alpha) + penalty(engine, critic, real, fake, alpha, reduction="none").mean()
    )


def tuples(engine, critic, real, fake, alpha):
    return last(engine, critic, real, fake, alpha, output=lambda result: result[1])


def in_parts(engine, critic, real, fake, alpha):
    return first(engine, critic, real, fake, alpha, **({} if engine == "reference" else {"chunks": 2}))


def from_outputs(engine, critic, real, fake, alpha):
    x = (alpha[:, None] * real + (1 - alpha[:, None]) * fake).requires_grad_()
    outputs = score(critic, x)
    return gpfast.gradient_penalty_from(outputs, x, engine=engine) + outputs.mean()


def energies_and_forces(engine, critic, real, fake, alpha):
    return gpfast.input_gradient_loss(
        critic, real, lambda y, g: (y - 1).pow(2).mean() + (g + fake).pow(2).mean(), engine=engine
    )


CASES = {
    f"{loss.__name__}, find_unused_parameters={unused}, static_graph={static}": (loss, {}, unused, static)
    for loss, (unused, static) in itertools.product(
        (first, last, within, by_itself, by_sample, in_parts, from_outputs, energies_and_forces), SWITCHES
    )
}
CASES["an unused layer"] = (within, {"spare": True}, True, False)
CASES["an unused layer in a static graph"] = (within, {"spare": True}, False, True)
CASES["two results"] = (tuples, {"pair": True}, True, False)
CASES["two results in a static graph"] = (tuples, {"pair": True}, False, True)


def train(engine, critic, loss, part=slice(None)):
    """The gradients of three steps of SGD."""
    optimizer, gradients = torch.optim.SGD(critic.parameters(), 0.05), []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        real, fake = (torch.randn(BATCH, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        alpha = torch.rand(BATCH, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss(engine, critic, real[part], fake[part], alpha[part]).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in critic.parameters()])
        optimizer.step()
    return gradients


def worker(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of find_unused_parameters where nothing is unused
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=20),
    )
    results, half = {}, BATCH // 2
    for name, (loss, form, unused, static) in CASES.items():
        critic = nn.parallel.DistributedDataParallel(Critic(**form), find_unused_parameters=unused, static_graph=static)
        results[name] = train("tape", critic, loss, slice(half * rank, half * (rank + 1)))
    results["autograd"] = train(
        "autograd", nn.parallel.DistributedDataParallel(Critic()), last, slice(half * rank, half * (rank + 1))
    )
    results["autograd, static"] = refusal("autograd", nn.parallel.DistributedDataParallel(Critic(), static_graph=True))
    results["sharded"] = refusal("auto", sharded(Critic()))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def refusal(engine, critic):
    real = torch.ones(4, 6, dtype=torch.float64)
    try:
        gpfast.r1(critic, real, engine=engine)
    except RuntimeError as error:
        return str(error)


def sharded(critic):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    gpfast.r1(critic, torch.ones(4, 6, dtype=torch.float64))  # before it was sharded it was looked at, too
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(critic.head, mesh=mesh)
    return fully_shard(critic, mesh=mesh)


@pytest.fixture(scope="module")
def found():
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (folder,), nprocs=2)
        yield [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradients_of_one(name, found):
    loss, form, *_ = CASES[name]
    compare(found, name, train("reference", Critic(**form), loss))


def test_the_double_backward_between_other_terms(found):
    compare(found, "autograd", train("reference", Critic(), last))


def compare(found, name, expected):
    for rank in found:
        for ours, theirs in zip(rank[name], expected, strict=True):
            for mine, g in zip(ours, theirs, strict=True):
                if g is None:
                    assert mine is None or not mine.any()
                else:
                    torch.testing.assert_close(mine, g, rtol=1e-10, atol=1e-12)


def test_what_is_wrong_in_silence_is_refused(found):
    for rank in found:
        assert "engine='auto'" in rank["autograd, static"]
        assert "sharded by FSDP" in rank["sharded"] and "DistributedDataParallel" in rank["sharded"]
