"""The UNets of EDM: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), written afresh.

Block names are addresses (`enc.8x8_block0`, `dec.16x16_up`) and parameter names those of the public
EDM checkpoints, so an activation study gets its row labels, and a converted checkpoint its weights,
for free.

Sources: Karras et al. 2022 (arXiv:2206.00364) appendix F.2; Song et al. 2021 (arXiv:2011.13456);
Dhariwal & Nichol 2021 (arXiv:2105.05233). Shapes: N images, C channels, H = W pixels, E embedding
channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdd.layers import (
    KAIMING,
    KAIMING_ZERO,
    XAVIER,
    XAVIER_ATTENTION,
    XAVIER_NEAR_ZERO,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    UNetBlock,
    drop_labels,
)


def _choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}")


class SongUNet(nn.Module):
    """DDPM++ (positional, standard, standard, [1,1]) and NCSN++ (fourier, residual, standard,
    [1,3,3,1]).

    Args: `x` (N,C,H,W), `noise_labels` (N,), `class_labels` (N,label_dim), `augment_labels`
    (N,augment_dim).
    """
    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, *, label_dim: int = 0,
        augment_dim: int = 0, model_channels: int = 128, channel_mult: Sequence[float] = (1, 2, 2,
                                                                                          2),
        channel_mult_emb: int = 4, num_blocks: int = 4, attn_resolutions: Sequence[int] = (16, ),
        dropout: float = 0.10, label_dropout: float = 0.0, embedding_type: str = "positional",
        channel_mult_noise: int = 1, encoder_type: str = "standard", decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1)):
        super().__init__()
        _choice("embedding_type", embedding_type, ("positional", "fourier"))
        _choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _choice("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        block: dict[str, Any] = dict(
            emb_channels=emb_channels, dropout=dropout, skip_scale=math.sqrt(0.5), eps=1e-6,
            adaptive_scale=False, resample_filter=resample_filter, resample_proj=True, init=XAVIER,
            init_zero=XAVIER_NEAR_ZERO, init_attn=XAVIER_ATTENTION,
        )  # yapf: disable
        resample: dict[str, Any] = dict(resample_filter=resample_filter)

        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise_channels) if fourier else PositionalEmbedding(
            noise_channels, endpoint=True)
        self.map_label = Linear(label_dim, noise_channels, init=XAVIER) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, init=XAVIER,
                                  bias=False) if augment_dim else None
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
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux_channels, aux_channels, 0,
                                                               down=True, **resample)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, 1)
                if encoder_type == "residual":
                    fused = Conv2d(aux_channels, channels, 3, down=True, fused_resample=True,
                                   **resample)
                    self.enc[f"{res}x{res}_aux_residual"] = fused
                    aux_channels = channels
            for idx in range(num_blocks):
                width, heads = int(model_channels * mult), int(res in attn_resolutions)
                self.enc[f"{res}x{res}_block{idx}"] = UNetBlock(channels, width, num_heads=heads,
                                                                **block)
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
                width = int(model_channels * mult)
                heads = int(idx == num_blocks and res in attn_resolutions)
                self.dec[f"{res}x{res}_block{idx}"] = UNetBlock(channels + skips.pop(), width,
                                                                num_heads=heads, **block)
                channels = width
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(out_channels, out_channels, 0, up=True,
                                                             **resample)
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels, 3,
                                                           init=XAVIER_NEAR_ZERO)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None,
              augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # the checkpoints expect sines first
        if self.map_label is not None and class_labels is not None:
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))  # (N,E)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None,
                augment_labels: Tensor | None = None) -> Tensor:
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
                if x.shape[1] != module.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, emb)
        return image


class DhariwalUNet(nn.Module):
    """ADM: adaptive scale and shift in every block, attention heads of 64 channels. Arguments as
    `SongUNet`."""
    def __init__(self, img_resolution: int, in_channels: int, out_channels: int, *,
                 label_dim: int = 0, augment_dim: int = 0, model_channels: int = 192,
                 channel_mult: Sequence[float] = (1, 2, 3, 4), channel_mult_emb: int = 4,
                 num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8),
                 dropout: float = 0.10, label_dropout: float = 0.0):
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        block: dict[str, Any] = dict(emb_channels=emb_channels, dropout=dropout)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, init=KAIMING_ZERO,
                                  bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=KAIMING)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=KAIMING)
        init = ("kaiming_normal", math.sqrt(label_dim), 0.0)
        self.map_label = Linear(label_dim, emb_channels, init=init,
                                bias=False) if label_dim else None

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
                self.enc[f"{res}x{res}_block{idx}"] = UNetBlock(channels, width, num_heads=heads,
                                                                **block)
                channels = width
        skips: list[Any] = [module.out_channels for module in self.enc.values()]

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels,
                                                         num_heads=channels // 64, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for idx in range(num_blocks + 1):
                width = int(model_channels * mult)
                heads = width // 64 if res in attn_resolutions else 0
                self.dec[f"{res}x{res}_block{idx}"] = UNetBlock(channels + skips.pop(), width,
                                                                num_heads=heads, **block)
                channels = width
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, 3, init=KAIMING_ZERO)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None,
                augment_labels: Tensor | None = None) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(drop_labels(class_labels, self.label_dropout, self.training))
        emb = F.silu(emb)

        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            if x.shape[1] != module.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
