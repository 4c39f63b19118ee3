"""The bare matrix passes of a critic: its convolutions and matrix products as the four sweeps need them, and no more.

For y = f(h, w) with a parameter w: forward f(h, w), data gradient of the adjoint a, tangent f(t, w), weight gradient of
(a, t): four. Where second adjoints b are present also the weight gradient of (b, h) and, but for the first layer, the
data gradient of b: six. The last layer's tangent, which nobody reads, is not counted. They run on random tensors of the
recorded shapes, in the critic's dtype and PyTorch's default layout, one by one: no activation, norm or sum, and no
gradient comes of it. What an engine takes beyond that is what could still be saved, short of faster products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpfast.inputs import call_critic, pick_score, tensors_of
from gpfast.points import rooted
from gpfast.tape import absence
from gpfast.zoo import Case

Pass = Callable[[], Tensor]


class Place(NamedTuple):
    """A node of the tape's plan: autograd's node, whether it bends, and whether second adjoints reach it.

    tangent: whether that of its output is used. live, wanted: bits of its inputs, those that depend on the points, and
    those that need a gradient or a second adjoint.
    """

    node: Any
    bends: bool
    bent: bool
    tangent: bool
    live: int
    wanted: int


def scores_of(critic: nn.Module, case: Case) -> tuple[Tensor, list]:
    """(scores, where the points stand in their graph) at copies of the real samples."""
    points, targets = zip(*(rooted(x.detach().clone(), True) for x in tensors_of(case.real)), strict=True)
    return pick_score(call_critic(critic, case.real, points, case.args, case.kwargs), case.output), list(targets)


def plan_of(critic: nn.Module, case: Case) -> list[Place]:
    """The tape's plan of `critic`, from the scores down. RuntimeError, with the reason, where there is none."""
    if absence():
        raise RuntimeError(absence())
    with torch.random.fork_rng(devices=[case_device(case)] if case_device(case).type == "cuda" else []):
        scores, targets = scores_of(copy.deepcopy(critic), case)
    nodes = {node._sequence_nr(): node for node in _graph(scores)}
    gradients, _, refused = torch.ops.gpfast.input_gradient.default(scores, targets, False, True, False)
    if refused:
        raise RuntimeError(f"the tape does not run: {refused}")
    lines = [line.split("\t") for line in torch.ops.gpfast.describe.default(gradients[0])]
    numbers = torch.ops.gpfast.places.default(gradients[0])
    places = []
    for (name, _, bends, bent, *_), (number, tangent, live, wanted) in zip(
        lines, zip(*[iter(numbers)] * 4, strict=True), strict=True
    ):
        assert nodes[number].name() == name, f"{name} is not node {number}"
        places.append(Place(nodes[number], bends == "1", bent == "1", bool(tangent), live, wanted))
    return places


def traits_of(plan: list[Place]) -> list[str]:
    """What a critic is judged by: "curved" or "piecewise-linear", "convolutional", "norms"."""
    names = [place.node.name() for place in plan]
    traits = ["curved" if any(place.bends for place in plan) else "piecewise-linear"]
    traits += ["convolutional"] if any(name.startswith("Convolution") for name in names) else []
    return traits + (["norms"] if any("Norm" in name and "LinalgVector" not in name for name in names) else [])


def bare_passes(plan: list[Place]) -> list[Pass]:
    """The passes of a plan, each as a function that runs it. RuntimeError where the plan has no products."""
    with torch.no_grad():
        passes = [run for place in reversed(plan) for run in _passes_of(place)]
    if not passes:
        raise RuntimeError("the critic has no convolution and no matrix product of the points")
    return passes


def bare_step(passes: list[Pass]) -> Callable[[], None]:
    """One step of what is timed."""

    @torch.no_grad()
    def step() -> None:
        for run in passes:
            run()

    return step


def case_device(case: Case) -> torch.device:
    return tensors_of(case.real)[0].device


def _graph(scores: Tensor) -> list:
    found, open_ = {}, [scores.grad_fn]
    while open_:
        node = open_.pop()
        if node is not None and node not in found and not hasattr(node, "variable"):
            found[node] = None
            open_ += [below for below, _ in node.next_functions]
    return list(found)


