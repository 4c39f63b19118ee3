"""`python -m gpfast roofline`: modelled time of a critic's penalty on GPUs, eager and gpfast side by side."""

from __future__ import annotations

import argparse
import json
import sys

from tqdm import tqdm

from gpfast import zoo
from gpfast.cli import critics
from gpfast.cli.critics import Refusal
from gpfast.cli.modelled import Comparison, as_json, report
from gpfast.columns import first_line
from gpfast.gpus import GPUS
from gpfast.operators import CountedStep, count_step
from gpfast.roofline import TF32, Roofline
from gpfast.undisturbed import about

ALL = "all"
EAGER, OURS = "reference", "auto"

DESCRIPTION = """\
How long a step would take on a GPU, modelled from the GPU's datasheet; nothing is timed and no GPU is
needed. A step is the penalty and the gradient of every parameter: with the eager lines, and with gpfast.

The operators of the step are counted as PyTorch dispatches them: launches, FLOP of products and
convolutions, bytes read and written. On fake tensors, so no size is too large; a critic that does not run
on those is run on real ones, and its line says so. Then, for each operator,

  modelled time = the largest of  FLOP / the GPU's rate,  bytes / its bandwidth,  launches * launch cost

and a step is their sum, for kernels of one stream do not overlap. What bounds most of the modelled time
(arithmetic, memory or launches) is what the step is bound by.

It assumes that kernels reach the datasheet's peaks, that no cache holds anything between two operators,
and that each operator waits for its own launch: a CPU far ahead of the GPU hides launches, which
--launch-us 0 shows. A fused operator of gpfast counts as one launch, also where it has no CUDA kernel yet:
what it is without one, --plain shows. So read the ratio, and what bounds each side, rather than the
milliseconds.
"""

EPILOG = """\
examples:
  python -m gpfast roofline --gpu h100                     the table of the whole zoo
  python -m gpfast roofline zoo:layernorm-dcgan --operators
  python -m gpfast roofline models:Critic --input 1024,3,256,256 --gpu a100 --gpu l4 --dtype bfloat16

exit status: 0; 2 where the critic cannot be run
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `roofline`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "roofline",
        help="the modelled time of a critic's penalty on named GPUs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    critics.add_arguments(parser, default=ALL, otherwise=f"; or {ALL}, the table of the whole zoo (default)")
    parser.add_argument(
        "--gpu",
        type=str.lower,
        action="append",
        choices=[*GPUS, ALL],
        metavar="NAME",
        help=f"one of {', '.join(GPUS)}; again for several, {ALL} for each of them (default h100)",
    )
    parser.add_argument(
        "--tf32",
        choices=TF32,
        default="convolutions",
        help="which float32 products run in TF32 (default convolutions, as in PyTorch)",
    )
    parser.add_argument(
        "--launch-us",
        type=_launch_us,
        default=5.0,
        metavar="US",
        help="assumed cost of a launch in microseconds (default 5, about what an operator takes PyTorch's CPU side;"
        " 0 as if the queue were always full)",
    )
    parser.add_argument(
        "--operators", action="store_true", help="also list launches, bytes and modelled time by operator"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="count a fused operator of gpfast for which there is no CUDA kernel yet as the operators of its plain"
        " formula, which is what a GPU runs; whether this build holds the kernels there are does not matter",
    )
    parser.add_argument(
        "--with-data",
        action="store_true",
        help="count on real tensors, which computes everything: to see that the counts are those on fake ones",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """0; 2 for what cannot be run, 130 where it was interrupted."""
    names = args.gpu or ["h100"]
    gpus = GPUS if ALL in names else {name: GPUS[name] for name in names}
    models = {name: Roofline(gpu, args.launch_us * 1e-6, args.tf32) for name, gpu in gpus.items()}
    try:
        found = _compared(args)
        print(report(found, list(models.values()), operators=args.operators, plain=args.plain))
        if args.json:
            args.json.write_text(json.dumps(as_json(found, models, plain=args.plain), indent=1) + "\n")
    except (Refusal, OSError) as error:
        print(f"gpfast roofline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _compared(args: argparse.Namespace) -> list[Comparison]:
    if args.dtype == "float64":
        raise Refusal("--dtype float64: the table of GPUs has rates of float32, TF32 and bfloat16; choose one of those")
    if args.critic == ALL and (args.input or args.output is not None):
        raise Refusal(f"--input and --output belong to one critic, and {ALL} is the whole zoo: name the critic")
    wanted = [f"zoo:{name}" for name in zoo.ZOO] if args.critic == ALL else [args.critic]
    found = []
    with tqdm(wanted, unit="critic", leave=False, file=sys.stderr, disable=None) as bar:
        for name in bar:
            bar.set_description_str(f"gpfast roofline: {name}")
            found.append(_comparison(argparse.Namespace(**vars(args) | {"critic": name})))
    return found


def _comparison(args: argparse.Namespace) -> Comparison:
    call = critics.named(args)
    eager, ours = (_counted(args, call, engine) for engine in (EAGER, OURS))
    return Comparison(args.critic.removeprefix("zoo:"), about(call.critic, call.real), eager, ours)


def _counted(args: argparse.Namespace, call: critics.Named, engine: str) -> CountedStep:
    options = {"args": call.args, "kwargs": call.kwargs, "output": call.output, "at": args.at}
    options |= {"with_data": args.with_data, "plain": args.plain}
    try:
        return count_step(call.critic, call.real, call.fake, engine=engine, **options)
    except Exception as error:  # the user's own code
        raise Refusal(f"{args.critic} cannot be run on its data ({engine}): {first_line(error)}") from error


def _launch_us(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more microseconds; got {text}")
    return value


_launch_us.__name__ = "number of microseconds"  # argparse names it in its error
