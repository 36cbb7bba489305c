"""Where pictures come from: a folder, a zip in EDM's layout, or CIFAR-10's python batches; decoded
one at a time, and safely.

Nothing is extracted to disk, nothing is trusted: names that climb out of an archive, sizes that
only a bomb declares, and files that do not decode are refused by name. Four decoders are ever
asked, whatever a file is called: PNG, JPEG, WebP and BMP.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np
from PIL import Image, UnidentifiedImageError

from gdd.config import BUNDLED
from gdd.data.cifar import BATCHES, Batch, Split, read_cifar_archive, read_cifar_folder
from gdd.reading import METADATA, open_regular, quoted, read_json, read_regular, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# 5792 x 5792; the largest picture of the paper's data sets has two fifths of them
MAX_PIXELS = 1 << 25
MAX_BYTES = 1 << 27  # of one picture's file
_MAX_SCANNED = 1 << 29  # pixels times scans of a progressive JPEG, which has some ten
_MAX_CLASS = 1_000_000
_KINDS = "data must be digits, a folder, a zip, or cifar-10-python.tar.gz"
# MAX_PIXELS is the stricter rule
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Listed(TypedDict):
    """dataset.json."""

    labels: list[Any] | None


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

    def at(self, index: int) -> str:
        """Which picture it is, as a message names it."""
        return f"{quoted(self.path)}: {quoted(self.names[index], 120)}"

    def picture(self, index: int) -> Image.Image:
        """The decoded picture at `index`. Raises ValueError saying which file is wrong and why."""
        try:
            picture = self.open(index)
            if picture.mode.startswith(("I", "F")) or ";16" in str(getattr(
                    picture, "tile", "")):  # Pillow would cut 16 bits down to 8 in silence
                raise ValueError("it has more than 8 bits per channel")
            picture.load()
        except Exception as error:  # decoders of hostile bytes raise anything
            reason = "not enough memory" if isinstance(error, MemoryError) else quoted(error, 120)
            raise ValueError(f"{self.at(index)} cannot be read as an image: {reason}") from None
        return picture

    def plain(self, index: int) -> Image.Image:
        """The 8-bit grey or RGB picture at `index`; any other mode is a ValueError."""
        picture = self.picture(index)
        if picture.mode not in ("L", "RGB"):
            raise ValueError(f"{self.at(index)} has mode {picture.mode}; images must be 8-bit grey "
                             "(L) or RGB (gdd data prepare --rgb converts)")
        return picture

    def array(self, index: int) -> np.ndarray:
        """Pixels uint8 (C,H,W) of `plain(index)`."""
        pixels = np.asarray(self.plain(index))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def describe_shape(shape: tuple[int, ...]) -> str:
    """`32x32 RGB` of (C,H,W)."""
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def check_path(spec: Path | str) -> None:
    """Raise FileNotFoundError or ValueError if there is neither a file nor a folder."""
    if str(spec) in BUNDLED or Path(spec).is_dir():
        return
    try:
        open_regular(spec).close()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_KINDS}; {error}") from None


def open_pictures(spec: Path | str, split: Split = "train") -> Pictures:
    """The pictures at a path, of CIFAR-10's batches those of a split. Raises FileNotFoundError or
    ValueError with what is wrong and where."""
    path = Path(spec)
    if path.is_dir():
        cifar = (path / BATCHES[split][0]).is_file()
        return _cifar(path, read_cifar_folder(path, split), split) if cifar else _folder(path)
    check_path(path)
    with open_regular(path) as file:
        # zipfile's own look at the end: None, or a record whose sixth field is the list's size
        end = zipfile._EndRecData(file) if zipfile.is_zipfile(file) else None  # type: ignore
    if end:
        return _zip(path, end[5])
    if path.name.endswith((".tar.gz", ".tgz")):
        return _cifar(path, read_cifar_archive(path, split), split)
    raise ValueError(f"{_KINDS}; {quoted(path)} is another kind of file")


def _folder(path: Path) -> Pictures:
    files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file()}
    names = [name for name in files if _is_picture(name)]
    labels = None
    if "dataset.json" in files:
        labels = _listed_labels(path, names, read_regular(files["dataset.json"], METADATA))
    else:  # EDM's rule: classes are the top-level folders, in alphabetical order
        tops = [name.split("/")[0] if "/" in name else "" for name in names]
        classes = {top: index for index, top in enumerate(sorted(set(tops)))}
        labels = [classes[top] for top in tops] if len(classes) > 1 else None
    return _made(path, names, labels, lambda name: read_regular(files[name], MAX_BYTES))


def _zip(path: Path, listing: int) -> Pictures:
    try:
        # zipfile makes ten times as much of the list; EDM's names are a tenth of 16x16 pictures
        if listing > max(1 << 24, path.stat().st_size // 5):
            raise ValueError(f"its list of entries has {listing:,} bytes")
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises seven kinds
        raise ValueError(f"{quoted(path)} is a damaged zip: {quoted(error)}") from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    for name in entries:  # both kinds of separators, and drives
        if re.search(r"^[/\\]|^.?:|(^|[/\\])\.\.($|[/\\])", name):
            raise ValueError(f"{quoted(path)}: the name {shown(name)} leads out of the archive")
    if len(entries) != len(archive.infolist()):
        twice = len(archive.infolist()) - len(entries)
        raise ValueError(f"{quoted(path)} is a damaged zip: it holds {twice} names twice")

    def read(name: str) -> bytes:
        entry = entries[name]
        if entry.file_size > MAX_BYTES:
            raise ValueError(f"it unpacks to {entry.file_size:,} bytes")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is packed otherwise than stored or deflated")
        return archive.read(name)

    names = sorted(name for name in entries if _is_picture(name))
    labels = None
    if "dataset.json" in entries:
        try:
            content = read("dataset.json")
        except Exception as error:  # a damaged or encrypted entry
            raise ValueError(
                f"{quoted(path)}: dataset.json cannot be read: {quoted(error)}") from None
        labels = _listed_labels(path, names, content)
    return _made(path, names, labels, read)


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


def _listed_labels(path: Path, names: Sequence[str], content: bytes) -> list[int] | None:
    """Labels in the order of `names` from `{"labels": [[name, class], ...]}`; null means none."""
    where = f"{quoted(path)}: dataset.json"
    shape = f'{where} is not {{"labels": [[name, class], ...]}}'
    try:
        listed = read_json(content, Listed, "it")["labels"]
        # dict() would take a mapping
        pairs = {name: label for name, label in listed or ()}  # noqa: C416
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shape}: {quoted(error)}") from None
    if listed is None:
        return None
    for name, label in pairs.items():
        if type(name) is not str or type(label) is not int or not 0 <= label < _MAX_CLASS:
            raise ValueError(f"{shape}: class {shown(label)} of {shown(name)} is not a count from "
                             f"0, below {_MAX_CLASS:,}")
    if unlabelled := [name for name in names if name not in pairs]:
        raise ValueError(f"{where} has no label for {quoted(unlabelled[0])} and "
                         f"{len(unlabelled) - 1} more")
    if len(pairs) < len(listed) or len(pairs) > len(names):
        odd = sorted(pairs.keys() - set(names)) or ["a name twice"]
        raise ValueError(f"{where} lists {quoted(odd[0])}, which the data set does not hold so")
    return [pairs[name] for name in names]


def _cifar(path: Path, batches: Sequence[Batch], split: Split) -> Pictures:
    images = np.concatenate([images for images, _ in batches]).transpose(0, 2, 3, 1)  # (N,32,32,3)
    names = [
        f"{name}[{index}]" for name, (part, _) in zip(BATCHES[split], batches, strict=True)
        for index in range(len(part))]
    labels = [label for _, part in batches for label in part]
    return _filled(
        Pictures(path, names, labels,
                 lambda index: Image.fromarray(np.ascontiguousarray(images[index]))))


def _made(path: Path, names: Sequence[str], labels: Sequence[int] | None,
          read: Callable[[str], bytes]) -> Pictures:
    return _filled(Pictures(path, names, labels, lambda index: _opened(read(names[index]))))


def _filled(pictures: Pictures) -> Pictures:
    if not pictures.names:
        raise ValueError(f"{quoted(pictures.path)} holds no images ({', '.join(SUFFIXES)})")
    return pictures


def _opened(content: bytes) -> Image.Image:
    """The picture that a file holds, undecoded; what decoding it would take is bounded."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("only PNG, JPEG, WebP and BMP are read, and it is none of these") from None
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"it declares {picture.width}x{picture.height} pixels")
    if picture.format == "JPEG" and content.count(b"\xff\xda") * pixels > _MAX_SCANNED:
        raise ValueError(f"it has {content.count(bytes.fromhex('ffda'))} scans")
    return picture
