"""What is alive at the peak of a penalty and its gradients, and the largest batch that fits: modelled or measured.

Modelled: a step runs on fake tensors, which have shapes and no data, so that any batch takes a moment and no memory.
Every storage is rounded up to what CUDA's caching allocator gives, and oneDNN is switched off, so that the tape takes
the layouts of a GPU and not those of a CPU. What operators take for themselves (cuDNN's workspace) is not in a model.
Measured: the step runs on a GPU, and the caching allocator says what it held.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

import gpfast
from gpfast import zoo
from gpfast.columns import first_line
from gpfast.cost import Counter, peak_bytes_raw
from gpfast.operators import as_on_a_gpu

GRANULARITY = 512  # bytes: what CUDA's caching allocator rounds up to
MOST = 1 << 20  # samples: no larger batch is tried


@dataclass(frozen=True)
class Peak:
    """The bytes alive at the peak of one penalty and its gradients, by what they are.

    inputs       Real and generated samples, and what else the critic is given.
    parameters   The critic's parameters and buffers.
    gradients    What the parameters' gradients are in when the step ends, and is alive at the peak.
    activations  What else was made from the drawing of the points to the scores, and is alive at the peak; the tape
                 writes some adjoints into them.
    adjoints     What else was made after the scores: adjoints and tangents of the sweeps, or of the double backward.
    workspace    What operators took for themselves; None in a model, which does not know.
    """

    inputs: int
    parameters: int
    gradients: int
    activations: int
    adjoints: int
    workspace: int | None = None

    @property
    def total(self) -> int:
        """All bytes, workspace included where it is known."""
        return sum(getattr(self, field.name) or 0 for field in fields(self))


class Places(Counter):
    """Counts as `Counter` does, and knows what was alive at the peak, and whether it was made before the scores."""

    def __init__(self, critic: nn.Module, granularity: int = GRANULARITY) -> None:
        super().__init__(granularity)
        self._critic = critic
        self._in_forward = True
        self._made: dict[int, tuple[weakref.ref, bool]] = {}  # by address: storage, whether made in the forward
        self._at_peak: list[tuple[weakref.ref, bool, int]] = []  # storage, likewise, bytes

    def __enter__(self):
        self._hooks = [
            self._critic.register_forward_pre_hook(lambda *_: self._forward(True)),
            self._critic.register_forward_hook(lambda *_: self._forward(False), always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def split(self) -> tuple[int, int, int]:
        """(gradients, activations, adjoints) in bytes; ask while the gradients of the step are there."""
        gradients = {id(p.grad.untyped_storage()) for p in self._critic.parameters() if p.grad is not None}
        sizes = [0, 0, 0]
        for reference, in_forward, size in self._at_peak:
            storage = reference()
            is_gradient = storage is not None and id(storage) in gradients
            sizes[0 if is_gradient else 1 if in_forward else 2] += size
        return sizes[0], sizes[1], sizes[2]

    def _forward(self, now: bool) -> None:
        self._in_forward = now

    def _meet(self, tensor: Tensor, new: bool) -> None:
        before = self.peak
        super()._meet(tensor, new)
        address = tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
        reference = self._storages.get(address, (None,))[0]
        if reference is not None and self._made.get(address, (None,))[0] is not reference:
            self._made[address] = reference, self._in_forward
        if self.peak > before:
            alive = ((key, *entry) for key, entry in self._storages.items())
            self._at_peak = [(ref, self._made[key][1], size) for key, ref, is_new, size in alive if is_new]


class Study:
    """The penalty of one critic of the zoo, at its real size, for any batch and engine.

    On a CUDA `device` it is measured there, otherwise modelled on fake tensors; `onednn=True` models a CPU's run, with
    the layouts that the tape takes for oneDNN, to be held against a CPU's allocator. Raises ValueError for a critic
    that is not in the zoo or a device that is neither None nor CUDA.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        small: bool = False,
        onednn: bool = False,
    ) -> None:
        if name not in zoo.ZOO:
            raise ValueError(f"there is no critic {name!r} in the zoo; it has {', '.join(zoo.ZOO)}")
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type != "cuda":
            raise ValueError(f"`device` must be a CUDA device, or None for a model; got {device}.")
        self.name, self.dtype, self.small, self.onednn = name, dtype, small, onednn
        self._fake = FakeTensorMode() if self.device is None else None
        self._peaks: dict[tuple[str, int, int], Peak] = {}
        with self._world():
            self._critic = self._built()

    @property
    def how(self) -> str:
        """What the figures are: "modelled" or "measured"."""
        return "modelled" if self.device is None else "measured"

    def peak(self, engine: str, batch: int, chunks: int = 1) -> Peak:
        """The peak of one penalty on `batch` samples, with the gradient of every parameter.

        Raises what the penalty raises: ValueError or RuntimeError where it cannot be run so,
        torch.cuda.OutOfMemoryError where it is measured and does not fit.
        """
        key = engine, batch, chunks
        if key not in self._peaks:
            with self._world():
                self._peaks[key] = self._run(engine, batch, chunks)
        return self._peaks[key]

    def largest_batch(self, engine: str, budget: int, chunks: int = 1) -> int:
        """The batch that fits in `budget` bytes while one sample more does not; 0 where none fits, at most `MOST`."""

        def total(batch: int) -> float:
            try:
                return self.peak(engine, batch, chunks).total
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return math.inf

        return largest(total, budget)

    def _run(self, engine: str, batch: int, chunks: int) -> Peak:
        critic = self._critic
        place = {} if self.device is None else {"device": self.device}
        case = zoo.ZOO[self.name].inputs(batch, self.small, dtype=self.dtype, **place)
        options = {"engine": engine} if chunks == 1 else {"engine": engine, "chunks": chunks}

        def step() -> None:
            critic.zero_grad(set_to_none=True)
            gpfast.gradient_penalty(
                critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output, **options
            ).backward()

        try:
            if self.device is not None:
                step()  # what libraries keep from their first call is none of the step's
            inputs = (case.real, case.fake, case.args, dict(case.kwargs))
            places = Places(critic)
            places.add_existing([inputs, critic])
            critic.zero_grad(set_to_none=True)
            with places:
                step()
            parts = places.split()
            critic.zero_grad(set_to_none=True)
            workspace = None if self.device is None else max(0, peak_bytes_raw(step, self.device) - places.peak)
            return Peak(_bytes(inputs), _bytes([*critic.parameters(), *critic.buffers()]), *parts, workspace)
        finally:
            critic.zero_grad(set_to_none=True)

    def _built(self) -> nn.Module:
        if self.device is not None:
            return zoo.build(self.name, self.small, dtype=self.dtype, device=self.device)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)  # fake parameters cannot be cast once they are there
        try:
            return zoo.ZOO[self.name].build(self.small).train()
        finally:
            torch.set_default_dtype(before)

    @contextlib.contextmanager
    def _world(self) -> Iterator[None]:
        if self._fake is None:
            yield
            return
        with contextlib.nullcontext() if self.onednn else as_on_a_gpu(), self._fake:
            yield


