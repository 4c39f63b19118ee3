"""examples/images.py: every architecture is penalised exactly and trains; samples come nearer to the data."""

import copy

import pytest
import torch

import gpfast

pytest.importorskip("sklearn", reason="needs scikit-learn")
pytest.importorskip("ot", reason="needs POT")
Image = pytest.importorskip("PIL.Image", reason="needs pillow")

import images  # noqa: E402
from image_networks import ARCHITECTURES, LATENT, GrowingCritic, growth_at  # noqa: E402
from methods import METHODS  # noqa: E402

SMALL = ("--size", "8", "--filters", "4", "--batch", "8")


def options(tmp_path, *words):
    _, found = images.read_options([*SMALL, *words, "--out", tmp_path / "out"])
    return found


def networks(name, size=16, channels=1, growth=None):
    """A generator and critic of four filters, their noise and labels for 6 samples; growing ones are half grown."""
    torch.manual_seed(0)
    generator, critic = ARCHITECTURES[name].networks(size, channels, 4, 10)
    for network in (generator, critic):
        if hasattr(network, "growth"):
            network.growth.fill_(1.3 if growth is None else growth)
    args = (torch.randint(10, (6,)),) if ARCHITECTURES[name].labelled else ()
    return generator, critic, torch.randn(6, LATENT), args


