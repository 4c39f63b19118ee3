"""The zoo: both forms of every critic, what they are built of, and that there is something to differentiate."""

import ast
import copy
import pathlib

import pytest
import torch

from gpfast import zoo
from gpfast.zoo import ZOO

NAMES = list(ZOO)
# Cheap enough to run at real size here; the rest run on the meta device, and for real under -m slow.
CHEAP = ("toy-mlp", "tabular-mlp", "motion-prior", "mlp-64", "dcgan32", "groupnorm-dcgan", "voxel-3d", "tuple-output")
SMALL_CLASSES = 4

# A bias moves the gradient only through an operation that bends above it: a norm, a product, a curved nonlinearity. So
# in a critic of linear maps and (leaky) ReLUs, which are most, the gradient of every bias is exactly zero, or None at
# the top. In the others those without gradient are the ones above the last such operation:
BIASES_WITHOUT_GRADIENT = {
    "resnet101": {"layers.5.norm.bias", "score.bias"},
    "tanh-everywhere": {"score.bias"},
    "gated-multiplicative": {"score.bias"},
    "layernorm-dcgan": {"features.3.bias", "score.bias"},
    "instancenorm-dcgan": {"features.3.bias", "score.bias"},
    "groupnorm-dcgan": {"features.3.bias", "score.bias"},
    "patch": {"layers.8.bias"},
    "self-attention": {"layers.3.bias", "layers.5.bias"},
    "minibatch-stddev": {"layers.8.bias", "layers.11.bias", "layers.13.bias"},
}


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def score_of(critic, case, inputs):
    result = critic(*inputs, *case.args, **case.kwargs)
    return result if case.output is None else result[case.output]


def eager_penalty(critic, case):
    """The lines that everybody writes; the gradient norms come along."""
    real, fake = as_tuple(case.real), as_tuple(case.fake)
    alpha = torch.rand(len(real[0]), dtype=real[0].dtype)
    x = []
    for r, f in zip(real, fake, strict=True):
        a = alpha.view(-1, *[1] * (r.ndim - 1))
        x.append((a * r + (1 - a) * f).requires_grad_(True))
    out = score_of(critic, case, x)
    g = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    norms = torch.sqrt(sum(h.flatten(1).square().sum(1) for h in g) + 1e-12)
    return 10 * ((norms - 1) ** 2).mean(), g


