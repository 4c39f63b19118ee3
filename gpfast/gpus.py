"""What the datasheets of GPUs say: the one table of rates behind every modelled time.

Peak rates of dense products, without structured sparsity: a datasheet that states a rate "with sparsity" is halved.
Nothing here is measured; what runs reaches a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU: FLOP per second of dense products in fp32, tf32 and bf16, bytes per second of its memory, the source."""

    name: str
    fp32: float
    tf32: float
    bf16: float
    bandwidth: float
    source: str


GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        "A100 SXM 80 GB",
        fp32=19.5e12,
        tf32=156e12,
        bf16=312e12,
        bandwidth=2.039e12,
        source="NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM; rates without sparsity are printed there",
    ),
    "h100": Gpu(
        "H100 SXM",
        fp32=67e12,
        tf32=494.5e12,
        bf16=989.5e12,
        bandwidth=3.35e12,
        source="NVIDIA H100 Tensor Core GPU datasheet, SXM; 989 (TF32) and 1,979 (BF16) with sparsity, halved",
    ),
    "b200": Gpu(
        "B200 HGX",
        fp32=80e12,
        tf32=1.1e15,
        bf16=2.25e15,
        bandwidth=8e12,
        source="NVIDIA Blackwell Architecture Technical Brief, HGX B200, one GPU;"
        " 2,200 (TF32) and 4,500 (BF16) with sparsity, halved",
    ),
    "l4": Gpu(
        "L4",
        fp32=30.3e12,
        tf32=60e12,
        bf16=121e12,
        bandwidth=300e9,
        source="NVIDIA L4 Tensor Core GPU datasheet; 120 (TF32) and 242 (BF16) with sparsity, halved",
    ),
    "rtx4090": Gpu(
        "RTX 4090",
        fp32=82.6e12,
        tf32=82.6e12,
        bf16=165.2e12,
        bandwidth=1.008e12,
        source="NVIDIA Ada GPU Architecture whitepaper, appendix A: GeForce RTX 4090, BF16 with FP32 accumulate, dense",
    ),
}
