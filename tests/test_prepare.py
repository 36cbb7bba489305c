"""Data sets in and out: what is prepared is what EDM's tool would have made, and what is wrong is
named."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image
from test_data import png, write_zip

from gdd.data import pictures
from gdd.data.images import Streamed, open_images
from gdd.data.pictures import open_pictures
from gdd.data.prepare import check, prepare


def picture(seed, size=(12, 9), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="png", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def test_center_crop_and_lanczos_are_those_of_edms_tool(tmp_path):
    images = [picture(0, (40, 31)), picture(1, (31, 40)), picture(2, (33, 33))]
    folder = write_folder(tmp_path / "in",
                          {f"{k}.png": encoded(image) for k, image in enumerate(images)})
    prepare(folder, tmp_path / "out.zip", resolution=8, transform="center-crop")
    found = open_images(str(tmp_path / "out.zip")).images
    for image, result in zip(images, found, strict=True):
        pixels, crop = np.asarray(image), min(image.size)
        h, w = pixels.shape[:2]
        middle = pixels[(h - crop) // 2:(h + crop) // 2, (w - crop) // 2:(w + crop) // 2]
        wanted = np.asarray(
            Image.fromarray(np.ascontiguousarray(middle)).resize((8, 8), Image.Resampling.LANCZOS))
        assert np.array_equal(result.permute(1, 2, 0).numpy(), wanted)


def test_a_prepared_zip_has_edms_layout(tmp_path):
    files = {
        f"{name}/x/{k}.png": encoded(picture(k, (8, 8))) for name in ("dog", "cat") for k in (0, 1)}
    folder = write_folder(tmp_path / "in", files | {"cat/._0.png": b"x", "notes.txt": b"x"})
    assert prepare(folder, tmp_path / "out.zip") == 4
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == [f"00000/img{k:08d}.png" for k in range(4)] + ["dataset.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        labels = json.loads(archive.read("dataset.json"))["labels"]
    # cat before dog: alphabetical
    assert labels == [[f"00000/img{k:08d}.png", k // 2] for k in range(4)]
    from_folder, from_zip = open_images(str(folder)), open_images(str(tmp_path / "out.zip"))
    assert torch.equal(from_folder.images, from_zip.images)
    assert from_folder.labels.tolist() == from_zip.labels.tolist() == [0, 0, 1, 1]
    assert prepare(tmp_path / "out.zip", tmp_path / "again.zip", max_images=3) == 3


def test_grey_cmyk_and_palette_become_rgb_when_asked(tmp_path):
    modes = {"a.png": "RGB", "b.png": "L", "c.jpg": "CMYK", "d.png": "P", "e.png": "RGBA"}
    files = {
        n: encoded(picture(0, (8, 8), m), "jpeg" if n.endswith("jpg") else "png")
        for n, m in modes.items()}
    folder = write_folder(tmp_path / "in", files)
    assert prepare(folder, tmp_path / "out.zip", rgb=True) == 5
    found = open_images(str(tmp_path / "out.zip")).images
    assert found.shape == (5, 3, 8, 8)
    for name, result in zip(modes, found, strict=True):
        wanted = np.asarray(Image.open(folder / name).convert("RGB"))
        assert np.array_equal(result.permute(1, 2, 0).numpy(), wanted)


def cifar_batch(k, n=4):
    rng = np.random.default_rng(k)
    return {
        "data": rng.integers(0, 256, (n, 3072), np.uint8), "labels": rng.integers(0, 10,
                                                                                  n).tolist()}


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10's python batches, a few images each, as a folder and as the archive it is published
    as."""
    folder = tmp_path / "cifar-10-batches-py"
    write_folder(folder, {f"data_batch_{k}": pickle.dumps(cifar_batch(k), 2) for k in range(1, 6)})
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    return folder, tmp_path / "cifar-10-python.tar.gz"


def test_cifar_batches_become_a_zip(cifar, tmp_path):
    for source in cifar:
        target = tmp_path / f"{source.name}.zip"
        assert prepare(source, target) == 20
        found = open_images(str(target))
        batch = cifar_batch(3)
        assert torch.equal(found.images[8:12], torch.from_numpy(batch["data"].reshape(4, 3, 32,
                                                                                      32)))
        assert found.labels[8:12].tolist() == batch["labels"]


