"""python -m gpfast doctor: what is there, what `auto` takes and why, and a check of it against the reference."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time

import torch

import gpfast
from gpfast import _extension, zoo
from gpfast.backend import choose
from gpfast.cli.gate import Gate

CRITICS = ("toy-mlp", "dcgan32", "layernorm-dcgan", "resnet32", "gated-multiplicative", "projection")


def add_parser(subparsers) -> None:
    """Adds the command to `python -m gpfast`."""
    parser = subparsers.add_parser("doctor", help="what is installed, which kernels are taken, and a self-check")
    parser.add_argument("--no-check", action="store_true", help="print what is there, without the self-check")


def run(args) -> int:
    """0 where the self-check passes or is not asked for, 1 where it fails."""
    for name, text in facts().items():
        print(f"{name:<16}{text}")
    return 0 if args.no_check or self_check() else 1


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
        "engine auto": "autograd: PyTorch's double backward between fused ends, exact for every critic",
    }
    for device in devices:
        for end in ("interpolate", "gradient_norm"):
            name, reason = choose(device, cuda_kernel=end == "interpolate")
            lines[f"{end} {device}" if len(devices) > 1 else end] = f"{name}: {reason}"
    return lines


def self_check() -> bool:
    """Whether `auto` agrees with the reference: value and parameter gradients of small critics, float64 and float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"\nself-check on {device}: value and parameter gradients against gpfast.reference, float64 and float32")
    healthy, start = True, time.perf_counter()
    for name in CRITICS:
        entry = zoo.ZOO[name]
        critic = zoo.build(name, small=True, device=device)
        case = entry.inputs(entry.small_batch, True, device=device, generator=torch.Generator().manual_seed(0))
        failures = Gate(entry, critic, case).failures("auto")
        print(f"  {name:<24}{'ok' if not failures else 'WRONG'}")
        for failure in failures:
            print(f"    {failure}")
        healthy = healthy and not failures
    print(f"{'all agree' if healthy else 'THEY DISAGREE'}, {time.perf_counter() - start:.1f} s")
    return healthy


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
