"""Runs penalties wholly on tensors that say they are on a CUDA device and have no data, and prints what happened.

    LD_PRELOAD=DEVICE python penalties.py

DEVICE is device.cpp compiled, for where there is no GPU. Nothing can be read from these tensors: whatever looks at a
value, in Python, in an operator or in C++, raises. One line of JSON: {case: "" or what went wrong}.
"""

import contextlib
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rule_critics import critics  # noqa: E402
from waits import NoWait  # noqa: E402

import gpfast  # noqa: E402
from gpfast import zoo  # noqa: E402

PRESETS = {
    "wgan-gp": gpfast.gradient_penalty,
    "r1": lambda critic, real, fake, **options: gpfast.r1(critic, real, **options),
    "dragan": lambda critic, real, fake, **options: gpfast.dragan(critic, real, **options),
}
FORMS = [(preset, torch.float32, None) for preset in PRESETS]
FORMS += [("wgan-gp", torch.float16, None), ("wgan-gp", torch.bfloat16, None)]
FORMS += [("wgan-gp", torch.float32, torch.float16), ("wgan-gp", torch.float32, torch.bfloat16)]


@contextlib.contextmanager
def autocast(dtype):
    """torch.autocast("cuda", dtype), which refuses where there is no CUDA; nothing for None."""
    if dtype is not None:
        torch.set_autocast_dtype("cuda", dtype)
        torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def without_data(tree, dtype):
    """Fake CUDA tensors of the same shapes and layouts, floating ones in `dtype`."""

    def empty(x):
        return torch.empty_like(x, device="cuda", dtype=dtype if x.is_floating_point() else x.dtype)

    return tree_map(lambda x: empty(x) if isinstance(x, Tensor) else x, tree)


def moved(critic, dtype):
    for module in critic.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(without_data(parameter.detach(), dtype))
        for name, buffer in module._buffers.items():
            module._buffers[name] = without_data(buffer, dtype)
    return critic


def step(critic, case, dtype, penalty=gpfast.gradient_penalty, lower=None):
    """One penalty and its backward; AssertionError where any of it is elsewhere or misshapen."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        real, fake, args = without_data((case.real, case.fake, case.args), dtype)
        moved(critic, dtype)
        with NoWait() as seen:
            with autocast(lower):
                value = penalty(critic, real, fake, args=args, output=case.output, engine="tape")
            value.backward()
        assert value.device.type == "cuda" and value.ndim == 0, value
        assert seen.names["gpfast.gradient_norm"] == 1, "the tape did not run"
        for name, parameter in critic.named_parameters():
            assert parameter.grad is not None and parameter.grad.device.type == "cuda", name
            assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == parameter.dtype, name


def cases():
    """(name, a function that runs it) of everything that must run."""
    for name, (preset, dtype, lower) in itertools.product(zoo.ZOO, FORMS):
        words = f"{name}, {preset}, {dtype}" + (f", autocast to {lower}" if lower else "")
        yield words, partial(of_the_zoo, name, dtype, PRESETS[preset], lower)
    x = torch.zeros(4, 8, 8, 8)
    for dtype in (torch.float32, torch.float16):
        for name, critic in critics().items():
            yield f"{name}, {dtype}", partial(step, critic, zoo.Case(x, x), dtype)


def of_the_zoo(name, dtype, penalty, lower):
    step(zoo.build(name, small=True), zoo.ZOO[name].inputs(4, True), dtype, penalty, lower)


def in_c(z):
    """A loop in C++ over memory, given tensors of this device."""
    torch.ops.gpfast.slope.default._op_dk(torch._C.DispatchKey.CPU, z, z, 0, 1.0, 1.0, 1.0)


LOOKS = {
    "item": lambda x: x.sum().item(),
    "to the CPU": lambda x: x.cpu(),
    "a loop in C++": in_c,
    "nonzero": torch.nonzero,
}


def looks():
    """(name, a function that runs it) of everything that must not run."""
    for name, look in LOOKS.items():

        class Reads(nn.Linear):
            def forward(self, x, look=look):
                look(x)
                return super().forward(x)

        x = torch.zeros(4, 6)
        yield name, partial(step, Reads(6, 1), zoo.Case(x, x), torch.float32)


def outcome(run):
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return ""


if __name__ == "__main__":
    print(json.dumps({"ran": {n: outcome(f) for n, f in cases()}, "looked": {n: outcome(f) for n, f in looks()}}))
