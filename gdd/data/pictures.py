"""Where pictures come from: a folder, a zip in EDM's layout, or CIFAR-10's python batches; decoded
one at a time, and safely.

Nothing is extracted to disk, nothing is trusted: names that climb out of an archive, sizes that
only a bomb declares, and files that do not decode are refused by name.
"""

import io
import json
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from gdd.data.cifar import read_cifar_batch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# 8192 x 8192; the largest picture of the paper's data sets has a fifth of them
MAX_PIXELS = 1 << 26
MAX_BYTES = 1 << 28  # of one file; also of dataset.json, four times ImageNet's
CIFAR_BATCHES = [f"data_batch_{k}" for k in range(1, 6)]
# MAX_PIXELS is the stricter rule
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Pictures:
    """Named pictures in a fixed order, opened on demand; `labels` are class indices, one per
    picture, or None."""

    path: Path
    names: Sequence[str]
    labels: Sequence[int] | None
    # the undecoded picture at an index; raises what the decoder raises
    open: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image.Image:
        """The decoded picture at `index`. Raises ValueError saying which file is wrong and why."""
        try:
            picture = self.open(index)
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"it declares {picture.width}x{picture.height} pixels")
            if picture.mode.startswith(("I", "F")) or ";16" in str(getattr(
                    picture, "tile", "")):  # Pillow would cut 16 bits down to 8 in silence
                raise ValueError("it has more than 8 bits per channel")
            picture.load()
        except MemoryError:
            raise ValueError(
                f"{self.path}: {self.names[index]} cannot be read as an image: not enough memory"
            ) from None
        except Exception as error:  # decoders of hostile bytes raise anything
            raise ValueError(
                f"{self.path}: {self.names[index]} cannot be read as an image: {error}") from None
        return picture

    def array(self, index: int) -> np.ndarray:
        """Pixels uint8 (C,H,W) of the 8-bit grey or RGB picture at `index`; any other mode is a
        ValueError."""
        picture = self.picture(index)
        if picture.mode not in ("L", "RGB"):
            raise ValueError(
                f"{self.path}: {self.names[index]} has mode {picture.mode}; images must be 8-bit "
                "grey (L) or RGB (gdd data prepare --rgb converts)")
        pixels = np.asarray(picture)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def open_pictures(spec: Path | str) -> Pictures:
    """The pictures at a path. Raises FileNotFoundError or ValueError with what is wrong and
    where."""
    path, kinds = Path(spec), "data must be digits, a folder, a zip, or cifar-10-python.tar.gz"
    if not path.exists():
        raise FileNotFoundError(f"{kinds}; {str(spec)!r} does not exist")
    if path.is_dir():
        cifar = path / CIFAR_BATCHES[0]
        return _cifar_folder(path) if cifar.is_file() else _folder(path)
    if zipfile.is_zipfile(path):
        return _zip(path)
    if path.name.endswith((".tar.gz", ".tgz")):
        return _cifar_archive(path)
    raise ValueError(f"{kinds}; {str(spec)!r} is another kind of file")


def _folder(path: Path) -> Pictures:
    files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file()}
    names = [name for name in files if _is_picture(name)]
    labels = None
    if "dataset.json" in files:
        labels = _listed_labels(path, names, files["dataset.json"].read_bytes())
    else:  # EDM's rule: classes are the top-level folders, in alphabetical order
        tops = [name.split("/")[0] if "/" in name else "" for name in names]
        classes = {top: index for index, top in enumerate(sorted(set(tops)))}
        labels = [classes[top] for top in tops] if len(classes) > 1 else None
    return _made(path, names, labels, lambda index: Image.open(files[names[index]]))