def small_case(name, dtype=torch.float64, seed=1):
    entry = ZOO[name]
    return entry.inputs(entry.small_batch, True, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def meta_scores(name, small):
    """The scores of a batch of two on the meta device: shapes and the autograd graph, without the arithmetic."""
    critic = zoo.build(name, small=small, device="meta")
    case = ZOO[name].inputs(2, small, device="meta", generator=torch.Generator())
    return critic, score_of(critic, case, [x.requires_grad_(True) for x in as_tuple(case.real)])


def node_types(scores):
    seen, pending, names = set(), [scores.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        pending.extend(next_node for next_node, _ in node.next_functions)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_made_of_the_same_operations(name):
    (small, small_scores), (real, real_scores) = meta_scores(name, True), meta_scores(name, False)
    assert {type(m).__name__ for m in small.modules()} == {type(m).__name__ for m in real.modules()}
    assert node_types(small_scores) == node_types(real_scores)
    assert small.training and real.training
    if name == "patch":
        assert small_scores.shape == (2, 1, 2, 2) and real_scores.shape == (2, 1, 30, 30)
    else:
        assert real_scores.shape == small_scores.shape and real_scores.shape in {(2,), (2, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_the_small_form_is_small(name):
    entry = ZOO[name]
    assert entry.name == name and len(entry.summary.splitlines()) == 1
    for parameter in zoo.build(name, small=True).parameters():
        assert parameter.ndim == 0 or parameter.shape[0] <= 8
    case = small_case(name)
    for x in as_tuple(case.real) + as_tuple(case.fake):
        assert len(x) == entry.small_batch and max(x.shape[1:]) <= 16


@pytest.mark.parametrize("name", NAMES)
def test_the_small_form_has_a_penalty_to_differentiate(name):
    torch.manual_seed(3)
    critic = zoo.build(name, small=True, dtype=torch.float64)
    penalty, gradients = eager_penalty(critic, small_case(name))
    for gradient in gradients:
        assert (gradient.flatten(1).norm(dim=1) > 1e-4).all(), "the score of a sample does not depend on an input"
    penalty.backward()
    assert penalty.isfinite() and penalty > 0
    parameters = dict(critic.named_parameters())
    flat = BIASES_WITHOUT_GRADIENT.get(name, {key for key in parameters if key.endswith("bias")})
    assert flat <= parameters.keys()
    for key, parameter in parameters.items():
        if key in flat:
            assert parameter.grad is None or not parameter.grad.any(), key
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize("name", [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_the_real_form_has_a_finite_penalty(name):
    torch.manual_seed(3)
    entry = ZOO[name]
    case = entry.inputs(2, False, generator=torch.Generator().manual_seed(1))
    penalty, gradients = eager_penalty(zoo.build(name), case)
    penalty.backward()
    assert penalty.isfinite() and all((g.flatten(1).norm(dim=1) > 1e-4).all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_critic_and_moves_no_random_state(name):
    before = torch.get_rng_state()
    first, again = zoo.build(name, small=True, seed=5), zoo.build(name, small=True, seed=5)
    other, double = zoo.build(name, small=True, seed=6), zoo.build(name, small=True, seed=5, dtype=torch.float64)
    case, same = small_case(name, torch.float32), small_case(name, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.state_dict().keys() == double.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value.double(), double.state_dict()[key])
    for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
        assert not torch.equal(mine, theirs)
    for x, y in zip(as_tuple(case.real) + as_tuple(case.fake), as_tuple(same.real) + as_tuple(same.fake), strict=True):
        assert x.dtype == torch.float32 and y.dtype == torch.float64 and torch.equal(x.double(), y)


def test_a_real_form_is_the_same_every_time_too():
    before = torch.get_rng_state()
    first, again = zoo.build("spectral-norm"), zoo.build("spectral-norm")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="there is no critic 'resnet50' in the zoo; it has toy-mlp, tabular-mlp"):
        zoo.build("resnet50")


PARAMETERS = {
    "toy-mlp": 2 * 512 + 512 + 2 * (512 * 512 + 512) + 512 + 1,
    "tabular-mlp": 1000 * 256 + 256 + 256 * 256 + 256 + 256 + 1,
    "motion-prior": 210 * 1024 + 1024 + 1024 * 512 + 512 + 512 + 1,
    "mlp-64": 3 * (64 * 64 + 64) + 64 + 1,
    "resnet32": (3 * 9 + 1) * 128 + 4 * 128 + 7 * (128 * 9 + 1) * 128 + 129 * 128 + 129,
    "patch": 2_764_737
    - (128 + 256 + 512),  # 2.765 M is the published count, with the biases that instance norm cancels
    "audio-1d": 17_427_969,  # table 4 of the WaveGAN paper at d = 64, c = 1
    "text-resnet-1d": 97 * 512 + 10 * (512 * 5 + 1) * 512 + 32 * 512 + 1,
    "minibatch-stddev": 4 * 512 + 6 * (512 * 9 + 1) * 512 + (513 * 9 + 1) * 512 + (8192 + 1) * 512 + 513,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_real_form_has_the_parameters_of_the_published_layers(name):
    assert sum(p.numel() for p in zoo.build(name).parameters()) == PARAMETERS[name]


def layers_of(name, *types):
    return {key: m for key, m in zoo.build(name).named_modules() if isinstance(m, types)}


def test_resnet101_has_101_layers_and_a_norm_for_each_of_its_33_blocks():
    layers = layers_of("resnet101", torch.nn.Conv2d, torch.nn.Linear)
    assert len([key for key in layers if not key.endswith("shortcut")]) == 101
    assert len([key for key in layers if key.endswith("shortcut")]) == 4
    assert len(layers_of("resnet101", torch.nn.GroupNorm)) == 33


def test_resnet32_has_128_channels_everywhere():
    layers = layers_of("resnet32", torch.nn.Conv2d)
    assert {layer.out_channels for layer in layers.values()} == {128}
    assert len([key for key in layers if not key.endswith("shortcut")]) == 8


def test_each_score_of_patch_sees_70_pixels():
    field = 1
    for layer in reversed(layers_of("patch", torch.nn.Conv2d).values()):
        field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    assert field == 70


def test_wavegan_has_kernel_25_and_stride_4():
    layers = layers_of("audio-1d", torch.nn.Conv1d).values()
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1024]
    assert {(layer.kernel_size, layer.stride) for layer in layers} == {((25,), (4,))}


def test_samples_are_what_each_critic_expects():
    text = small_case("text-resnet-1d")
    assert set(text.real.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(text.real.sum(-1), torch.ones(4, 8, dtype=torch.float64))
    torch.testing.assert_close(text.fake.sum(-1), torch.ones(4, 8, dtype=torch.float64))  # rounded in float32
    (labels,) = small_case("projection").args
    assert labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < SMALL_CLASSES
    image, caption = small_case("two-inputs").real
    assert image.shape == (4, 3, 16, 16) and caption.shape == (4, 8)
    assert ZOO["two-inputs"].inputs(1, False).real[1].shape == (1, 1024)
    assert small_case("dcgan32").real.abs().max() <= 1
    assert set(small_case("voxel-3d").real.unique().tolist()) == {0.0, 1.0}
    assert [name for name in NAMES if small_case(name).output is not None] == ["tuple-output"]


@pytest.mark.parametrize("name", ["tabular-mlp", "audio-1d"])
def test_a_critic_that_draws_repeats_itself_after_the_same_seed(name):
    critic, case = zoo.build(name, small=True), small_case(name, torch.float32)
    scores = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        scores.append(critic(case.real))
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_spectral_norm_moves_its_buffers_and_a_deepcopy_moves_alike():
    critic, case = zoo.build("spectral-norm", small=True), small_case("spectral-norm", torch.float32)
    twin = copy.deepcopy(critic)
    before = [b.clone() for b in critic.buffers()]
    assert torch.equal(critic(case.real), twin(case.real))
    assert not all(torch.equal(b, a) for b, a in zip(before, critic.buffers(), strict=True))
    assert all(torch.equal(b, a) for b, a in zip(twin.buffers(), critic.buffers(), strict=True))


def test_minibatch_stddev_couples_the_samples_of_a_group_for_any_batch_size():
    critic, case = zoo.build("minibatch-stddev", small=True), small_case("minibatch-stddev", torch.float32)
    assert not torch.allclose(critic(case.real)[:4], critic(case.real[:2].repeat(2, 1, 1, 1)))
    assert critic(case.real[:3]).shape == (3, 1) and critic(case.real[:1]).isfinite().all()


def test_the_zoo_imports_nothing_else_of_the_package():
    for path in pathlib.Path(zoo.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in getattr(node, "names", [])]
            )
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert all(not m.startswith("gpfast") or m.startswith("gpfast.zoo") for m in modules), path.name
