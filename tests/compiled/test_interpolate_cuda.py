"""csrc/ops/interpolate.cu as nvcc compiles it: spills, width of accesses, its PTX executed against plain PyTorch."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NVCC = shutil.which("nvcc")
TARGETS = ("sm_80", "sm_90", "sm_100")
MANGLED = {torch.float16: "6__half", torch.bfloat16: "13__nv_bfloat16", torch.float32: "f", torch.float64: "d"}
SHAPES = [(1, 1), (1, 37), (3, 5), (7, 1), (5, 256), (2, 2049), (300, 7)]
THREADS = 256

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def compile_to(kind: str, target: str, folder: Path) -> tuple[str, Path]:
    """What ptxas says of it, and the file: kind is "ptx" or "cubin"."""
    out = folder / f"interpolate.{target}.{kind}"
    command = [NVCC, f"--{kind}", f"-arch={target}", "-O3", "-Xptxas=-v", f"-I{CSRC}", CSRC / "ops" / "interpolate.cu"]
    done = subprocess.run([*command, "-o", out], capture_output=True, text=True, check=True)
    return done.stderr, out


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> str:
    return compile_to("ptx", "sm_90", tmp_path_factory.mktemp("ptx"))[1].read_text()


def entry_of(ptx: str, dtype: torch.dtype, width: int) -> str:
    """The mangled name of interpolate<dtype, A, width>."""
    (name,) = re.findall(rf"\.entry (\w*interpolateI{MANGLED[dtype]}\w*Li{width}E\w*)\(", ptx)
    return name


def body_of(ptx: str, entry: str) -> str:
    start = ptx.index(f".entry {entry}(")
    return ptx[start : ptx.find(".entry", start + 1)]


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills(target, tmp_path):
    report, _ = compile_to("cubin", target, tmp_path)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert frames == [("0", "0", "0")] * 2 * len(MANGLED)


@pytest.mark.parametrize("dtype", MANGLED, ids=str)
def test_accesses_are_16_bytes_wide_whatever_the_length(ptx, dtype):
    body = body_of(ptx, entry_of(ptx, dtype, 16 // dtype.itemsize))
    wide = r"\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]16)"
    assert len(re.findall(rf"ld\.global[\w.]*{wide}", body)) == 2
    assert len(re.findall(rf"st\.global[\w.]*{wide}", body)) == 1


def execute(emulator, ptx, dtype, width, real, fake, alpha, shift):
    """The kernel's output; `shift` elements are left out at the start of every buffer, so that it is not aligned."""
    emu = emulator.ptxemu
    rows, cols = (1, real.numel()) if alpha.ndim == 0 else real.shape
    memory = emu.Mem(1 << 20)
    bits = torch.int16 if dtype.itemsize == 2 else dtype

    def put(tensor):
        padded = torch.cat([tensor.new_zeros(shift), tensor.reshape(-1)])
        return memory.put(padded.view(bits).numpy())

    out = put(torch.full_like(real, torch.nan))
    pointers = [put(real), put(fake), out]
    a, (r, f, o) = memory.put(alpha.reshape(-1).numpy()), (p.addr + shift * dtype.itemsize for p in pointers)
    blocks = -(-real.numel() // (THREADS * width))
    counters = emu.Kernel(ptx, entry_of(ptx, dtype, width)).launch(
        (blocks,), (THREADS,), [r, f, a.addr, o, rows, cols], 0, memory
    )
    assert not counters["warns"], counters["warns"]
    return torch.from_numpy(out.get()).view(dtype)[shift:].reshape(real.shape)


@pytest.mark.parametrize("shared", [False, True], ids=["alpha-per-row", "alpha-shared"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", MANGLED, ids=str)
def test_executed_ptx_agrees_with_pytorch(emulator, ptx, dtype, aligned, shape, shared):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    real.view(-1)[-1], fake.view(-1)[0] = torch.inf, torch.nan
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.rand(() if shared else shape[:1], generator=generator, dtype=wide)
    width = 16 // dtype.itemsize if aligned else 1
    mixed = execute(emulator, ptx, dtype, width, real, fake, alpha, shift=0 if aligned else 1)
    rows = alpha if shared else alpha[:, None]
    expected = rows.double() * real.double() + (1 - rows).double() * fake.double()
    # one rounding to dtype after two or three in `wide`; where the two terms cancel, relative to them
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mixed.double(), expected, rtol=eps, atol=8 * torch.finfo(wide).eps, equal_nan=True)
