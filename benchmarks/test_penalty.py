"""The penalty and every parameter's gradient: each engine on each critic, bare passes, and torch.compile on six."""

import copy

import pytest
from cases import DEVICES, ENGINES, case_of, failures_of, gate_of

from gpfast import zoo
from gpfast.cli.bare import bare_passes, bare_step, plan_of
from gpfast.cli.competitors import COMPILE_SLACK, COMPILED, compiled_penalty, penalty_function, step_function
from gpfast.cli.deadline import TookTooLong, deadline
from gpfast.cli.measure import COMPILE_SECONDS, end_compilers

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=3.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_engine(run, name, engine, device):
    assert failures_of(name, engine, device) == []
    critic = zoo.build(name, device=device)
    run(step_function(penalty_function(engine, critic, case_of(name, device)), critic), f"{name} {device}", device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_bare_passes(run, name, device):
    try:
        passes = bare_passes(plan_of(zoo.build(name, device=device), case_of(name, device)))
    except RuntimeError as error:
        pytest.skip(f"no bare passes of {name}: {error}")
    run(bare_step(passes), f"{name} {device}", device)


@pytest.mark.filterwarnings("default")  # the compiler warns, and that is no failure
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", COMPILED)
def test_compile(run, name, device):
    gate = gate_of(name, device)  # at the batch that is timed: another would compile twice
    critic = copy.deepcopy(gate.critic)
    penalty = compiled_penalty(critic, gate.case)
    try:
        with deadline(COMPILE_SECONDS):
            failures = gate.real_failures(penalty, critic, COMPILE_SLACK)
    except TookTooLong:
        end_compilers()
        pytest.skip(f"torch.compile took longer than {COMPILE_SECONDS:g} s on {name}")
    except Exception as error:  # whatever the compiler raises is the answer
        pytest.skip(f"torch.compile cannot serve {name}: {type(error).__name__}: {error}")
    if failures:
        pytest.skip(f"torch.compile fails the gate on {name}: {failures[0]}")
    run(step_function(penalty, critic), f"{name} {device}", device)
