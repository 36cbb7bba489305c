"""Denoiser D(x; sigma): a UNet behind EDM's preconditioning, or behind the one-step generator's
boundary.

Both are one formula. With epsilon = 0 it is EDM's (Karras et al. 2022, table 1); with epsilon =
0.002 it is the consistency boundary the generator is trained with, which returns its input
unchanged at sigma = epsilon.
"""

import copy
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gdd.layers import UNetBlock
from gdd.unet import NETWORKS

GENERATOR_EPSILON = 0.002
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# what a file may ask of a network: far beyond any that was trained, and short of what would exhaust
# a machine
_RANGES: dict[str, tuple[float, float]] = {
    "img_resolution": (1, 4096),
    "img_channels": (1, 256),
    "label_dim": (0, 1_000_000),
    "augment_dim": (0, 1_000),
    "model_channels": (1, 8192),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (1, 64),
    "channel_mult": (0.01, 64),
    "attn_resolutions": (1, 4096),
    "resample_filter": (-1e6, 1e6),
    "sigma_data": (1e-6, 1e6),
    "dropout": (0, 1),
    "label_dropout": (0, 1), }
# and their greatest lengths
_LISTS = {"channel_mult": 16, "attn_resolutions": 16, "resample_filter": 64}
_REALS = {"channel_mult", "resample_filter", "sigma_data", "dropout", "label_dropout"}
PRECOND_ARGUMENTS = {
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type", }


def scalings(sigma: Tensor, sigma_data: float,
             epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(c_skip, c_out, c_in, c_noise)`, each shaped like `sigma`; EDM table 1 shifted by `epsilon`
    (docs/method.md, section 2)."""
    shifted, total = sigma - epsilon, (sigma**2 + sigma_data**2).sqrt()
    c_skip = sigma_data**2 / (shifted**2 + sigma_data**2)
    c_out = shifted * sigma_data / total
    c_in = 1 / total
    c_noise = sigma.log() / 4
    return c_skip, c_out, c_in, c_noise


class Denoiser(nn.Module):
    """`denoise(x, sigma, labels=None) -> x0_hat`, images (N,C,H,W) in [-1,1], sigma (N,) or () in
    image units.

    `config` holds EDMPrecond's keyword arguments and rebuilds the same network by
    `Denoiser.from_config(config)`.
    """
    def __init__(self, model: nn.Module, config: Mapping[str, Any], *, epsilon: float = 0.0):
        super().__init__()
        self.model, self.config, self.epsilon = model, dict(config), epsilon
        self.resolution, self.channels = config["img_resolution"], config["img_channels"]
        self.label_dim = config.get("label_dim", 0)
        self.sigma_data = config.get("sigma_data", 0.5)
        self.precision: torch.dtype | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, epsilon: float = 0.0) -> "Denoiser":
        """Build from EDMPrecond's keyword arguments. Raises ValueError naming a missing, unknown or
        wrong one."""
        if missing := {"img_resolution", "img_channels"} - config.keys():
            raise ValueError(f"network config lacks {', '.join(sorted(missing))}")
        _check_ranges(config)
        model_type = config.get("model_type", "DhariwalUNet")
        if model_type not in NETWORKS:
            raise ValueError(f"model_type must be one of {', '.join(NETWORKS)}; got {model_type!r}")
        network = NETWORKS[model_type]
        options = {key: value for key, value in config.items() if key not in PRECOND_ARGUMENTS}
        if unknown := options.keys() - inspect.signature(network).parameters.keys():
            raise ValueError(f"{model_type} does not take {', '.join(sorted(unknown))}")
        channels = config["img_channels"]
        model = network(config["img_resolution"], channels, channels, label_dim=config.get(
            "label_dim", 0), **options)
        return cls(model, config, epsilon=epsilon)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, *,
                target_sigma: Tensor | float | None = None,
                augment_labels: Tensor | None = None) -> Tensor:
        """The clean image x0_hat (N,C,H,W); with `target_sigma`, the Euler jump from `sigma` to it
        along (x - x0_hat)/sigma.

        `labels` are one-hot (N,label_dim), or indices (N,); a conditional network without labels
        gets zeros. Computed and returned in the dtype of the weights, float32 but in tests,
        whatever that of `x`, as EDM does; `precision` is what the UNet alone is autocast to.
        """
        dtype = self.dtype
        x = x.to(dtype)
        sigma = self._per_image(sigma, x)  # (N,)
        factors = scalings(sigma, self.sigma_data, self.epsilon)
        c_skip, c_out, c_in, c_noise = (c.view(-1, 1, 1, 1) for c in factors)
        with torch.autocast(x.device.type, self.precision) if self.precision else nullcontext():
            output = self.model(c_in * x, c_noise.flatten(), class_labels=self._one_hot(labels, x),
                                augment_labels=augment_labels)
        x0_hat = c_skip * x + c_out * output.to(dtype)
        if target_sigma is None:
            return x0_hat
        ratio = (self._per_image(target_sigma, x) / sigma).view(-1, 1, 1, 1)
        return ratio * x + (1 - ratio) * x0_hat

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @staticmethod
    def _per_image(value: Tensor | float, x: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))

    def _one_hot(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(len(x), self.label_dim)
        if labels.ndim == 1:
            labels = nn.functional.one_hot(labels.long(), self.label_dim)
        return labels.to(x.dtype).reshape(-1, self.label_dim)

    def copy(self, *, epsilon: float | None = None, dropout: float | None = None) -> "Denoiser":
        """An independent copy. A generator starts as its teacher's with `GENERATOR_EPSILON` and
        dropout 0."""
        model, config = copy.deepcopy(self.model), dict(self.config)
        if dropout is not None:
            config["dropout"] = dropout
            for block in model.modules():
                if isinstance(block, UNetBlock):
                    block.dropout = dropout
        return Denoiser(model, config, epsilon=self.epsilon if epsilon is None else epsilon)

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


def _check_ranges(config: Mapping[str, Any]) -> None:
    for name in config.keys() & _RANGES.keys():
        value, (low, high) = config[name], _RANGES[name]
        values = [value] if name not in _LISTS else value
        values = values if isinstance(values, list | tuple) else [None]
        kinds = (int, float) if name in _REALS else (int, )
        fits = all(
            isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high for v in values)
        if not fits or len(values) > _LISTS.get(name, 1):
            wanted = f"{'numbers' if name in _REALS else 'integers'} from {low:g} to {high:g}"
            several = "a list of" if name in _LISTS else "one of the"
            raise ValueError(f"{name} must be {several} {wanted}; got {str(value)[:100]}")
