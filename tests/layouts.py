"""Tensors that lie in memory in every way, for the tests of rules and kernels that work element by element."""

import torch

LAYOUTS = {
    "same": lambda h: h,
    "channels_last": lambda h: h.contiguous(memory_format=torch.channels_last),
    "transposed": lambda h: h.transpose(1, 3).contiguous().transpose(1, 3),
    "flat": lambda h: h.flatten(1),
    "slice": lambda h: h[:, 1:, ::2],
}


def numbers(*sizes, seed=0, dtype=torch.float64):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights(*sizes, seed=1):
    return numbers(*sizes, seed=seed).requires_grad_()


def every_layout(sizes, dtype, seed):
    base = numbers(*sizes, seed=seed, dtype=dtype)
    yield base
    if len(sizes) == 3:
        yield base.transpose(1, 2).contiguous().transpose(1, 2)
    if len(sizes) == 4:
        yield base.contiguous(memory_format=torch.channels_last)
        yield base.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
        yield base.transpose(0, 1).contiguous().transpose(0, 1)
        yield numbers(*sizes[:3], 2 * sizes[3], seed=seed, dtype=dtype)[..., ::2]
        yield base[:1, :, :1].expand(sizes)


def every_dense_layout(sizes, dtype, seed):
    return (z for z in every_layout(sizes, dtype, seed) if torch.ops.aten.is_non_overlapping_and_dense(z))


def plain(op, *arguments):
    """An operator's formula in PyTorch's own operators, which every device but the CPU runs."""
    return op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
