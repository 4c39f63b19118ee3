"""What running something costs, counted from PyTorch's dispatcher: peak bytes, operator launches, FLOP and bytes moved.

Nothing is timed and `measure` reads no allocator, so its counts are those of the program and not of the machine: they
are the same on fake tensors, which hold no data, as on real ones, and on a CPU as on a GPU where the same operators are
dispatched. `peak_bytes_raw` asks the allocator instead, so it sees ATen's workspace too, and code made by
torch.compile.

The tape runs in C++, below autograd and above the dispatcher, so `measure` sees all its operators, and sees memory go
when it goes; but what an operator is given is held until it returns, where a convolution's sweep lets go of it sooner.
`peak_bytes_raw` watches no tensor.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

_ALLOCATIONS = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
_OF_OTHERS = {"convolution_adjoint", "convolution_tangent", "convolution_second"}  # of gpfast
_OVERWRITERS = {"bernoulli_", "copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_"}


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    peak_bytes   The most bytes alive at once beyond what was there before. A storage counts once, however many
                 tensors view it; gradients put into `.grad` and the call's own result are new, so they count. What an
                 operator allocates for itself and frees before it returns (ATen's workspace) is not seen, but within
                 the sweeps of a convolution.
    launches     Dispatched operators that write memory. Views, metadata, allocations (empty, empty_like) and operators
                 whose results have no elements are none. Zeros, ones, fills, copies, in-place and out= operators
                 are one each, and so is an ATen operator that takes several kernels inside. A fused operator of gpfast
                 counts as the GPU kernels it launches, one where it has none yet.
    flop         Of matrix products, convolutions and fused attention, by torch.utils.flop_counter's registry, and of
                 the products that gpfast's own operators are made of: a product and a sum are two. Elementwise work,
                 reductions, normalisation, products with vectors, fused recurrent layers and the CPU's own fused
                 attention are not in it.
    bytes_moved  Read and written by those launches: every argument once, every result once, as if each launch touched
                 all of them and no cache held anything. A broadcast dimension (stride 0) counts once.
    """

    peak_bytes: int
    launches: int
    flop: int
    bytes_moved: int


def measure(function: Callable[[], Any], *, existing: Any = (), granularity: int = 1) -> Cost:
    """The `Cost` of `function()`, which is called once.

    existing     Tensors and modules, or nested lists, tuples and dicts of them, that are there already and so cost
                 nothing; of a module parameters, their `.grad`, and buffers. What an operator takes before any operator
                 made it counts as existing too, so only what operators hand out without taking it must be named.
    granularity  Every storage is rounded up to a multiple of so many bytes: 1 for the bytes asked for, 512 for what
                 CUDA's caching allocator gives.

    The function may run critics, `torch.autograd.grad(create_graph=True)`, double backward and the operators of gpfast,
    under autocast too, on real tensors or on fake ones (call `measure` inside the FakeTensorMode). Code that hides its
    operators from the dispatcher is not seen: compiled graphs, CUDA graphs, tensors made of Python numbers, storages
    shrunk by hand. Raises ValueError unless granularity is at least 1.
    """
    if granularity < 1:
        raise ValueError(f"`granularity` must be at least 1 byte; got {granularity}.")
    counter = Counter(granularity)
    counter.add_existing(existing)
    with counter:
        function()
    return counter.cost


