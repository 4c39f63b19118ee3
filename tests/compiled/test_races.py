"""No race and no divergent barrier in any schedule: proved for each kernel where sentryward is installed.

What a proof is called is taken from a kernel that is safe at a glance, which a kernel with a race must not be called.
"""

import cuda
import pytest
import torch

pytest.importorskip(
    "sentryward", reason="a proof of every schedule needs the package sentryward (pip install sentryward)"
)
pytest.importorskip("triton", reason="needs Triton")

from gpfast.kernels import launch  # noqa: E402
from gpfast.kernels.gradient_norm import gradient_norm, gradient_norm_seed  # noqa: E402
from gpfast.kernels.interpolate import interpolate  # noqa: E402
from offline import launches  # noqa: E402
from race_proof import prove  # noqa: E402

SHORT = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry short(.param .u64 short_param_0)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [short_param_0];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    {index}
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r2;
    ret;
}}
"""


def short(index: str):
    return prove(SHORT.format(index=index), "short", (2,), 32, {})[0]


@pytest.fixture(scope="module")
def proved():
    return short("mad.lo.u32 %r1, %r2, 32, %r1;")


def test_a_race_is_not_proved_away(proved):
    assert short("mad.lo.u32 %r1, %r2, 16, %r1;") != proved


LAUNCHES = {
    "interpolate": (interpolate, torch.empty(2, 2053), torch.empty(2, 2053), torch.empty(2)),
    "tile": (gradient_norm, torch.empty(9, 100), 1, 1.0, False, 1e-12, "mean", True),
    "row": (gradient_norm, torch.empty(2, 1001), 1, 1.0, False, 1e-12, "mean", True),
    "split": (gradient_norm, torch.empty(1, launch.ROW_COLUMNS + 1), 1, 1.0, False, 1e-12, "mean", True),
    "seed": (gradient_norm_seed, torch.empty(2, 2053), torch.empty(2), torch.empty(2), 1, 1.0, False, 1.0),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_triton_kernels(proved, name):
    for found in launches("sm_90", *LAUNCHES[name]):
        kinds = [ty.replace("i", "u") for ty in found.kernel.src.signature.values() if ty != "constexpr"]
        integers = {k: (kinds[k], value) for k, value in enumerate(found.arguments) if isinstance(value, int)}
        metadata = found.kernel.metadata
        result, why = prove(
            found.kernel.asm["ptx"], found.name, found.grid, 32 * metadata.num_warps, integers, metadata.shared
        )
        assert result == proved, (found.name, result, why)


@pytest.mark.skipif(cuda.NVCC is None, reason="needs nvcc")
def test_cuda_interpolate(proved):
    kernel = cuda.find("ops/interpolate.cu", "sm_90", "interpolate<float, float, 4>")
    rows, cols = 2, 1001
    sizes = {4: ("u64", rows), 5: ("u64", cols)}
    blocks = -(-rows * cols // (4 * kernel.threads))
    result, why = prove(cuda.ptx("ops/interpolate.cu", "sm_90"), kernel.entry, (blocks,), kernel.threads, sizes)
    assert result == proved, (result, why)