def _zip(path: Path) -> Pictures:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is a damaged zip: {error}") from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    for name in entries:
        # knows both kinds of separators, and drives
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise ValueError(f"{path}: the name {name!r} leads out of the archive")
    if len(entries) != len(archive.infolist()):
        twice = len(archive.infolist()) - len(entries)
        raise ValueError(f"{path} is a damaged zip: it holds {twice} names twice")

    def read(name: str) -> bytes:
        if entries[name].file_size > MAX_BYTES:
            raise ValueError(f"it unpacks to {entries[name].file_size:,} bytes")
        return archive.read(name)

    names = sorted(name for name in entries if _is_picture(name))
    labels = None
    if "dataset.json" in entries:
        try:
            content = read("dataset.json")
        except Exception as error:  # a damaged or encrypted entry
            raise ValueError(f"{path}: dataset.json cannot be read: {error}") from None
        labels = _listed_labels(path, names, content)
    return _made(path, names, labels, lambda index: Image.open(io.BytesIO(read(names[index]))))


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


def _listed_labels(path: Path, names: Sequence[str], content: bytes) -> list[int] | None:
    """Labels in the order of `names` from `{"labels": [[name, class], ...]}`; null means none."""
    shape = f'{path}: dataset.json is not {{"labels": [[name, class], ...]}}'
    try:
        listed = json.loads(content)["labels"]
        # dict() would take a mapping
        pairs = None if listed is None else {name: label for name, label in listed}  # noqa: C416
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{shape}: {error}") from None
    if listed is None or pairs is None:
        return None
    for name, label in pairs.items():
        if type(name) is not str or type(label) is not int or label < 0:
            raise ValueError(f"{shape}: class {label!r} of {name!r} is not a count from 0")
    if unlabelled := [name for name in names if name not in pairs]:
        raise ValueError(
            f"{path}: dataset.json has no label for {unlabelled[0]} and {len(unlabelled) - 1} more")
    if len(pairs) < len(listed) or len(pairs) > len(names):
        odd = sorted(pairs.keys() - set(names)) or ["a name twice"]
        raise ValueError(
            f"{path}: dataset.json lists {odd[0]}, which the data set does not hold so")
    return [pairs[name] for name in names]


def _cifar_folder(path: Path) -> Pictures:
    def opened(name: str) -> tuple[np.ndarray, list[int]]:
        try:
            with (path / name).open("rb") as file:
                return read_cifar_batch(file, (path / name).stat().st_size)
        except ValueError as error:
            raise ValueError(f"{path / name} {error}") from None

    return _cifar(path, [opened(name) for name in CIFAR_BATCHES])


def _cifar_archive(path: Path) -> Pictures:
    batches = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for name in CIFAR_BATCHES:
                member = archive.getmember(f"cifar-10-batches-py/{name}")
                if member.size > MAX_BYTES:
                    raise ValueError(f"{path}: {name} unpacks to {member.size:,} bytes")
                file = archive.extractfile(member)
                if file is None:
                    raise ValueError(f"{path}: {name} is not a file")
                try:
                    batches.append(read_cifar_batch(io.BytesIO(file.read()), member.size))
                except ValueError as error:
                    raise ValueError(f"{path}: {name} {error}") from None
    except KeyError as error:
        raise ValueError(f"{path} is not cifar-10-python.tar.gz: {error.args[0]}") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole cifar-10-python.tar.gz: {error}") from None
    return _cifar(path, batches)


def _cifar(path: Path, batches: Sequence[tuple[np.ndarray, list[int]]]) -> Pictures:
    images = np.concatenate([images for images, _ in batches]).transpose(0, 2, 3, 1)  # (N,32,32,3)
    names = [
        f"{name}[{index}]" for name, (part, _) in zip(CIFAR_BATCHES, batches, strict=True)
        for index in range(len(part))]
    labels = [label for _, part in batches for label in part]
    return _made(path, names, labels,
                 lambda index: Image.fromarray(np.ascontiguousarray(images[index])))


def _made(path: Path, names: Sequence[str], labels: Sequence[int] | None,
          opener: Callable[[int], Image.Image]) -> Pictures:
    if not names:
        raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return Pictures(path, names, labels, opener)
