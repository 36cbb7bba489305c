"""Small pictures in a csv file: a column of `CxHxW:` and the uint8 values, in base64."""

import base64
from collections.abc import Iterable

import numpy as np


def packed(images: np.ndarray) -> list[str]:
    """One text for each of uint8 images (N,C,H,W)."""
    size = "x".join(map(str, images.shape[1:]))
    return [f"{size}:{base64.b64encode(image.tobytes()).decode()}" for image in images]


def unpacked(texts: Iterable[str]) -> np.ndarray:
    """The uint8 images (N,C,H,W) of such texts. Raises ValueError on others."""
    images = []
    for text in texts:
        size, _, values = text.partition(":")
        images.append(
            np.frombuffer(base64.b64decode(values, validate=True), np.uint8).reshape([
                int(x) for x in size.split("x")]))
    return np.stack(images)
