"""The arrays of .npy and .npz files, one at a time and only when asked for: what a header declares
is held against the file before a byte is unpacked."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from gdd.reading import Budget, open_regular, quoted

_HEAD = 1 << 16  # bytes in which a header must end
_ENTRIES, _DIRECTORY = 1000, 1 << 18  # arrays of an .npz, and the bytes of its list of them
# what zipfile, zlib and numpy raise over files that are none of theirs
_BROKEN = (ValueError, SyntaxError, TypeError, ArithmeticError, LookupError, RecursionError,
           MemoryError, EOFError, tokenize.TokenError, OSError, RuntimeError, zipfile.BadZipFile,
           zlib.error)


@dataclass(frozen=True)
class Header:
    """What an array says of itself. `size` is of its data, in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    order: str  # F or C
    start: int  # of the data in its entry

    @property
    def size(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def array_headers(path: Path) -> dict[str, Header]:
    """By name, "" in an .npy. Raises FileNotFoundError or ValueError."""
    with _entries(path) as entries:
        found = {}
        for name, entry in entries.items():
            with _opened(entry) as file:
                found[name] = _header(file, entry[1])
        return found


def read_array(path: Path, name: str, budget: Budget) -> np.ndarray:
    """The array of that name, charged before it is read."""
    with _entries(path) as entries, _opened(entries[name]) as file:
        header = _header(file, entries[name][1])
        if header.dtype.hasobject:
            raise ValueError("it holds Python objects")
        budget.charge(bytes=header.size)
        file.seek(header.start)
        data = np.empty(header.size, np.uint8)
        view, done = memoryview(data), 0  # type: ignore[arg-type]
        while part := file.readinto(view[done:done + (1 << 20)]):  # type: ignore[attr-defined]
            done += part
        if done < len(data):
            raise EOFError(f"array {quoted(name)} is cut short")
        return data.view(header.dtype).reshape(header.shape, order=header.order)  # type: ignore


def mapped_array(path: Path, header: Header) -> np.ndarray:
    """The array of an .npy, which stays on disk until it is looked at."""
    return np.memmap(path, header.dtype, "r", header.start, header.shape,
                     header.order)  # type: ignore[call-overload]


Entry = tuple[zipfile.ZipFile | None, int, IO[bytes] | zipfile.ZipInfo]


@contextmanager
def _entries(path: Path) -> Iterator[dict[str, Entry]]:
    """(archive, bytes, file or entry) by name; whatever is wrong in here is a ValueError."""
    with open_regular(path) as file:
        try:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                yield {"": (None, file.seek(0, io.SEEK_END), file)}
                return
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
            if end and end[5] > _DIRECTORY:  # zipfile would read it whole, and make objects of it
                raise ValueError(f"its directory takes {end[5]:,} bytes")
            with zipfile.ZipFile(file) as archive:
                listed = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                if len(listed) > _ENTRIES or len({i.filename for i in listed}) < len(listed):
                    raise ValueError(f"it holds {len(listed)} arrays, or two of one name")
                yield {info.filename[:-4]: (archive, info.file_size, info) for info in listed}
        except _BROKEN as error:
            raise ValueError(f"{quoted(path)} is not a plain {path.suffix} file: "
                             f"{quoted(error, 150) or type(error).__name__}") from None


@contextmanager
def _opened(entry: Entry) -> Iterator[IO[bytes]]:
    archive, _, place = entry
    if archive is None or not isinstance(place, zipfile.ZipInfo):
        yield place  # type: ignore[misc]
        return
    if place.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed in a way that numpy never does")
    with archive.open(place) as file:
        yield file


def _header(file: IO[bytes], size: int) -> Header:
    """Of an entry of `size` bytes. Its length is not believed: only so much is read."""
    file.seek(0)
    head = io.BytesIO(file.read(min(size, _HEAD)))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a header of version {version}, which only structures need")
    read = (np.lib.format.read_array_header_1_0
            if version == (1, 0) else np.lib.format.read_array_header_2_0)
    shape, fortran, dtype = read(head)
    header = Header(dtype, tuple(map(int, shape)), "F" if fortran else "C", head.tell())
    if len(shape) > 32 or not all(0 <= length < 1 << 40 for length in header.shape):
        raise ValueError("its shape is none that numpy makes")
    if not dtype.hasobject and header.start + header.size != size:
        raise ValueError(f"its data takes {size - header.start:,} bytes, not the {header.size:,} "
                         f"that {quoted(str(header), 60)} takes")
    return header
