"""The emulator finds the mistakes of seeded.cu in what nvcc makes of it."""

import cuda
import pytest
import simt
import torch
from emulated_cuda import EmulatedLibrary
from emulator import Fault

LACKING = "needs nvcc" if cuda.NVCC is None else simt.missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))

BLOCKS = 3
WORDS = {
    "missing barrier": "race in shared memory: another warp wrote this address since the last barrier",
    "missing second barrier": "race in shared memory: another warp read this address since the last barrier",
    "divergent barrier": "divergent barrier: threads of one CTA wait at different barriers",
    "skipped barrier": "divergent barrier: reached after some threads of the CTA exited",
    "wrong mask": "a lane is not in its own member mask",
    "other mask": "lanes of one member mask have another",
    "exited lane": "shuffle from a lane that is not here",
    "stale lane": "shuffle from a lane that is not here",
    "one beyond": "out-of-bounds write of 4 bytes of global memory by CTA 2, thread 0",
    "one beyond shared": "out-of-bounds access of shared memory",
    "misaligned": "misaligned 16-byte access of global memory",
}


def sums(mistake: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, out = torch.arange(256.0 * BLOCKS), torch.full((BLOCKS,), torch.nan)
    EmulatedLibrary(str(simt.SEEDED)).run("seeded_sums", simt.MISTAKES.index(mistake), x, out, x.numel())
    return out, x.view(BLOCKS, 256).sum(1)


def test_no_fault_where_there_is_no_mistake():
    found, expected = sums("none")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mistake", WORDS)
def test_a_mistake_is_found(mistake):
    with pytest.raises(Fault, match=WORDS[mistake]):
        sums(mistake)
