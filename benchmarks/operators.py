"""Where a penalty's launches and time go, operator by operator: python benchmarks/operators.py dcgan32 [--batch N].

Launches as `gpfast.cost` counts them, in eager's lines and in gpfast; self time by torch.profiler, which itself costs
about a microsecond an operator, so that small ones look larger than they are.
"""

import argparse
from collections import Counter

import torch

from gpfast import cost, zoo
from gpfast.cli.competitors import penalty_function, step_function

ENGINES = ("reference", "auto")


class ByOperator(cost.Counter):
    """Counts each operator's launches under its name."""

    def __init__(self):
        super().__init__(granularity=1)
        self.by_operator = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before, named = self.launches, self.by_operator.total()
        result = super().__torch_dispatch__(function, types, args, kwargs)
        own = self.launches - before - (self.by_operator.total() - named)  # the parts of a composite have their names
        if own:
            self.by_operator[str(function).removeprefix("aten.").split(".default")[0]] += own
        return result


def launches_of(step) -> Counter:
    counter = ByOperator()
    with counter:
        step()
    return counter.by_operator


def milliseconds_of(step, rounds: int) -> tuple[dict[str, float], float]:
    """(self time by operator, time outside all of them) of one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        for _ in range(rounds):
            with torch.profiler.record_function("outside operators"):
                step()
    times = {event.key: event.self_cpu_time_total / rounds / 1e3 for event in profile.key_averages()}
    return times, sum(times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critic", choices=zoo.ZOO, metavar="CRITIC", help=f"one of {', '.join(zoo.ZOO)}")
    parser.add_argument("--batch", type=int, help="samples a batch (default: the zoo's)")
    parser.add_argument("--rounds", type=int, default=20, help="steps that are timed (default 20)")
    parser.add_argument("--top", type=int, default=16, help="rows a table (default 16)")
    arguments = parser.parse_args()
    entry, critic = zoo.ZOO[arguments.critic], zoo.build(arguments.critic)
    generator = torch.Generator().manual_seed(1)
    case = entry.inputs(arguments.batch or entry.batch, False, generator=generator)
    steps = {engine: step_function(penalty_function(engine, critic, case), critic) for engine in ENGINES}
    for step in steps.values():
        step()
    counts = {engine: launches_of(step) for engine, step in steps.items()}
    print(f"{arguments.critic}, batch {arguments.batch or entry.batch}: launches, eager and gpfast")
    names = sorted(set().union(*counts.values()), key=lambda name: -sum(c[name] for c in counts.values()))
    for name in names[: arguments.top]:
        print(f"  {counts['reference'][name]:6d} {counts['auto'][name]:6d}  {name}")
    print(f"  {counts['reference'].total():6d} {counts['auto'].total():6d}  in all")
    for engine, step in steps.items():
        times, total = milliseconds_of(step, arguments.rounds)
        print(f"{'eager' if engine == 'reference' else 'gpfast'}: ms a step, {total:.3f} in all, under the profiler")
        for name, milliseconds in sorted(times.items(), key=lambda item: -item[1])[: arguments.top]:
            print(f"  {milliseconds:8.3f}  {name}")


if __name__ == "__main__":
    main()
