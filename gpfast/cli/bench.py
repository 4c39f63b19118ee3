"""`python -m gpfast bench`: the penalty and its parameter gradients, engine by engine, on the critics of the field."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from gpfast import zoo
from gpfast.cli import kernels, machine, table
from gpfast.cli.arguments import DTYPES, absent, device, positive
from gpfast.cli.competitors import CHUNKS, COMPETITORS, COMPILE_SLACK, COMPILED, DEFAULT, EAGER
from gpfast.cli.measure import COMPILE_SECONDS, measure_critic
from gpfast.cli.summary import SMALL_BYTES, summary
from gpfast.columns import first_line
from gpfast.machine import machine_line, versions

DESCRIPTION = """\
Measures one penalty and its gradient in every parameter of the critic, which is what a penalty
adds to a training step: gradients set to None, the call, backward(). Each engine has a copy of
the critic, with the same parameters.

First a correctness gate: value and every parameter's gradient against gpfast.reference in float64,
in the critic's small form in float64 (within 1e-10 of the critic's largest gradient entry) and in
its real form in the measured dtype (||ours - fp64|| <= 1.5 ||eager - fp64|| + 4 eps ||fp64|| for
each parameter; on two samples, on all with the competitor "compile"). Where an engine of gpfast
fails, what failed is printed, no time of that critic is, and the exit status is 1.

Then rounds in which every engine runs once, in an order shuffled anew each round (steps under
20 ms several times a round, as often for all), and one table:

  median ms, 20 %, 80 %  milliseconds a step over the rounds, with the 20th and 80th percentile
  ratio     eager's time over this engine's in the same round, median over the rounds: above 1 is
            faster than eager, which is the engine "reference"
  x bare    this engine's time over that of the bare matrix passes in the same round, likewise
  peak MB   most bytes alive at once (in 10^6) beyond the inputs and the parameters, as PyTorch's
            allocator has it: the parameters' gradients count, and what ATen's operators allocate
            inside, but not what oneDNN and MKL take for themselves
  own MB    peak MB without the parameters' gradients: activations, adjoints, workspace
  GFLOP     of products and convolutions; elementwise work is not counted
  launches  dispatched operators that write memory, of the run that is timed. On a CPU that has work
            done for oneDNN alone: layouts changed, weights' gradients in parts, adjoints made again
  as on GPU launches of the same step as a GPU would be given it: counted by gpfast.operators on fake
            tensors, without oneDNN, gradients multiplied by what came in; no GPU is used. Not
            there with --device cuda, where "launches" is a GPU's already
  / eager   the column before it, as a share of eager's

In both counts an operator is one launch, also where it is several kernels inside (a convolution's
backward), or where gpfast's fused one has no CUDA kernel yet (gpfast roofline --plain counts that);
gpfast's two ends, interpolate and gradient_norm, count as the GPU kernels they launch.

GFLOP and launches are counted from the dispatcher and do not depend on the machine's speed; code
made by torch.compile does not pass there, so its row has none. --json has a peak so counted too.

Under the table each engine over classes of critics: piecewise-linear ones, for which no node of
the tape's plan bends (one without a rule bends where its derivative may depend on values), and
curved ones; and for memory those with under 1 MB of activations (most bytes alive in the forward)
apart.

On a GPU (--device cuda) times are those of CUDA events, and before each step memory of twice the L2's
size is written, so that no step finds there what the one before left; peaks are the caching
allocator's. A second table then has every fused kernel of gpfast alone: the bytes that it must move
over its time, beside a copy on the same device (--kernels shows it on the CPU too).
"""
EPILOG = f"""\
memory allocator:
  How glibc's malloc was used before moves eager's times by a third on small critics. So it is put
  into one state, alike for all engines: the program starts anew, once, with
  {" ".join(f"{name}={value}" for name, value in machine.MALLOC.items())}
  (memory is kept, not returned, so after the warm-up nobody waits for page faults). Of these, what
  is set already is left as it is.