def test_check_reports_what_a_set_holds(tmp_path):
    files = {f"{k}.png": encoded(picture(k % 5, (8, 8))) for k in range(7)}
    listed = json.dumps({"labels": [[name, (0, 2)[k % 2]] for k, name in enumerate(files)]})
    path = write_zip(tmp_path / "a.zip", files | {"dataset.json": listed})
    report = check(path)
    text = "\n".join(report.lines())
    assert report.problems == []
    assert "7 images: 7 of 8x8 RGB" in text
    assert "images per class: 0: 4, 2: 3; 1 classes below 2 have none" in text
    assert "2 duplicates, first 5.png = 0.png" in text
    assert check(path).digest == report.digest
    files["3.png"] = encoded(picture(99, (8, 8)))
    assert check(write_zip(tmp_path / "b.zip",
                           files | {"dataset.json": listed})).digest != report.digest


# --- what is wrong


def sixteen_bit_rgb():
    """An 8x8 RGB PNG of 16 bits per channel, which Pillow would open as 8-bit RGB without a
    word."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(side):
    """A small PNG that declares `side` x `side` pixels."""
    content = bytearray(png())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


GOOD = png()
BAD = {
    "truncated png": ({"b.png": encoded(picture(
        0, (64, 64)))[:900]}, "b.png cannot be read as an image"),
    "truncated jpeg": ({"b.jpg": encoded(picture(0, (64, 64)),
                                         "jpeg")[:900]}, "b.jpg cannot be read as an image"),
    "broken checksum": ({"b.png":
                         GOOD[:40] + b"\xff" + GOOD[41:]}, "b.png cannot be read as an image"),
    "grey among colour":
    ({"b.png":
      png(mode="L")}, "b.png is 8x8 grey, but a.png|b.png is 8x8 grey|differ in size or colour"),
    "alpha": ({"b.png": png(mode="RGBA")}, "b.png has mode RGBA"),
    "palette": ({"b.png": png(mode="P")}, "b.png has mode P"),
    "cmyk": ({"b.jpg": encoded(picture(0, (8, 8), "CMYK"), "jpeg")}, "b.jpg has mode CMYK"),
    "16 bit grey": ({"b.png": encoded(Image.fromarray(np.zeros(
        (8, 8), np.uint16)))}, "b.png .* more than 8 bits per channel"),
    "16 bit colour": ({"b.png": sixteen_bit_rgb()}, "b.png .* more than 8 bits per channel"),
    "decompression bomb": ({"b.png": bomb(9_000)}, "b.png .* declares 9000x9000 pixels"),
    "larger bomb": ({"b.png": bomb(30_000)}, "b.png .* could be decompression bomb"),
    "other size": ({"b.png": png((9, 9))}, "9x9 RGB"),
    "climbing name": ({"../b.png": GOOD}, r"'\.\./b\.png' leads out of the archive"),
    "absolute name": ({"/tmp/b.png": GOOD}, "leads out of the archive"),
    "drive": ({"C:\\b.png": GOOD}, "leads out of the archive"),
    "json: text": ({"dataset.json": b"labels"}, "dataset.json is not"),
    "json: list": ({"dataset.json": b"[1]"}, "dataset.json is not"),
    "json: shape": ({"dataset.json": b'{"labels": [["a.png"]]}'}, "dataset.json is not"),
    "json: class name": ({"dataset.json":
                          b'{"labels": [["a.png", "cat"]]}'}, "class 'cat' of 'a.png'"),
    "json: negative": ({"dataset.json": b'{"labels": [["a.png", -1]]}'}, "class -1 of 'a.png'"),
    "json: nested": ({"dataset.json": b"[" * 100_000}, "dataset.json is not"),
    "json: missing": ({"dataset.json": b'{"labels": []}'}, "no label for a.png"),
    "json: more": ({"dataset.json":
                    b'{"labels": [["a.png", 0], ["../c.png", 1]]}'}, r"lists \.\./c\.png"),
    "json: twice": ({"dataset.json":
                     b'{"labels": [["a.png", 0], ["a.png", 1]]}'}, "a name twice"), }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_zip_is_named_everywhere(name, tmp_path):
    files, message = BAD[name]
    path = write_zip(tmp_path / "a.zip", {"a.png": GOOD} | files)
    for attempt in (lambda: open_images(path), lambda: prepare(path, tmp_path / "out.zip"),
                    lambda: raise_problems(path)):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "a.zip" in str(caught.value)
    assert os.listdir(tmp_path) == ["a.zip"]


def raise_problems(path):
    if problems := check(path).problems:
        raise ValueError("; ".join(problems))


def test_damaged_archives(tmp_path, cifar):
    write_zip(tmp_path / "a.zip", {"a.png": GOOD, "b.png": GOOD})
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    flipped = whole.replace(GOOD[20:40], bytes(20), 1)
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(ValueError, match="another kind of file"):
        open_images(str(tmp_path / "cut.zip"))
    with pytest.raises(ValueError,
                       match=r"flipped\.zip: a\.png cannot be read as an image: Bad CRC"):
        open_images(str(tmp_path / "flipped.zip"))
    archive = cifar[1].read_bytes()
    cifar[1].write_bytes(archive[:len(archive) // 2])
    with pytest.raises(ValueError, match=r"not a whole cifar-10-python\.tar\.gz"):
        open_pictures(cifar[1])
    (cifar[0] / "data_batch_2").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ValueError, match=r"data_batch_2 asks for os\.system"):
        open_pictures(cifar[0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_pictures("nowhere")


def test_an_entry_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1001))
    with pytest.raises(ValueError,
                       match=r"a\.png cannot be read as an image: it unpacks to 1,001 bytes"):
        open_images(str(tmp_path / "a.zip"))


def test_prepare_refuses_what_it_cannot_do_and_leaves_nothing(tmp_path, monkeypatch):
    source = write_zip(tmp_path / "in.zip", {"a.png": encoded(picture(0, (8, 6)))})
    with pytest.raises(ValueError,
                       match=r"a\.png is 8x6 RGB, not square; give --transform center-crop"):
        prepare(source, tmp_path / "out.zip", resolution=4)
    with pytest.raises(ValueError, match="center-crop needs a resolution"):
        prepare(source, tmp_path / "out.zip", transform="center-crop")
    with pytest.raises(ValueError, match="resolution must be at least 1; got 0"):
        prepare(source, tmp_path / "out.zip", resolution=0, transform="center-crop")
    with pytest.raises(ValueError, match="written as a zip"):
        prepare(source, tmp_path / "out.tar", resolution=4)
    with pytest.raises(FileExistsError, match="exists; name another"):
        prepare(source, source, resolution=4, transform="center-crop")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match=r"cannot write .*out\.zip: No space left on device"):
        prepare(source, tmp_path / "out.zip", resolution=4, transform="center-crop")
    assert os.listdir(tmp_path) == ["in.zip"]


def test_streamed_images_are_the_ones_in_memory(tmp_path):
    files = {f"{k:03d}.png": encoded(picture(k, (6, 6))) for k in range(150)}
    path = write_zip(tmp_path / "a.zip", files)
    held, streamed = open_images(path), open_images(path, in_memory=0)
    assert isinstance(streamed.images, Streamed)
    assert streamed.images.shape == held.images.shape
    order = torch.randperm(150)
    assert torch.equal(streamed.images[order], held.images[order])
    assert torch.equal(streamed.images[3:9], held.images[3:9])
    bad = open_images(write_zip(tmp_path / "b.zip", files | {"100.png": png((7, 6))}), in_memory=0)
    assert bad.images[:100].shape == (100, 3, 6, 6)
    with pytest.raises(ValueError, match=r"100\.png is 7x6 RGB, but 000\.png is 6x6 RGB"):
        bad.images[torch.tensor([100])]


@pytest.mark.slow
def test_the_real_cifar_training_set():
    path = SHARED / "data" / "cifar10-train-jpeg.zip"
    if not path.exists():
        pytest.skip("needs the project's copy of CIFAR-10, which a user does not have")
    report = check(path)
    assert report.problems == []
    assert report.shapes == {(3, 32, 32): 50_000}
    assert set(report.labels.values()) == {5000}