def peak_bytes_raw(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most bytes alive at once beyond what was there before, as the allocator of `device` sees `function()` run.

    What operators allocate inside counts (ATen's workspace), where it comes from PyTorch's allocator: what oneDNN or
    MKL take for themselves does not. On the CPU these are the events of torch.profiler, by thread of the caller and of
    its backward; on CUDA it is the caching allocator's own peak, of the bytes asked for rounded up to 512.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


class Counter(TorchDispatchMode):
    """Sees every operator below autograd. It keeps weak references only, so nothing lives longer for being counted."""

    def __init__(self, granularity: int) -> None:
        super().__init__()
        self.granularity = granularity
        self.live = self.peak = self.launches = self.flop = self.moved = 0
        self._inside = False  # an operator that is made of others
        self._storages: dict[int, tuple[weakref.ref, bool, int]] = {}  # by address: storage, whether new, bytes counted

    def add_existing(self, structure: Any) -> None:
        for leaf in tree_iter(structure):
            tensors = [leaf]
            if isinstance(leaf, nn.Module):
                parameters = list(leaf.parameters())
                tensors = [*parameters, *leaf.buffers(), *(p.grad for p in parameters)]
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    self._meet(tensor, new=False)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # In inference mode whole composites arrive: what is counted is their parts.
        if function.namespace == "aten" and not _flop_formula(function):
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        inputs = _tensors((args, kwargs))
        for tensor in inputs:
            self._meet(tensor, new=False)
        before = {_address(tensor) for tensor in inputs}
        result = self._run(function, args, kwargs)
        outputs = _tensors(result)
        for tensor in outputs:
            self._meet(tensor, new=True)
        made = [tensor for tensor in outputs if _address(tensor) not in before]
        changed, overwritten = _written(function, args, kwargs)
        for tensor in changed:
            self._meet(tensor, new=True)  # out= may have grown it
        written = [] if _only_allocates(function) else [t for t in _distinct(made + changed) if t.numel()]
        if written and not self._inside:
            formula = _flop_formula(function)
            unread = {id(tensor) for tensor in overwritten}
            read = [] if _only_fills(function) else [t for t in _distinct(inputs) if id(t) not in unread]
            self.count(
                _kernels(function, args, kwargs),
                formula(*args, **kwargs, out_val=result) if formula else 0,
                sum(map(_touched_bytes, read)) + sum(map(_touched_bytes, written)),
            )
        return result

    def _run(self, function, args: tuple, kwargs: dict) -> Any:
        """One that is made of others is a launch, and what they allocate is seen."""
        if function._schema.name.removeprefix("gpfast::") not in _OF_OTHERS or self._inside:
            return function(*args, **kwargs)
        self._inside = True
        try:
            with self:
                return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        finally:
            self._inside = False

    def count(self, launches: int, flop: int, moved: int) -> None:
        """Adds what one dispatched operator cost."""
        self.launches += launches
        self.flop += flop
        self.moved += moved

    @property
    def cost(self) -> Cost:
        """What was counted so far."""
        return Cost(self.peak, self.launches, self.flop, self.moved)

    def _meet(self, tensor: Tensor, new: bool) -> None:
        if tensor.layout != torch.strided:
            return
        storage, address = tensor.untyped_storage(), _address(tensor)
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        reference, known_new, counted = self._storages.get(address, (None, False, 0))
        if reference is None or reference() is not storage:  # an address is used again once its storage has died
            self._drop(address, reference)
            reference, known_new, counted = weakref.ref(storage, lambda dead: self._drop(address, dead)), new, 0
        if known_new:
            self.live += size - counted
        self._storages[address] = reference, known_new, size if known_new else 0
        self.peak = max(self.peak, self.live)

    def _drop(self, address: int, reference: weakref.ref | None) -> None:
        if reference is not None and self._storages.get(address, (None,))[0] is reference:
            self.live -= self._storages.pop(address)[2]


def _tensors(structure: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(structure) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _touched_bytes(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, step in sizes if step != 0 or n == 0) * tensor.element_size()


@functools.cache
def _flop_formula(function) -> Callable | None:
    """Ours for our own, else the registry's; one that writes into its first argument, addmm_, has that of addmm."""
    if function.namespace == "gpfast":
        return _OWN_FLOP.get(function._schema.name.removeprefix("gpfast::"))
    packet = function._overloadpacket
    if packet not in flop_registry and function.namespace == "aten" and function._schema.name.endswith("_"):
        packet = getattr(torch.ops.aten, function._schema.name.removeprefix("aten::").rstrip("_"), None)
    return flop_registry.get(packet)


def _adjoint_flop(a: Tensor, weights: list[Tensor], *_, out_val: Any) -> int:
    return 2 * a.shape[0] * sum(weight.numel() for weight in weights)


def _tangent_flop(t: Tensor, held: Tensor, room: Tensor, weights: list[Tensor], *_, out_val: Any) -> int:
    result, gradients, _ = out_val
    pushed = weights if result.numel() else weights[:-1]
    return 2 * t.shape[0] * sum(tensor.numel() for tensor in (*pushed, *gradients))


def _second_flop(b: Tensor | None, room: Tensor, weights: list[Tensor], *rest: Any, out_val: Any) -> int:
    bends, inputs, (result, sums) = rest[5], rest[6], out_val
    begins = [i for i, bend in enumerate(bends) if bend.numel()]
    highest = max(begins, default=-1) if b is None else len(weights) - 1
    wanted = [i for i, x in enumerate(inputs) if x.numel() and i <= highest]
    lowest = (
        -1 if result.numel() else min(wanted + [i for i, total in enumerate(sums) if total.numel()], default=highest)
    )
    rows = (bends[highest] if b is None else b).shape[0]
    return 2 * rows * sum(weight.numel() for weight in [weights[i] for i in wanted] + weights[lowest + 1 : highest + 1])


# Of a convolution: a product for each pair of an element of the weight and a pixel of its smaller end.


def _convolution_flop(above: tuple, weight: Tensor, below: list[int], transposed: bool) -> int:
    sizes = below if transposed else above
    return 2 * sizes[0] * math.prod(sizes[2:]) * weight.numel()


def _convolution_adjoint_flop(a: Tensor, h: Any, weight: Tensor, sizes: list[int], *options: Any, out_val: Any) -> int:
    return _convolution_flop(a.shape, weight, sizes, options[3])


def _convolution_tangent_flop(
    t: Tensor, a: Tensor | None, gradient: Any, ratio: Any, h: Any, weight: Tensor, *options: Any, out_val: Any
) -> int:
    above = out_val[0] if a is None else a
    return sum(options[-1][:2]) * _convolution_flop(above.shape, weight, t.shape, options[4])


def _convolution_second_flop(
    b: Tensor, h: Any, gradient: Any, weight: Tensor, sizes: list[int], *options: Any, out_val: Any
) -> int:
    return sum(options[-1][:2]) * _convolution_flop(b.shape, weight, sizes, options[3])


_OWN_FLOP = {
    "dense_adjoint": _adjoint_flop,
    "dense_tangent": _tangent_flop,
    "dense_second": _second_flop,
    "convolution_adjoint": _convolution_adjoint_flop,
    "convolution_tangent": _convolution_tangent_flop,
    "convolution_second": _convolution_second_flop,
}


def _only_allocates(function) -> bool:
    if torch.Tag.inplace_view in function.tags:  # t_, squeeze_, set_, resize_: the tensor changes, its memory does not
        return True
    return function.namespace == "aten" and function._schema.name.removeprefix("aten::") in _ALLOCATIONS


def _only_fills(function) -> bool:
    name = function._schema.name.removeprefix("aten::")  # ones_like, new_zeros: the argument gives shape and dtype only
    return function.namespace == "aten" and (name.endswith("_like") or name.startswith("new_"))


def _written(function, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor]]:
    """(tensors among the arguments that the operator writes, those of them whose old values it does not read)."""
    changed, overwritten = [], []
    overwrites = function._schema.name.removeprefix("aten::") in _OVERWRITERS
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        tensors = _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
        changed += tensors
        if overwrites or argument.is_out:
            overwritten += tensors
    return changed, overwritten


def _kernels(function, args: tuple, kwargs: dict) -> int:
    """How many launches one dispatched operator is: for a fused one of gpfast its GPU kernels, for any other 1."""
    if function.namespace != "gpfast":
        return 1
    from gpfast.kernels import launch  # only where gpfast is installed

    bound = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    name = function._schema.name
    if name == "gpfast::interpolate":
        return launch.interpolate_launches(*_rows(bound["real"], 1))
    if name == "gpfast::gradient_norm":
        rows = _rows(bound["gradient"], bound["keep"])
        return launch.gradient_norm_launches(*rows, bound["reduction"], bound["with_seed"])
    if name == "gpfast::gradient_norm_seed":
        return launch.gradient_norm_seed_launches(*_rows(bound["gradient"], bound["keep"]))
    return 1


def _rows(tensor: Tensor, keep: int) -> tuple[int, int]:
    return math.prod(tensor.shape[:keep]), math.prod(tensor.shape[keep:])