competitors:
  reference, autograd, auto, tape: the engines of gpfast ("auto" is "tape" where that can run).
  bare: each convolution and matrix product of the points, run as the four sweeps need it and no
  more: forward, data gradient, tangent, weight gradient; where second adjoints are present also
  their data gradient (not in the first layer) and second weight gradient. On random tensors of the
  same shapes, in PyTorch's default layout. It computes no gradients, so it has no gate: it is the
  time that remains if all else were free.
  compile, on request: torch.compile(fullgraph=True) over the eager penalty written with
  torch.func.grad. It may take {COMPILE_SECONDS:g} s to compile for each critic; where it does not
  compile, or took longer, its row says so and it is counted as neither faster nor slower. Its gate
  allows {100 * COMPILE_SLACK:g} % of the largest gradient on top, since it rounds otherwise from the first layer on.
  gpfast is compared with it on {", ".join(COMPILED)}.

examples:
  python -m gpfast bench --critics dcgan32 resnet32 --json before.json
  python -m gpfast bench --critics dcgan32 resnet32 --against before.json
  python -m gpfast bench --critics {" ".join(COMPILED)} --engines auto compile
  python -m gpfast bench --critics tabular-mlp motion-prior mlp-64 --batch 64
  python -m gpfast bench --engines auto --chunks 4
  python -m gpfast bench --device cuda --critics dcgan64 layernorm-dcgan --batch 256
"""

AS_ON_GPU = """
as on GPU: those of the same step as a GPU would be given it, without what is there for oneDNN alone; counted on fake
tensors (gpfast.operators), no GPU was used."""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `bench`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the penalty on the critics of the field, after a correctness gate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(zoo.ZOO)
    parser.add_argument(
        "--critics",
        nargs="+",
        default=["all"],
        choices=[*zoo.ZOO, "all"],
        metavar="NAME",
        help=f"all (default), or some of: {names}",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        default=list(DEFAULT),
        choices=COMPETITORS,
        metavar="NAME",
        help=f"some of: {', '.join(COMPETITORS)} (default: {', '.join(DEFAULT)}); {EAGER} always runs, for the ratio",
    )
    parser.add_argument(
        "--chunks",
        type=positive(int),
        metavar="K",
        help="also measure auto with chunks=K, for its memory; a critic that cannot be cut says so in its row",
    )
    parser.add_argument(
        "--batch", type=positive(int), metavar="N", help="samples a batch (default: the zoo's, by critic)"
    )
    parser.add_argument("--repeats", type=positive(int), default=25, metavar="N", help="rounds a critic (default 25)")
    parser.add_argument(
        "--seconds",
        type=positive(float),
        default=30.0,
        metavar="S",
        help="no new round of a critic after so many seconds, but at least three (default 30)",
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write everything, each time included, to this file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="F",
        help="show each ratio's change since this file of --json (ratios, for absolute times move)",
    )
    parser.add_argument(
        "--threads",
        type=positive(int),
        metavar="N",
        help="PyTorch's CPU threads (default: what PyTorch takes by itself)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of critic and data (default float32)")
    parser.add_argument("--device", type=device, default=torch.device("cpu"), help="of critic and data (default cpu)")
    parser.add_argument(
        "--kernels",
        action=argparse.BooleanOptionalAction,
        help="also each fused kernel alone, its bytes a second beside a copy's (default: on a GPU)",
    )
    parser.add_argument(
        "--kernel-mb",
        type=positive(float, finite=True),
        default=64.0,
        metavar="MB",
        help="10^6 bytes of each tensor that a kernel is timed on (default 64)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table; the exit status: 0, 1 for a red gate, 2 for what cannot be run, 130 for Ctrl-C."""
    try:
        earlier, about = table.read_json(args.against) if args.against else (None, {})
    except (OSError, ValueError) as error:
        return _refuse(f"--against: {error}")
    if why := absent(args.device):
        return _refuse(f"{why}. Leave --device out to measure on the CPU")
    try:
        if args.json:  # before anything is measured
            there = args.json.exists()
            args.json.open("a").close()
            if not there:
                args.json.unlink()
    except OSError as error:
        return _refuse(f"--json: {error}")
    machine.fix_malloc()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory, reports every start
    torch.set_num_threads(args.threads or torch.get_num_threads())
    rows, red, stopped = _measure_all(args)
    alone = [] if stopped else _kernels_alone(args)
    red = red or any(one.note for one in alone)
    settings = {"batch": args.batch, "repeats": args.repeats, "seconds": args.seconds, "dtype": args.dtype}
    settings |= {"device": str(args.device), "threads": torch.get_num_threads(), "malloc": machine.malloc_line()}
    settings["chunks"] = args.chunks
    line, found = machine_line(args.device), versions()
    if args.json and (rows or not stopped):
        about = {"machine": line, "versions": found, "settings": settings | {"stopped": stopped}}
        table.write_json(args.json, rows, **about, **({"kernels": kernels.as_json(alone)} if alone else {}))
    if rows:
        print(table.render(rows, earlier))
        print("\n" + summary(rows))
        print(_footer(line, found, settings, as_on_gpu=table.counts_as_on_gpu(rows)))
        for key in ("dtype", "device", "threads"):
            then = about.get("settings", settings).get(key)
            if then != settings[key]:
                print(f"Beware: {args.against} was taken with {key} {then}, this with {settings[key]}.")
    if alone:
        print("\n" + kernels.rendered(alone, args.device))
    return 130 if stopped else 1 if red else 0


