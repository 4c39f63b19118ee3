"""Small critics of many operations, so that every family of rules is met."""

import torch
import torch.nn.functional as F
from torch import nn


def activations():
    found = [nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.Hardtanh(), nn.Threshold(0.1, 0.0), nn.PReLU(), nn.ELU()]
    found += [nn.SELU(), nn.CELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Tanh()]
    found += [nn.Sigmoid(), nn.LogSigmoid(), nn.Hardswish(), nn.Softshrink(), nn.Softsign()]
    return found


class Critic(nn.Module):
    """forward(x) = the mean over all but the batch of function(parts, x)."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, x):
        return self.function(self.parts, x).flatten(1).mean(1)


def chain(*layers):
    return Critic(lambda parts, x: parts["chain"](x), chain=nn.Sequential(*layers))


def convolution(to=8, **options):
    return nn.Conv2d(8, to, 3, padding=1, **options)


def shaped(parts, x):
    h = parts["one"](x)
    h = torch.cat([h[:, ::2], h[:, 1::2].flip(-1), h.roll(1, 2)], 1).transpose(2, 3).contiguous()
    left, right = h.chunk(2, 1)
    h = torch.stack([left, right.tril()], 2).squeeze(0).unsqueeze(1).reshape(len(x), -1, 8, 8)
    h = h.index_select(1, torch.arange(4, device=x.device)).expand(-1, 4, 8, 8)
    h = h.masked_fill(h > 1, 0.0)
    return torch.where(h > 0, h, h * h).movedim(1, -1).pow(2)


def reduced(parts, x):
    h = parts["one"](x)
    found = h.amax(1, True) + h.logsumexp(1, True) + h.var(1, keepdim=True) + h.cumsum(1)
    return found + h.std((2, 3), keepdim=True) + h.norm(dim=1, keepdim=True) + h.abs().sum(1, True).sqrt()


def products(parts, x):
    h = parts["one"](x).flatten(2)
    pair = torch.einsum("bcn,bdn->bcd", h, h)
    return torch.baddbmm(pair, pair, pair, alpha=0.5).softmax(-1) @ h.exp() / (1 + h.square()) + h.clamp(-1, 1)


def attends(parts, x):
    h = parts["one"](x).flatten(2).mT
    return F.scaled_dot_product_attention(h, h, h)


def written(parts, x):
    h = parts["one"](x)
    rows = torch.arange(3, device=x.device) % 2
    h[:, 4:] = h[:, :4].tanh()
    h[:, 0] += h[:, 5]
    h[:, :, rows[1:]] = h[:, :, rows[:2]] * 0.5
    h.diagonal(0, 2, 3).mul_(2)
    h[:, 2:].masked_fill_(h[:, 2:] > 1, 0.5)
    h = h.index_add(1, rows, h[:, :3].sin()).slice_scatter(h[:, :2], 1, 2, 4)
    h = h.scatter_add(1, h.argsort(1), h * h).index_copy(3, rows[:2], h[..., :2])
    F.leaky_relu_(h[:, 1:3], 0.2)
    return h


def critics():
    """{name: critic of (B, 8, 8, 8)}."""
    one = convolution
    found = {type(a).__name__ + str(i): chain(one(), a, one()) for i, a in enumerate(activations())}
    norms = nn.LayerNorm([8, 8, 8]), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8).eval()
    found |= {type(norm).__name__: chain(one(), norm, nn.Tanh(), one()) for norm in norms}
    found["RMSNorm"] = chain(one(), nn.RMSNorm(8), nn.Tanh(), one())
    pools = nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4), nn.PixelUnshuffle(2)
    pools += nn.AvgPool2d(3, 2, 1), nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
    pools += nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1), nn.Dropout(0.2), nn.Dropout2d(0.2)
    found |= {type(p).__name__ + str(i): chain(one(), p, nn.Tanh(), nn.LazyConv2d(8, 3)) for i, p in enumerate(pools)}
    found["transposed"] = chain(one(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.SiLU(), one(groups=2))
    found["in place"] = chain(one(), nn.LeakyReLU(0.2, True), one(), nn.ELU(inplace=True), one())
    functions = {"shapes": shaped, "reductions": reduced, "products": products, "attention": attends, "writes": written}
    for name, function in functions.items():
        found[name] = Critic(function, one=one())
    with torch.no_grad():
        for critic in found.values():
            critic(torch.zeros(2, 8, 8, 8))
    return found
