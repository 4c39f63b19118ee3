"""`python -m gpfast check`: whether gpfast agrees with the eager lines on a critic of one's own."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict

from gpfast.check import Check, check
from gpfast.cli import critics
from gpfast.cli.arguments import positive
from gpfast.penalty import ENGINES

DESCRIPTION = """\
Compares the penalty and the gradient of every parameter with gpfast.reference, the eager lines:

  in float64, on a copy made double: every difference within 1e-10 of the largest gradient entry;
  in --dtype: each gradient as near to float64 as 1.5 times the eager lines' own error, plus 4 eps.

Copies start from the same points and the same random state. It prints a table by parameter, with
versions and machine, to paste into a bug report. gpfast.check does the same with real data.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `check`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "check",
        help="whether value and gradients are those of the eager lines, on a critic of your own",
        description=DESCRIPTION,
        epilog=critics.EXAMPLES.format(
            command="check", status="0 where all agrees; 1 where not; 2 where the critic cannot be run"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    critics.add_arguments(parser)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="which engine to check (default auto)")
    parser.add_argument(
        "--draws",
        type=positive(int),
        default=8,
        metavar="N",
        help="how many draws of the points a gradient that fails in --dtype is judged by (default 8)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """0 where all agrees, 1 where not, 2 for what cannot be run."""
    function = functools.partial(check, engine=args.engine, draws=args.draws)
    return critics.run("check", args, function, _as_json, lambda found: found.ok)


def _as_json(found: Check) -> dict:
    return asdict(found) | {"ok": found.ok}