def _measure_all(args: argparse.Namespace) -> tuple[list[table.Row], bool, bool]:
    """(rows, whether any critic was left out, whether Ctrl-C ended it), saying at once what was left out and why."""
    critics = list(zoo.ZOO) if "all" in args.critics else list(dict.fromkeys(args.critics))
    engines = list(dict.fromkeys([EAGER, *args.engines]))
    if args.chunks and args.chunks > 1:
        engines += [*(["auto"] if "auto" not in engines else []), f"{CHUNKS}{args.chunks}"]
    rows, red = [], False
    with tqdm(total=len(critics) * args.repeats, unit="round", file=sys.stderr) as bar:
        for i, name in enumerate(critics):
            bar.set_description(name)
            try:
                found, failures = measure_critic(name, engines, args, bar.update)
            except KeyboardInterrupt:
                tqdm.write("stopped; what was finished follows", file=sys.stderr)
                return rows, red, True
            except Exception as error:  # out of memory, an operator that lacks the dtype, a batch that a norm refuses
                found, failures = [], [first_line(error)]
            rows += found
            red = red or bool(failures)
            for failure in failures:
                tqdm.write(f"FAILED, no times: {name}: {failure}", file=sys.stdout)
            bar.update((i + 1) * args.repeats - bar.n)
    return rows, red, False


def _kernels_alone(args: argparse.Namespace) -> list[kernels.Speed]:
    """The fused kernels one by one, where they are asked for and there are any, saying why where not."""
    if not (args.device.type == "cuda" if args.kernels is None else args.kernels):
        return []
    try:
        with tqdm(total=kernels.count(), unit="kernel", file=sys.stderr) as bar:
            return kernels.measured(args.device, args.kernel_mb, on_kernel=bar.update)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        print(f"gpfast bench: no table of kernels: {first_line(error)}", file=sys.stderr)
        return []


def _footer(line: str, versions: dict[str, str], settings: dict, *, as_on_gpu: bool) -> str:
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    counted, small = AS_ON_GPU if as_on_gpu else "", f"{SMALL_BYTES / 1e6:g}"
    return f"""
{line}; {found}; {settings["dtype"]}; at most {settings["repeats"]} rounds and {settings["seconds"]:g} s a critic.
Penalty and its gradient in every parameter. ratio: eager's time over the engine's, median of the rounds' ratios; above
1 is faster. x bare: the engine's time over that of the critic's matrix products alone. peak MB: 10^6 bytes alive beyond
inputs and parameters, ATen's workspace included; own MB: without the parameters' gradients. Under {small} MB of
activations memory is not judged. GFLOP: products and convolutions. launches: operators that write memory.{counted}
{settings["malloc"] if settings["device"] == "cpu" else "Times are of CUDA events, the L2 emptied before each step"}."""


def _refuse(sentence: str) -> int:
    print(f"gpfast bench: {sentence}", file=sys.stderr)
    return 2
