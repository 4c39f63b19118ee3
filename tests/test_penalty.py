"""What `gradient_penalty` means: points, options, where gradient goes, and what it leaves alone."""

import copy
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import gpfast
from gpfast import reference

ATS = ["interpolates", "real", "fake", "dragan"]


def critic(seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 1)).to(dtype)


def batch(generator, shape=(7, 6), dtype=torch.float64):
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)


def assert_same(ours, oracle, exact=1e-10):
    """Two lists of gradients agree within `exact` of the largest entry; beside None stands None or the tape's zeros."""
    largest = max((g.abs().max() for g in oracle if g is not None), default=torch.zeros(()))
    for a, b in zip(ours, oracle, strict=True):
        if a is None or b is None:
            assert (a is None or not a.any()) and (b is None or not b.any())
        else:
            assert (a - b).abs().max() <= exact * largest


def eager(critic, x, center=1.0, eps=1e-12, weight=10.0, one_sided=False, dims=None):
    """The lines that repositories hold, written out once more beside the oracle."""
    x = x.detach().requires_grad_(True)
    scores = critic(x)
    (g,) = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)
    n = torch.sqrt((g**2).sum(dims or tuple(range(1, g.ndim))) + eps)
    excess = (n - center).clamp(min=0) if one_sided else n - center
    return weight * (excess**2).mean()


def test_is_the_formula_of_the_paper(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    alpha = torch.rand(7, generator=generator, dtype=torch.float64)
    x = alpha[:, None] * real + (1 - alpha[:, None]) * fake
    for options in ({}, {"one_sided": True, "center": 0.1}, {"center": 0.0}, {"weight": 3.0, "eps": 1e-2}):
        ours = gpfast.gradient_penalty(model, real, fake, alpha=alpha, engine=engine, **options)
        oracle = eager(model, x, **options)
        torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)
        assert_same(gradients(ours, model), gradients(oracle, model))


