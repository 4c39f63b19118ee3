"""Rules for Fourier transforms, each and in critics of spectra: of sound, of images, of fields."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low, tape_gradients
from torch import fft, nn

import gpfast


def numbers(*sizes, seed=0, grad=False):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(grad)


def complex_numbers(*sizes, seed=0, grad=False):
    made = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return made.requires_grad_(grad)


NORMS = ["backward", "ortho", "forward"]


def energy(z):
    if not z.is_complex():
        return torch.tanh(z) * z
    z = torch.view_as_real(z.resolve_conj())
    return torch.tanh(z[..., 0] + 0.3 * z[..., 1]) * z[..., 1]


def everywhere(transform, x, *, rule):
    """Below and above curvature; and where its values meet a parameter and nothing bends."""
    mixing = numbers(x.shape[-1], x.shape[-1], seed=11, grad=True)
    out = transform(x)
    weight = (
        complex_numbers(*out.shape[1:], seed=12, grad=True) if out.is_complex() else numbers(*out.shape[1:], grad=True)
    )

    def weighed(x):
        z = transform(x @ mixing) * weight
        return torch.view_as_real(z).sum(-1) if z.is_complex() else z

    seen = []
    for function in (
        lambda x: energy(transform(x)),
        lambda x: energy(transform(torch.tanh(x @ mixing) + x) * weight),
        weighed,
    ):
        seen += agree(function, x, [mixing, weight], rule=rule)
    return seen


ONE = {
    "rfft": (lambda x, norm: fft.rfft(x, norm=norm), "rfft"),
    "rfft of another length": (lambda x, norm: fft.rfft(x, n=x.shape[-1] + 3, norm=norm), "rfft"),
    "rfft of the first dimensions": (lambda x, norm: fft.rfft(x, dim=1, norm=norm), "rfft"),
    "fft of real values": (lambda x, norm: fft.fft(x, norm=norm), "rfft"),
    "ifft of real values": (lambda x, norm: fft.ifft(x, norm=norm), "rfft"),
    "ihfft": (lambda x, norm: fft.ihfft(x, norm=norm), "rfft"),
    "irfft": (lambda x, norm: fft.irfft(torch.complex(x, x.flip(1)), norm=norm), "irfft"),
    "irfft to an odd length": (lambda x, norm: fft.irfft(torch.complex(x, x.flip(1)), n=5, norm=norm), "irfft"),
    "hfft": (lambda x, norm: fft.hfft(torch.complex(x, x.flip(1)), norm=norm), "irfft"),
    "fft": (lambda x, norm: fft.fft(torch.complex(x, x.flip(1)), norm=norm), "fft"),
    "ifft": (lambda x, norm: fft.ifft(torch.complex(x, x.flip(1)), dim=1, norm=norm), "fft"),
    "rfft2": (lambda x, norm: fft.rfft2(x, norm=norm), "rfft"),
    "rfft2 of other dimensions": (lambda x, norm: fft.rfft2(x, dim=(2, 1), norm=norm), "rfft"),
    "rfftn": (lambda x, norm: fft.rfftn(x, norm=norm), "rfft"),
    "irfft2": (lambda x, norm: fft.irfft2(torch.complex(x, x.flip(1)), norm=norm), "irfft"),
    "irfftn": (lambda x, norm: fft.irfftn(torch.complex(x, x.flip(1)), s=(2, 5, 7), norm=norm), "irfft"),
    "fft2": (lambda x, norm: fft.fft2(x, norm=norm), "fft"),
    "ifft2": (lambda x, norm: fft.ifft2(torch.complex(x, x.flip(1)), norm=norm), "fft"),
    "fftn shifted": (lambda x, norm: fft.ifftshift(fft.fftshift(fft.fftn(x, norm=norm)) * 2), "fft"),
}


TO_NOTHING = {("irfft", 1), ("irfft2", 1), ("hfft", 1)}  # which PyTorch refuses


@pytest.mark.parametrize("name, length", [(n, k) for n in ONE for k in (1, 2, 6, 7) if (n, k) not in TO_NOTHING])
def test_each_transform(name, length):
    transform, rule = ONE[name]
    for norm in NORMS:
        everywhere(lambda x, norm=norm: transform(x, norm), numbers(2, 3, length), rule=rule)


def test_layouts():
    for make in (lambda h: h.transpose(1, 2), lambda h: h[..., ::2], lambda h: h.expand(2, *h.shape)[1]):
        for transform in (fft.rfft, fft.fft2, lambda h: fft.irfft(h + 1j * h)):
            agree(lambda x, m=make, f=transform: energy(m(f(m(x.tanh())))), numbers(2, 3, 8))


WINDOW = torch.hann_window(8, dtype=torch.float64)

STFT = {
    "centered": {"center": True},
    "not centered": {"center": False},
    "padded with zeros": {"center": True, "pad_mode": "constant"},
    "two-sided": {"onesided": False},
    "normalized": {"normalized": True},
    "longer than its window": {"n_fft": 10, "win_length": 8},
    "two-sided without a window": {"window": torch.ones(8, dtype=torch.float64), "onesided": False},
}


@pytest.mark.parametrize("name", STFT)
def test_stft(name):
    options = {"n_fft": 8, "hop_length": 3, "window": WINDOW, **STFT[name]}
    short = lambda x: torch.stft(x, return_complex=True, **options)  # noqa: E731
    everywhere(short, numbers(2, 23), rule="rfft")
    agree(lambda x: short(x.tanh()).abs().add(1e-3).log(), numbers(2, 23), rule="modulus")
    agree(lambda x: torch.stft(x.tanh(), return_complex=True, **options).abs().square(), numbers(2, 23), rule="modulus")


def test_stft_with_a_learned_window_and_as_pairs():
    window = WINDOW.clone().add_(0.1).requires_grad_()
    spectrum = lambda x: torch.stft(x, 8, 4, window=window, return_complex=True)  # noqa: E731
    agree(lambda x: energy(spectrum(x)), numbers(2, 20), [window], rule="rfft")
    agree(lambda x: torch.view_as_real(spectrum(x)).sum(-1), numbers(2, 20), [window], rule="view as real")
    agree(lambda x: spectrum(x).real ** 2 + spectrum(x).imag ** 2, numbers(2, 20), [window], rule="rfft")


@pytest.mark.parametrize("length", [None, 21])
def test_istft_of_an_stft(length):
    weight = complex_numbers(5, 1, seed=3, grad=True)

    def round_trip(x):
        z = torch.stft(x, 8, 2, window=WINDOW, return_complex=True)
        return torch.istft(z * weight, 8, 2, window=WINDOW, length=length)

    agree(lambda x: round_trip(x).tanh(), numbers(2, 22), [weight], rule="overlap-add")
    agree(lambda x: round_trip(x.tanh()), numbers(2, 22), [weight], rule="irfft")


# Critics

RESOLUTIONS = ((8, 3), (12, 4), (16, 5))


class Magnitudes(nn.Module):
    """Convolutions over the magnitudes of short-time spectra, at three resolutions."""

    def __init__(self):
        super().__init__()
        make = lambda: nn.Sequential(  # noqa: E731
            nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3, padding=1)), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3)
        )
        self.parts = nn.ModuleList(make() for _ in RESOLUTIONS)

    def forward(self, x):
        scores = 0
        for (size, hop), part in zip(RESOLUTIONS, self.parts, strict=True):
            window = torch.hann_window(size, dtype=x.dtype)
            z = torch.stft(x.squeeze(1), size, hop, window=window, return_complex=True)
            scores = scores + part(z.abs().unsqueeze(1)).flatten(1).mean(1)
        return scores


class Channels(nn.Module):
    """Real and imaginary parts of short-time spectra as channels."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3, dilation=(1, 2)), nn.SiLU())
        self.last = nn.Conv2d(4, 1, 3)

    def forward(self, x):
        z = torch.stft(
            x.squeeze(1), 16, 4, window=torch.hann_window(16, dtype=x.dtype), normalized=True, return_complex=True
        )
        h = torch.cat([z.unsqueeze(1).real, z.unsqueeze(1).imag], 1).permute(0, 1, 3, 2)
        return self.last(self.part(h)).flatten(1).mean(1)


