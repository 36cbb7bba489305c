"""What is held in Python, as a source: a denoiser, any generator of images from latents, images in
memory."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.fid.sources import Source, Statistics, channels_first, of_denoiser, open_source
from gdd.data.images import to_uint8
from gdd.reading import quoted
from gdd.sampling import draw_latents
from gdd.weights import checkpoint

_DENOISER = ("channels", "resolution", "label_dim")
_MOST = 10.0  # of images that are meant to lie in [-1,1]; those of GANs overshoot by a half
_SAME = 0.1  # a twentieth of the range: more than rounding moves, less than another noise does


def as_source(thing: Any) -> Source | Statistics:
    """A source, a text that `open_source` knows, a denoiser with its usual sampler, or uint8 images
    (N,C,H,W), (N,H,W,C) or (N,H,W). Raises ValueError for anything else."""
    if isinstance(thing, (Source, Statistics)):
        return thing
    if isinstance(thing, (str, Path)):
        return open_source(str(thing))
    if isinstance(thing, (Tensor, np.ndarray)):
        return of_images(thing)
    if all(hasattr(thing, name) for name in _DENOISER):
        kind = type(thing).__name__
        sampler = "heun:18" if not hasattr(thing, "epsilon") else checkpoint.sampler_of(thing, {})
        return of_denoiser(thing, sampler, f"{kind}@{sampler}")(range(0))
    raise ValueError(
        "a source must be a text, a Source, uint8 images, or a denoiser with channels, resolution "
        f"and label_dim; of another generator, of_generator(f, latent_shape); got "
        f"{quoted(repr(thing), 60)}")


def of_generator(generator: Callable[..., Tensor], latent_shape: Sequence[int], name: str, *,
                 label_dim: int = 0) -> Source:
    """A source of `generator(latents) -> images` (N,C,H,W) in [-1,1], or with `label_dim` of
    `generator(latents, labels)`, class indices (N,). Image k is that of seed k: its unit latent of
    `latent_shape`, such as (512,), comes from a stream of its own.

    A module is put into evaluation mode and given latents on its own device. Raises ValueError if
    the images are none, or depend on more than their own latents: on chance, or on the batch.
    """
    device = torch.device("cpu")
    if isinstance(generator, nn.Module):
        generator.eval()
        device = next((p.device for p in generator.parameters()), device)

    def made(seeds: Sequence[int]) -> Tensor:
        latents, labels = draw_latents(seeds, latent_shape, label_dim)
        asked = [x.to(device) for x in (latents, labels) if x is not None]
        with torch.inference_mode():
            images = generator(*asked)
        return _checked(images, len(seeds), name)

    alone, (first, _) = made([0]), made([0, 1])
    if (alone[0] - first).abs().max() > _SAME:
        raise ValueError(f"{name}: image 0 is another beside image 1, or when it is made again; a "
                         "generator must take all its noise from its latents, and batch norm must "
                         "be in evaluation mode")

    def of(seeds: range) -> Source:
        def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
            for start in range(0, len(indices), batch_size):
                part = [seeds[index] for index in indices[start:start + batch_size]]
                yield to_uint8(made(part)).cpu()

        return Source(name, len(seeds), tuple(alone.shape[1:]), None, batches, seeds, of)

    return of(range(0))


def _checked(images: Any, n: int, name: str) -> Tensor:
    is_batch = isinstance(images, Tensor) and images.ndim == 4 and len(images) == n
    if not is_batch or images.shape[1] not in (1, 3) or not images.is_floating_point():
        got = (f"{images.dtype} {tuple(images.shape)}"
               if isinstance(images, Tensor) else type(images).__name__)
        raise ValueError(f"{name} must return float images ({n}, 1 or 3, H, W); got {got}")
    most = float(images.abs().max())
    if not most < _MOST:  # NaN too
        raise ValueError(f"{name} must return images in [-1,1]; got values up to {most:.3g}")
    return images


def of_images(images: Tensor | np.ndarray, name: str = "images") -> Source:
    """A source of uint8 images (N,C,H,W), (N,H,W,C) or (N,H,W) in memory. Raises ValueError on
    others."""
    array = images.cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(f"{name} must be uint8 (N,C,H,W), (N,H,W,C) or (N,H,W), and of floats in "
                         f"[-1,1] gdd.data.images.to_uint8; got {array.dtype} {list(array.shape)}")
    array = np.ascontiguousarray(channels_first(array, name))
    found = torch.from_numpy(array)

    def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        for part in torch.tensor(indices, dtype=torch.long).split(batch_size):
            yield found[part]

    content = hashlib.sha256(array.data).hexdigest()[:32]
    return Source(name, len(array), array.shape[1:], {"images": content, "shape": array.shape},
                  batches)
