"""The fused kernels one by one: bytes that each must move over its time, beside a copy on the same device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gpfast import _extension
from gpfast.cli.clock import Clock, clock_of
from gpfast.columns import columns, digits

REPEATS = 20
WARM_UP = 3
CHECKED = 4096  # elements that a kernel is compared on before it is timed
COPY = "copy"
CHANNELS = 64
# The kinds of activation that critics have most, as csrc/ops/activation_launch.h numbers them, and their parameters.
ACTIVATIONS = {
    "tanh": (0, 0.0, 0.0, 0.0),
    "sigmoid": (1, 0.0, 0.0, 0.0),
    "softplus": (2, 1.0, 20.0, 0.0),
    "elu": (3, 1.0, 1.0, 1.0),
    "silu": (5, 0.0, 0.0, 0.0),
    "gelu": (6, 0.0, 0.0, 0.0),
    "mish": (8, 0.0, 0.0, 0.0),
}


@dataclass(frozen=True)
class Kernel:
    """One operator of gpfast and its arguments. `written`: those of the arguments that it writes to."""

    name: str
    operator: Any
    arguments: tuple
    written: tuple[Tensor, ...] = ()

    def run(self) -> list[Tensor]:
        """What it returns and writes to."""
        return self._results(self.operator(*self.arguments))

    def plain(self) -> list[Tensor]:
        """The same by the formula in PyTorch's own operators."""
        return self._results(self.operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *self.arguments))

    def bytes_moved(self, results: list[Tensor]) -> int:
        """The fewest: every argument is read once, every result written once."""
        places = {x.data_ptr() for x in self.written}
        read = [x for x in self.arguments if isinstance(x, Tensor) and x.data_ptr() not in places]
        return sum(x.nbytes for x in (*read, *results))

    def _results(self, made: Any) -> list[Tensor]:
        made = () if made is None else (made,) if isinstance(made, Tensor) else made
        return [*self.written, *(x for x in made if x.numel())]


@dataclass(frozen=True)
class Speed:
    """One kernel, timed alone. of_copy: its bytes a second over those of the copy; note: in words why it has none.

    kernel: whether it is one here, or the formula in PyTorch's own operators that stands in for it.
    """

    name: str
    megabytes: float
    milliseconds: float | None = None
    gigabytes_a_second: float | None = None
    of_copy: float | None = None
    kernel: bool = True
    note: str = ""