class _Product(NamedTuple):
    """y = apply(left, right), of the inputs `sides`; gradient(side, z, other): of <z, y> with respect to a side."""

    sides: tuple[int, int]
    left: Tensor
    right: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[int, Tensor, Tensor], Tensor]


def _passes_of(place: Place) -> Iterator[Pass]:
    read = _PRODUCTS.get(place.node.name())
    product = read and read(place.node)
    if not product:
        return
    apply, gradient = product.apply, product.gradient
    values = product.left, product.right
    live, wanted = ([bool(bits >> i & 1) for i in product.sides] for bits in (place.live, place.wanted))
    y = apply(*values)
    a, b = torch.randn_like(y), torch.randn_like(y) if place.bent else None
    tangents = [torch.randn_like(values[i]) if live[i] else None for i in (0, 1)]
    yield lambda: apply(*values)
    for i in (0, 1):
        other, other_tangent, tangent = values[1 - i], tangents[1 - i], tangents[i]
        if live[i]:
            yield lambda i=i, other=other: gradient(i, a, other)
        if live[i] and place.tangent:
            yield lambda i=i, other=other, t=tangent: apply(t, other) if i == 0 else apply(other, t)
        if wanted[i] and live[1 - i]:
            yield lambda i=i, t=other_tangent: gradient(i, a, t)
        if wanted[i] and place.bent:
            yield lambda i=i, other=other: gradient(i, b, other)


def _convolution(node: Any) -> _Product:
    h, w = _random_like(node._saved_input), _random_like(node._saved_weight)
    bias = [w.shape[1] * node._saved_groups if node._saved_transposed else w.shape[0]]
    options = [node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed]
    options += [node._saved_output_padding, node._saved_groups]

    def apply(h: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution.default(h, w, None, *options)

    def gradient(side: int, z: Tensor, other: Tensor) -> Tensor:
        sides = (h, other) if side == 0 else (other, w)  # of its own side only the shape is read
        mask = [side == 0, side == 1, False]
        return torch.ops.aten.convolution_backward.default(z, *sides, bias, *options, mask)[side]

    return _Product((0, 1), h, w, apply, gradient)


def _matrix_product(left: str, right: str, sides: tuple[int, int]) -> Callable[[Any], _Product]:
    def read(node: Any) -> _Product:
        u, w = getattr(node, left), getattr(node, right)  # one is None where the other needs no gradient
        y = tuple(node._input_metadata[0].shape)
        if node.name() in ("MvBackward0", "AddmvBackward0"):
            y, w = (*y, 1), None if w is None else w[:, None]
        if u is None:
            u = w.new_empty(*y[:-1], w.shape[-2])
        if w is None:
            w = u.new_empty(*u.shape[:-2], u.shape[-1], y[-1])
        return _Product(sides, _random_like(u), _random_like(w), torch.matmul, _matrix_gradient)

    return read


def _matrix_gradient(side: int, z: Tensor, other: Tensor) -> Tensor:
    return z @ other.mT if side == 0 else other.mT @ z


def _random_like(x: Tensor) -> Tensor:
    """Contiguous; or, as a linear layer's weight is saved, the transpose of what is."""
    if x.ndim >= 2 and not x.is_contiguous() and x.mT.is_contiguous():
        return torch.randn(x.mT.shape, dtype=x.dtype, device=x.device).mT
    return torch.randn(x.shape, dtype=x.dtype, device=x.device)


_PRODUCTS: dict[str, Callable[[Any], _Product]] = {
    "ConvolutionBackward0": _convolution,
    "ConvolutionBackward1": _convolution,
    "MmBackward0": _matrix_product("_saved_self", "_saved_mat2", (0, 1)),
    "AddmmBackward0": _matrix_product("_saved_mat1", "_saved_mat2", (1, 2)),
    "BmmBackward0": _matrix_product("_saved_self", "_saved_mat2", (0, 1)),
    "BaddbmmBackward0": _matrix_product("_saved_batch1", "_saved_batch2", (1, 2)),
    "MvBackward0": _matrix_product("_saved_self", "_saved_vec", (0, 1)),
    "AddmvBackward0": _matrix_product("_saved_mat", "_saved_vec", (1, 2)),
}
