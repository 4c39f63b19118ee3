"""python -m gpfast COMMAND: each command is a module of gpfast.cli, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "demo": "train a WGAN-GP on real 8x8 digits, with samples, curves and a table of what gpfast saves",
    "bench": "measure the penalty on the zoo's critics against the eager lines, correctness first",
    "explain": "what the tape does with a critic of yours, node by node, and what it costs",
    "check": "whether value and gradients are those of the eager lines, on a critic of yours",
    "memory": "where the memory of a penalty is at its peak, and the largest batch that fits: measured or modelled",
    "roofline": "the modelled time of a critic's penalty on named GPUs, eager and gpfast, and what bounds it",
    "doctor": "what is installed, which kernels are taken and why, and a self-check",
}
# What only some commands need: its name for import, and for pip.
PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}


def main(argv: list[str] | None = None) -> int:
    """The exit code of the command that `argv` names."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m gpfast",
        description="gpfast: the WGAN-GP gradient penalty and its relatives, in PyTorch.",
        epilog="python -m gpfast COMMAND --help lists the options of a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    try:
        for name, summary in COMMANDS.items():
            if argv[:1] == [name]:
                _module(name).add_parser(subparsers)
            else:
                subparsers.add_parser(name, help=summary)
        args = parser.parse_args(argv)
        return _module(args.command).run(args)
    except ModuleNotFoundError as missing:
        if missing.name not in PACKAGES:
            raise
        package = PACKAGES[missing.name]
        print(f"python -m gpfast {argv[0]} needs {package}: python -m pip install {package}", file=sys.stderr)
        return 2


def _module(command: str):
    return importlib.import_module(f"gpfast.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
