"""The page about two sources: what it says, when it warns, and that it is whole or not there."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import call
from test_data import png
from test_fid_compare import judge, noise  # noqa: F401

from analysis.extractors import extractor
from analysis.features import of_function
from analysis.fid import cautions, of_images, open_source
from analysis.fid.report import report
from gdd.data.images import load_digits

DIGITS = load_digits()
QUICK = dict(ranges=1, bootstrap=3, metrics=["fd"], allow_different_n=True)


class Page(HTMLParser):
    """Texts by tag, attributes of every tag, and pictures."""
    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.open = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.open, data))

    def of(self, tag):
        return [text for name, text in self.texts if name == tag]

    def pictures(self):
        return [
            Image.open(io.BytesIO(base64.b64decode(attrs["src"].removeprefix(
                "data:image/png;base64,"), validate=True)))
            for tag, attrs in self.tags if tag == "img"]  # yapf: disable


def made(tmp_path, a, b, extractors, **options):
    path = tmp_path / "out.html"
    report(path, a, b, extractors, **(QUICK | options))
    assert [file.name for file in tmp_path.iterdir()] == ["out.html"]
    return Page(path)


def test_the_page_stands_alone_and_shows_both(tmp_path, judge):  # noqa: F811
    flat = of_function(lambda x: x.flatten(1).float(), "<flat>")
    a = of_images(noise(90), "<script>alert(1)</script>")
    page = made(tmp_path, a, DIGITS.images[:120], [judge, flat], metrics=["fd", "kid", "pr"])
    attributes = dict(page.tags)
    assert attributes["html"] == {"lang": "en"}
    assert "width=device-width" in attributes["meta"]["content"]
    assert "script" not in attributes
    assert "link" not in attributes
    targets = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert all(target.startswith("data:image/png;base64,") for target in targets)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert "prefers-color-scheme:dark" in page.of("style")[0]
    one, two, ours, theirs = page.pictures()
    assert one.size == two.size == (8 * 10 * 6, 8 * 10 * 6)  # the same zoom
    assert ours.size == theirs.size
    heads = page.of("th")
    assert heads[:3] == ["digits", "<flat>", "in"]
    shown = " ".join(text for _, text in page.texts)
    for name in ("FD90[digits]", "FD90[<flat>]", "KID90[digits]", "precision90[<flat>]",
                 "recall90[digits]", "Top-1 of the 10 classes of digits"):
        assert name in shown
    assert "has n = 90 and images n = 120" in shown
    assert "n = 90 images for 64 features, fewer than 10 for each" in shown


def test_values_are_those_of_the_table_and_inside_their_intervals(tmp_path, judge):  # noqa: F811
    path = tmp_path / "out.html"
    table = report(path, DIGITS.images[:200], "digits", [judge], **(QUICK | {"bootstrap": 20}))
    (row, ) = table.to_dict("records")
    assert row["low"] <= row["value"] <= row["high"]
    page = Page(path)
    assert f"{row['value']:.4g}" in page.of("b")
    assert f"95%: {row['low']:.4g} to {row['high']:.4g}" in page.of("span")


def test_memory_is_seen_beside_held_out_images(tmp_path, judge):  # noqa: F811
    """A set that repeats what it learnt from, and one that does not; the held-out images are the
    other half of B, or are given."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    train, test, fresh = (DIGITS.images[part] for part in order.split(599))
    copies = torch.cat([train[:60], fresh[60:]])
    said = "of the generated images lie nearer to the data than 1% of held-out images do"
    for held_out in (None, test):
        for generated, share in ((copies, True), (fresh, False)):
            page = made(tmp_path, of_images(generated, "mine"), train, [judge], held_out=held_out)
            assert any(said in text for text in page.of("li")) == share
            assert any("at 0 to 0" in text for text in page.of("figcaption")) == share


