"""python -m gpfast doctor: what is there, what `auto` takes and why, a check of it, and on a GPU its speed."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator

import torch

import gpfast
from gpfast import _extension, cuda_kernels, tape, zoo
from gpfast.backend import choose
from gpfast.cli import speed
from gpfast.cli.arguments import positive
from gpfast.cli.gate import Gate
from gpfast.columns import first_line
from gpfast.machine import machine_line

CRITICS = ("toy-mlp", "dcgan32", "layernorm-dcgan", "resnet32", "gated-multiplicative", "projection")


DESCRIPTION = """\
What is installed, which engine and which kernels a penalty takes here and why; then a self-check:
value and every parameter's gradient of small critics against gpfast.reference, in float64 and
float32. Without a GPU that is all, on six critics. On a GPU it is the whole zoo, there, and then
speed and peak memory beside the eager lines: interleaved medians of CUDA events, about a minute
in all. No time is shown where the self-check fails.

exit status: 0; 1 where the self-check fails; 2 where a critic cannot be measured
"""


def add_parser(subparsers) -> None:
    """Adds the command to `python -m gpfast`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, which kernels are taken, and a self-check",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--no-check", action="store_true", help="print what is there, and nothing else")
    parser.add_argument(
        "--speed",
        action=argparse.BooleanOptionalAction,
        help="after the self-check, speed and peak memory beside the eager lines (default: on a GPU)",
    )
    parser.add_argument(
        "--critics",
        nargs="+",
        choices=list(zoo.ZOO),
        default=speed.CRITICS,
        metavar="NAME",
        help=f"those of the zoo whose speed is measured (default: {', '.join(speed.CRITICS)})",
    )
    parser.add_argument("--batch", type=positive(int), metavar="N", help="samples a batch there (default: the zoo's)")
    parser.add_argument(
        "--seconds", type=positive(float), default=5.0, metavar="S", help="for each of them, about (default 5)"
    )


def run(args) -> int:
    """0 where the self-check passes or is not asked for, 1 where it fails, 2 where a speed cannot be measured."""
    for name, text in facts().items():
        print(f"{name:<16}{text}")
    if args.no_check:
        return 0
    on_gpu = torch.cuda.is_available()
    if not self_check(tuple(zoo.ZOO) if on_gpu else CRITICS):
        return 1
    return speeds(args) if (on_gpu if args.speed is None else args.speed) else 0


def facts() -> dict[str, str]:
    """What is installed and what `auto` takes, a line each."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    lines = {
        "gpfast": gpfast.__version__,
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "PyTorch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "Triton": _version("triton") or "no: the package triton is not installed",
        "GPU": _gpu(),
        "extension": _extension_line(),
        "CUDA targets": _cuda_targets(),
        "CUDA kernels": _cuda_kernels(),
        "engine auto": _engine(),
    }
    for device in devices:
        for end in ("interpolate", "gradient_norm"):
            name, reason = choose(device, cuda_kernel=end == "interpolate")
            lines[f"{end} {device}" if len(devices) > 1 else end] = f"{name}: {reason}"
    return lines


def self_check(critics: tuple[str, ...]) -> bool:
    """Whether `auto` agrees with the reference: value and parameter gradients of small critics, float64 and float32."""
    device = _device()
    print(f"\nself-check on {device}: value and parameter gradients against gpfast.reference, float64 and float32")
    wrong, start = {}, time.perf_counter()
    with _bar(len(critics), "critic") as update:
        for name in critics:
            entry = zoo.ZOO[name]
            critic = zoo.build(name, small=True, device=device)
            case = entry.inputs(entry.small_batch, True, device=device, generator=torch.Generator().manual_seed(0))
            wrong[name] = Gate(entry, critic, case).failures("auto")
            update()
    for name, failures in wrong.items():
        print(f"  {name:<24}{'ok' if not failures else 'WRONG'}")
        for failure in failures:
            print(f"    {failure}")
    healthy = not any(wrong.values())
    print(f"{'all agree' if healthy else 'THEY DISAGREE'}, {time.perf_counter() - start:.1f} s")
    return healthy


def speeds(args) -> int:
    """Measures and prints speed and peak memory of `args.critics`; 0, or 2 where one of them cannot be measured."""
    device, looks, failed = _device(), [], []
    names = list(dict.fromkeys(args.critics))
    print(f"\nspeed on {machine_line(device)}")
    with _bar(len(names) * speed.ROUNDS, "round") as update:
        for i, name in enumerate(names):
            try:
                looks.append(speed.look(name, device, batch=args.batch, seconds=args.seconds, on_round=update))
            except RuntimeError as error:  # out of memory, say
                failed.append(f"{name}: {first_line(error)}")
            update((i + 1) * speed.ROUNDS, to=True)
    if looks:
        print(speed.rendered(looks))
    for failure in failed:
        print(f"gpfast doctor: {failure}", file=sys.stderr)
    return 2 if failed else 0


@contextlib.contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable]:
    """Yields update(n=1), or update(n, to=True); a progress bar where tqdm is installed, and it is no condition."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda n=1, to=False: None
        return
    with tqdm(total=total, unit=unit, file=sys.stderr, leave=False) as bar:
        yield lambda n=1, to=False: bar.update(n - bar.n if to else n)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _engine() -> str:
    absence = tape.absence()
    if absence:
        return f"autograd: PyTorch's double backward between fused ends, exact for every critic; {absence}"
    return "tape: four sweeps over autograd's graph; the extension is built"


def _cuda_kernels() -> str:
    """Of the sweeps: which are in this build, and what runs on a GPU where there is none."""
    here = cuda_kernels.registered()
    if not here:
        return "none of the sweeps' in this build: a GPU runs their formulas in PyTorch's own operators"
    return f"of the sweeps: {', '.join(sorted(name for name in here if not name.endswith('_')))}"


def _version(package: str) -> str | None:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "none" if built else "none: this PyTorch is built for the CPU only"
    major, minor = torch.cuda.get_device_capability()
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {runtime}"


def _extension_line() -> str:
    if not _extension.available:
        return f"no: {_extension.absence()}"
    built = _extension.build_info()
    path = importlib.util.find_spec("gpfast._C").origin
    return f"yes: {path}, compiler {built['compiler']}, against torch {built['torch']}"


def _cuda_targets() -> str:
    if not _extension.available:
        return "none without the extension"
    return _extension.build_info()["cuda_targets"] or "none: built without nvcc, or with GPFAST_CUDA=0"
