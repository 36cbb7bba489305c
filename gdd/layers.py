"""The layers of EDM's UNets, in plain torch operations: linear, resampling convolution, group norm,
block, embeddings.

Attribute names are those of the public EDM checkpoints. Shapes: N images, C channels, H = W pixels,
E embedding channels. Source: Karras et al. 2022 (arXiv:2206.00364) appendix F.2.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _draw(shape: Sequence[int], fans: tuple[int, int], init: tuple[str, float, float], *,
          bias: bool) -> nn.Parameter:
    """A parameter drawn as `init = (distribution, weight gain, bias gain)` says; `fans = (fan_in,
    fan_out)`."""
    # shapes only; arithmetic there costs a second of torch's imports
    if torch.get_default_device().type == "meta":
        return nn.Parameter(torch.empty(*shape))
    name, weight_gain, bias_gain = init
    variance = 2 / (fans[0] + fans[1]) if name == "xavier_uniform" else 1 / fans[0]
    normal = name == "kaiming_normal"
    unit = torch.randn(*shape) if normal else (torch.rand(*shape) * 2 - 1) * math.sqrt(3)
    return nn.Parameter(unit * math.sqrt(variance) * (bias_gain if bias else weight_gain))


# (distribution, weight gain, bias gain): the two families start their layers differently
XAVIER = ("xavier_uniform", 1.0, 0.0)
XAVIER_NEAR_ZERO = ("xavier_uniform", 1e-5, 0.0)
XAVIER_ATTENTION = ("xavier_uniform", math.sqrt(0.2), 0.0)
KAIMING = ("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
KAIMING_ZERO = ("kaiming_uniform", 0.0, 0.0)


class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, init, bias: bool = True):
        super().__init__()
        fans = (in_features, out_features)
        self.weight = _draw([out_features, in_features], fans, init, bias=False)
        self.bias = _draw([out_features], fans, init, bias=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution with optional x2 resampling by a separable filter; `kernel=0` resamples only.

    `fused_resample` pads for both operations at once, as NCSN++'s residual encoder was trained
    with.
    """

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, init=XAVIER,
                 up: bool = False, down: bool = False, resample_filter: Sequence[int] = (1, 1),
                 fused_resample: bool = False):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        self.weight = _draw([out_channels, in_channels, kernel, kernel], fans, init,
                            bias=False) if kernel else None
        self.bias = _draw([out_channels], fans, init, bias=True) if kernel else None
        taps = np.array(resample_filter, dtype=np.float32)
        kernel2d = torch.from_numpy(np.outer(taps, taps)[None, None] / taps.sum()**2)
        self.register_buffer("resample_filter", kernel2d if up or down else None)

    def _resample(self, x: Tensor, padding: int) -> Tensor:
        channels = x.shape[1]
        weight = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, weight * 4, groups=channels, stride=2, padding=padding)
        return F.conv2d(x, weight, groups=channels, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        pad = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.up or self.down:
            filter_pad = (self.resample_filter.shape[-1] - 1) // 2
            # convolve first, padded for the filter that follows
            if self.fused_resample and self.weight is not None:
                x = F.conv2d(x, self.weight, self.bias, padding=pad + filter_pad)
                return self._resample(x, 0)
            x = self._resample(x, filter_pad)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=pad)


class GroupNorm(nn.GroupNorm):
    """At most 32 groups of at least 4 channels."""
    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(min(32, channels // 4), channels, eps=eps)


class UNetBlock(nn.Module):
    """Residual block conditioned on the noise embedding, with optional self-attention and x2
    resampling."""
    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, *, up: bool = False,
                 down: bool = False, num_heads: int = 0, dropout: float = 0.0,
                 skip_scale: float = 1.0, eps: float = 1e-5,
                 resample_filter: Sequence[int] = (1, 1), resample_proj: bool = False,
                 adaptive_scale: bool = True, init=KAIMING, init_zero=KAIMING_ZERO, init_attn=None):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads, self.dropout = num_heads, dropout
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        resample: dict[str, Any] = dict(up=up, down=down, resample_filter=resample_filter)

        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, init=init, **resample)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, init=init, **resample)
        if num_heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init=init_attn or init)
            self.proj = Conv2d(out_channels, out_channels, 1, init=init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        residual = x if self.skip is None else self.skip(x)
        x = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None]  # (N,C or 2C,1,1)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            x = torch.addcmul(shift, self.norm1(x), scale + 1)
        else:
            x = self.norm1(x + params)
        x = self.conv1(F.dropout(F.silu(x), self.dropout, self.training))
        x = (x + residual) * self.skip_scale
        if self.num_heads:
            x = (self.proj(self._attend(x)) + x) * self.skip_scale
        return x

    def _attend(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(n, self.num_heads, c // self.num_heads, 3, h * w)
        q, k, v = qkv.permute(3, 0, 1, 4, 2)  # each (N,heads,HW,C/heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, c, h, w)


class PositionalEmbedding(nn.Module):
    """(N,) -> (N,C): cosines, then sines, at geometric frequencies from 1 to 1/10000."""
    def __init__(self, channels: int, *, endpoint: bool = False):
        super().__init__()
        self.frequencies, self.endpoint = channels // 2, endpoint

    def forward(self, x: Tensor) -> Tensor:
        exponents = torch.arange(self.frequencies, dtype=torch.float32,
                                 device=x.device) / (self.frequencies - self.endpoint)
        angles = torch.outer(x, (1 / 10000)**exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """(N,) -> (N,C): cosines, then sines, at fixed random frequencies."""
    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2).normal_(std=16))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.get_buffer("freqs"))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def drop_labels(labels: Tensor, probability: float, training: bool) -> Tensor:
    if not (training and probability):
        return labels
    return labels * (torch.rand(len(labels), 1, device=labels.device) >= probability)