def test_quick_run(quick_run):
    """Samples come nearer to held-out digits, by distance; the classifier knows real ones."""
    ran = quick_run("images")
    floor, score = ran.numbers("real images: sliced Wasserstein")[0], ran.numbers("real images:.*score ")[0]
    assert score > 8.5
    for name in ("dcgan", "gated"):
        start, *_, end, score, seconds = ran.numbers(name + " ")
        assert floor < end < 0.5 * start and 1 <= score <= 10 and seconds > 0
        for file in ("samples.png", "curves.png", "checkpoint.pt", "history.csv"):
            assert (ran.folder / name / file).stat().st_size > 0
    for file in ("images.png", "scores.png"):
        assert (ran.folder / file).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size, channels", [(8, 3), (16, 1), (32, 1)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generator_makes_what_the_critic_takes(name, size, channels):
    generator, critic, noise, args = networks(name, size, channels, growth=1)
    samples = generator(noise, *args)
    assert samples.shape == (6, channels, size, size) and samples.abs().max() <= 1
    assert critic(samples, *args).shape == (6,)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_penalty_is_exact(name):
    """Value and every gradient against the eager lines, in float64."""
    generator, critic, noise, args = networks(name)
    critic, generator = critic.double(), generator.double()
    fake = generator(noise.double(), *args).detach()
    real = torch.rand(fake.shape, dtype=torch.float64) * 2 - 1
    found = gpfast.check(critic, real, fake, args=args)
    assert found.ok, str(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_critic_judges_samples_apart(name):
    """But for the one with a minibatch standard deviation, which is what couples them."""
    generator, critic, noise, args = networks(name)
    x, critic = generator(noise, *args).detach().double(), critic.double()
    alone = critic(x[:3], *(a[:3] for a in args))
    assert torch.allclose(critic(x, *args)[:3], alone, rtol=1e-10) == (name != "progressive")


def test_resnet101_has_101_layers():
    generator, critic, *_ = networks("resnet101")
    for network in (generator, critic):
        layers = [m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        shortcuts = [m for n, m in network.named_modules() if n.endswith("shortcut") and isinstance(m, torch.nn.Conv2d)]
        assert len(layers) - len(shortcuts) == 101


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_trains_both_sides(name, tmp_path):
    trainer = images.build(options(tmp_path, "--rate", "1e-3"), name)
    before = copy.deepcopy([trainer.generator.state_dict(), trainer.critic.state_dict()])
    trainer.step()
    for side, network in zip(before, (trainer.generator, trainer.critic), strict=True):
        assert any(
            not torch.equal(value, side[key]) for key, value in network.state_dict().items() if "growth" not in key
        )
    assert all(torch.isfinite(torch.tensor(values)).all() for values in trainer.history.values())


@pytest.mark.parametrize("name", ["dcgan", "conditional", "progressive"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_them(method, name, tmp_path):
    trainer = images.build(options(tmp_path, "--method", method), name)
    before = [parameter.detach().clone() for parameter in trainer.critic.parameters()]
    trainer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.critic.parameters(), strict=True))
    assert ("penalty" in trainer.history) == method.startswith("wgan-")


def test_rate_is_that_of_the_method_without_a_penalty(tmp_path):
    def rate(*words):
        trainer = images.build(options(tmp_path, *words), "dcgan")
        return trainer.identity.get("rate")

    assert [rate(), rate("--method", "wgan"), rate("--method", "wgan", "--rate", "0.1")] == [images.RATE, None, 0.1]


def test_growth_is_a_function_of_the_step():
    """Ten steps at 4x4, ten in which 8x8 is faded in, ten at 8x8, ten for 16x16; then it stays."""
    assert [growth_at(step, 10, 2) for step in (0, 9, 10, 15, 20, 29, 30, 35, 40, 999)] == [
        0,
        0,
        0,
        0.5,
        1,
        1,
        1,
        1.5,
        2,
        2,
    ]


def test_growing_is_continuous():
    """Networks that begin to fade in a resolution give what they gave before; at its end, what comes after."""
    for stage in (0, 1):
        outputs = {}
        for growth in (stage, stage + 1e-6, stage + 1 - 1e-6, stage + 1):
            generator, critic, noise, _ = networks("progressive", growth=growth)
            outputs[growth] = generator(noise), critic(torch.linspace(-1, 1, 6 * 256).view(6, 1, 16, 16))
        for start, after, before, end in zip(*outputs.values(), strict=True):
            whole = (start - end).abs().max()
            assert max((start - after).abs().max(), (before - end).abs().max()) < 1e-3 * whole


def test_young_networks_see_and_make_coarse_images():
    generator, _, noise, _ = networks("progressive", growth=0)
    samples = generator(noise)
    assert torch.equal(samples, samples[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))
    critic = GrowingCritic(16, 1, 4)
    chess = torch.ones(6, 1, 16, 16)
    chess[:, :, ::2, ::2] = chess[:, :, 1::2, 1::2] = -1
    assert torch.allclose(critic(chess), critic(torch.zeros(6, 1, 16, 16)))


def test_resumed_is_as_if_never_interrupted(tmp_path):
    """Interrupted while a resolution is faded in."""
    words = ("--architecture", "progressive", "--grow-every", "2", "--score-every", "2", *SMALL)
    images.main([*words, "--steps", "5", "--out", tmp_path / "whole"])
    images.main([*words, "--steps", "3", "--out", tmp_path / "parts"])
    images.main([*words, "--steps", "5", "--out", tmp_path / "parts", "--resume"])
    whole, parts = (torch.load(tmp_path / folder / "progressive" / "checkpoint.pt") for folder in ("whole", "parts"))
    for side in ("generator", "critic"):
        assert all(torch.equal(value, parts[side][key]) for key, value in whole[side].items())
    for name in ("critic", "wasserstein", "penalty", "norm", "generator"):
        assert whole["history"][name] == parts["history"][name] and len(whole["history"][name]) == 5


def test_folder_trains(tmp_path, capsys):
    """Without labels, `all` is all but the conditional one."""
    (tmp_path / "mine").mkdir()
    for i in range(10):
        Image.new("RGB", (12, 12), (25 * i, 0, 255 - 25 * i)).save(tmp_path / "mine" / f"{i}.png")
    words = [*SMALL, "--data", "folder", tmp_path / "mine", "--out", tmp_path / "out", "--steps", "2"]
    _, found = images.read_options(words)
    assert found.architecture == [name for name in ARCHITECTURES if name != "conditional"]
    images.main([*words, "--architecture", "mlp"])
    printed = capsys.readouterr().out
    assert "mlp " in printed and "classifier" not in printed
    assert (tmp_path / "out" / "mlp" / "samples.png").stat().st_size > 0


def test_missing_labels_are_said_before_anything_trains(tmp_path, capsys):
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    words = ["--data", "folder", tmp_path, "--architecture", "mlp", "conditional", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match="2"):
        images.main([*SMALL, *words])
    assert "--data: the images have no labels, which --architecture conditional needs" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (("--architecture", "vgg"), "--architecture: there is no 'vgg'; there are all, dcgan, plain"),
        (("--data", "faces"), "--data: there is no data 'faces'; there are digits, patches, folder"),
        (("--data", "folder", "nowhere"), "--data: nowhere is not there; give a folder of images"),
        (("--size", "12"), "argument --size: invalid choice"),
        (("--filters", "0"), "--filters must be above 0; got 0"),
        (("--rate", "nan"), "--rate must be above 0; got nan"),
        (("--method", "magic"), "argument --method: invalid choice"),
        (("--score-every", "0"), "--score-every must be above 0; got 0"),
    ],
)
def test_bad_input(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        images.main([*words, "--out", tmp_path / "out"])
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
