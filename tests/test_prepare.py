"""Data sets in and out: what is prepared is what EDM's tool would have made, and what is wrong is
named."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib

import edm_files
import fuzz_pickle
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
    files = {f"data_batch_{k}": pickle.dumps(cifar_batch(k), 2) for k in range(1, 6)}
    write_folder(folder, files | {"test_batch": pickle.dumps(cifar_batch(6, 7), 2)})
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
        held_out = tmp_path / f"{source.name}-test.zip"
        assert prepare(source, held_out, split="test") == 7
        assert open_images(str(held_out)).labels.tolist() == cifar_batch(6, 7)["labels"]


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


# --- hostile files: of another format, or of more than they seem


def tiny(kind, **options):
    return encoded(Image.new("RGB", (8, 8), 3), kind, **options)


OTHERS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "ppm16": b"P6 8 8 65535\n" + bytes(8 * 8 * 6), "ppm": tiny("ppm"), "gif": tiny("gif"),
    "tiff": tiny("tiff"), "ico": tiny("ico"), "tga": tiny("tga"), "pcx": tiny("pcx"),
    "dib": tiny("dib"), "sgi": tiny("sgi"), "pdf": tiny("pdf"), "text": b"hello",
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100), "none": b"",
}  # yapf: disable


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("rgb", [False, True])
def test_only_four_decoders_are_ever_asked(name, rgb, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("subprocess.check_call", None)
    sources = [write_folder(tmp_path / "folder", {"x.png": OTHERS[name]}),
               write_zip(tmp_path / "a.zip", {"x.png": OTHERS[name]})]  # yapf: disable
    for source in sources:
        with pytest.raises(
                ValueError,
                match=r"x\.png cannot be read as an image: only PNG, JPEG, WebP and BMP"):
            prepare(source, tmp_path / "out.zip", rgb=rgb)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_the_four_are_read_under_any_of_their_names(kind, tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"x{s}": tiny(kind) for s in pictures.SUFFIXES})
    assert open_images(path).images.shape == (5, 3, 8, 8)


def scanned(times, side):
    """A progressive JPEG whose last scan is repeated."""
    content = encoded(Image.new("RGB", (side, side)), "jpeg", progressive=True)
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * times + content[-2:]


def listing(entries, length):
    """A zip of one file that its list of entries names many times."""
    stored = b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, length,
                                     0) + bytes(length)
    entry = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, *[0] * 7, length, *[0] * 6)
    listed = b"".join(entry + f"{k:05x}.png"[:length].encode() for k in range(entries))
    end = struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(listed), len(stored), 0)
    return stored + listed + b"PK\5\6" + end


def packed(content, method=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    return made.getvalue()


def archived(*members):
    """A .tar.gz of (name, type, content or only its size)."""
    content = b""
    for name, kind, part in members:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, f"{BATCH}2"
        member.size = part if isinstance(part, int) else len(part)
        content += member.tobuf(tarfile.USTAR_FORMAT)
        content += b"" if isinstance(part, int) else part + bytes(-len(part) % 512)
    return gzip.compress(content, 1)


BATCH, FILE, LINK, HARD, PAX, LONG = "cifar-10-batches-py/data_batch_", b"0", b"2", b"1", b"x", b"L"


def listed(text):
    return packed({"a.png": GOOD, "dataset.json": b'{"labels": [' + text + b"]}"})


HUGE = {
    "json-objects.zip": (lambda: listed(b"{}," * 10_000_000 + b"1"), "JSON too large"),
    "json-lists.zip": (lambda: listed(b"[]," * 10_000_000 + b"1"), "JSON too large"),
    "json-long.zip": (lambda: listed(b" " * 500_000_000), "unpacks to 500,000,0.. bytes"),
    "json-64.zip": (lambda: listed(b" " * 80_000_000), "80,000,0.. bytes of JSON"),
    "json-pairs.zip": (lambda: listed(b",".join(b'["%d",1]' % k for k in range(1_300_000))),
                       "no label for a.png"),
    "json-number.zip": (lambda: listed(b'["a.png", ' + b"9" * 4000 + b"]"), "is not a count"),
    "json-deep.zip": (lambda: listed(b"[" * 100_000), "is not JSON"),
    "scans.zip": (lambda: packed({"a.jpg": scanned(2000, 5000)}), "it has 20.. scans"),
    "bzip2.zip": (lambda: packed({"a.png": bytes(120_000_000)}, zipfile.ZIP_BZIP2), "otherwise"),
    "lzma.zip": (lambda: packed({"a.png": bytes(120_000_000)}, zipfile.ZIP_LZMA), "otherwise"),
    "zeros.zip": (lambda: packed({"a.png": bytes(120_000_000)}), "only PNG"),
    "list.zip": (lambda: listing(1_000_000, 5), "its list of entries has 51,000,000 bytes"),
    "same.zip": (lambda: listing(200_000, 9), "in directory"),
    "largest.zip": (lambda: packed({"a.png": encoded(Image.new("RGB", (5792, 5792)))}), "^read$"),
    "largest-bmp.zip": (lambda: packed({"a.bmp": encoded(Image.new("RGB", (5792, 5792)), "bmp")}),
                        "^read$"),
    "control.zip": (lambda: packed({"a\x1b]0;x\x07\n.png": b"x"}), r"a\\x1b]0;x\\x07\\n\.png"),
    "climbing.zip": (lambda: packed({"../\x1b[2Ja.png": b"x"}), "leads out of the archive"),
    "name.zip": (lambda: packed({"a" * 60_000 + ".png": b"x"}), "aaa... cannot be read"),
    "links.tar.gz": (lambda: archived(*[(f"{BATCH}{k}", LINK, 0) for k in range(1, 6)]),
                     "data_batch_1 is not a plain file"),
    "hard.tar.gz": (lambda: archived((f"{BATCH}1", HARD, 0)), "not a plain file"),
    "pax.tar.gz": (lambda: archived(("x", PAX, 900 << 20)), "943,718,400 bytes more"),
    "pax-records.tar.gz": (lambda: archived(("x", PAX, b"11 aaaa=bb\n" * 9_000_000)), "it lacks"),
    "long-name.tar.gz": (lambda: archived(("x", LONG, b"y" * 90_000_000)), "it lacks data_batch_1"),
    "members.tar.gz": (lambda: archived(*[("x", FILE, 0)] * 2000), "1 entries more"),
    "batch.tar.gz": (lambda: archived((f"{BATCH}1", FILE, 3 << 30)), "bytes more"),
    "short.tar.gz": (lambda: archived((f"{BATCH}1", FILE, 3 << 20)), "data_batch_1 is damaged"),
    "wide.tar.gz": (lambda: archived((f"{BATCH}1", FILE, b"\x80\x04" + edm_files.text(
        b"a" * 66_000_000 + "\U0001f600".encode()) + b".")), "letters that are no bytes"),
}  # yapf: disable


def look(path):
    """`check`, as a reader that raises; run in a process of its own."""
    if problems := check(path).problems:
        raise ValueError(problems[0])


def test_memory_and_time_are_bounded_before_anything_is_built(tmp_path):
    for name, (make, _) in HUGE.items():
        (tmp_path / name).write_bytes(make())
    outcomes = fuzz_pickle.bounded("test_prepare:look", [tmp_path / name for name in HUGE])
    for name, (_, message) in HUGE.items():
        assert re.search(message, outcomes[name]), (name, outcomes[name])
        (tmp_path / name).unlink()


def test_nested_values_in_cifar_batches_are_never_written_out(tmp_path):
    array = edm_files.name("numpy", "ndarray") + b")R(%b%b" + edm_files.name(
        "numpy", "dtype") + b"%b\x85R%b%btb"
    good = [b"K\x01", b"K\x03\x85", edm_files.text("u1"), b"\x89", edm_files.text("abc")]
    files = []
    for kind in ("list", "tuple", "dict"):
        laughs = edm_files.laughs(kind)
        data = {
            str(k): array % tuple(laughs if k == j else part for j, part in enumerate(good))
            for k in range(len(good))}
        data |= {
            "data": laughs, "state": edm_files.name("numpy", "ndarray") + b")R" + laughs + b"b"}
        content = {name: edm_files.mapping({"data": x, "labels": b"]"}) for name, x in data.items()}
        content["labels"] = edm_files.mapping({"data": array % tuple(good), "labels": laughs})
        content["key"] = b"}" + laughs + b"Ns"
        for name, body in content.items():
            body = b"\x80\x04" + body + b"."
            files += [tmp_path / f"{name}-{kind}", tmp_path / f"{name}-{kind}.tar.gz"]
            write_folder(files[-2], {"data_batch_1": body})
            files[-1].write_bytes(archived((f"{BATCH}1", FILE, body)))
    outcomes = fuzz_pickle.bounded("gdd.data.pictures:open_pictures", files)
    assert "read" not in outcomes.values()


def test_devices_pipes_and_loops(tmp_path):
    folder = write_folder(tmp_path / "folder", {"a/0.png": GOOD, "b/1.png": GOOD})
    for name, target in (("loop", "loop"), ("up", ".."), ("a/here", "."), ("x.png", "x.png"),
                         ("z.png", "/dev/zero"), ("dataset.json", "/dev/zero")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    links = {"zero.zip": "/dev/zero", "zero.tar.gz": "/dev/zero", "loop.zip": "loop.zip"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "data_batch_1").symlink_to(tmp_path / "sparse")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("huge.zip", "huge.tar.gz"):
        (tmp_path / name).symlink_to("sparse")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").symlink_to(tmp_path / "sparse")
    files = [folder, *(tmp_path / name for name in (
        *links, "pipe.zip", "batches", "huge.zip", "huge.tar.gz", "one"))]  # yapf: disable
    outcomes = fuzz_pickle.bounded("test_prepare:look", files)
    assert outcomes.pop("folder") == "read"
    for name in ("zero.zip", "zero.tar.gz", "pipe.zip"):
        assert "is a device, pipe or socket, not a file" in outcomes[name]
    assert "read" not in outcomes.values()
    (tmp_path / "sparse").unlink()


def test_check_stops_where_nothing_is_right(tmp_path):
    report = check(write_zip(tmp_path / "a.zip", {f"{k}.png": b"x" for k in range(1200)}))
    assert len(report.problems) == 1001
    assert report.problems[-1].endswith("a.zip: nothing was read after these")
