"""What the kernels of csrc/ops/interpolate.cu must give; `library` runs their launchers, as simt.Library does."""

import torch


def check_interpolation(library, dtype, shape, shared, start=0):
    """Bit for bit; shared: one alpha for all rows; start: elements behind a 16-byte bound where tensors begin."""
    rows, cols = (1, shape[0] * shape[1]) if shared else shape
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(rows * cols + start, generator=generator).to(dtype)[start:] for _ in range(2))
    real[-1], fake[0] = torch.inf, torch.nan
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.rand(rows, generator=generator, dtype=wide)
    out = torch.full((rows * cols + start,), torch.nan, dtype=dtype)[start:]
    library.run("gpfast_interpolate_cuda", dtype, real, fake, alpha, out, rows, cols)
    # Rounded as the eager formula is, then once to the dtype.
    a = alpha.repeat_interleave(cols)
    expected = (a * real.to(wide) + (1 - a) * fake.to(wide)).to(dtype)
    assert torch.equal(out.nan_to_num(9), expected.nan_to_num(9))
