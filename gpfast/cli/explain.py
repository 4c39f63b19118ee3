"""`python -m gpfast explain`: what the tape does with a critic, node by node, and what a step costs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from gpfast.cli import critics
from gpfast.explain import Explanation, explain

DESCRIPTION = """\
Runs a critic once, reads the graph that autograd made, and prints one line for each of its nodes,
from the points to the scores:

  node         as autograd names it
  made in      the module that made it
  rule         the rule that differentiates it; "alone" where there is none and PyTorch runs it,
               which is exact and slow
  bends        second adjoints start here: an activation that is curved, a norm, a product
  2nd adjoint  they reach this node from above
  passes       products of the layer's size in a step, forward included: 4, with second adjoints
               up to 6; PyTorch's double backward has 6. (Fewer at the ends of the critic; up to 9
               in a product of two values that depend on the points, in both.)
  GFLOP        of products and convolutions, in the whole step
  kept MB      what the node holds from the adjoint sweep to the others (10^6 bytes)

Then what a step costs, the penalty and the gradient of every parameter, beside the eager lines:
launches (operators that write memory), GFLOP, and the most bytes alive at once beyond inputs and
parameters; and what would make it faster. All is counted from PyTorch's dispatcher: nothing is
timed, and the figures do not depend on the machine.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `explain`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "explain",
        help="what the tape does with a critic, node by node",
        description=DESCRIPTION,
        epilog=critics.EXAMPLES.format(
            command="explain", status="0; 1 where the tape cannot run on this critic; 2 where the critic cannot be run"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    critics.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """0; 1 where the tape does not run; 2 for what cannot be run."""
    return critics.run("explain", args, explain, _as_json, lambda found: not found.refused)


def _as_json(found: Explanation) -> dict:
    return asdict(found) | {"advice": found.advice()}
