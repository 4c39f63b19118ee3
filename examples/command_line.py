"""The options that every example program has, and what is said of those that cannot be meant."""

import argparse
import sys
from pathlib import Path

import torch

from gpfast.penalty import ENGINES


def make_parser(doc, *, steps, batch, out, quick):
    """The options that every program has; `quick` holds the defaults that --quick sets, those of other options too."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=steps, help=f"of each training (default {steps:,})")
    parser.add_argument("--batch", type=int, default=batch, help=f"samples a step (default {batch})")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and noise (default 0)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of the gradient penalty (default auto)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument("--threads", type=int, help="PyTorch's CPU threads (default: PyTorch's own choice)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder for what it writes (default {out})")
    parser.add_argument("--resume", action="store_true", help="go on with the trainings that --out holds")
    parser.add_argument("--overwrite", action="store_true", help="begin anew: removes all trainings below --out")
    parser.add_argument(
        "--save-every", type=int, default=500, metavar="N", help="steps between checkpoints (default 500)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the same claims in seconds: fewer steps, smaller networks"
    )
    parser.quick = quick
    return parser


def parse(parser, argv=None, smallest=None):
    """The options, checked; what makes no sense ends the program with a sentence and status 2.

    smallest: {name: the least that an option of the program's own may be}.
    """
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    if "--quick" in argv:
        parser.set_defaults(**parser.quick)
    options = parser.parse_args(argv)
    for name, least in {**dict.fromkeys(("steps", "batch", "save_every", "threads"), 1), **(smallest or {})}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}; got {value}")
    try:
        torch.zeros(1, device=options.device).tolist()
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    try:
        torch.Generator().manual_seed(options.seed)
    except (RuntimeError, ValueError):
        parser.error(f"--seed must be a number of 64 bits; got {options.seed}")
    if options.resume and options.overwrite:
        parser.error("--resume goes on with what --out holds, and --overwrite removes it: choose one")
    held = sorted(options.out.rglob("checkpoint.pt")) if options.out.is_dir() else []
    if options.resume and not held:
        parser.error(f"--resume: {options.out} holds no checkpoint; without it a training begins")
    if held and not (options.resume or options.overwrite):
        parser.error(f"--out: {held[0]} is there; --resume goes on with it, --overwrite begins anew")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options
