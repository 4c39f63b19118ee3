"""The critic that a command line names: module:factory of the user's own, or zoo:NAME."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from gpfast import zoo
from gpfast.cli.arguments import DTYPES, absent, device, positive, shape
from gpfast.columns import first_line
from gpfast.inputs import Structure
from gpfast.options import POINTS

EXAMPLES = """\
examples:
  python -m gpfast {command} models:Critic --input 64,3,32,32
  python -m gpfast {command} models:make_critic --input 64,3,32,32 --input 64,10
  python -m gpfast {command} zoo:dcgan32

exit status: {status}
"""


class Refusal(Exception):
    """What cannot be run, and why, for the user."""


class Named(NamedTuple):
    """A critic, and what it is called with."""

    critic: Callable
    real: Structure
    fake: Structure
    args: tuple = ()
    kwargs: Mapping[str, Any] = {}
    output: Callable | int | str | None = None


def add_arguments(parser: argparse.ArgumentParser, *, default: str | None = None, otherwise: str = "") -> None:
    """What names a critic and its input; with a `default`, which `otherwise` explains, the critic may be left out."""
    parser.add_argument(
        "critic",
        **({} if default is None else {"nargs": "?", "default": default}),
        metavar="MODULE:FACTORY",
        help="an importable module (the current folder is searched first), and in it a module class or a function that"
        " are called without arguments, or the critic itself; or zoo:NAME, one of " + ", ".join(zoo.ZOO) + otherwise,
    )
    parser.add_argument(
        "--input",
        type=shape,
        action="append",
        metavar="B,C,H,W",
        help="the shape of the critic's input, the batch first; again for a critic of several inputs. The values are"
        " normal draws. Needed but for zoo:NAME, which has data of its own",
    )
    parser.add_argument("--at", choices=POINTS, default="interpolates", help="as in gradient_penalty (interpolates)")
    parser.add_argument(
        "--output", type=_output, metavar="KEY", help="which of the critic's results is the score: an index or a name"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of critic and data (default float32)")
    parser.add_argument("--device", type=device, default="cpu", help="of critic and data (default cpu)")
    parser.add_argument("--batch", type=positive(int), metavar="N", help="samples a batch, of zoo:NAME without --input")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the data (default 0)")
    parser.add_argument("--json", type=Path, metavar="F", help="write what was found to this file as well")


def named(args: argparse.Namespace) -> Named:
    """The critic that `args` name, on its device, and data for it. Raises Refusal."""
    if why := absent(args.device):
        raise Refusal(why)
    module, colon, name = args.critic.partition(":")
    if not (module and colon and name):
        raise Refusal(f"MODULE:FACTORY must be as in models:Critic or zoo:dcgan32; got {args.critic!r}")
    torch.manual_seed(args.seed)
    place = {"dtype": DTYPES[args.dtype], "device": args.device}
    generator = torch.Generator().manual_seed(args.seed)
    if module == "zoo":
        if name not in zoo.ZOO:
            raise Refusal(f"there is no critic {name!r} in the zoo; it has {', '.join(zoo.ZOO)}")
        entry, critic = zoo.ZOO[name], zoo.build(name, seed=args.seed, **place)
        if not args.input:
            case = entry.inputs(args.batch or entry.batch, False, generator=generator, **place)
            output = case.output if args.output is None else args.output
            return Named(critic, case.real, case.fake, case.args, case.kwargs, output)
    else:
        if not args.input:
            raise Refusal("--input is missing: the shape of the critic's input, the batch first, as in 64,3,32,32")
        critic = _made(module, name, args.critic)
        critic = critic.to(**place) if isinstance(critic, nn.Module) else critic
    real, fake = (tuple(torch.randn(s, generator=generator).to(**place) for s in args.input) for _ in range(2))
    return Named(critic, *((real, fake) if len(args.input) > 1 else (real[0], fake[0])), output=args.output)


def run(
    command: str, args: argparse.Namespace, function: Callable, as_json: Callable, good: Callable[[Any], bool]
) -> int:
    """Prints what `function` finds about the critic of `args`; the exit status: 0 where that is `good`, 1, 2, 130."""
    try:
        call = named(args)
        with tqdm(bar_format="{desc} ({elapsed})", leave=False, file=sys.stderr) as bar:

            def progress(words: str) -> None:
                bar.set_description_str(f"gpfast {command}: {words}")

            data = {"args": call.args, "kwargs": call.kwargs, "output": call.output, "at": args.at}
            try:
                found = function(call.critic, call.real, call.fake, progress=progress, **data)
            except Exception as error:  # the user's own code
                raise Refusal(f"the critic cannot be run on {_shapes(args)}: {first_line(error)}") from error
        print(found)
        if args.json:
            args.json.write_text(json.dumps(as_json(found), indent=1) + "\n")
    except (Refusal, OSError) as error:
        print(f"gpfast {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if good(found) else 1


def _shapes(args: argparse.Namespace) -> str:
    """The inputs as they were asked for, for an error."""
    return " ".join(f"--input {','.join(map(str, sizes))}" for sizes in args.input or ()) or "its data"


def _made(module: str, name: str, whole: str) -> Callable:
    factory = _found(module, name)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise Refusal(f"{whole} is a {type(factory).__name__}; name a critic, or what makes one")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise Refusal(
            f"{whole} cannot be called without arguments ({error}); name a function that makes the critic, as in"
            " def make_critic(): return Critic(3, 64)"
        ) from error
    except ValueError:  # a callable that does not tell
        pass
    try:
        critic = factory()
    except Exception as error:  # the user's own code
        raise Refusal(f"{whole}() failed: {first_line(error)}") from error
    if not callable(critic):
        raise Refusal(f"{whole}() made a {type(critic).__name__}, which cannot be called; it must return the critic")
    return critic


def _found(module: str, name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's own code
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise Refusal(f"there is no module {error.name!r}, neither in {os.getcwd()} nor installed") from error
        raise Refusal(f"importing {module!r} failed: {first_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, x in vars(found).items() if callable(x) and not key.startswith("_")]
            holds = f"; it has {', '.join(public)}" if public else ""
            raise Refusal(f"{module!r} has no {part!r}{holds}")
        found = getattr(found, part)
    return found


def _output(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