def largest(total: Callable[[int], float], budget: float, most: int = MOST) -> int:
    """The batch n for which total(n) <= budget < total(n + 1), 0 where total(1) is more, `most` where that much fits.

    `total` must not fall as the batch grows. A line through what is known says where to look next, and every third step
    halves what is left; the answer and its successor have always been asked themselves.
    """
    if total(1) > budget:
        return 0
    low, high, step = 1, most + 1, 0
    earlier = None  # another batch that is known, for the line
    while high - low > 1:
        step += 1
        guess = _crossing(total, earlier, low, budget) if earlier else 2
        if guess is None or step % 3 == 0:
            guess = (low + high) // 2 if high <= most else 2 * low
        guess = min(max(guess, low + 1), high - 1)
        if total(guess) <= budget:
            earlier, low = low, guess
        else:
            high = guess
            earlier = earlier or guess
    return low


def _crossing(total: Callable[[int], float], first: int, second: int, budget: float) -> int | None:
    """Where the line through two batches meets the budget."""
    rise = (total(second) - total(first)) / (second - first)
    if not 0 < rise < math.inf:
        return None
    return second + int((budget - total(second)) // rise)


def why_uncut(name: str) -> str:
    """Why a batch cannot go through the critic in parts, or ""; tried on the critic's small form, with values."""
    entry, critic = zoo.ZOO[name], zoo.build(name, small=True)
    case = entry.inputs(entry.small_batch, True, generator=torch.Generator().manual_seed(0))
    try:
        gpfast.gradient_penalty(
            critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output, chunks=2
        )
    except (ValueError, RuntimeError) as error:
        if "chunks" not in str(error):
            raise
        return first_line(error)
    return ""


def _bytes(structure) -> int:
    """Of the distinct storages, rounded up as the allocator does."""
    storages = {}
    for leaf in tree_iter(structure):
        if isinstance(leaf, Tensor):
            storages[leaf.untyped_storage()._cdata] = leaf.untyped_storage().nbytes()
    return sum(-(-size // GRANULARITY) * GRANULARITY for size in storages.values())
