"""Public files, fetched only when asked for: EDM's checkpoints and reference statistics, and the
weights of backbones and LPIPS.

Nothing else in `gdd` reaches for the network; `analysis.features` does, for weights that grade.
`require_file` says where a file is expected and how to get it.
"""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from gdd.profiles import require
from gdd.profiles.paper import CHECKPOINTS, DEIT, LITE, LPIPS, TEACHERS, VGG

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm"
STATISTICS = ("cifar10-32x32", "afhqv2-64x64", "ffhq-64x64", "imagenet-64x64")
TIMM = "https://huggingface.co/timm"
ADDRESSES = {
    **{name: f"{EDM}/pretrained/{name}.pkl" for name in TEACHERS},
    **{name: f"{EDM}/fid-refs/{name}.npz" for name in STATISTICS},
    VGG: f"{TIMM}/vgg16_bn.tv_in1k/resolve/main/model.safetensors",
    LPIPS: f"{TIMM}/vgg16.tv_in1k/resolve/main/model.safetensors",
    LITE: f"{TIMM}/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors",
    DEIT: f"{TIMM}/deit_base_distilled_patch16_224.fb_in1k/resolve/main/model.safetensors", }
_BLOCK = 1 << 20


def expected_path(name: str, folder: Path = CHECKPOINTS) -> Path:
    """Where the file called `name` is expected."""
    return folder / f"{name}{Path(address(name)).suffix}"


def address(name: str) -> str:
    """The public address of a file. Raises ValueError with the nearest names."""
    return require(name, ADDRESSES, "name")


def require_file(name: str, folder: Path = CHECKPOINTS) -> Path:
    """The file called `name` on disk, converted or as published. Raises FileNotFoundError saying
    how to get it."""
    expected = expected_path(name, folder)
    for path in (expected.with_suffix(".safetensors"), expected):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{expected} is not there; `python -m gdd download {name}` fetches it "
                            f"from {address(name)}, or put it there yourself")


def download(name: str, *, folder: Path = CHECKPOINTS, sha256: str = "",
             source: str = "") -> tuple[Path, str]:
    """Fetch a file, going on with a partial one; returns its path and SHA-256. A file that is there
    is only compared.

    `source` replaces the public address, as a mirror does. `sha256`, all of it or its first digits,
    is compared before the file takes its name. Raises ValueError if it differs, ConnectionError
    without a network.
    """
    path, url = expected_path(name, folder), source or address(name)
    sha256 = sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{0,64}", sha256):
        raise ValueError(f"sha256 must be hexadecimal digits; got {sha256!r}")
    if not path.exists():
        partial = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, partial)
        found = _digest(partial)
        if not found.startswith(sha256):
            partial.unlink()
            raise ValueError(f"{url} has SHA-256 {found}, not {sha256}; nothing was kept")
        partial.replace(path)
        _validator(partial).unlink(missing_ok=True)
        return path, found
    if not (found := _digest(path)).startswith(sha256):
        raise ValueError(
            f"{path} is there and has SHA-256 {found}, not {sha256}; delete it to fetch it again")
    return path, found


def _fetch(url: str, partial: Path) -> None:
    """Fill `partial` from `url`, from where it ends if the server still has the same file."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "gdd"})
    if start and _validator(partial).exists():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _validator(partial).read_text())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            resumed = response.status == 206 and response.headers.get(
                "Content-Range", "").startswith(f"bytes {start}-")
            start = start if resumed else 0
            length = int(response.headers.get("Content-Length") or 0)
            if tag := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                _validator(partial).write_text(tag)
            bar = tqdm(total=start + length or None, initial=start, unit="B", unit_scale=True,
                       desc=partial.stem, disable=None)
            with partial.open("ab" if resumed else "wb") as file, bar:
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
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


def _validator(partial: Path) -> Path:
    """Beside a partial file, the server's mark of the version it belongs to."""
    return partial.with_name(f"{partial.name}.etag")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
