"""The functions that repositories hold, written from scratch, and the one line that replaces each: the same numbers."""

import numpy as np
import pytest
import torch
from test_penalty import assert_same, gradients
from torch import nn

import gpfast


class ImageCritic(nn.Module):
    def __init__(self, aux=False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2)
        )
        self.score, self.classify, self.aux = nn.Conv2d(8, 1, 2), nn.Linear(32, 5), aux

    def forward(self, x):
        h = self.features(x)
        return (self.score(h).squeeze(), self.classify(h.flatten(1))) if self.aux else self.score(h).squeeze()


class LabelCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = (
            nn.Embedding(5, 4),
            nn.Sequential(nn.Linear(3 * 64 + 4, 16), nn.ReLU(), nn.Linear(16, 1)),
        )

    def forward(self, x, labels, step=1.0):
        return step * self.body(torch.cat([x.flatten(1), self.embed(labels)], 1))


class PairCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(3 * 64, 8), nn.Linear(7, 8)

    def forward(self, image, text):
        return (torch.tanh(self.image(image.flatten(1))) * self.text(text)).sum(1)


@pytest.fixture
def data(generator):
    return tuple(torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))


def compare(model, theirs, ours):
    """Value and every parameter's gradient, each on the same module."""
    expected, value = theirs(), ours()
    torch.testing.assert_close(value.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)
    assert_same(gradients(value, model), gradients(expected, model))


def test_critic_real_fake_alpha_from_the_cpu_generator(data, engine):
    """(D, real, fake) with alpha drawn inside and `.norm(2, dim=1)` over flattened gradients: no eps."""
    model, (real, fake) = ImageCritic().double(), data

    def compute_gradient_penalty(D, real_samples, fake_samples):
        alpha = torch.rand((real_samples.size(0), 1, 1, 1)).double()
        interpolates = (alpha * real_samples + (1 - alpha) * fake_samples).requires_grad_(True)
        d_interpolates = D(interpolates)
        grads = torch.autograd.grad(
            outputs=d_interpolates,
            inputs=interpolates,
            grad_outputs=torch.ones_like(d_interpolates),
            create_graph=True,
            retain_graph=True,
            only_inputs=True,
        )[0]
        grads = grads.view(grads.size(0), -1)
        return 10 * ((grads.norm(2, dim=1) - 1) ** 2).mean()

    def ours():
        torch.manual_seed(4)
        return gpfast.gradient_penalty(model, real, fake, alpha=torch.rand(6), eps=0.0, engine=engine)

    torch.manual_seed(4)
    compare(model, lambda: compute_gradient_penalty(model, real, fake), ours)


def test_alpha_by_numpy_and_on_the_fake(data, engine):
    """alpha from numpy, one a sample, on the fake samples: theirs is our 1 - alpha."""
    model, (real, fake) = ImageCritic().double(), data
    drawn = torch.as_tensor(np.random.default_rng(0).random((6, 1, 1, 1)))

    def gradient_penalty(netD, real, fake, alpha):
        x = real + alpha * (fake - real)
        x.requires_grad = True
        out = netD(x).sum()
        g = torch.autograd.grad(out, x, create_graph=True)[0]
        return ((g.reshape(len(g), -1).pow(2).sum(1) + 1e-12).sqrt() - 1).pow(2).mean() * 10

    compare(
        model,
        lambda: gradient_penalty(model, real, fake, drawn),
        lambda: gpfast.gradient_penalty(model, real, fake, alpha=1 - drawn, engine=engine),
    )


def test_one_alpha_for_the_batch_and_the_norm_per_pixel(data, engine):
    """One alpha for the batch; `norm(2, dim=1)` on NCHW: a norm a pixel, as single-image GANs mean it."""
    real, fake = data
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 3, padding=1)).double()

    def calc_gradient_penalty(netD, real_data, fake_data, LAMBDA, alpha):
        alpha = alpha.expand(real_data.size())
        interpolates = torch.autograd.Variable(alpha * real_data + (1 - alpha) * fake_data, requires_grad=True)
        out = netD(interpolates)
        grads = torch.autograd.grad(out, interpolates, torch.ones(out.size()).double(), create_graph=True)[0]
        return ((grads.norm(2, dim=1) - 1) ** 2).mean() * LAMBDA

    alpha = torch.rand(1, 1).double()
    compare(
        model,
        lambda: calc_gradient_penalty(model, real, fake, 0.1, alpha),
        lambda: gpfast.gradient_penalty(
            model, real, fake, alpha=alpha.squeeze(), weight=0.1, norm_dims=1, eps=0.0, engine=engine
        ),
    )


def test_norm_over_the_whole_batch(data, engine):
    """One norm over everything, as some libraries take it without meaning to."""
    model, (real, fake) = ImageCritic().double(), data

    def penalty():
        x = (0.3 * real + 0.7 * fake).requires_grad_()
        g = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
        return 10 * (g.norm() - 1) ** 2

    compare(
        model,
        penalty,
        lambda: gpfast.gradient_penalty(model, real, fake, alpha=0.3, norm_dims="batch", eps=0.0, engine=engine),
    )


