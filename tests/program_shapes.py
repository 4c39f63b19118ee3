"""Lines of random critics that move: shapes, merges, resampling, writes in place, and what may stand in between."""

import math

from program_choices import anything, dim, each, planes, rank, ranks_from
from second_derivatives import of_grid_sample


def reshaped(b, v):
    first = b.integer(0, v.ndim - 2)
    how = b.among(["reshape", "view"])
    merged = [*v.shape[:first], v.shape[first] * v.shape[first + 1], *v.shape[first + 2 :]]
    return f"{v}.{how}({tuple(merged)})"


def unflattened(b, v):
    d = b.integer(0, v.ndim - 1)
    return f"{v}.unflatten({d}, (-1, {b.among([k for k in (2, 3, 1) if v.shape[d] % k == 0])}))"


def permuted(b, v):
    order, left = [], list(range(v.ndim))
    while left:
        order.append(left.pop(b.pick(len(left))))
    return f"{v}.permute({tuple(order)})"


def sliced(b, v):
    d = b.integer(0, v.ndim - 1)
    size = v.shape[d]
    part = b.among([":1", "-1:", "::2", f"{size // 2}:", ":-1", "0:3"])
    return f"{v}[{':, ' * d}{part}]"


def chosen(b, v):
    d = b.integer(0, v.ndim - 1)
    indices = [b.integer(0, v.shape[d] - 1) for _ in range(b.integer(1, 3))]
    how = b.integer(0, 3)
    if how == 0:
        return f"{v}.index_select({d}, torch.tensor({indices}))"
    if how == 1 and v.ndim > 1:
        pairs = [b.integer(0, v.shape[1] - 1) for _ in indices]
        rows = [b.integer(0, v.shape[0] - 1) for _ in indices]
        return f"{v}[{rows}, {pairs}]"
    if how == 2:
        return f"{v}.gather({d}, {v}.argsort({d}))"
    return f"{v}[{':, ' * d}{indices}]"


def padded(b, v):
    mode = b.among(["constant", "reflect", "replicate", "circular"])
    if mode == "constant":
        return f"F.pad({v}, ({b.integer(-1, 2)}, {b.integer(0, 2)}), value={b.among([0, 0.5])})"
    sides = [b.integer(0, 1) for _ in range(2 * (v.ndim - 2))]
    return f"F.pad({v}, {tuple(sides)}, mode='{mode}')"


def split(b, v):
    d = dim(b, v)
    how = b.integer(0, 4)
    if how == 0:
        return f"{v}.unbind({d})"
    if how == 1:
        first = b.integer(1, v.shape[d] - 1)
        return f"{v}.split([{first}, {v.shape[d] - first}], {d})"
    if how == 2:
        return f"torch.tensor_split({v}, 2, {d})"
    return f"{v}.{b.among(['chunk', 'split'])}(2, {d})"


def merged(b, v):
    parts = [v, *(b.variable(v.shape) for _ in range(b.integer(1, 2)))]
    if b.pick(3) == 0:
        parts.append(b.weight(*v.shape))
    kind = b.among(["cat", "stack", "cat"])
    d = b.integer(0, v.ndim - (kind == "cat"))
    return f"torch.{kind}([{', '.join(parts)}], {d})"


def all_even(shape):
    return len(shape) == 4 and shape[1] % 4 == 0


