"""Files written whole or not at all, and the digests by which files and configs are known."""

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[1]
# notebooks run elsewhere than make does; without a checkout, all is below the current folder
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()
# MACHINE-PID-BORN-COUNT of who writes, for another process may have the number later; threads
# count together
_OWNER = re.compile(r"([0-9a-f]{6})-(\d{1,9})-(\d{1,20})-\d+")
_PARTIAL = ".gdd-partial"
_MOST_SOCKET = 50  # characters before a socket's name, of which all in all 103 are safe
_COUNT = itertools.count()


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one. Leaves
    nothing behind on failure, and sweeps what killed writers left there.

    `content` is bytes, or a function that writes to the path it is given. Raises OSError naming the
    target, also if what is there is no plain file: a folder, a link, a device.
    """
    partial = path.parent / f".{path.name[:40]}.{_owner()}{_PARTIAL}"
    try:
        require_plain(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_partials(path.parent)
        partial.touch(exist_ok=False)
        if callable(content):
            mode = partial.stat().st_mode
            content(partial)
            partial.chmod(mode)  # safetensors makes files that only their owner may read
        else:
            partial.write_bytes(content)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        require_plain(path)  # it may have taken hours
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # where no folder could be made, nothing is to be removed
            partial.unlink(missing_ok=True)


def require_plain(path: Path) -> None:
    """Raise OSError if a file that is written at `path` would replace anything but a plain file."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}.get(stat.S_IFMT(mode), "a device")
        raise OSError(f"{kind} is there; name another file, or remove it yourself")


def sweep_partials(folder: Path) -> None:
    """Remove what writers of this program left in a folder when they were killed, and nothing
    else."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        if _abandoned(partial.name.removesuffix(_PARTIAL).rpartition(".")[2]):
            with suppress(OSError):  # another process sweeps, too
                partial.unlink()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this thread's own with a short path, removed afterwards; those of killed
    processes are swept."""
    above, prefix = Path(tempfile.gettempdir()), "gdd-scratch-"
    if len(str(above)) > _MOST_SOCKET and Path("/tmp").is_dir():
        above = Path("/tmp")
    for folder in above.glob(f"{prefix}*"):
        with suppress(OSError):  # another process sweeps, too
            found = folder.lstat()
            own = os.name != "posix" or found.st_uid == os.getuid()
            if own and stat.S_ISDIR(found.st_mode) and _abandoned(folder.name.removeprefix(prefix)):
                shutil.rmtree(folder, ignore_errors=True)
    folder = above / f"{prefix}{_owner()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> str:
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_born(pid)}-{next(_COUNT)}"


def _abandoned(owner: str) -> bool:
    """Whether a name is one that `_owner` made in a process of this machine that is gone."""
    parts = _OWNER.fullmatch(owner)
    if parts is None or parts[1] != _machine() or os.name != "posix":
        return False
    pid = int(parts[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return str(_born(pid)) != parts[3]


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _born(pid: int) -> int:
    """When a process started, as Linux counts, -1 if it is dead and unburied; 0 elsewhere."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return 0


def digest(path: Path | str) -> str:
    """First 16 hex digits of the file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_of(*parts: Any) -> str:
    """12 hex digits that name JSON-able values: the address of a config."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