def test_a_method_with_the_critic_on_self(data, engine):
    """(real, fake) as a method of a trainer that holds the critic."""
    real, fake = data

    class Trainer:
        def __init__(self, penalty):
            self.critic, self.penalty, self.gp_weight = ImageCritic().double(), penalty, 10

        def _gradient_penalty(self, real, fake):
            return self.penalty(self, real, fake)

    def theirs(self, real, fake):
        alpha = torch.full((6, 1, 1, 1), 0.4).double().expand_as(real)
        x = torch.autograd.Variable(alpha * real.data + (1 - alpha) * fake.data, requires_grad=True)
        out = self.critic(x)
        g = torch.autograd.grad(outputs=out, inputs=x, grad_outputs=torch.ones(out.size()).double(), create_graph=True)[
            0
        ]
        norms = torch.sqrt(torch.sum(g.view(6, -1) ** 2, dim=1) + 1e-12)
        return self.gp_weight * ((norms - 1) ** 2).mean()

    def ours(self, real, fake):
        return gpfast.gradient_penalty(
            self.critic, real, fake.detach(), alpha=torch.full((6,), 0.4), weight=self.gp_weight, engine=engine
        )

    trainer = Trainer(theirs)
    swapped = Trainer(ours)
    swapped.critic = trainer.critic
    alpha32 = torch.full((6,), 0.4).double()
    swapped.penalty = lambda self, r, f: gpfast.gradient_penalty(
        self.critic, r, f, alpha=alpha32, weight=self.gp_weight, engine=engine
    )
    compare(
        trainer.critic, lambda: trainer._gradient_penalty(real, fake), lambda: swapped._gradient_penalty(real, fake)
    )


def test_labels_and_a_resolution_step(data, engine):
    """The critic takes labels, and a fade-in that some families call alpha too."""
    model, (real, fake) = LabelCritic().double(), data
    labels = torch.tensor([0, 1, 2, 3, 4, 0])

    def penalty(D, real, fake, labels, step):
        a = torch.full((6, 1, 1, 1), 0.6, dtype=torch.float64)
        x = (a * real + (1 - a) * fake).requires_grad_()
        out = D(x, labels, step=step)
        g = torch.autograd.grad(out.sum(), x, create_graph=True)[0].view(6, -1)
        return 10 * ((g.norm(dim=1) - 1) ** 2).mean()

    compare(
        model,
        lambda: penalty(model, real, fake, labels, 0.5),
        lambda: gpfast.gradient_penalty(
            model, real, fake, alpha=0.6, eps=0.0, args=(labels,), kwargs={"step": 0.5}, engine=engine
        ),
    )
    compare(
        model,
        lambda: penalty(model, real, fake, labels, 0.5),
        lambda: gpfast.gradient_penalty(lambda x: model(x, labels, 0.5), real, fake, alpha=0.6, eps=0.0, engine=engine),
    )


def test_tuple_outputs(data, engine):
    """The critic returns (score, class logits); only the score is penalised."""
    model, (real, fake) = ImageCritic(aux=True).double(), data

    def penalty():
        x = (0.5 * real + 0.5 * fake).requires_grad_()
        score, _ = model(x)
        g = torch.autograd.grad(score, x, torch.ones_like(score), create_graph=True, only_inputs=True)[0]
        return 10 * ((g.view(6, -1).norm(2, dim=1) - 1) ** 2).mean()

    compare(
        model, penalty, lambda: gpfast.gradient_penalty(model, real, fake, alpha=0.5, eps=0.0, output=0, engine=engine)
    )


