"""CIFAR-10's python batches, which are pickles, read as data."""

from typing import BinaryIO

import numpy as np

from gdd.weights.unpickle import Names, array, read


def read_cifar_batch(file: BinaryIO, size: int) -> tuple[np.ndarray, list[int]]:
    """One batch of `size` bytes: uint8 images (N,3,32,32) and their classes. Raises ValueError."""
    content = read(file, Names(size))
    if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
        raise ValueError("is no CIFAR-10 batch: it has no data and labels")
    try:
        images, labels = array(content["data"]), content["labels"]
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
            RuntimeError) as error:
        raise ValueError(f"is no CIFAR-10 batch: {error}") from None
    if images.ndim != 2 or images.shape[1] != 3072 or images.dtype != np.uint8:
        raise ValueError(f"is no CIFAR-10 batch: its data are {images.dtype} {list(images.shape)}")
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k < 10 for k in labels):
        raise ValueError("is no CIFAR-10 batch: its labels are not in 0..9")
    if len(labels) != len(images):
        raise ValueError(f"is no CIFAR-10 batch: {len(labels)} labels for {len(images)} images")
    return images.reshape(-1, 3, 32, 32), labels
