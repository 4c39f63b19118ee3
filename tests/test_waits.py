"""A penalty and its backward never wait for the device: nothing it computes is read back."""

import contextlib

import pytest
import torch
from torch import nn
from waits import NoWait, Waits, reason

import gpfast
from gpfast import _extension, zoo

CRITICS = ["toy-mlp", "dcgan64", "layernorm-dcgan", "instancenorm-dcgan", "gated-multiplicative", "resnet32"]
PRESETS = {"wgan-gp": gpfast.gradient_penalty, "r1": lambda d, real, _, **o: gpfast.r1(d, real, **o)}
PRESETS["dragan"] = lambda d, real, _, **o: gpfast.dragan(d, real, **o)
PRECISIONS = {"float32": contextlib.nullcontext, "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}


def step(penalty, critic, case, **options):
    """One penalty and its backward, under `NoWait`; the operators that ran."""
    seen = NoWait()
    with seen:
        value = penalty(critic, case.real, case.fake, return_stats=False, **options)
        value.backward()
    return seen.names


@pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CRITICS)
def test_the_tape_reads_nothing_back(name, preset, precision):
    critic = zoo.build(name, small=True)
    case = zoo.ZOO[name].inputs(4, True, generator=torch.Generator().manual_seed(0))
    with PRECISIONS[precision]():
        names = step(PRESETS[preset], critic, case, engine="tape")
    assert names["gpfast.gradient_norm"] == 1, "the tape did not run"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


@pytest.mark.parametrize("name", CRITICS)
def test_neither_does_autograd(name):
    critic = zoo.build(name, small=True)
    case = zoo.ZOO[name].inputs(4, True, generator=torch.Generator().manual_seed(0))
    step(gpfast.gradient_penalty, critic, case, engine="autograd")


@pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")
def test_nor_do_float16_pixel_norms_masks_and_several_inputs():
    entry = zoo.ZOO["dcgan32"]
    case, short = (entry.inputs(4, True, dtype=dtype) for dtype in (torch.float32, torch.float16))
    step(gpfast.gradient_penalty, zoo.build(entry.name, small=True, dtype=torch.float16), short)
    critic = zoo.build(entry.name, small=True)
    step(gpfast.gradient_penalty, critic, case, norm_dims=1)
    step(gpfast.gradient_penalty, critic, case, mask=torch.ones(1, 1, 16, 16))
    case = zoo.ZOO["two-inputs"].inputs(4, True)
    step(gpfast.gradient_penalty, zoo.build("two-inputs", small=True), case)


class Reads(nn.Module):
    """A critic that looks at its data in the way given."""

    def __init__(self, look):
        super().__init__()
        self.layer, self.look = nn.Linear(6, 1), look

    def forward(self, x):
        self.look(x)
        return self.layer(x)


LOOKS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "write by mask": lambda x: x.detach().clone().__setitem__(x > 0, torch.zeros(())),
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "allclose": lambda x: torch.allclose(x, x),
    "inverse": lambda x: torch.linalg.inv(x[:, :4].mT @ x[:, :4] + torch.eye(4)),
    "another device": lambda x: x.to("meta"),
    "repeats": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64), 0),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_critic_that_looks_is_caught(look):
    case = zoo.Case(torch.randn(4, 6), torch.randn(4, 6))
    with pytest.raises(Waits, match="waits for the device"):
        step(gpfast.gradient_penalty, Reads(LOOKS[look]), case)


@pytest.mark.parametrize("look", [lambda x: x[torch.tensor([0, 1])], lambda x: x.masked_fill(x > 0, 0.0), torch.argmax])
def test_a_critic_that_leaves_its_data_on_the_device_is_not(look):
    step(gpfast.gradient_penalty, Reads(look), zoo.Case(torch.randn(4, 6), torch.randn(4, 6)))


def test_a_length_that_is_given_is_not_read():
    function = torch.ops.aten.repeat_interleave.Tensor
    assert reason(function, (torch.ones(2, dtype=torch.int64),), {})
    assert not reason(function, (torch.ones(2, dtype=torch.int64),), {"output_size": 2})


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CRITICS)
def test_a_gpu_is_not_waited_for(name, preset):
    """PyTorch's own alarm: it raises where the CPU waits for the device."""
    critic = zoo.build(name, small=True, device="cuda")
    case = zoo.ZOO[name].inputs(4, True, device="cuda", generator=torch.Generator().manual_seed(0))
    step(PRESETS[preset], critic, case)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        PRESETS[preset](critic, case.real, case.fake).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
