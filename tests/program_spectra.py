"""Lines of random critics whose values between are complex: each begins and ends with real ones."""

from program_choices import anything, dim, rank, ranks_from


def paired(b, v):
    """Complex values of this shape."""
    return f"torch.complex({v}, {b.among([b.variable(v.shape), b.weight(*v.shape), f'{v}.flip(-1)' if v.ndim else v])})"


def weight(b, *shape):
    return f"torch.complex({b.weight(*shape)}, {b.weight(*shape)})"


def ended(b, z):
    return b.among(
        [
            f"({z} + (0.1 + 0.2j)).abs()",
            f"({z}).real",
            f"({z}).conj().imag",
            f"torch.view_as_real(({z}).resolve_conj()).sum(-1)",
            f"({z} + (3 + 0.2j)).angle()",
            f"(lambda z: z.real ** 2 + z.imag ** 2)({z})",
            f"(lambda z: (z * z.conj()).real)({z})",
        ]
    )


def transform(b, v):
    name = b.among(["rfft", "fft", "ifft", "hfft", "ihfft"])
    options = f"dim={dim(b, v)}, norm={b.among(['backward', 'ortho', 'forward'])!r}"
    of = paired(b, v) if name in ("fft", "ifft", "hfft") and b.pick(2) else v
    return f"torch.fft.{name}({of}, {options})" + ("+ 0j" if name == "hfft" else "")


def moved(b, v):
    z = paired(b, v)
    return b.among(
        [f"{z}.transpose(0, -1)", f"{z}.flip(0)", f"{z}[:1]", f"torch.cat([{z}, {z}.conj()])", f"{z}.roll(1, 0)"]
        + [f"{z}.sum({dim(b, v)})", f"{z}.mean(0)", f"{z}[..., None].expand(*{tuple(v.shape)}, 2)", f"{z}.unbind(0)[0]"]
    )


SPECTRA = [
    (ranks_from(1), lambda b, v: ended(b, transform(b, v))),
    (ranks_from(2), lambda b, v: ended(b, f"torch.fft.rfft2({v}, norm='ortho')")),
    (
        ranks_from(1),
        lambda b, v: f"torch.fft.irfft(torch.fft.rfft({v}) * torch.fft.rfft({b.variable(v.shape)}), n={v.shape[-1]})",
    ),
    (ranks_from(2), lambda b, v: f"torch.fft.irfft2({paired(b, v)}, s=(3, 4), norm='forward')"),
    (anything, lambda b, v: ended(b, f"{paired(b, v)} * {paired(b, v)}")),
    (anything, lambda b, v: ended(b, f"{paired(b, v)} / ({paired(b, v)}.abs() + (1 + 0.5j))")),
    (anything, lambda b, v: ended(b, f"({paired(b, v)} - {v}) * {b.among(['1j', '(0.5 - 2j)', '0.5', weight(b, 1)])}")),
    (rank(2), lambda b, v: ended(b, f"{paired(b, v)} @ {weight(b, v.shape[1], 3)}")),
    (rank(3), lambda b, v: ended(b, f"torch.einsum('bci,cio->bco', {paired(b, v)}, {weight(b, *v.shape[1:], 2)})")),
    (rank(2, 3), lambda b, v: ended(b, f"{paired(b, v)} @ {paired(b, v)}.mH")),
    (ranks_from(1), lambda b, v: ended(b, moved(b, v))),
    (anything, lambda b, v: ended(b, f"torch.where({v} > 0, {paired(b, v)}, {paired(b, v)}.conj())")),
]
