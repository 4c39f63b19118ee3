"""Forward only: the penalty's value under no_grad, and the critic's plain forward beside it."""

import pytest
import torch
from cases import DEVICES, ENGINES, case_of, failures_of

from gpfast import zoo
from gpfast.cli.competitors import penalty_function
from gpfast.inputs import call_critic, tensors_of

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=2.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_value(run, name, engine, device):
    assert failures_of(name, engine, device) == []
    penalty = penalty_function(engine, zoo.build(name, device=device), case_of(name, device))

    @torch.no_grad()
    def step():
        penalty()

    run(step, f"{name} {device}", device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_plain_forward(run, name, device):
    critic, case = zoo.build(name, device=device), case_of(name, device)

    @torch.no_grad()
    def step():
        call_critic(critic, case.real, tensors_of(case.real), case.args, case.kwargs)

    run(step, f"{name} {device}", device)
