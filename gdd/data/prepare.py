"""Data sets on disk: `prepare` writes EDM's zip layout from folders, zips, CIFAR-10's batches;
`check` reports what a set holds.

A prepared zip holds stored, uncompressed PNGs `00000/img00000000.png`, ... and `dataset.json` with
`{"labels": [[name, class], ...]}`, or null, so that EDM's own tools read it too.
"""

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm.auto import tqdm

from gdd.data.cifar import Split
from gdd.data.pictures import Pictures, describe_shape, open_pictures
from gdd.files import write_atomically
from gdd.reading import quoted

Transform = Literal["none", "center-crop"]
MOST_PROBLEMS = 1000


def prepare(source: Path | str, target: Path | str, *, resolution: int | None = None,
            transform: Transform = "none", rgb: bool = False, max_images: int | None = None,
            split: Split = "train") -> int:
    """Write `source` as a zip in EDM's layout; returns the number of images.

    `resolution` resizes by Lanczos to that square; `center-crop` cuts the middle square first, as
    EDM does for ImageNet; else a picture that is not square is refused. `rgb` converts 8-bit grey,
    palette, CMYK and alpha pictures. `split` is of CIFAR-10's batches.
    The zip appears whole or not at all. Raises FileExistsError,
    FileNotFoundError, or ValueError naming the picture.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists; name another file or delete it")
    if target.suffix != ".zip":
        raise ValueError(f"the data set is written as a zip; got {target}")
    for name, value in (("resolution", resolution), ("max_images", max_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if transform == "center-crop" and resolution is None:
        raise ValueError("center-crop needs a resolution")
    pictures = open_pictures(source, split)
    count = min(len(pictures), max_images or len(pictures))

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            labels, shape = [], None
            for index in tqdm(range(count), unit="image", desc=target.name, disable=None):
                image = _transformed(pictures, index, resolution, transform, rgb)
                if shape not in (None, (image.mode, image.size)):
                    raise ValueError(f"{pictures.at(index)} is {_described(image)}, but "
                                     f"{quoted(pictures.names[0])} is otherwise; give --resolution,"
                                     " and --rgb where grey and colour mix")
                shape = (image.mode, image.size)
                name, content = f"{index // 1000:05d}/img{index:08d}.png", io.BytesIO()
                image.save(content, "png", compress_level=0)  # decodes fastest
                archive.writestr(name, content.getvalue())
                labels.append([name, pictures.labels[index]] if pictures.labels else None)
            listed = {"labels": labels if pictures.labels else None}
            archive.writestr("dataset.json", json.dumps(listed))

    write_atomically(target, write)
    return count


def _transformed(pictures: Pictures, index: int, resolution: int | None, transform: Transform,
                 rgb: bool) -> Image.Image:
    image = pictures.picture(index).convert("RGB") if rgb else pictures.plain(index)
    width, height = image.size
    if transform == "center-crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif width != height:
        raise ValueError(f"{pictures.at(index)} is {_described(image)}, not square; give "
                         "--transform center-crop and --resolution")
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return image


def _described(image: Image.Image) -> str:
    return describe_shape((len(image.getbands()), image.height, image.width))


@dataclass
class Report:
    """What `check` found; `problems` are one line each, in order, of which there may be
    MOST_PROBLEMS."""

    count: int
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)  # (C,H,W) -> images
    labels: Counter[int] = field(default_factory=Counter)
    # (picture, the earlier one with the same pixels)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    digest: str = ""

    def lines(self) -> Iterator[str]:
        shapes = [f"{n:,} of {describe_shape(s)}" for s, n in self.shapes.most_common()]
        yield f"{self.count:,} images: {', '.join(shapes) or 'none'}"
        if self.labels:
            known, counts = sorted(self.labels), Counter(self.labels.values())
            line = "images per class: " + ", ".join(f"{k}: {self.labels[k]:,}" for k in known[:10])
            if len(known) > 10:
                line += f", ... ({len(known):,} classes of {min(counts):,} to {max(counts):,})"
            if missing := known[-1] + 1 - len(known):
                line += f"; {missing} classes below {known[-1]} have none"
            yield line
        else:
            yield "no labels"
        first = ", first {} = {}".format(
            *map(quoted, self.duplicates[0])) if self.duplicates else ""
        yield (f"{len(self.duplicates):,} duplicates{first}; digest of pixels and labels "
               f"{self.digest}")


def check(source: Path | str) -> Report:
    """Decode every picture of a data set once, holding none. Raises FileNotFoundError or ValueError
    if it is no data set."""
    pictures = open_pictures(source)
    report = Report(len(pictures), labels=Counter(pictures.labels or ()))
    seen: dict[bytes, int] = {}
    whole = hashlib.sha256(json.dumps(pictures.labels).encode())
    for index in tqdm(range(len(pictures)), unit="image", desc=pictures.path.name, disable=None):
        try:
            pixels = pictures.array(index)
        except ValueError as error:
            report.problems.append(str(error))
            if len(report.problems) == MOST_PROBLEMS:
                report.problems.append(f"{quoted(pictures.path)}: nothing was read after these")
                break
            continue
        report.shapes[pixels.shape] += 1
        key = hashlib.blake2b(pixels.tobytes(), digest_size=16, salt=str(
            pixels.shape[-1]).encode()).digest()
        whole.update(key)
        if (first := seen.setdefault(key, index)) != index:
            report.duplicates.append((pictures.names[index], pictures.names[first]))
    if len(report.shapes) > 1:
        sizes = ", ".join(describe_shape(shape) for shape in report.shapes)
        report.problems.append(f"{quoted(pictures.path)}: images differ in size or colour: {sizes}")
    report.digest = whole.hexdigest()[:16]
    return report
