"""Lines of random critics that compute: activations, norms, products, arithmetic, reductions."""

import math

from program_choices import anything, dim, dims, each, other, planes, rank, ranks_from

SMOOTH = each(
    anything,
    "torch.tanh({v})",
    "torch.sigmoid({v})",
    "F.silu({v})",
    "F.gelu({v})",
    "F.softplus({v})",
    "F.elu({v})",
    "F.gelu({v}, approximate='tanh')",
    "F.mish({v})",
    "F.selu({v})",
    "F.celu({v}, 1.5)",
    "F.elu({v}, 0.7)",
    "F.softplus({v}, beta=2.0, threshold=1.0)",
    "torch.exp(0.4 * {v})",
    "torch.log({v} * {v} + 1)",
    "torch.sqrt({v} ** 2 + 0.5)",
    "({v} ** 2 + 0.5).rsqrt()",
    "1 / ({v} * {v} + 0.7)",
    "({v} * {v} + 0.7).reciprocal()",
    "{v}.pow(3)",
    "({v}.abs() + 0.3) ** 1.7",
    "2.0 ** {v}",
    "{v}.square()",
    "torch.sin({v})",
    "torch.cos({v})",
    "F.logsigmoid({v})",
    "F.softsign({v})",
    "F.tanhshrink({v})",
    "torch.erf({v})",
    "torch.atan({v})",
    "torch.asinh({v})",
    "torch.acos(0.9 * torch.sin({v}))",
    "torch.expm1(0.3 * {v})",
    "torch.log1p({v}.square())",
    "torch.sinc({v})",
)

PIECEWISE = each(
    anything,
    "F.relu({v})",
    "F.leaky_relu({v}, 0.2)",
    "F.hardtanh({v})",
    "{v}.clamp(-0.5, 0.9)",
    "{v}.clamp(min=0.1)",
    "F.relu6({v} + 3)",
    "F.threshold({v}, 0.1, -0.3)",
    "{v}.abs()",
    "F.hardswish({v} * 2)",
    "F.relu6({v} * 2 + 3) / 6",
    "F.softshrink({v}, 0.2)",
    "F.hardshrink({v}, 0.2)",
    "F.rrelu({v}, 0.1, 0.3)",
    "F.leaky_relu({v}, -0.2)",
    "{v}.clamp(max=0.4)",
    "{v}.sign()",
    "torch.where({v} > 0, {v}, 0.3 * {v} ** 2)",
    "{v}.masked_fill({v} > 0.5, 0.5)",
    "F.dropout({v}, 0.4)",
    "F.alpha_dropout({v}, 0.3)",
) + [
    (anything, lambda b, v: f"F.prelu({v}, {b.weight(1)})"),
    (ranks_from(2), lambda b, v: f"F.prelu({v}, {b.weight(v.shape[1])})"),
    (anything, lambda b, v: f"torch.maximum({v}, {other(b, v)})"),
    (anything, lambda b, v: f"torch.minimum({other(b, v)}, {v})"),
    (anything, lambda b, v: f"torch.where({b.variable(v.shape)} > 0.1, {v}, {other(b, v)})"),
    (rank(3, 4), lambda b, v: f"F.dropout{v.ndim - 2}d({v}, 0.4)"),
    (anything, lambda b, v: f"{v}.clamp({b.given(1)} - 1, {b.given(1)} + 1)"),
]


def glu(b, v):
    d = b.among([d for d in range(v.ndim) if v.shape[d] % 2 == 0])
    return f"F.glu({v}, {b.among([d, d - v.ndim])})"


def affine(b, *shape):
    kind = b.integer(0, 3)
    scale, shift = b.weight(*shape), b.weight(*shape)
    return ["", f", {scale}, {shift}", f", {scale}", f", None, {shift}"][kind]


def group_norm(b, v):
    groups = b.among([g for g in (1, 2, 3, v.shape[1]) if v.shape[1] % g == 0])
    scale = affine(b, v.shape[1])  # a shift without a scale is a defect of PyTorch's: its derivative raises
    return f"F.group_norm({v}, {groups}{scale.replace(', None', f', {b.given(v.shape[1])}')})"