class SpectralConvolution(nn.Module):
    """Each of the lowest frequencies through a complex matrix of its own."""

    def __init__(self, channels, modes):
        super().__init__()
        self.modes = modes
        self.low, self.high = (
            nn.Parameter(torch.randn(channels, channels, modes, modes, dtype=torch.cfloat) / channels) for _ in range(2)
        )

    def forward(self, x):
        m, z = self.modes, fft.rfft2(x)
        out = torch.zeros_like(z)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", z[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", z[:, :, -m:, :m], self.high)
        return fft.irfft2(out, s=x.shape[-2:])


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.through = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.spectral, self.last = SpectralConvolution(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        h = self.lift(x)
        h = F.gelu(self.spectral(h) + self.through(h))
        return self.last(h.mean((2, 3)))


class LogSpectrum(nn.Module):
    """Dense layers over the logarithm of an image's power at each frequency."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * 8 * 5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x):
        z = fft.fftshift(fft.rfft2(x, norm="ortho"), dim=-2)
        return self.layers((z.real**2 + z.imag**2 + 1e-8).log().flatten(1))


class RoundTrip(nn.Module):
    """A mask of a short-time spectrum, and the signal that it leaves."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Conv1d(5, 5, 3, padding=1)
        self.last = nn.Sequential(nn.Conv1d(1, 3, 5), nn.Softplus(), nn.Conv1d(3, 1, 3))

    def forward(self, x):
        window = torch.hann_window(8, dtype=x.dtype)
        z = torch.stft(x.squeeze(1), 8, 2, window=window, return_complex=True)
        kept = torch.istft(z * self.mask(z.abs()).sigmoid(), 8, 2, window=window)
        return self.last(kept.unsqueeze(1)).flatten(1).mean(1)


CRITICS = {
    "magnitudes": (Magnitudes, (2, 1, 40), ["modulus", "rfft"]),
    "channels": (Channels, (2, 1, 64), ["rfft", "view as real"]),
    "field": (Field, (2, 2, 8, 8), ["rfft", "irfft", "linear"]),
    "log spectrum": (LogSpectrum, (2, 2, 8, 8), ["rfft", "view as real"]),
    "round trip": (RoundTrip, (2, 1, 30), ["modulus", "overlap-add", "irfft"]),
}


def critic_of(name):
    torch.manual_seed(5)
    critic, sizes, rules = CRITICS[name]
    return critic(), numbers(*sizes, seed=4), rules


@pytest.mark.parametrize("name", CRITICS)
def test_critics_in_double_precision(name):
    critic, x, rules = critic_of(name)
    critic.double()
    for part in critic.modules():
        if isinstance(part, SpectralConvolution):
            part.low.data, part.high.data = part.low.data.to(torch.complex128), part.high.data.to(torch.complex128)
    seen = agree(critic, x, list(critic.parameters()))
    found = {rule for _, rule, *_ in seen}
    assert found.issuperset(rules), found
    assert "alone" not in {rule for _, rule, *_ in seen}


def as_dtype(critic, dtype):
    for parameter in critic.parameters():
        parameter.data = parameter.data.to(dtype.to_complex() if parameter.is_complex() else dtype)
    return critic


@pytest.mark.parametrize("name", CRITICS)
def test_critics_in_single_precision(name):
    def make(dtype):
        critic = as_dtype(critic_of(name)[0], dtype)
        return critic, list(critic.parameters())

    agree_low(make, critic_of(name)[1], torch.float32)


@pytest.mark.parametrize("name", CRITICS)
def test_penalties_and_chunks(name):
    critic, x, _ = critic_of(name)
    critic = as_dtype(critic, torch.float64)
    found = []
    for options in ({"engine": "reference"}, {"engine": "tape"}, {"engine": "tape", "chunks": 2}):
        generator = torch.Generator().manual_seed(1)
        penalty = gpfast.gradient_penalty(critic, x, x.flip(0) + 0.3, generator=generator, **options)
        gradients = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True)
        found.append([penalty, *gradients])
    for theirs, *ours in zip(*found, strict=True):
        for mine in ours:
            expected = torch.zeros_like(mine) if theirs is None else theirs
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CRITICS)
def test_autocast(name):
    critic, x, _ = critic_of(name)
    x, found = x.float(), []
    for engine in ("reference", "tape"):
        with torch.autocast("cpu", torch.bfloat16):
            generator = torch.Generator().manual_seed(1)
            penalty = gpfast.gradient_penalty(critic, x, x.flip(0) + 0.3, generator=generator, engine=engine)
        gradients = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True)
        found.append([penalty.detach(), *gradients])
    for theirs, ours in zip(*found, strict=True):
        if theirs is not None:
            assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max() + 1e-3


def test_a_loss_of_the_gradient_is_differentiated_again_and_again():
    critic, x, _ = critic_of("round trip")
    critic.double()
    loss = lambda y, g: (g**2).mean() + (y * y).sum()  # noqa: E731
    first = tape_gradients(critic, x, critic.parameters(), loss)
    again = tape_gradients(critic, x, critic.parameters(), loss, again=True)
    for a, b in zip(first[1], again[1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