def test_alpha_is_drawn_per_sample_from_the_generator(engine, generator):
    seen = []
    real, fake = torch.ones(500, 3), torch.zeros(500, 3)

    def watch(x):
        seen.append(x.detach().clone())
        return x.sum(1) ** 2

    for seed in (1, 1, 2):
        gpfast.gradient_penalty(watch, real, fake, generator=torch.Generator().manual_seed(seed), engine=engine)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    x = seen[0]
    assert (x == x[:, :1]).all() and len(x[:, 0].unique()) > 490
    assert 0 <= x.min() and x.max() < 1 and 0.4 < x.mean() < 0.6
    assert torch.equal(x[:, 0], torch.rand(500, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "alpha",
    [0.25, torch.tensor(0.25), torch.full((4,), 0.25), torch.full((4, 1, 1), 0.25), torch.full((4, 2, 3), 0.25)],
)
def test_alpha_weighs_real(alpha, engine, generator):
    real, fake, seen = *batch(generator, (4, 2, 3)), []
    gpfast.gradient_penalty(
        lambda x: seen.append(x.detach().clone()) or (x**2).sum((1, 2)), real, fake, alpha=alpha, engine=engine
    )
    torch.testing.assert_close(seen[0], 0.25 * real + 0.75 * fake)


def test_points(engine, generator):
    real, fake = batch(generator, (6, 3))
    seen = {}
    for at in ATS:
        gpfast.gradient_penalty(
            lambda x, at=at: seen.__setitem__(at, x.detach().clone()) or (x**3).sum(1),
            real,
            fake,
            at=at,
            engine=engine,
            generator=torch.Generator().manual_seed(5),
        )
    assert torch.equal(seen["real"], real) and torch.equal(seen["fake"], fake)
    again = torch.Generator().manual_seed(5)
    alpha, noise = (
        torch.rand(6, 1, generator=again, dtype=real.dtype),
        torch.rand(6, 3, generator=again, dtype=real.dtype),
    )
    torch.testing.assert_close(seen["dragan"], alpha * real + (1 - alpha) * (real + 0.5 * real.std() * noise))


@pytest.mark.parametrize("at", ATS)
def test_gradient_reaches_real_fake_alpha_and_weight_where_they_require_it(at, engine, generator):
    model, data = critic(), batch(generator)
    results = []
    for penalty in (gpfast.gradient_penalty, reference.gradient_penalty):
        options = {} if penalty is reference.gradient_penalty else {"engine": engine}
        real, fake = (x.clone().requires_grad_() for x in data)
        leaves = [real, fake, torch.tensor(10.0, dtype=torch.float64, requires_grad=True)]
        if at in ("interpolates", "dragan"):
            leaves.append(torch.linspace(0, 1, 7, dtype=torch.float64).requires_grad_())
            options["alpha"] = leaves[-1]
        options["generator"] = torch.Generator().manual_seed(2)
        value = penalty(model, real * 1, fake * 1, at=at, weight=leaves[2], **options)
        results.append(torch.autograd.grad(value, leaves + list(model.parameters()), allow_unused=True))
    assert_same(*results)
    used = {"interpolates": (True, True), "real": (True, False), "fake": (False, True), "dragan": (True, False)}[at]
    assert tuple(g is not None for g in results[0][:2]) == used


@pytest.mark.parametrize("at", ATS)
def test_leaves_that_require_grad_accumulate(at, generator):
    real, fake = (x.requires_grad_() for x in batch(generator))
    gpfast.gradient_penalty(critic(), real, fake, at=at).backward()
    assert (real.grad is not None) == (at != "fake") and (fake.grad is not None) == (at in ("interpolates", "fake"))


@pytest.mark.parametrize("at", ATS)
def test_the_points_are_no_leaf_and_nothing_is_changed(at, generator):
    model, (real, fake) = critic(), batch(generator)
    before, seen = (real.clone(), fake.clone()), []
    gpfast.gradient_penalty(lambda x: seen.append(x) or model(x), real, fake, at=at).backward()
    assert not seen[0].is_leaf and seen[0].requires_grad  # so it has no .grad to fill
    assert torch.equal(real, before[0]) and torch.equal(fake, before[1])
    assert not real.requires_grad and not fake.requires_grad and real.grad is None and fake.grad is None
    assert real._version == 0


def test_parameters_accumulate_and_frozen_ones_stay_free(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    model[0].weight.requires_grad_(False)
    for _ in range(2):
        gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine).backward()
    assert model[0].weight.grad is None
    once = gradients(reference.gradient_penalty(model, real, fake, alpha=0.5), model[2:])
    assert_same([p.grad for p in model[2:].parameters()], [None if g is None else 2 * g for g in once])


def test_backward_twice_and_a_term_of_a_loss(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    penalty = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine)
    loss = model(fake).mean() - model(real).mean() + penalty
    first = gradients_kept(loss, model)
    assert_same(gradients_kept(loss, model), first)
    loss = model(fake).mean() - model(real).mean() + reference.gradient_penalty(model, real, fake, alpha=0.5)
    assert_same(first, gradients_kept(loss, model))


def gradients_kept(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


def test_third_derivative(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    if engine in ("auto", "tape"):
        value = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine)
        first = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match='engine="autograd"'):
            gradients(sum(g.square().sum() for g in first), model)
        return
    results = []
    for penalty in (
        lambda: gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine),
        lambda: reference.gradient_penalty(model, real, fake, alpha=0.5),
    ):
        first = torch.autograd.grad(penalty(), list(model.parameters()), create_graph=True, allow_unused=True)
        results.append(gradients(sum(g.square().sum() for g in first if g is not None), model))
    assert_same(*results)


def test_without_grad_mode_only_the_value(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    with torch.no_grad():
        value, stats = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine, return_stats=True)
        values = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine, reduction="none")
    assert not value.requires_grad and not values.requires_grad and torch.is_grad_enabled() is not False
    torch.testing.assert_close(value, reference.gradient_penalty(model, real, fake, alpha=0.5).detach())
    torch.testing.assert_close(values.mean(), value)


