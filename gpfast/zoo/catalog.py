"""The table of critics, and the function that builds one."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gpfast.zoo import attention, data, dcgan, dense, progressive, residual, sequence, spectral, volume
from gpfast.zoo.entry import Entry

_images = partial(data.signals, small_shape=(3, 16, 16))
_images32 = partial(_images, shape=(3, 32, 32))
_images64 = partial(_images, shape=(3, 64, 64))

ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "toy-mlp",
            "512x3 ReLU on points of the plane: the toy critic of WGAN-GP (Gulrajani et al. 2017)",
            dense.toy_mlp,
            partial(data.vectors, shape=(2,)),
            batch=256,
        ),
        Entry(
            "tabular-mlp",
            "256x256 LeakyReLU with dropout, ten table rows packed into a sample: CTGAN (Xu et al. 2019)",
            dense.tabular_mlp,
            partial(data.vectors, shape=(10, 100), small_shape=(10, 2)),
            batch=50,
        ),
        Entry(
            "motion-prior",
            "1024-512 ReLU on pairs of humanoid states: adversarial motion priors (Peng et al. 2021)",
            dense.motion_prior,
            partial(data.vectors, shape=(210,), small_shape=(12,)),
            batch=512,
        ),
        Entry(
            "mlp-64",
            "64x3 ReLU on 64 features: a critic so small that calls, and not arithmetic, take its time",
            dense.mlp_64,
            partial(data.vectors, shape=(64,), small_shape=(8,)),
            batch=64,
        ),
        Entry(
            "dcgan32",
            "DCGAN critic for CIFAR-10, kernel 5, no norms: WGAN-GP (Gulrajani et al. 2017)",
            dcgan.dcgan32,
            _images32,
            batch=64,
        ),
        Entry(
            "dcgan64",
            "DCGAN critic, kernel 4, in-place LeakyReLU, no norms (Radford et al. 2016)",
            dcgan.dcgan64,
            _images64,
            batch=64,
        ),
        Entry(
            "resnet32",
            "residual CIFAR-10 critic, 128 channels: WGAN-GP (Gulrajani et al. 2017)",
            residual.resnet32,
            _images32,
            batch=16,
        ),
        Entry(
            "resnet101",
            "101-layer bottleneck critic with layer norm: WGAN-GP (Gulrajani et al. 2017)",
            residual.resnet101,
            _images64,
            batch=8,
        ),
        Entry(
            "tanh-everywhere",
            "DCGAN critic with tanh everywhere and layer norm: WGAN-GP (Gulrajani et al. 2017)",
            dcgan.tanh_everywhere,
            _images64,
            batch=32,
        ),
        Entry(
            "gated-multiplicative",
            "DCGAN critic with sigmoid * tanh gates everywhere and layer norm: WGAN-GP (Gulrajani et al. 2017)",
            dcgan.gated_multiplicative,
            _images64,
            batch=16,
        ),
        Entry(
            "layernorm-dcgan",
            "DCGAN critic with LeakyReLU and layer norm, the baseline of WGAN-GP (Gulrajani et al. 2017)",
            dcgan.layernorm_dcgan,
            _images64,
            batch=32,
        ),
        Entry(
            "instancenorm-dcgan",
            "DCGAN critic with instance norm (Ulyanov et al. 2016)",
            dcgan.instancenorm_dcgan,
            _images64,
            batch=32,
        ),
        Entry(
            "groupnorm-dcgan",
            "DCGAN critic with group norm (Wu & He 2018)",
            dcgan.groupnorm_dcgan,
            _images64,
            batch=32,
        ),
        Entry(
            "patch",
            "70x70 PatchGAN critic with instance norm, a map of scores (Isola et al. 2017)",
            dcgan.patch,
            partial(_images, shape=(3, 256, 256)),
            batch=1,
        ),
        Entry(
            "audio-1d",
            "kernel 25, stride 4 and phase shuffle on 16,384 samples of sound: WaveGAN (Donahue et al. 2019)",
            sequence.audio_1d,
            partial(data.signals, shape=(1, 16384), small_shape=(1, 16)),
            batch=8,
        ),
        Entry(
            "text-resnet-1d",
            "residual 1D critic over characters, 512 channels: WGAN-GP (Gulrajani et al. 2017)",
            sequence.text_resnet_1d,
            partial(data.characters, shape=(32, 96), small_shape=(8, 8)),
            batch=16,
        ),
        Entry(
            "voxel-3d",
            "3D convolutions on 32x32x32 occupancy grids: 3D-IWGAN (Smith & Meger 2017)",
            volume.voxel_3d,
            partial(data.voxels, shape=(1, 32, 32, 32), small_shape=(1, 8, 8, 8)),
            batch=16,
        ),
        Entry(
            "spectral-norm",
            "DCGAN critic with spectral norm, one power iteration a call: SN-GAN (Miyato et al. 2018)",
            spectral.spectral,
            _images32,
            batch=32,
        ),
        Entry(
            "projection",
            "residual critic that projects on an embedded label (Miyato & Koyama 2018)",
            residual.projection,
            partial(data.labelled_images, shape=(3, 32, 32), small_shape=(3, 16, 16), classes=10, small_classes=4),
            batch=16,
        ),
        Entry(
            "self-attention",
            "DCGAN critic with self-attention on its 16x16 map: SAGAN (Zhang et al. 2019)",
            attention.self_attention,
            _images64,
            batch=32,
        ),
        Entry(
            "minibatch-stddev",
            "equalised learning rate and minibatch standard deviation: progressive growing (Karras et al. 2018)",
            progressive.minibatch_stddev,
            partial(data.signals, shape=(3, 32, 32), small_shape=(3, 8, 8)),
            batch=4,
            small_batch=8,
        ),
        Entry(
            "two-inputs",
            "DCGAN critic of an image and its caption's embedding: GAN-CLS (Reed et al. 2016)",
            dcgan.two_inputs,
            partial(data.captioned_images, shape=(3, 64, 64), small_shape=(3, 16, 16), caption=1024, small_caption=8),
            batch=32,
        ),
        Entry(
            "tuple-output",
            "DCGAN critic that returns its features too, for feature matching (Salimans et al. 2016)",
            dcgan.tuple_output,
            partial(_images32, output=0),
            batch=64,
        ),
    )
}


def build(
    name: str,
    small: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The critic `name` in training mode, its parameters a function of `small` and `seed` alone (rounded to `dtype`).

    No global random state is read or moved. ValueError where `name` is not in `ZOO`.
    """
    if name not in ZOO:
        raise ValueError(f"there is no critic {name!r} in the zoo; it has {', '.join(ZOO)}")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        critic = ZOO[name].build(small)
        if small:
            _perturb(critic)
    return critic.to(device, dtype).train()


@torch.no_grad()
def _perturb(critic: nn.Module) -> None:
    """Moves every parameter, so that no gradient is zero only because a shift or a bias began at zero."""
    for parameter in critic.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