def batch_norm(b, v):
    channels = v.shape[1]
    running = f"{b.given(channels, wanted=False)}, {b.given(channels, wanted=False)} ** 2 + 0.5{affine(b, channels)}"
    return (
        f"F.batch_norm({v}, {running})"
        if b.pick(3)
        else f"F.batch_norm({v}, None, None{affine(b, channels)}, training=True)"
    )


def instance_norm(b, v):
    return f"F.instance_norm({v}, None, None{affine(b, v.shape[1])})"


def minibatch_deviation(b, v):
    spread = f"({v}.var(0, unbiased=False) + 1e-2).sqrt().mean()"
    return f"torch.cat([{v}, {spread}.expand({v}.shape[0], 1, *{v}.shape[2:])], 1)"


def layer_norm(b, v):
    shape = v.shape[b.integer(1, v.ndim - 1) :]
    eps = b.among(["", ", eps=0.1"])
    kind = b.integer(0, 2)
    if kind == 2:
        return f"F.rms_norm({v}, {shape}" + (f", {b.weight(*shape)}" if b.pick(2) else "") + ")"
    return f"F.layer_norm({v}, {shape}{affine(b, *shape)}{eps})"


NORMS = [
    (ranks_from(2), layer_norm),
    (ranks_from(2), group_norm),
    (ranks_from(3), instance_norm),
    (ranks_from(2), batch_norm),
    (ranks_from(1), lambda b, v: f"F.normalize({v}, dim={dim(b, v)}, eps=0.01)"),
    (ranks_from(1), lambda b, v: f"{v} / ({v}.square().mean({dim(b, v)}, keepdim=True) + 1e-2).sqrt()"),
    (ranks_from(2), minibatch_deviation),
    (rank(3, 4), lambda b, v: f"F.local_response_norm({v}, 3)"),
]