@pytest.mark.parametrize("norm_dims", [None, (1,), 1, (1, 2, 3), (-1, -2), (0, 1, 2, 3), "batch"], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_norm_dims_and_reduction(norm_dims, reduction, engine, generator):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3)).double()
    real, fake = batch(generator, (3, 2, 5, 4))
    shapes = {
        None: (3,),
        (1,): (3, 5, 4),
        1: (3, 5, 4),
        (1, 2, 3): (3,),
        (-1, -2): (3, 2),
        (0, 1, 2, 3): (),
        "batch": (),
    }
    value, stats = gpfast.gradient_penalty(
        model, real, fake, alpha=0.3, norm_dims=norm_dims, reduction=reduction, engine=engine, return_stats=True
    )
    assert stats.norms.shape == shapes[norm_dims] and value.shape == (shapes[norm_dims] if reduction == "none" else ())
    x = (0.3 * real + 0.7 * fake).requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    dims = {None: (1, 2, 3), 1: (1,), "batch": (0, 1, 2, 3)}.get(norm_dims, norm_dims)
    norms = (g.square().sum(dims) + 1e-12).sqrt()
    terms = 10 * (norms - 1) ** 2
    torch.testing.assert_close(stats.norms, norms.detach())
    expected = {"mean": terms.mean(), "sum": terms.sum(), "none": terms}[reduction]
    torch.testing.assert_close(value, expected)
    weights = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    assert_same(gradients((weights * value).sum(), model), gradients((weights * expected).sum(), model))


def test_statistics(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    value, stats = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine, return_stats=True)
    assert isinstance(stats, gpfast.GradientStats) and stats._fields == ("mean", "min", "max", "norms")
    assert not any(t.requires_grad for t in stats)
    assert (
        torch.equal(stats.mean, stats.norms.mean())
        and torch.equal(stats.min, stats.norms.min())
        and torch.equal(stats.max, stats.norms.max())
    )
    torch.testing.assert_close(value.detach(), 10 * (stats.norms - 1).square().mean())


@pytest.mark.parametrize("form", ["boolean", "per pixel", "full", "channels"])
def test_mask_multiplies_the_gradient(form, engine, generator):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 1)).double()
    real, fake = batch(generator, (3, 2, 5, 4))
    mask = {
        "boolean": torch.rand(3, 1, 5, 4, generator=generator) > 0.5,
        "per pixel": torch.rand(5, 4, generator=generator).double(),
        "full": torch.rand(3, 2, 5, 4, generator=generator).double(),
        "channels": torch.tensor([1.0, 0.0])[:, None, None],
    }[form]
    value = gpfast.gradient_penalty(model, real, fake, alpha=0.5, mask=mask, engine=engine)
    x = (0.5 * real + 0.5 * fake).requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    expected = 10 * (((g * mask).square().sum((1, 2, 3)) + 1e-12).sqrt() - 1).square().mean()
    torch.testing.assert_close(value, expected)
    assert_same(gradients(value, model), gradients(expected, model))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.pose, self.out = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, image, pose, scale=1.0):
        return self.out(torch.tanh(self.image(image.flatten(1)) * self.pose(pose))) * scale


def test_a_buffer_that_is_refilled_before_backward_never_moves_the_gradient(engine, generator):
    model, (real, _) = critic(), batch(generator)
    value = gpfast.r1(model, real, engine=engine)
    expected = gradients(gpfast.r1(model, real.clone(), engine="reference"), model)
    real.zero_()
    if engine in ("auto", "tape"):  # the tape has what it needs
        assert_same(gradients(value, model), expected)
        return
    with pytest.raises(RuntimeError, match="modified (by an )?inplace"):
        value.backward()


def test_inputs_that_share_a_graph_have_gradients_of_their_own(engine, generator):
    """Scales of one generated image: the penalty is that of the detached scales, the gradient reaches them all."""
    z = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    coarse_and_fine = (z * 1, (z * 1)[:, ::2] * 1)
    product = lambda a, b: (a.sum(1) * b.sum(1)).tanh()  # noqa: E731
    for inputs in (coarse_and_fine, (z, z)):
        value = gpfast.r2(product, inputs, engine=engine)
        torch.testing.assert_close(value.detach(), gpfast.r2(product, tuple(x.detach() for x in inputs)))
        assert torch.autograd.grad(value, z)[0].abs().sum() > 0


