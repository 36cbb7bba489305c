"""CIFAR-10's python batches, a folder or the published archive: pickles in a tar, read as data.

Of the archive only the batches of a split are looked at, as plain members; links, long names and
the extensions of newer tars are passed over, and so are never followed or believed.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from gdd.reading import Budget, open_regular, quoted, read_regular
from gdd.weights.unpickle import Names, array, read

Split = Literal["train", "test"]
BATCHES: dict[Split, list[str]] = {
    "train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_BATCH = 1 << 26  # bytes; a published one has 31 million
_ARCHIVE = 1 << 28  # bytes unpacked; the published one has 186 million
Batch = tuple[np.ndarray, list[int]]


def read_cifar_folder(path: Path, split: Split = "train") -> list[Batch]:
    """The batches; raises FileNotFoundError, or ValueError naming the file."""
    return [_batch(path / name, read_regular(path / name, _BATCH)) for name in BATCHES[split]]


def read_cifar_archive(path: Path, split: Split = "train") -> list[Batch]:
    """The batches; raises ValueError naming the archive and what is wrong."""
    names = BATCHES[split]
    try:
        with open_regular(path) as file, gzip.GzipFile(fileobj=file) as archive:
            found = {
                name: _batch(path, content, f": {name}")
                for name, content in _members(archive, names)}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{quoted(path)} is not a whole cifar-10-python.tar.gz: {quoted(error)}") from None
    if lacking := [name for name in names if name not in found]:
        raise ValueError(f"{quoted(path)} is not cifar-10-python.tar.gz: it lacks {lacking[0]}")
    return [found[name] for name in names]


def _members(archive: gzip.GzipFile, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the batches in an unpacked tar. Raises TarError, or as gzip does."""
    budget, folder = Budget(bytes=_ARCHIVE, entries=1000), "cifar-10-batches-py/"
    while (block := archive.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        name, padding = member.name.removeprefix(folder), -member.size % tarfile.BLOCKSIZE
        wanted = name in names and name != member.name
        try:
            budget.charge(bytes=member.size + padding, entries=1)
            Budget(bytes=_BATCH if wanted else _ARCHIVE).charge(bytes=member.size)
        except ValueError as error:
            raise tarfile.TarError(f"{quoted(member.name)}: {error}") from None
        if wanted and member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise tarfile.TarError(f"{name} is not a plain file")
        if wanted:
            yield name, archive.read(member.size)
            member.size = 0
        archive.seek(member.size + padding, io.SEEK_CUR)


def _batch(path: Path, content: bytes, name: str = "") -> Batch:
    try:
        return read_cifar_batch(io.BytesIO(content), len(content))
    except ValueError as error:
        raise ValueError(f"{quoted(path)}{name} {quoted(error, 250)}") from None


def read_cifar_batch(file: BinaryIO, size: int) -> Batch:
    """One batch of `size` bytes: uint8 images (N,3,32,32) and their classes. Raises ValueError."""
    content = read(file, Names(size))
    if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
        raise ValueError("is no CIFAR-10 batch: it has no data and labels")
    try:
        images, labels = array(content["data"]), content["labels"]
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
            RuntimeError) as error:
        raise ValueError(f"is no CIFAR-10 batch: {quoted(error)}") from None
    if images.ndim != 2 or images.shape[1] != 3072 or images.dtype != np.uint8:
        raise ValueError(f"is no CIFAR-10 batch: its data are {images.dtype} {list(images.shape)}")
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k < 10 for k in labels):
        raise ValueError("is no CIFAR-10 batch: its labels are not in 0..9")
    if len(labels) != len(images):
        raise ValueError(f"is no CIFAR-10 batch: {len(labels)} labels for {len(images)} images")
    return images.reshape(-1, 3, 32, 32), labels