SHAPES = [
    (ranks_from(2), reshaped),
    (ranks_from(1), unflattened),
    (ranks_from(2), permuted),
    (ranks_from(2), lambda b, v: f"{v}.transpose({dim(b, v)}, {dim(b, v)})"),
    (ranks_from(1), sliced),
    (ranks_from(1), sliced),
    (ranks_from(1), lambda b, v: f"{v}.select({(d := b.integer(0, v.ndim - 1))}, {b.integer(0, v.shape[d] - 1)})"),
    (ranks_from(1), chosen),
    (ranks_from(1), lambda b, v: f"{v}.unsqueeze({b.integer(0, v.ndim)})"),
    (anything, lambda b, v: f"{v}.squeeze()"),
    (ranks_from(1), lambda b, v: f"{v}.mean({dim(b, v)}, keepdim=True).expand({v.shape})"),
    (ranks_from(1), lambda b, v: f"{v}.repeat({', '.join(str(b.integer(1, 2)) for _ in v.shape)})"),
    (ranks_from(1), lambda b, v: f"{v}.flip({dim(b, v)})"),
    (ranks_from(1), lambda b, v: f"{v}.roll(1, {dim(b, v)})"),
    (ranks_from(2), lambda b, v: f"{v}.diagonal(0, 0, 1)"),
    (ranks_from(2), lambda b, v: f"{v}.tril()"),
    (ranks_from(2), lambda b, v: f"torch.rot90({v}, 1, (0, 1))"),
    (ranks_from(1), lambda b, v: f"{v}.unfold({(d := b.integer(0, v.ndim - 1))}, {min(2, v.shape[d])}, 1)"),
    (ranks_from(1), lambda b, v: f"{v}.repeat_interleave(2, {dim(b, v)})"),
    (ranks_from(2), lambda b, v: f"{v}.narrow({(d := b.integer(0, v.ndim - 1))}, 0, {max(1, v.shape[d] - 1)})"),
    (rank(3, 4), padded),
    (ranks_from(1), lambda b, v: f"F.pad({v}, ({b.integer(-1, 2)}, {b.integer(0, 2)}), value=0.5)"),
    (rank(4), lambda b, v: f"{v}.contiguous(memory_format=torch.channels_last)"),
    (ranks_from(2), lambda b, v: f"{v}.flatten(1)"),
    *each(anything, "{v}.contiguous()", "{v}.clone()", "{v}.view_as({v})"),
    (all_even, lambda b, v: f"F.pixel_shuffle({v}, 2)"),
    (rank(4), lambda b, v: f"F.channel_shuffle({v}, {b.among([g for g in (2, 3, 1) if v.shape[1] % g == 0])})"),
]

MERGES = [(ranks_from(1), split), (ranks_from(1), merged), (ranks_from(1), chosen), (rank(3, 4), padded)]


def flag(b):
    return bool(b.pick(2))


def pooled(b, v):
    kind, n = b.among(["avg", "max"]), v.ndim - 2
    options = f"stride={b.integer(1, 2)}, padding={b.integer(0, 1)}, ceil_mode={flag(b)}"
    return f"F.{kind}_pool{n}d({v}, 2, {options}" + (f", count_include_pad={flag(b)})" if kind == "avg" else ")")


def adaptively_pooled(b, v):
    return f"F.adaptive_{b.among(['avg', 'max'])}_pool{v.ndim - 2}d({v}, {b.integer(1, 3)})"


def scaled(b, v):
    mode = b.among(["nearest", "nearest-exact", "area"])
    return f"F.interpolate({v}, scale_factor={b.among([2, 1.5, 0.5])}, mode='{mode}')"


def smoothly_scaled(b, v):
    mode = b.among(["bilinear", "bicubic"]) if v.ndim == 4 else "linear"
    size = (b.integer(2, 5), 3)[: v.ndim - 2]
    antialias = flag(b) if v.ndim == 4 else False
    return f"F.interpolate({v}, size={size}, mode='{mode}', align_corners={flag(b)}, antialias={antialias})"


def sampled(b, v):
    places = f"F.affine_grid({b.weight(v.shape[0], 2, 3)}, (*{v}.shape[:2], 3, 3), align_corners=False)"
    return f"F.grid_sample({v}, {places}, align_corners=False)"


POOLS = [
    (planes(4, 4), lambda b, v: f"F.pixel_unshuffle({v}, 2)"),
    (planes(2, 4), pooled),
    (planes(2, 3), pooled),
    (rank(3, 4), adaptively_pooled),
    (rank(3, 4), scaled),
    (rank(3, 4), smoothly_scaled),
    (planes(2, 4), lambda b, v: f"F.lp_pool2d({v} ** 2 + 0.1, 2, 2)"),
    *([(planes(2, 4), sampled)] if of_grid_sample() else []),
]