def test_under_torch_compile(generator):
    """The graph breaks where the critic's gradient is asked for, and the numbers stay."""
    model, (real, fake) = critic(), batch(generator)

    def step(real, fake):
        return model(fake).mean() - model(real).mean() + gpfast.gradient_penalty(model, real, fake, alpha=0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        loss = torch.compile(step, backend="eager")(real, fake)
    torch.testing.assert_close(loss, step(real, fake))
    assert_same(gradients(loss, model), gradients(step(real, fake), model))


@pytest.mark.parametrize("arrange", [tuple, list, dict])
def test_several_inputs_share_alpha_and_one_norm(arrange, engine, generator):
    model = TwoInputs().double()
    (a, b), (c, d) = batch(generator, (5, 2, 2)), batch(generator, (5, 3))
    real, fake = (
        ({"image": a, "pose": c}, {"image": b, "pose": d}) if arrange is dict else (arrange((a, c)), arrange((b, d)))
    )
    alpha = torch.rand(5, generator=generator, dtype=torch.float64)
    value, stats = gpfast.gradient_penalty(
        model, real, fake, alpha=alpha, kwargs={"scale": 2.0}, engine=engine, return_stats=True
    )
    x = (alpha[:, None, None] * a + (1 - alpha[:, None, None]) * b).requires_grad_()
    y = (alpha[:, None] * c + (1 - alpha[:, None]) * d).requires_grad_()
    gx, gy = torch.autograd.grad(model(x, y, 2.0).sum(), (x, y), create_graph=True)
    norms = (gx.square().sum((1, 2)) + gy.square().sum(1) + 1e-12).sqrt()
    torch.testing.assert_close(stats.norms, norms.detach())
    expected = 10 * (norms - 1).square().mean()
    torch.testing.assert_close(value, expected)
    assert_same(gradients(value, model), gradients(expected, model))


@pytest.mark.parametrize("arrange", [tuple, list, dict])
@pytest.mark.parametrize("at", ["interpolates", "real", "fake"])
def test_several_inputs_draw_what_the_reference_draws(at, arrange, engine, generator):
    model = TwoInputs().double()
    (a, b), (c, d) = batch(generator, (5, 2, 2)), batch(generator, (5, 3))
    names = ("image", "pose")
    real, fake = (dict(zip(names, x, strict=True)) if arrange is dict else arrange(x) for x in ((a, c), (b, d)))

    def penalty(engine):
        drawn = torch.Generator().manual_seed(3)
        return gpfast.gradient_penalty(model, real, fake, at=at, weight=3, generator=drawn, engine=engine)

    ours, oracle = penalty(engine), penalty("reference")
    torch.testing.assert_close(ours, oracle)
    assert_same(gradients(ours, model), gradients(oracle, model))


def test_inputs_that_are_not_arranged_alike_are_refused(engine, generator):
    model = TwoInputs().double()
    (a, b), (c, d) = batch(generator, (5, 2, 2)), batch(generator, (5, 3))
    for real, fake in [((a, c), (b,)), ((a, c), {"image": b, "pose": d}), ((a, c), b), ((a, c[:4]), (b, d[:4]))]:
        with pytest.raises((TypeError, ValueError), match="`fake`|`real"):
            gpfast.gradient_penalty(model, real, fake, engine=engine)


def test_an_input_that_is_not_used_is_named(engine, generator):
    if engine == "reference":
        pytest.skip("the eager lines have PyTorch's words")
    model = TwoInputs().double()
    (a, b), (c, d) = batch(generator, (5, 2, 2)), batch(generator, (5, 3))
    with pytest.raises(RuntimeError, match=r"does not depend on `the interpolates\[1\]`.*pass such an input through"):
        gpfast.gradient_penalty(lambda x, y: model.image(x.flatten(1)).sum(1), (a, c), (b, d), engine=engine)


def test_three_inputs_of_different_rank_and_dtype_with_labels(engine, generator):
    shapes = {"a": (5,), "b": (5, 3), "c": (5, 2, 2)}
    real, fake = ({k: torch.randn(s, generator=generator) for k, s in shapes.items()} for _ in range(2))
    real["c"], fake["c"] = real["c"].double(), fake["c"].double()
    w = torch.ones((), dtype=torch.float64, requires_grad=True)

    def model(labels, a, b, c):
        return torch.sin(w * labels * (a * b.sum(1) + c.sum((1, 2))))

    results = []
    for penalty, options in ((gpfast.gradient_penalty, {"engine": engine}), (reference.gradient_penalty, {})):
        value = penalty(model, real, fake, alpha=0.3, args=(torch.arange(5),), **options)
        results.append((value, *torch.autograd.grad(value, w)))
    assert_same(*results, exact=1e-6)
    assert results[0][0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mask_in_half_precision_multiplies_in_float32(dtype, engine, generator):
    g = torch.rand(4, 50, generator=generator).to(dtype)
    mask = torch.rand(4, 50, generator=generator)
    value, stats = gpfast.gradient_penalty(
        lambda x: (x * g).sum(1), g, g, alpha=0.5, mask=mask, engine=engine, return_stats=True
    )
    torch.testing.assert_close(stats.norms, (g.float() * mask).norm(dim=1), rtol=1e-6, atol=0)


def test_several_inputs_with_masks_of_their_own(engine, generator):
    model = TwoInputs().double()
    (a, b), (c, d) = batch(generator, (5, 2, 2)), batch(generator, (5, 3))
    masks = torch.rand(2, 2, generator=generator).double(), torch.tensor([1.0, 0.0, 0.0])
    for mask in (masks, torch.ones(())):
        ours = gpfast.gradient_penalty(model, (a, c), (b, d), alpha=0.5, mask=mask, engine=engine)
        oracle = reference.gradient_penalty(model, (a, c), (b, d), alpha=0.5, mask=mask)
        torch.testing.assert_close(ours, oracle)
        assert_same(gradients(ours, model), gradients(oracle, model))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 2, 3, 2), (4, 1, 2, 3, 2), (1, 3), (4, 1)], ids=str)