def convolution(b, v):
    n = v.ndim - 2
    channels, groups = v.shape[1], b.among([g for g in (1, 1, 2, v.shape[1]) if v.shape[1] % g == 0])
    out = groups * b.integer(1, 3)
    kernel = [b.among([3, 1, 2]) for _ in range(n)]
    bias = b.among(["None", None]) or b.weight(out)
    options = (
        f"stride={b.among([1, 1, 2])}, padding={b.among([1, 0, 2])}, dilation={b.among([1, 1, 2])}, groups={groups}"
    )
    if b.pick(3) == 0:
        kernel = [2 * (k // 2) + 1 for k in kernel]  # an even one warns
        options = f"padding='same', groups={groups}"
    return f"F.conv{n}d({v}, {b.weight(out, channels // groups, *kernel)}, {bias}, {options})"


def transposed_convolution(b, v):
    n = v.ndim - 2
    channels, groups = v.shape[1], b.among([g for g in (1, 1, 2, v.shape[1]) if v.shape[1] % g == 0])
    each = b.integer(1, 3)
    kernel = [b.among([3, 2]) for _ in range(n)]
    bias = b.among(["None", None]) or b.weight(each * groups)
    stride = b.among([1, 2])
    options = f"stride={stride}, padding={b.among([1, 0])}, output_padding={b.among([0, stride - 1])}, groups={groups}"
    return f"F.conv_transpose{n}d({v}, {b.weight(channels, each, *kernel)}, {bias}, {options})"


def standardized(b, v):
    n = v.ndim - 2
    w = b.given(b.integer(1, 3), v.shape[1], *[3] * n)
    return f"F.conv{n}d({v}, ({w} - {w}.mean(1, keepdim=True)) / ({w}.std() + 0.1), padding=1)"


def sampled(b, v):
    """Convolved with a kernel for each sample, computed from it."""
    n, channels = v.shape[0], v.shape[1]
    w = f"{b.weight(2 * channels, channels)} @ {v}.mean((2, 3)).unsqueeze(-1)"
    kernel = f"({w}).view({n * 2}, {channels}, 1, 1)"
    return (
        f"F.conv2d({v}.reshape(1, {n * channels}, *{v}.shape[2:]), {kernel}, groups={n}).view({n}, 2, *{v}.shape[2:])"
    )


CONVOLUTIONS = [
    (rank(3, 4, 5), convolution),
    (rank(3, 4), transposed_convolution),
    (rank(3, 4), standardized),
    (rank(4), sampled),
    (planes(2), lambda b, v: f"F.unfold({v}, 2, padding={b.integer(0, 1)}, stride={b.integer(1, 2)})"),
]


def linear(b, v):
    out = b.integer(1, 5)
    bias = b.among([", None", None]) or f", {b.weight(out)}"
    return f"F.linear({v}, {b.weight(out, v.shape[-1])}{bias})"


def same_shape(write):
    """Of two variables of one shape."""
    return lambda b, v: write(b, v, b.variable(v.shape))


PRODUCTS = [
    (ranks_from(1), linear),
    (
        rank(2),
        lambda b, v: (
            f"torch.addmm({b.weight(b.among([1, v.shape[0]]), 3)}, {v}, {b.weight(v.shape[1], 3)}, beta=0.5, alpha=1.5)"
        ),
    ),
    (rank(2), lambda b, v: f"{v} @ {b.weight(v.shape[1], b.integer(1, 4))}"),
    (rank(2), lambda b, v: f"{b.weight(b.integer(1, 4), v.shape[0])} @ {v}"),
    (rank(2), lambda b, v: f"{v}.mv({b.weight(v.shape[1])})"),
    (rank(2), same_shape(lambda b, v, w: f"{v} @ {w}.t()")),
    (rank(2), same_shape(lambda b, v, w: f"{w}.t().mm({v})")),
    (rank(3), same_shape(lambda b, v, w: f"torch.bmm({v}, {w}.transpose(1, 2))")),
    (rank(3), same_shape(lambda b, v, w: f"torch.baddbmm({b.weight(v.shape[1], v.shape[1])}, {v}, {w}.mT, alpha=0.5)")),
    (rank(3, 4), lambda b, v: f"torch.matmul({v}, {b.weight(v.shape[-1], 2)})"),
    (rank(3, 4), lambda b, v: f"torch.matmul({b.weight(2, v.shape[-2])}, {v})"),
    (rank(3), same_shape(lambda b, v, w: f"torch.einsum('ncl,nkl->nck', {v}, {w})")),
    (rank(4), lambda b, v: f"torch.einsum('nchw,ck->nkhw', {v}, {b.weight(v.shape[1], 3)})"),
    (rank(2), same_shape(lambda b, v, w: f"F.bilinear({v}, {w}, {b.weight(3, v.shape[1], v.shape[1])})")),
    (rank(1), same_shape(lambda b, v, w: f"torch.dot({v}, {w})")),
    (rank(1), same_shape(lambda b, v, w: f"torch.outer({v}, {w})")),
    (rank(1), lambda b, v: f"torch.addr({b.weight(v.shape[0], 2)}, {v}, {b.weight(2)})"),
    (rank(3, 4), same_shape(lambda b, v, w: f"attend({v}, {w}, {b.variable(v.shape)})")),
    (rank(3), same_shape(lambda b, v, w: f"({v} @ {w}.transpose(1, 2) / 2).softmax(-1) @ {b.variable(v.shape)}")),
    (
        rank(2),
        lambda b, v: (
            f"twice(lambda h: F.relu(F.linear(h, {b.given(v.shape[1], v.shape[1])}, {b.given(v.shape[1])})), {v})"
        ),
    ),
    (rank(2), lambda b, v: f"({v} * {b.weight(3, 1, v.shape[1])}).sum(-1).t()"),
    (ranks_from(1), lambda b, v: f"{v}.softmax({dim(b, v)})"),
    (ranks_from(1), lambda b, v: f"{v}.log_softmax({dim(b, v)})"),
    (ranks_from(1), glu),
    (rank(2), same_shape(lambda b, v, w: f"torch.cdist({v}, {w} + 1, compute_mode='use_mm_for_euclid_dist')")),
    (ranks_from(1), lambda b, v: f"torch.linalg.cross({v}, {b.variable(v.shape)}, dim={v.shape.index(3)})"),
    (rank(2), lambda b, v: f"torch.cdist({v}, {b.weight(3, v.shape[1])}, compute_mode='use_mm_for_euclid_dist')"),
    (rank(2, 3), same_shape(lambda b, v, w: f"F.cosine_similarity({v}, {w} + 0.3, dim=-1, eps=0.01)")),
]


def scalar(b):
    return b.among([0.5, -1.5, 2, -1])


def reduction(b):
    return b.among(["'none'", "'mean'", "'sum'"])


ARITHMETIC = [
    (anything, lambda b, v: f"{v} + {other(b, v)}"),
    (anything, lambda b, v: f"{v} * {other(b, v)}"),
    (anything, lambda b, v: f"{other(b, v)} - {v}"),
    (anything, lambda b, v: f"{v} / ({other(b, v)} ** 2 + 0.6)"),
    (anything, lambda b, v: f"{other(b, v)} / ({v} * {v} + 0.8)"),
    (anything, lambda b, v: f"torch.add({v}, {other(b, v)}, alpha={scalar(b)})"),
    (anything, lambda b, v: f"torch.sub({v}, {other(b, v)}, alpha={scalar(b)})"),
    (anything, lambda b, v: f"{scalar(b)} - {v}"),
    (anything, lambda b, v: f"{scalar(b)} * {v}"),
    (anything, lambda b, v: f"-{v}"),
    (anything, lambda b, v: f"torch.lerp({v}, {b.variable(v.shape)}, {scalar(b)})"),
    (anything, lambda b, v: f"torch.lerp({v}, {other(b, v)}, {b.weight(1)})"),
    (anything, lambda b, v: f"torch.addcmul({v}, {other(b, v)}, {other(b, v)}, value=0.7)"),
    (anything, lambda b, v: f"torch.addcdiv({v}, {other(b, v)}, {v}.square() + 1, value=0.7)"),
    (anything, lambda b, v: f"torch.atan2({v}, {other(b, v)} + 3)"),
    (anything, lambda b, v: f"torch.hypot({v}, {other(b, v)} + 0.5)"),
    (anything, lambda b, v: f"torch.logaddexp({v}, {other(b, v)})"),
    (anything, lambda b, v: f"({v}.square() + 0.5) ** {other(b, v)}"),
    (anything, lambda b, v: f"({b.weight(1)}.square() + 0.3) ** {v}"),
    (anything, lambda b, v: f"F.mse_loss({v}, {b.variable(v.shape)}, reduction={reduction(b)})"),
    (anything, lambda b, v: f"F.huber_loss({b.variable(v.shape)}, {v}, reduction={reduction(b)}, delta=0.4)"),
    (anything, lambda b, v: f"torch.fmax({v}, {other(b, v)})"),
    (anything, lambda b, v: f"{v} + {b.weight(1)}.float().double().mean()"),
    (anything, lambda b, v: f"({v} * {v}).add({v}).sub({b.variable(v.shape)})"),
]

REDUCTIONS = (
    [
        (ranks_from(1), lambda b, v, how=how: f"{v}.{how}({dim(b, v)}, keepdim={bool(b.pick(2))})")
        for how in ("mean", "sum", "amax", "amin", "std", "logsumexp", "prod", "norm")
    ]
    + [
        (ranks_from(2), lambda b, v: f"{v}.{b.among(['mean', 'sum'])}({dims(b, v)})"),
        (ranks_from(2), lambda b, v: f"{v}.var({dims(b, v)}, correction={b.integer(0, 1)}, keepdim={bool(b.pick(2))})"),
        (ranks_from(2), lambda b, v: f"torch.linalg.vector_norm({v}, {b.among([2, 2, 3, 1])}, {dims(b, v)})"),
        (ranks_from(1), lambda b, v: f"torch.var_mean({v}, {dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"torch.std_mean({v}, {dim(b, v)}, correction=0)"),
        (ranks_from(1), lambda b, v: f"{v}.max({dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.min({dim(b, v)}, keepdim=True)"),
        (ranks_from(1), lambda b, v: f"{v}.median({dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.sort({dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.topk(1, {dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.kthvalue(1, {dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.{b.among(['cumsum', 'cumsum', 'cumprod'])}({dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.{b.among(['cummax', 'cummin'])}({dim(b, v)})"),
        (ranks_from(1), lambda b, v: f"{v}.norm({b.among([1, math.inf])}, {dim(b, v)})"),
    ]
    + each(
        anything,
        "{v}.mean()",
        "{v}.sum()",
        "{v}.norm()",
        "{v}.std()",
        "{v}.amax()",
        "{v}.max()",
        "{v}.min()",
        "{v}.var()",
    )
)