# What a rule may meet in between: nodes without one, constants, and recomputation.
BETWEEN = each(
    anything,
    "{v}.detach() * {v}",
    "{v}.detach()",
    "quiet(torch.tanh, {v}) + {v}",
    "Cube.apply({v})",
    "torch.special.i0e({v})",
    "checkpoint(torch.tanh, {v}, use_reentrant=False)",
    "checkpoint(lambda h: F.relu(h * h), {v}, use_reentrant=False)",
    "torch.nan_to_num({v})",
) + [
    (ranks_from(1), lambda b, v: f"{v}.cumsum({dim(b, v)})"),
    (ranks_from(1), lambda b, v: f"{v}.cumprod({dim(b, v)})"),
    (ranks_from(1), lambda b, v: f"{v}.logsumexp({dim(b, v)})"),
    (ranks_from(1), lambda b, v: f"torch.fft.fft({v}).real"),
    (ranks_from(1), lambda b, v: f"(torch.fft.rfft({v}, norm='ortho') + 0.1).abs()"),
    (rank(2), lambda b, v: f"torch.linalg.solve(3 * torch.eye({v.shape[0]}).double() + {v} @ {v}.t(), {v})"),
]


def rows(b, v, d):
    """Indices into dimension d, now and then one twice."""
    return [b.integer(0, v.shape[d] - 1) for _ in range(b.integer(1, 3))]


def part_of(b, v, shape):
    """Of this shape: a parameter, or the beginning of a variable's elements, repeated."""
    if b.pick(3) == 0:
        return b.weight(*shape)
    size = math.prod(shape)
    other = b.among([v, b.variable()])
    return f"{other}.flatten().repeat({-(-size // math.prod(other.shape))})[:{size}].view({tuple(shape)})"


