"""The UNets of EDM: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), written afresh in plain torch operations.

Block names are addresses (`enc.8x8_block0`, `dec.16x16_up`) and parameter names those of the public EDM checkpoints.

Sources: Karras et al. 2022 (arXiv:2206.00364) appendix F.2; Song et al. 2021 (arXiv:2011.13456); Dhariwal & Nichol 2021
(arXiv:2105.05233). Shapes: N images, C channels, H = W pixels, E embedding channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _draw(shape: Sequence[int], fans: tuple[int, int], init: tuple[str, float, float], *, bias: bool) -> nn.Parameter:
    """A parameter drawn as `init = (distribution, weight gain, bias gain)` says; `fans = (fan_in, fan_out)`."""
    name, weight_gain, bias_gain = init
    variance = {"xavier_uniform": 2 / (fans[0] + fans[1]), "kaiming_uniform": 1 / fans[0], "kaiming_normal": 1 / fans[0]}[name]
    unit = torch.randn(*shape) if name.endswith("normal") else (torch.rand(*shape) * 2 - 1) * math.sqrt(3)
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
        self.in_features = in_features
        fans = (in_features, out_features)
        self.weight = _draw([out_features, in_features], fans, init, bias=False)
        self.bias = _draw([out_features], fans, init, bias=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution with optional x2 resampling by a separable filter; `kernel=0` resamples only.

    `fused_resample` pads for both operations at once, as NCSN++'s residual encoder was trained with.
    """

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, init=XAVIER, up: bool = False, down: bool = False,
                 resample_filter: Sequence[int] = (1, 1), fused_resample: bool = False):  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        self.weight = _draw([out_channels, in_channels, kernel, kernel], fans, init, bias=False) if kernel else None
        self.bias = _draw([out_channels], fans, init, bias=True) if kernel else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(taps, taps)[None, None] / taps.sum() ** 2 if up or down else None)

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
            if self.fused_resample and self.weight is not None:  # convolve first, padded for the filter that follows
                return self._resample(F.conv2d(x, self.weight, self.bias, padding=pad + filter_pad), 0)
            x = self._resample(x, filter_pad)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=pad)


class GroupNorm(nn.GroupNorm):
    """At most 32 groups of at least 4 channels."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(min(32, channels // 4), channels, eps=eps)


class UNetBlock(nn.Module):
    """Residual block conditioned on the noise embedding, with optional self-attention and x2 resampling."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, *, up: bool = False, down: bool = False,
                 num_heads: int = 0, dropout: float = 0.0, skip_scale: float = 1.0, eps: float = 1e-5,
                 resample_filter: Sequence[int] = (1, 1), resample_proj: bool = False, adaptive_scale: bool = True,
                 init=KAIMING, init_zero=KAIMING_ZERO, init_attn=None):  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads, self.dropout, self.skip_scale, self.adaptive_scale = num_heads, dropout, skip_scale, adaptive_scale
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
        exponents = torch.arange(self.frequencies, dtype=torch.float32, device=x.device) / (self.frequencies - self.endpoint)
        angles = torch.outer(x, (1 / 10000) ** exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """(N,) -> (N,C): cosines, then sines, at fixed random frequencies."""

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.get_buffer("freqs"))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _drop_labels(labels: Tensor, probability: float, training: bool) -> Tensor:
    if not (training and probability):
        return labels
    return labels * (torch.rand(len(labels), 1, device=labels.device) >= probability)


def _choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}")