@pytest.mark.parametrize("joined", [True, False])
def test_several_inputs(joined, data, engine, generator):
    """Image and text under one alpha: the norm over both gradients together."""
    model, (real, fake) = PairCritic().double(), data
    text, wrong = (torch.randn(6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = torch.rand(6, generator=generator, dtype=torch.float64)

    def penalty():
        image = (alpha.view(-1, 1, 1, 1) * real + (1 - alpha.view(-1, 1, 1, 1)) * fake).requires_grad_()
        words = (alpha.view(-1, 1) * text + (1 - alpha.view(-1, 1)) * wrong).requires_grad_()
        grads = torch.autograd.grad(model(image, words).sum(), (image, words), create_graph=True)
        both = torch.cat([g.flatten(1) for g in grads], 1)
        return 10 * ((both.norm(dim=1) - 1) ** 2).mean()

    if joined:  # one tensor, cut inside the critic
        pack = [torch.cat([a.flatten(1), b], 1) for a, b in ((real, text), (fake, wrong))]
        compare(
            model,
            penalty,
            lambda: gpfast.gradient_penalty(
                lambda x: model(x[:, :192], x[:, 192:]), *pack, alpha=alpha, eps=0.0, engine=engine
            ),
        )
    else:
        compare(
            model,
            penalty,
            lambda: gpfast.gradient_penalty(model, (real, text), (fake, wrong), alpha=alpha, eps=0.0, engine=engine),
        )


def test_outputs_and_inputs(data, engine):
    """(outputs, inputs): the critic has run already, and its input required grad."""
    model, (real, fake) = ImageCritic().double(), data

    def gradient_penalty(y, x):
        weight = torch.ones(y.size()).double()
        dydx = torch.autograd.grad(
            outputs=y, inputs=x, grad_outputs=weight, retain_graph=True, create_graph=True, only_inputs=True
        )[0]
        dydx = dydx.view(dydx.size(0), -1)
        return torch.mean((torch.sqrt(torch.sum(dydx**2, dim=1)) - 1) ** 2)

    x = (0.5 * real + 0.5 * fake).requires_grad_()
    y = model(x)
    expected = gradient_penalty(y, x)
    value = gpfast.gradient_penalty_from(y, x, weight=1.0, eps=0.0, engine=engine)
    torch.testing.assert_close(value, expected)
    assert_same(
        torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True),
        gradients(expected, model),
    )


def test_r1_of_the_style_family(data, engine):
    """gamma / 2 * sum of squares, mean over the batch, on real images that require grad for it."""
    model, (real, _) = ImageCritic().double(), data

    def d_r1_loss(real_pred, real_img):
        (grad_real,) = torch.autograd.grad(outputs=real_pred.sum(), inputs=real_img, create_graph=True)
        return grad_real.pow(2).reshape(grad_real.shape[0], -1).sum(1).mean()

    def theirs():
        x = real.clone().requires_grad_()
        return 10.0 / 2 * d_r1_loss(model(x), x)

    compare(model, theirs, lambda: gpfast.r1(model, real, weight=10.0 / 2, engine=engine))


def test_motion_prior_penalty_on_real_data(engine, generator):
    """Zero-centred penalty of adversarial motion priors: mean of the squared norm, on reference motions only."""
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    states = torch.randn(9, 12, generator=generator, dtype=torch.float64)

    def grad_pen(expert, lambda_):
        expert = expert.clone().requires_grad_(True)
        disc = model(expert)
        grad = torch.autograd.grad(
            disc, expert, torch.ones(disc.size()).double(), create_graph=True, retain_graph=True, only_inputs=True
        )[0]
        return lambda_ * (grad.norm(2, dim=1) - 0).pow(2).mean()

    compare(model, lambda: grad_pen(states, 5.0), lambda: gpfast.r1(model, states, weight=5.0, engine=engine))


def test_rows_packed_into_samples(engine, generator):
    """Tabular critics pack ten rows into a sample: alpha and the norm run over packs."""
    pac, columns = 10, 4
    model = nn.Sequential(nn.Linear(pac * columns, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)).double()
    real, fake = (torch.randn(50, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn = torch.rand(5, 1, 1, generator=generator, dtype=torch.float64)

    def calc_gradient_penalty():
        alpha = drawn.repeat(1, pac, columns).view(-1, columns)
        x = (alpha * real + (1 - alpha) * fake).requires_grad_()
        y = model(x.view(-1, pac * columns))
        g = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]
        return ((g.view(-1, pac * columns).norm(2, dim=1) - 1) ** 2).mean() * 10

    compare(
        model,
        calc_gradient_penalty,
        lambda: gpfast.gradient_penalty(
            model,
            real.view(-1, pac * columns),
            fake.view(-1, pac * columns),
            alpha=drawn.flatten(),
            eps=0.0,
            engine=engine,
        ),
    )


def test_dragan_with_noise_over_the_batch(data, engine):
    """real + 0.5 * std * uniform noise, mixed with real by a weight a sample."""
    model, (real, _) = ImageCritic().double(), data

    def theirs():
        torch.manual_seed(8)
        alpha = torch.rand(6, 1, 1, 1, dtype=torch.float64)
        noisy = real + 0.5 * real.std() * torch.rand(real.size(), dtype=torch.float64)
        x = (alpha * real + (1 - alpha) * noisy).requires_grad_()
        g = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
        return 10 * ((g.view(6, -1).norm(2, dim=1) - 1) ** 2).mean()

    def ours():
        torch.manual_seed(8)
        return gpfast.dragan(model, real, eps=0.0, engine=engine)

    compare(model, theirs, ours)


def test_masked_gradient(data, engine):
    """The mask over the gradient that image restoration uses, mean over masked pixels."""
    model, (real, fake) = ImageCritic().double(), data
    mask = (torch.arange(64).reshape(1, 1, 8, 8) % 3 > 0).double()

    def penalty():
        x = (0.5 * real + 0.5 * fake).requires_grad_()
        g = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0] * mask
        return 10 * ((g.flatten(1).norm(2, dim=1) - 1) ** 2).mean()

    compare(
        model, penalty, lambda: gpfast.gradient_penalty(model, real, fake, alpha=0.5, eps=0.0, mask=mask, engine=engine)
    )
