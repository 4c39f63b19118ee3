"""`python -m gpfast memory`: where the memory of a penalty is at its peak, and the largest batch that fits."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from gpfast import zoo
from gpfast.cli import memory_table
from gpfast.cli.arguments import DTYPES, absent, device, positive
from gpfast.cli.memory_table import Fit, Way, label
from gpfast.columns import first_line
from gpfast.machine import machine_line, versions
from gpfast.memory import MOST, Study, why_uncut
from gpfast.penalty import ENGINES

CRITICS = ("dcgan64", "layernorm-dcgan", "resnet32", "patch")
DESCRIPTION = f"""\
The memory of one penalty and its gradient in every parameter, which is what a penalty adds to a
training step, for critics x batch sizes x engines: the most bytes alive at once, what they are at
that moment, and the largest batch that fits in a GPU's memory.

  inputs       the samples, real and generated, and what else the critic is given
  parameters   the critic's parameters and buffers
  gradients    of the parameters, as far as they are made by then
  activations  what else was made up to the scores
  adjoints     what else was made after them: in the tape's sweeps, or in the double backward
  workspace    what operators took for themselves; unknown in a model

With --device cuda it is measured there: the total is that of PyTorch's caching allocator, in a run
that nothing watches; the parts are counted in another run, and workspace is what is missing.

Without --device it is modelled: the step runs on fake tensors, which have shapes and no data, so
that a batch of a thousand large images takes a moment and no memory. Storages are rounded up to
512 bytes as CUDA's allocator does, and layouts are those of a GPU. What cuDNN and other libraries
take for themselves, CUDA's context (some hundred MB) and fragmentation are not in it.

1 MB is 10^6 bytes and 1 GB 10^9, less than what a GPU sold with so many GB has. The largest batch
is found by running the model, or the step, not by extrapolation: it fits, and one sample more does
not. None larger than {MOST:,} is tried.
"""
EPILOG = f"""\
examples:
  python -m gpfast memory
  python -m gpfast memory --critics resnet101 --batches 16 64 256 --chunks 1 8 --out study
  python -m gpfast memory --critics {" ".join(CRITICS[:2])} --device cuda --out study

exit status: 0; 1 where an engine could not be run on a critic, but for a batch that cannot be cut;
2 for what cannot be asked; 130 for Ctrl-C.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """The parser of `memory`, added to those of `python -m gpfast`."""
    parser = subparsers.add_parser(
        "memory",
        help="where the memory of a penalty is at its peak, and the largest batch that fits",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--critics",
        nargs="+",
        default=CRITICS,
        choices=[*zoo.ZOO, "all"],
        metavar="NAME",
        help=f"all, or some of: {', '.join(zoo.ZOO)} (default: {', '.join(CRITICS)})",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        default=("reference", "auto"),
        choices=ENGINES,
        metavar="NAME",
        help=f"some of: {', '.join(ENGINES)} (default: reference, which is eager, and auto)",
    )
    parser.add_argument(
        "--chunks",
        nargs="+",
        type=positive(int),
        default=(1, 4),
        metavar="K",
        help="parts that a batch goes through in, for auto and tape (default 1 4)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=positive(int),
        default=(16, 64, 256, 1024),
        metavar="N",
        help="samples a batch (default 16 64 256 1024)",
    )
    parser.add_argument(
        "--gb",
        nargs="*",
        type=positive(float, finite=True),
        default=(8.0, 16.0, 24.0, 40.0, 80.0),
        metavar="GB",
        help="memories that the largest batch is wanted for, in 10^9 bytes (default 8 16 24 40 80; none: no search)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of critic and data (default float32)")
    parser.add_argument("--device", type=device, help="a CUDA device, to measure there (default: a model)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write tables (CSV) and pictures (PNG) into this folder, made if absent"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Studies, prints the tables, writes the files; the exit status."""
    if args.device is not None:
        if args.device.type != "cuda":
            return _refuse(f"--device must be a CUDA device; got {args.device}. Leave it out for a model")
        if why := absent(args.device):
            return _refuse(f"{why}. Leave --device out for a model")
    try:
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            if not os.access(args.out, os.W_OK):
                raise PermissionError(f"{args.out} cannot be written to")
    except OSError as error:
        return _refuse(f"--out: {error}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    how = "modelled" if args.device is None else "measured"
    try:
        ways, fits, failures = _studied(args)
    except KeyboardInterrupt:
        return 130
    print(memory_table.rendered(how, ways, fits))
    print("\n" + _footer(args, how))
    for failure in failures:
        print(f"gpfast memory: {failure}", file=sys.stderr)
    if args.out:
        from gpfast.cli.memory_pictures import save_fits, save_peaks  # matplotlib is needed here only

        memory_table.write_csv(args.out, how, ways, fits)
        if ways:
            save_peaks(args.out / f"{how}-peaks.png", how, ways)
        if fits:
            save_fits(args.out / f"{how}-largest-batch.png", how, fits)
    return 1 if failures else 0


def _studied(args: argparse.Namespace) -> tuple[list[Way], list[Fit], list[str]]:
    """(peaks, largest batches, what could not be run), with a bar over all of them."""
    critics = list(zoo.ZOO) if "all" in args.critics else list(dict.fromkeys(args.critics))
    kinds = [
        (engine, chunks)
        for engine in dict.fromkeys(args.engines)
        for chunks in sorted(set(args.chunks) if engine in ("auto", "tape") else {1})
    ]
    figures = len(set(args.batches)) + len(set(args.gb))
    ways, fits, failures = [], [], []
    with tqdm(total=len(critics) * len(kinds) * figures, unit="figure", file=sys.stderr) as bar:
        for name in critics:
            study = Study(name, dtype=DTYPES[args.dtype], device=args.device)
            uncut = why_uncut(name) if any(chunks > 1 for _, chunks in kinds) else ""
            for engine, chunks in kinds:
                bar.set_description(f"{name} {label(engine, chunks)}")
                end = bar.n + figures
                if chunks > 1 and uncut:
                    ways.append(Way(name, 0, engine, chunks, None, f"cannot be cut: {uncut}"))
                else:
                    try:
                        for found in _figures(study, engine, chunks, args):
                            (ways if isinstance(found, Way) else fits).append(found)
                            bar.update()
                    except Exception as error:  # an operator that lacks the dtype, what the tape refuses
                        failures.append(f"{name}, {label(engine, chunks)}: {first_line(error)}")
                bar.update(end - bar.n)
    return ways, fits, failures


def _figures(study: Study, engine: str, chunks: int, args: argparse.Namespace) -> Iterator[Way | Fit]:
    for batch in sorted(set(args.batches)):
        yield _way(study, engine, batch, chunks)
    for gigabytes in sorted(set(args.gb)):
        batch = study.largest_batch(engine, int(gigabytes * 1e9), chunks)
        yield Fit(study.name, engine, chunks, gigabytes, batch)


def _way(study: Study, engine: str, batch: int, chunks: int) -> Way:
    try:
        return Way(study.name, batch, engine, chunks, study.peak(engine, batch, chunks))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Way(study.name, batch, engine, chunks, None, "does not fit on this device")


def _footer(args: argparse.Namespace, how: str) -> str:
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    place = machine_line(args.device) if args.device is not None else "modelled on fake tensors, no GPU was asked"
    return (
        f"{place}; {found}; {args.dtype}. One penalty and its gradient in every parameter; MB are 10^6 bytes, GB 10^9."
        + (" Workspace of operators is unknown and not in the totals." if how == "modelled" else "")
    )


def _refuse(sentence: str) -> int:
    print(f"gpfast memory: {sentence}", file=sys.stderr)
    return 2