def test_any_rank_and_a_batch_of_one(shape, engine, generator):
    real, fake = batch(generator, shape)
    w = torch.randn(shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
    results = []
    for penalty in (
        lambda f: gpfast.gradient_penalty(f, real, fake, alpha=0.5, engine=engine),
        lambda f: (
            eager(f, 0.5 * real + 0.5 * fake)
            if len(shape) > 1
            else reference.gradient_penalty(f, real, fake, alpha=0.5)
        ),
    ):
        value = penalty(lambda x: torch.sin(x * w).reshape(len(x), -1).sum(1))
        results.append((value, *torch.autograd.grad(value, w)))
    assert_same(*results)


def test_a_critic_that_begins_in_place(engine, generator):
    if engine == "reference":
        pytest.skip("PyTorch refuses an in-place operation on a leaf, and so do the eager lines")
    real, fake = batch(generator)
    model = critic()
    value = gpfast.gradient_penalty(lambda x: model(x.mul_(2).tanh_()), real, fake, alpha=0.5, engine=engine)
    expected = reference.gradient_penalty(lambda x: model((x * 2).tanh()), real, fake, alpha=0.5)
    assert_same(gradients(value, model), gradients(expected, model))
    before = real.clone()
    for data in (real, real.clone().requires_grad_() * 1):
        with pytest.raises(RuntimeError, match=r"writes to its input.*at='real'.*real\.clone\(\)"):
            gpfast.gradient_penalty(lambda x: model(x.mul_(2)), data, at="real", engine=engine)
        with pytest.raises(RuntimeError, match=r"writes to its input.*at='real'.*real\.clone\(\)"):
            gpfast.gradient_penalty(lambda x: (x[:, 0].zero_(), model(x))[1], data, at="real", engine=engine)
        assert torch.equal(data, before)


@pytest.mark.parametrize(
    "write", [lambda x: x.mul_(2), lambda x: x.view(-1).mul_(2).view(x.shape), lambda x: x.tanh_()]
)
def test_a_critic_that_begins_in_place_on_attached_data(write, engine, generator):
    """The gradient is that at the points, not at what the critic makes of them."""
    model, (real, fake) = critic(), batch(generator)
    fake.requires_grad_()
    value = gpfast.gradient_penalty(lambda x: model(write(x)), real, fake * 1, alpha=0.5, engine=engine)
    expected = gpfast.gradient_penalty(lambda x: model(write(x * 1)), real, fake * 1, alpha=0.5)
    torch.testing.assert_close(value, expected)
    assert_same(
        [*gradients_kept(value, model), *torch.autograd.grad(value, fake)],
        [*gradients_kept(expected, model), *torch.autograd.grad(expected, fake)],
    )


def test_a_view_of_many_is_the_critics_own_business(generator):
    real, _ = batch(generator)

    def splits(x):
        a, b = (x * 2).chunk(2, 1)
        a.mul_(2)
        return b.sum(1)

    with pytest.raises(RuntimeError, match="multiple views"):
        gpfast.gradient_penalty(splits, real, at="real")


def test_numbers_of_every_kind(generator):
    model, (real, fake) = critic(), batch(generator)
    expected = gpfast.gradient_penalty(model, real, fake, alpha=0.5, weight=10.0)
    for weight, alpha in ((Fraction(10), Fraction(1, 2)), (np.float64(10), np.float32(0.5)), (np.int64(10), 0.5)):
        assert (
            gpfast.gradient_penalty(model, real, fake, alpha=alpha, weight=weight, one_sided=np.bool_(False))
            == expected
        )
    assert gpfast.gradient_penalty(lambda x: (model(x),), real, fake, alpha=0.5, output=np.int64(0)) == expected


def test_dtypes_that_differ_are_promoted(engine, generator):
    real, fake = batch(generator, dtype=torch.float32)
    model = critic(dtype=torch.float32)
    value = gpfast.gradient_penalty(model, real, fake.half(), alpha=0.5, engine=engine)
    torch.testing.assert_close(value, eager(model, 0.5 * real + 0.5 * fake.half().float()))
    assert value.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_norm_and_eps_in_float32(dtype, engine, generator):
    real, fake = batch(generator, dtype=dtype)
    model = critic(dtype=dtype)
    value, stats = gpfast.gradient_penalty(model, real, fake, alpha=0.5, engine=engine, return_stats=True)
    assert value.dtype == stats.norms.dtype == torch.float32
    flat = gpfast.gradient_penalty(lambda x: (x * 0).sum(1), real, fake, engine=engine, return_stats=True)[1]
    torch.testing.assert_close(flat.norms, torch.full((7,), 1e-6))
    assert all(g is None or g.dtype == dtype for g in gradients(value, model))


def test_under_autocast(engine, generator):
    real, fake = batch(generator, (8, 6), torch.float32)
    results = []
    for penalty in (
        lambda m: gpfast.gradient_penalty(m, real, fake.bfloat16(), alpha=0.5, engine=engine),
        lambda m: reference.gradient_penalty(m, real, fake.bfloat16(), alpha=0.5),
    ):
        model = critic(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            value = penalty(model)
        results.append((value, *gradients(value, model)))
    assert value.dtype == torch.float32
    assert_same(*results, exact=1e-2)


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("eps", [0.0, 1e-12])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_zero_gradient_gives_a_finite_value_and_a_zero_gradient(center, eps, one_sided, engine, generator):
    real, fake = batch(generator)
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    value = gpfast.gradient_penalty(
        lambda x: x @ w, real, fake, center=center, eps=eps, one_sided=one_sided, engine=engine
    )
    expected = 0.0 if one_sided or center == 0 else 10 * (math.sqrt(eps) - 1) ** 2
    assert value.item() == pytest.approx(expected, abs=1e-11)
    value.backward()
    assert (w.grad == 0).all()


@pytest.mark.parametrize("one_sided", [False, True])
def test_nan_and_inf_in_the_data_pass_through(one_sided, engine, generator):
    model, (real, fake) = critic(), batch(generator)
    real[2, 1] = math.nan
    real[3, 1] = math.inf
    values, stats = gpfast.gradient_penalty(
        model, real, fake, alpha=0.5, one_sided=one_sided, reduction="none", engine=engine, return_stats=True
    )
    assert values[2].isnan() and stats.norms[2].isnan() and values[[0, 1, 4, 5, 6]].isfinite().all()
    assert gpfast.gradient_penalty(model, real, fake, alpha=0.5, one_sided=one_sided, engine=engine).isnan()


def test_weight_zero_and_weight_as_a_tensor(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    value = gpfast.gradient_penalty(model, real, fake, weight=0.0, engine=engine)
    assert value.item() == 0 and all(g is None or (g == 0).all() for g in gradients(value, model))
    for weight in (3, torch.tensor(3.0)):
        a = gpfast.gradient_penalty(model, real, fake, weight=weight, alpha=0.5, engine=engine)
        torch.testing.assert_close(a, gpfast.gradient_penalty(model, real, fake, weight=3.0, alpha=0.5, engine=engine))


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (0, lambda s: (s, "aux")),
        (-1, lambda s: ["aux", s]),
        ("score", lambda s: {"aux": 1, "score": s}),
        (lambda r: r[0]["a"], lambda s: ({"a": s},)),
        (lambda r: r[:, 0], lambda s: torch.cat([s, 7 * s], 1)),
        ("norms", lambda s: gpfast.GradientStats(1, 2, 3, s)),
    ],
)
def test_output_picks_the_score(output, result, engine, generator):
    model, (real, fake) = critic(), batch(generator)
    value = gpfast.gradient_penalty(lambda x: result(model(x)), real, fake, alpha=0.5, output=output, engine=engine)
    torch.testing.assert_close(value, reference.gradient_penalty(model, real, fake, alpha=0.5))


def test_presets(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    torch.testing.assert_close(
        gpfast.r1(model, real, engine=engine), eager(model, real, center=0.0, eps=0.0, weight=1.0)
    )
    torch.testing.assert_close(
        gpfast.r2(model, fake, weight=5.0, engine=engine), eager(model, fake, center=0.0, eps=0.0, weight=5.0)
    )
    torch.testing.assert_close(
        gpfast.wgan_lp(model, real, fake, alpha=0.5, center=0.1, engine=engine),
        eager(model, 0.5 * real + 0.5 * fake, center=0.1, one_sided=True),
    )
    draws = [
        gpfast.dragan(model, real, generator=torch.Generator().manual_seed(1), engine=engine),
        gpfast.gradient_penalty(model, real, at="dragan", generator=torch.Generator().manual_seed(1), engine=engine),
    ]
    assert torch.equal(*draws)


def test_module_holds_the_options(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    module = gpfast.GradientPenalty(
        weight=torch.tensor(3.0), center=0.5, one_sided=True, engine=engine, return_stats=True
    )
    value, stats = module(model, real, fake, alpha=0.5)
    torch.testing.assert_close(
        value, gpfast.gradient_penalty(model, real, fake, weight=3.0, center=0.5, one_sided=True, alpha=0.5)
    )
    assert module.double().weight.dtype == torch.float64 and not module.state_dict()
    assert "center=0.5" in repr(module) and "at=interpolates" in repr(module)
    trained = gpfast.GradientPenalty(weight=nn.Parameter(torch.tensor(2.0)))
    trained(model, real, fake).backward()
    assert trained.weight.grad is not None and [n for n, _ in trained.named_parameters()] == ["weight"]
    assert copy.deepcopy(module)(model, real, fake, alpha=0.5)[0] == value


@pytest.mark.parametrize(
    "option",
    [
        {"weight": 2.0},
        {"center": 0.3},
        {"one_sided": True, "center": 0.5},
        {"at": "real"},
        {"at": "dragan"},
        {"norm_dims": "batch"},
        {"eps": 0.1},
        {"output": 0},
        {"reduction": "none"},
        {"engine": "reference"},
        {"return_stats": True},
    ],
    ids=str,
)
def test_module_hands_every_option_on(option, generator):
    model, (real, fake) = critic(), batch(generator)
    scores = (lambda x: (model(x), 0)) if "output" in option else model
    results = []
    for penalty in (
        gpfast.GradientPenalty(generator=torch.Generator().manual_seed(1), **option),
        lambda *a: gpfast.gradient_penalty(*a, generator=torch.Generator().manual_seed(1), **option),
    ):
        results.append(penalty(scores, real, fake))
    torch.testing.assert_close(*(r[0] if "return_stats" in option else r for r in results), rtol=0, atol=0)


def test_penalty_from_outputs_that_are_there(engine, generator):
    model, (real, fake) = critic(), batch(generator)
    x = (0.5 * real + 0.5 * fake).requires_grad_()
    scores = model(x)
    for options in (
        {},
        {"one_sided": True, "center": 0.2, "norm_dims": "batch", "weight": 2.0, "eps": 1e-3},
        {"mask": torch.eye(7, 6), "reduction": "sum"},
    ):
        ours = gpfast.gradient_penalty_from(scores, x, engine=engine, **options)
        oracle = reference.gradient_penalty(model, real, fake, alpha=0.5, **options)
        torch.testing.assert_close(ours, oracle)
        assert_same(gradients_kept(ours, model), gradients(oracle, model))
    with torch.no_grad():
        value, stats = gpfast.gradient_penalty_from(scores, x, engine=engine, return_stats=True)
    torch.testing.assert_close(value, reference.gradient_penalty(model, real, fake, alpha=0.5).detach())
    scores.sum().backward()  # the graph that was handed in is kept


def test_penalty_from_outputs_of_several_inputs(engine, generator):
    model = TwoInputs().double()
    a, b = (
        torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
    )
    ours = gpfast.gradient_penalty_from(model(a, b), {"a": a, "b": b}, engine=engine)
    oracle = reference.gradient_penalty(model, (a, b), at="real")
    torch.testing.assert_close(ours, oracle)
    assert_same(gradients(ours, model), gradients(oracle, model))
