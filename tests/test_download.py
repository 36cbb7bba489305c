"""Fetching, against a local server that can stop half-way, change its file, and refuse ranges."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from gdd.profiles import profiles
from gdd.profiles.paper import LPIPS, TEACHERS
from gdd.weights import download as module
from gdd.weights.download import ADDRESSES, download, expected_path, require_file

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
    path, found = download(NAME, folder=tmp_path / "new", source=server.url, sha256=SHA[:12])
    assert path == tmp_path / "new" / f"{NAME}.npz"
    assert path.read_bytes() == CONTENT
    assert found == SHA
    assert list(path.parent.iterdir()) == [path]
    # is there: not fetched again
    assert download(NAME, folder=path.parent, source=server.url) == (path, SHA)
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
    path, found = download(NAME, folder=tmp_path, source=server.url)
    assert server.asked == [None, f"bytes={kept}-"]
    assert path.read_bytes() == server.content
    assert found == hashlib.sha256(server.content).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


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
    names |= {name for config in runs for name in (config.teacher, *config.backbones)}
    names -= {"", "teacher"}  # the small profile's own
    assert names <= set(ADDRESSES)
    for name in names:
        message = rf"{name}\.\w+ is not there; `python -m gdd download {name}` fetches it from http"
        with pytest.raises(FileNotFoundError, match=message):
            require_file(name, tmp_path)
        expected_path(name, tmp_path).write_bytes(b"x")
        assert require_file(name, tmp_path) == expected_path(name, tmp_path)
    converted = tmp_path / "edm-ffhq-64x64-uncond-ve.safetensors"
    converted.write_bytes(b"x")
    assert require_file("edm-ffhq-64x64-uncond-ve", tmp_path) == converted
