"""Files written whole or not at all, and the digests by which files and configs are known."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[1]
# notebooks run elsewhere than make does; without a checkout, all is below the current folder
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one. Leaves
    nothing behind on failure.

    `content` is bytes, or a function that writes to the path it is given. Raises OSError naming the
    target.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        if callable(content):
            mode = partial.stat().st_mode
            content(partial)
            partial.chmod(mode)  # safetensors makes files that only their owner may read
        else:
            partial.write_bytes(content)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def sweep_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes to."""
    for partial in folder.glob(".*.*-*.partial"):
        partial.unlink()


def digest(path: Path | str) -> str:
    """First 16 hex digits of the file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_of(*parts: Any) -> str:
    """12 hex digits that name JSON-able values: the address of a config."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