def scattered(b, v):
    """A part of v is written to along a dimension."""
    d = b.integer(0, v.ndim - 1)
    how = b.among(["slice_scatter", "select_scatter", "index_copy", "index_add", "index_fill", "assigned", "index_put"])
    shape, size = list(v.shape), v.shape[d]
    if how == "slice_scatter":
        start, step = b.integer(0, size - 1), b.integer(1, 2)
        shape[d] = -(-(size - start) // step)
        return f"{v}.slice_scatter({part_of(b, v, shape)}, {d}, {start}, {size}, {step})"
    if how == "select_scatter":
        return f"{v}.select_scatter({part_of(b, v, shape[:d] + shape[d + 1 :])}, {d}, {b.integer(0, size - 1)})"
    found = rows(b, v, d)
    if how == "index_fill":
        return f"{v}.index_fill({d - v.ndim}, torch.tensor({found}), 0.5)"
    shape[d] = len(found)
    index = f"({'slice(None), ' * d}torch.tensor({found}),)"
    if how == "assigned":
        part = part_of(b, v, shape if len({*found}) == len(found) else [1])
        return f"assigned({v}, {index}, {part})"
    if how == "index_put":
        indices = "[" + "None, " * d + f"torch.tensor({found})]"
        return f"torch.ops.aten.index_put({v}, {indices}, {part_of(b, v, shape)}, accumulate=True)"
    if how == "index_copy" and len({*found}) < len(found):
        how = "index_add"
    return f"{v}.{how}({d}, torch.tensor({found}), {part_of(b, v, shape)})"


def masked(b, v):
    mask = f"({v} > {b.among([0, 0.2, -0.3])})"
    if b.pick(2):
        return f"{v}.masked_scatter({mask}, {part_of(b, v, v.shape)})"
    return f"assigned({v}, {mask}, {b.among([f'{v}[{mask}] * 0.5', f'{b.variable()}.mean()', '0.3'])})"


def scattered_by_order(b, v):
    d = dim(b, v)
    how = b.among(
        ["scatter({}, {}, {})", "scatter_add({}, {}, {})", "scatter_reduce({}, {}, {}, 'sum', include_self=False)"]
    )
    return f"{v}." + how.format(d, f"{v}.argsort({d})", part_of(b, v, v.shape))


SCATTERS = [
    (ranks_from(1), scattered),
    (ranks_from(1), scattered),
    (ranks_from(1), masked),
    (ranks_from(1), scattered_by_order),
    (ranks_from(2), lambda b, v: f"{v}.diagonal_scatter({b.variable()}.mean().expand({min(v.shape[:2])}), 0, 0, 1)"),
]


def written(b, v):
    """v or a view of it: what is written to."""
    kind = b.integer(0, 5)
    if kind < 3 or not v.ndim:
        return v
    if kind == 3:
        return sliced(b, v)
    views = ["transpose(0, -1)", "flatten(0)", "flatten(0)[1::2]", "select(0, 0)", f"view_as({v})", "detach()"]
    if v.ndim > 1:
        views += ["diagonal(0, 0, 1)", "transpose(0, 1)[:1]", "narrow(-1, 0, 1)[1:]"]
    return f"{v}.{b.among(views)}"


def source(b, v):
    """Something of the shape of what is written to, or that broadcasts to it."""
    return b.among([lambda: b.weight(1), lambda: f"{b.variable()}.mean()", lambda: f"{b.variable()}.flatten()[0]"])()


IN_PLACE = [
    (anything, lambda b, v, text=text: f"{written(b, v)}.{text}")
    for text in (
        "relu_()",
        "mul_(0.5)",
        "tanh_()",
        "neg_()",
        "clamp_(-0.7, 0.7)",
        "sigmoid_()",
        "exp_()",
        "abs_()",
        "zero_()",
        "fill_(0.3)",
    )
] + [
    (anything, lambda b, v: f"{written(b, v)}.add_({source(b, v)})"),
    (anything, lambda b, v: f"{written(b, v)}.mul_({source(b, v)})"),
    (anything, lambda b, v: f"{written(b, v)}.copy_({source(b, v)})"),
    (anything, lambda b, v: f"{v}.add_({b.variable(v.shape)})"),
    (anything, lambda b, v: f"{v}.mul_({b.variable(v.shape)})"),
    (anything, lambda b, v: f"{v}.sub_({b.variable(v.shape)}, alpha=0.5)"),
    (anything, lambda b, v: f"{v}.div_({b.variable(v.shape)} ** 2 + 1)"),
    (anything, lambda b, v: f"{v}.copy_({b.variable(v.shape)} * 2)"),
    (anything, lambda b, v: f"{v}.masked_fill_({b.variable(v.shape)} > 0.3, 0.4)"),
    (anything, lambda b, v: f"{v}.addcmul_({b.variable(v.shape)}, {b.weight(1)})"),
    (anything, lambda b, v: f"{v}.lerp_({b.variable(v.shape)}, 0.3)"),
    (anything, lambda b, v: f"F.leaky_relu({written(b, v)}, 0.2, inplace=True)"),
    (anything, lambda b, v: f"F.elu({written(b, v)}, inplace=True)"),
    (anything, lambda b, v: f"F.silu({written(b, v)}, inplace=True)"),
    (anything, lambda b, v: f"F.hardtanh({written(b, v)}, inplace=True)"),
    (anything, lambda b, v: f"F.dropout({written(b, v)}, 0.3, inplace=True)"),
    (anything, lambda b, v: f"F.threshold({written(b, v)}, 0.1, 0.2, inplace=True)"),
    (anything, lambda b, v: f"quiet({v}.mul_, 0.5)"),
    (anything, lambda b, v: f"F.relu({v} + {b.variable(v.shape)}, inplace=True)"),
    (anything, lambda b, v: f"({v} * {b.weight(1)}).add_({b.variable(v.shape)}).relu_()"),
    (ranks_from(1), lambda b, v: f"{v}.clone()[{':, ' * b.integer(0, v.ndim - 1)}:1].mul_(2)"),
    (ranks_from(1), lambda b, v: f"assigned({v}, (slice(1),), {source(b, v)})"),
    (ranks_from(2), lambda b, v: f"{v}.index_put_((torch.tensor([0]),), {b.weight(1)})"),
    (ranks_from(2), lambda b, v: f"{v}.transpose_(0, 1)"),
    (ranks_from(1), lambda b, v: f"{v}.unsqueeze_(0)"),
]