def kernels(elements: int, device: torch.device | str) -> Iterator[Kernel]:
    """Every fused kernel on tensors of so many float32 elements each, a multiple of 4096."""
    generator, ops = torch.Generator().manual_seed(0), torch.ops.gpfast
    rows = 64

    def numbers(*shape: int) -> Tensor:
        few = torch.randn(min(elements, 1 << 20), generator=generator).to(device)
        return few.repeat(-(-elements // few.numel()))[:elements].reshape(shape or (rows, -1)).clone()

    z, h, a = numbers(), numbers(), numbers()
    bits = ops.gate.default(z, h, None, 0, 0.0, 0.0, 1.0, 0.2)[1]
    yield Kernel("interpolate", ops.interpolate.default, (z, h, torch.rand(rows, generator=generator).to(device)))
    norm = ("mean", True, 10.0)
    yield Kernel("gradient_norm", ops.gradient_norm.default, (z, 1, 1.0, False, 1e-12, *norm))
    yield Kernel("gate", ops.gate.default, (z, h, None, 0, 0.0, 0.0, 1.0, 0.2))
    yield Kernel("gated", ops.gated.default, (z, bits, None, 1.0, 0.2))
    for name, curve in ACTIVATIONS.items():
        yield Kernel(f"slope, {name}", ops.slope.default, (z, h, *curve))
        yield Kernel(f"slope and curve, {name}", ops.slope_and_curve.default, (z, a, h, *curve))
    samples = 16
    block = [samples, 1, CHANNELS, elements // (samples * CHANNELS)]  # a norm over each sample, a weight a channel
    of_samples, weight = (torch.rand(n, generator=generator).to(device) + 0.5 for n in (samples, CHANNELS))
    norm = (h, of_samples, of_samples, weight)
    out, bent = torch.empty_like(z), torch.empty_like(z)
    adjoint = (out, z, None, *norm, None, block, 0, True, True)
    yield Kernel("normalize_adjoint", ops.normalize_adjoint.default, adjoint, (out,))
    tangent = (out, bent, z, a, *norm, block, 0, True)
    yield Kernel("normalize_tangent", ops.normalize_tangent.default, tangent, (out, bent))


def measured(
    device: torch.device | str,
    megabytes: float = 64.0,
    clock: Clock | None = None,
    on_kernel: Callable[[], None] = lambda: None,
) -> list[Speed]:
    """The copy, then every kernel, on tensors of so many 10^6 bytes each; what is wrong is named and not timed."""
    if not _extension.available:
        raise RuntimeError(f"the kernels are in the C++ extension: {_extension.absence()}")
    clock = clock or clock_of(device)
    elements = max(1, round(megabytes * 1e6 / 4 / CHECKED)) * CHECKED
    copy = _copy(elements, device)
    moved, seconds = copy.bytes_moved(copy.run()), _median(copy.run, clock)
    copied = moved / seconds / 1e9
    found = [Speed(COPY, moved / 1e6, 1e3 * seconds, copied, 1.0)]
    del copy
    small = {kernel.name: difference(kernel) for kernel in kernels(CHECKED, device)}
    for kernel in kernels(elements, device):
        moved, compiled = kernel.bytes_moved(kernel.run()), _is_compiled(kernel, device)
        if small[kernel.name]:
            found.append(Speed(kernel.name, moved / 1e6, kernel=compiled, note=f"WRONG: {small[kernel.name]}"))
        else:
            seconds = _median(kernel.run, clock)
            speed = moved / seconds / 1e9
            found.append(Speed(kernel.name, moved / 1e6, 1e3 * seconds, speed, speed / copied, compiled))
        on_kernel()
    return found


def difference(kernel: Kernel) -> str:
    """Where the kernel is further from its plain formula than rounding explains, in words; "" where it is not."""
    mine = [x.clone() for x in kernel.run()]
    for i, (ours, theirs) in enumerate(zip(mine, kernel.plain(), strict=True)):
        off, allowed = float((ours.double() - theirs.double()).abs().max()), 1e-4 * float(theirs.double().abs().max())
        if not off <= allowed:
            return f"result {i} is off by {off:.2g}; {allowed:.2g} is allowed"
    return ""


def rendered(found: list[Speed], device: torch.device | str) -> str:
    """A table, with what it says in words."""
    lines = [["kernel", "MB", "ms", "GB/s", "of copy"]]
    for one in found:
        name = one.name if one.kernel else f"{one.name} (plain formula)"
        figures = (one.milliseconds, one.gigabytes_a_second, one.of_copy)
        lines.append([name, digits(one.megabytes), *("-" if x is None else digits(x) for x in figures)])
    notes = "".join(f"\n{one.name}: {one.note}" for one in found if one.note)
    how = "CUDA events, the L2 emptied before each" if torch.device(device).type == "cuda" else "the wall clock"
    return (
        f"{columns(lines, [False, True, True, True, True])}{notes}\n"
        f"Each kernel alone, float32; medians of {REPEATS} by {how}. MB: 10^6 bytes that it must read and write, each\n"
        "once. GB/s: those over its time. of copy: beside the copy's. plain formula: no kernel in this build."
    )


def as_json(found: list[Speed]) -> list[dict]:
    """The same for a file."""
    return [asdict(one) for one in found]


def count() -> int:
    """How many kernels `measured` times, the copy apart."""
    return 4 + 2 * len(ACTIVATIONS) + 2


def _copy(elements: int, device: torch.device | str) -> Kernel:
    x, y = torch.ones(elements, device=device), torch.empty(elements, device=device)

    def copy(to: Tensor, given: Tensor) -> None:
        to.copy_(given)

    return Kernel(COPY, copy, (y, x), (y,))


def _median(run: Callable[[], Any], clock: Clock) -> float:
    for _ in range(WARM_UP):
        run()
    return statistics.median(clock(run, 1) for _ in range(REPEATS))


def _is_compiled(kernel: Kernel, device: torch.device | str) -> bool:
    key = torch.device(device).type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key(kernel.operator.name(), key)