class SongUNet(nn.Module):
    """DDPM++ (positional, standard, standard, [1,1]) and NCSN++ (fourier, residual, standard, [1,3,3,1]).

    Args: `x` (N,C,H,W), `noise_labels` (N,), `class_labels` (N,label_dim), `augment_labels` (N,augment_dim).
    """

    def __init__(self, img_resolution: int, in_channels: int, out_channels: int, *, label_dim: int = 0, augment_dim: int = 0,
                 model_channels: int = 128, channel_mult: Sequence[float] = (1, 2, 2, 2), channel_mult_emb: int = 4,
                 num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,), dropout: float = 0.10,
                 label_dropout: float = 0.0, embedding_type: str = "positional", channel_mult_noise: int = 1,
                 encoder_type: str = "standard", decoder_type: str = "standard",
                 resample_filter: Sequence[int] = (1, 1)):  # fmt: skip
        super().__init__()
        _choice("embedding_type", embedding_type, ("positional", "fourier"))
        _choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _choice("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dropout = label_dropout
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        block: dict[str, Any] = dict(emb_channels=emb_channels, dropout=dropout, skip_scale=math.sqrt(0.5), eps=1e-6,
                                     adaptive_scale=False, resample_filter=resample_filter, resample_proj=True, init=XAVIER,
                                     init_zero=XAVIER_NEAR_ZERO, init_attn=XAVIER_ATTENTION)  # fmt: skip
        resample: dict[str, Any] = dict(resample_filter=resample_filter)

        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise_channels) if fourier else PositionalEmbedding(noise_channels, endpoint=True)
        self.map_label = Linear(label_dim, noise_channels, init=XAVIER) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, init=XAVIER, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=XAVIER)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=XAVIER)

        self.enc = nn.ModuleDict()
        channels, aux_channels = in_channels, in_channels
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels, 3)
                channels = model_channels
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **block)
                if encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux_channels, aux_channels, 0, down=True, **resample)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, 1)
                if encoder_type == "residual":
                    fused = Conv2d(aux_channels, channels, 3, down=True, fused_resample=True, **resample)
                    self.enc[f"{res}x{res}_aux_residual"] = fused
                    aux_channels = channels
            for idx in range(num_blocks):
                width, heads = int(model_channels * mult), int(res in attn_resolutions)
                self.enc[f"{res}x{res}_block{idx}"] = UNetBlock(channels, width, num_heads=heads, **block)
                channels = width
        skips: list[Any] = [module.out_channels for n, module in self.enc.items() if "aux" not in n]

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, num_heads=1, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for idx in range(num_blocks + 1):
                width, heads = int(model_channels * mult), int(idx == num_blocks and res in attn_resolutions)
                self.dec[f"{res}x{res}_block{idx}"] = UNetBlock(channels + skips.pop(), width, num_heads=heads, **block)
                channels = width
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(out_channels, out_channels, 0, up=True, **resample)
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels, 3, init=XAVIER_NEAR_ZERO)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # the checkpoints expect sines first
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(
                _drop_labels(class_labels, self.label_dropout, self.training) * class_labels.shape[1] ** 0.5
            )
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))  # (N,E)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None,
                augment_labels: Tensor | None = None) -> Tensor:  # fmt: skip
        emb = self.embed(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if "aux_down" in name:
                aux = module(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + module(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) / math.sqrt(2)
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)

        image: Any = 0.0  # with a skip decoder, the sum of one output per resolution
        for name, module in self.dec.items():
            if "aux_up" in name:
                image = module(image)
            elif "aux_norm" in name:
                normed = module(x)
            elif "aux_conv" in name:
                image = image + module(F.silu(normed))
            else:
                x = module(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != module.in_channels else x, emb)
        return image


class DhariwalUNet(nn.Module):
    """ADM: adaptive scale and shift in every block, attention heads of 64 channels. Arguments as `SongUNet`."""

    def __init__(self, img_resolution: int, in_channels: int, out_channels: int, *, label_dim: int = 0, augment_dim: int = 0,
                 model_channels: int = 192, channel_mult: Sequence[float] = (1, 2, 3, 4), channel_mult_emb: int = 4,
                 num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8), dropout: float = 0.10,
                 label_dropout: float = 0.0):  # fmt: skip
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        block: dict[str, Any] = dict(emb_channels=emb_channels, dropout=dropout)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, init=KAIMING_ZERO, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=KAIMING)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=KAIMING)
        init = ("kaiming_normal", math.sqrt(label_dim), 0.0)
        self.map_label = Linear(label_dim, emb_channels, init=init, bias=False) if label_dim else None

        self.enc = nn.ModuleDict()
        channels = int(model_channels * channel_mult[0])
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(in_channels, channels, 3, init=KAIMING)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **block)
            for idx in range(num_blocks):
                width = int(model_channels * mult)
                heads = width // 64 if res in attn_resolutions else 0
                self.enc[f"{res}x{res}_block{idx}"] = UNetBlock(channels, width, num_heads=heads, **block)
                channels = width
        skips: list[Any] = [module.out_channels for module in self.enc.values()]

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, num_heads=channels // 64, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for idx in range(num_blocks + 1):
                width = int(model_channels * mult)
                heads = width // 64 if res in attn_resolutions else 0
                self.dec[f"{res}x{res}_block{idx}"] = UNetBlock(channels + skips.pop(), width, num_heads=heads, **block)
                channels = width
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, 3, init=KAIMING_ZERO)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None,
                augment_labels: Tensor | None = None) -> Tensor:  # fmt: skip
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(_drop_labels(class_labels, self.label_dropout, self.training))
        emb = F.silu(emb)

        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            x = module(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != module.in_channels else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