def test_class_statistics_are_seen(tmp_path):
    """Real digits of other frequencies: most of the distance goes, and the page says so."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    half, rest = DIGITS.images[order[:900]], order[900:]
    few = rest[(DIGITS.labels[rest] > 4) | (torch.arange(897) % 8 == 0)]
    for chosen, warned in ((few, True), (rest, False)):
        page = made(tmp_path, of_images(DIGITS.images[chosen], "mine"), of_images(half, "real"),
                    [extractor("digits")])
        said = [text for text in page.of("li") if "of the distance goes when" in text]
        assert bool(said) == warned
        drop = page.of("td")[-6:][3]  # of the last table
        assert (int(drop.rstrip("%")) > 60) == warned


def test_a_floor_that_is_reached_is_told(tmp_path):
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(1))
    ours, theirs = DIGITS.images[order[:600]], DIGITS.images[order[600:]]
    said = "cannot tell more"
    for images, reached in ((ours, True), (255 - ours, False)):
        page = made(tmp_path, of_images(images, "mine"), theirs, [extractor("digits")])
        assert any(said in text for text in page.of("li")) == reached


# --- cautions ---


def photographs(n=60, size=64):
    from sklearn.datasets import load_sample_images

    stream, crops = np.random.default_rng(0), []
    for picture in load_sample_images().images:
        small = Image.fromarray(picture).resize((213, 142), Image.Resampling.LANCZOS)
        array = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        for _ in range(n):
            y, x = stream.integers(0, 142 - size), stream.integers(0, 213 - size)
            crops.append(array[:, y:y + size, x:x + size])
    return torch.stack(crops)


def compressed(images, quality):
    def one(image):
        content = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "jpeg", quality=quality)
        return torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1)

    return torch.stack([one(image) for image in images])


def test_jpeg_blur_and_resize_are_seen_in_the_pixels():
    images = photographs()
    assert cautions.of_pixels("a", images) == []
    assert "JPEG's 8x8 blocks" in cautions.of_pixels("a", compressed(images, 60))[0]
    blurred = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)
    assert cautions.of_detail("a", images, "b", compressed(images, 90)) == []
    (line, ) = cautions.of_detail("a", blurred, "b", images)
    assert float(re.search(r"is ([\d.]+) times", line)[1]) < 0.67
    assert "a is 32x32, b 64x64" in cautions.of_detail("a", images[..., :32, :32], "b", images)[0]
    large = torch.zeros(2, 3, 320, 320, dtype=torch.uint8)
    assert "without antialiasing" in cautions.of_resize("inception", large)[0]
    assert cautions.of_resize("inception:clean", large) == []
    assert cautions.of_resize("inception", images) == []


def test_detail_of_white_noise_and_of_a_ramp():
    white = torch.randint(0, 256, (40, 1, 32, 32), dtype=torch.uint8)
    assert cautions.detail(white) == pytest.approx(6, rel=0.05)
    ramp = torch.arange(32, dtype=torch.uint8).expand(2, 1, 32, 32)
    assert cautions.detail(ramp) == 0


def test_jpeg_files_are_known_by_their_names(tmp_path):
    for name, lossy in (("jpg", True), ("png", False)):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(2):
            Image.open(io.BytesIO(png(value=index))).convert("RGB").save(folder / f"{index}.{name}")
        source = open_source(str(folder))
        assert source.lossy == lossy
        assert bool(cautions.of_files("a", source.lossy)) == lossy


@pytest.mark.parametrize(("n", "said"), [(30, "singular"), (200, "biased upwards"), (640, None)])
def test_few_images_for_the_features(n, said):
    lines = cautions.of_size("a", n, 64)
    assert (said in lines[0]) if said else lines == []


# --- the command ---


def test_the_command_writes_a_page(tmp_path):
    done = call("analysis.fid", "gdd-i", "digits", "--n", 120, "--allow-different-n", "--ranges", 1,
                "--no-cache", "--bootstrap", 3, "--features", "digits,digits", "--report",
                tmp_path / "new" / "out.html")
    assert done.returncode == 0, done.stderr
    assert "FD120[digits]" in done.stdout
    page = Page(tmp_path / "new" / "out.html")
    assert page.of("h1") == ["How far is gdd-i@one-step from digits?"]
    assert "0-119 (distances are means over them)" in page.of("dd")
    assert len(page.pictures()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gdd-i", "digits", "--report", "out.txt"], "a report is written as .html; got out.txt"),
        (["gdd-i", "gdd", "digits", "--report", "out.html"], "a report is of two sources; got 3"),
        (["s.npz", "digits", "--report", "out.html"], "needs images; s.npz holds statistics"),
        (["gdd-i", "digits", "--report", "folder.html"], "a folder is there"),
        (["gdd-i", "digits", "--report", "out.html", "--held-out", "nothing"], "nothing does not"),
        (["gdd-i", "digits", "--report", "out.html", "--held-out", "gdd"],
         "held-out images must be a data set of [1, 8, 8] like digits; got gdd@one-step, n = 0"),
        (["gdd-i", "digits", "--held-out", "digits"], "--held-out is of a --report"),
        (["gdd-i", "digits", "--report", "out.html", "--n", "9"], "the distance depends on n"),
    ])  # yapf: disable
def test_what_cannot_be_reported_is_refused(tmp_path, arguments, message):
    np.savez(tmp_path / "s.npz", mu=np.zeros(64), sigma=np.eye(64))
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.iterdir())
    done = call("analysis.fid", *arguments, "--no-cache", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_report_is_not_made_by_many_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = call("analysis.fid", "gdd-i", "digits", "--report", tmp_path / "out.html")
    assert done.returncode == 2
    assert "--report is made by one process" in done.stderr
