"""What the commands share: typed arguments in, one clear line and exit code 2 on bad input."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from gdd.extras import MissingExtraError, named
from gdd.reading import quoted

# characters of a message, so that its line stays below 500, and of its end, which says a way on
_MOST, _END = 480, 150
_GRACE = 60  # seconds
# glibc's variables, their numbers in malloc.h, and bytes
KEPT = {"MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30), "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30)}


def run_cli(arguments: Any, main: Callable[[Any], None],
            parse: Callable[[list[str], str], Any] | None = None) -> None:
    """Parse `arguments` (a dataclass, or a union of them) from the command line and call `main`
    with the result; `parse(words, prog)` is for what tyro alone cannot parse.

    ValueError, OSError and MissingExtraError are the user's input and installation: their message
    is printed, exit code 2. RuntimeError, FloatingPointError and MemoryError are a run that failed:
    exit code 1. GDD_DEBUG=1 shows the traceback instead. A command that leaves something worth
    knowing says so with `on_interrupt`.
    """
    prog, words = " ".join(called()), sys.argv[1:]
    keep_freed_memory()
    try:
        with named():
            main(parse(words, prog) if parse else tyro.cli(arguments, args=words, prog=prog))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MissingExtraError) as error:
        _fail(error, 2)
    except (RuntimeError, FloatingPointError) as error:
        _fail(error, 1)
    except MemoryError as error:
        _fail(error, 1, "not enough memory")
    except KeyboardInterrupt as stop:
        print(one_line(stop) or "stopped; nothing was written by halves", file=sys.stderr)
        sys.exit(130)  # as shells say it


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, in this process and its children, unless a variable says
    otherwise: else each large result comes from the kernel page by page, which takes a quarter of
    the time of sampling on a CPU. Other systems are left as they are."""
    for name, (number, size) in KEPT.items():
        if name not in os.environ and mallopt(number, size):
            os.environ[name] = str(size)


def mallopt(number: int, value: int) -> bool:
    """Set one of malloc's numbers in this process; False where malloc has none."""
    own = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(own and own(number, value))


def called() -> list[str]:
    """What stands before this command's arguments: `python -m gdd`, or a console command."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return [Path(sys.argv[0]).name]
    return ["python", "-m", module.name.removesuffix(".__main__")]


@contextmanager
def on_interrupt(tell: Callable[[], str]) -> Iterator[None]:
    """A Ctrl-C in here is a KeyboardInterrupt with what `tell()` says then, unless another has said
    more before."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or tell()) from None


def end_with_parent() -> None:
    """Let this process, one of a pool, end when its parent is killed: else it would finish what it
    does, unheard, keep the folder locked, and then wait for work forever. What listens to SIGTERM,
    as a training that saves its state, has `_GRACE` seconds."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        deadline = time.monotonic() + _GRACE
        if listening():
            os.kill(os.getpid(), signal.SIGTERM)
        while listening() and time.monotonic() < deadline:
            time.sleep(0.02)
        os._exit(1)

    def listening() -> bool:
        return callable(signal.getsignal(signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def one_line(text: Any) -> str:
    """A message as it may be printed: no line break or control character, its middle left out where
    it is long."""
    words = " ".join(str(text).split())
    head, tail = (quoted(part, 12 * _MOST) for part in (words[:_MOST + 1], words[-_END:]))
    return head if len(head) <= _MOST else f"{head[:_MOST - _END - 5]} ... {tail[-_END:]}"


def _fail(error: Exception, code: int, otherwise: str = "") -> None:
    if os.environ.get("GDD_DEBUG"):
        raise error
    said = one_line(error) or otherwise or type(error).__name__
    print(f"error: {said}", file=sys.stderr)
    sys.exit(code)
