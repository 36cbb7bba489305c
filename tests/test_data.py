import io
import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gdd.data.images import batch_indices, open_images, to_float, to_uint8


def png(size=(8, 8), mode="RGB", value=7):
    content = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).convert(mode).save(
        content, "png")
    return content.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def test_uint8_rule_is_edms_and_inverts():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels)[[0, 255]].tolist() == [-1, 1]
    assert to_uint8(torch.tensor([-9.0, 0.0, 9.0])).tolist() == [0, 128, 255]


def test_digits(digits):
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert digits.images.max() == 255
    assert digits.label_dim == 10
    assert torch.bincount(digits.labels).min() > 170


def test_zip_and_folder_hold_the_same(tmp_path):
    files = {
        f"{label}/{index}.png": png(value=10 * label + index) for label in (0, 1)
        for index in (0, 1)}
    for name, content in files.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(content)
    listed = json.dumps({"labels": [[name, int(name[0])] for name in files]})
    from_zip = open_images(write_zip(tmp_path / "a.zip", files | {"dataset.json": listed}))
    from_folder = open_images(str(tmp_path / "f"))
    assert torch.equal(from_zip.images, from_folder.images)
    assert from_zip.labels.tolist() == from_folder.labels.tolist() == [0, 0, 1, 1]
    assert from_zip.images[3].flatten().unique().tolist() == [11]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b"x"}, "holds no images"),
        ({"a.png": png(), "b.png": png((9, 8))}, r"b.png is 9x8 RGB, but a.png is 8x8 RGB"),
        ({"a.png": b"hello"}, "a.png cannot be read"), ],
)
def test_bad_zips_say_what_and_where(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        open_images(write_zip(tmp_path / "bad.zip", files))


def test_what_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images("nowhere")
    with pytest.raises(ValueError, match="another kind of file"):
        open_images(str(tmp_path / "notes.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_images(str(tmp_path / "empty"))


@given(size=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 5))
def test_every_epoch_shows_each_image_once(size, batch, seed):
    steps = -(-3 * size // batch)
    drawn = torch.cat([batch_indices(size, batch, step, seed) for step in range(steps)])
    epochs = drawn[:3 * size].view(3, size).tolist()
    for order in epochs:
        assert sorted(order) == list(range(size))
    if size >= 20:
        other = batch_indices(size, size, 0, seed + 1).tolist()
        assert len({tuple(order) for order in [*epochs, other]}) == 4


@pytest.mark.slow
def test_a_real_edm_zip():
    path = SHARED / "data" / "cifar10-test-jpeg.zip"
    if not path.exists():
        pytest.skip("needs the project's copy of CIFAR-10's test set, which a user does not have")
    cifar = open_images(str(path))
    assert cifar.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(cifar.labels).tolist() == [1000] * 10
    assert 100 < cifar.images.float().mean() < 130
