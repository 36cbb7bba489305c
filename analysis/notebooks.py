"""One notebook at a time: what it depends on, whether that has changed, and its execution.

Beside an executed notebook lies NAME.json with the digests of all that it was made from and made.
"""

import hashlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from analysis import tables
from gdd.files import ROOT, scratch, write_atomically
from gdd.notebooks import FOLDER
from gdd.profiles import profile
from gdd.reading import read_json
from gdd.training.start import digest

PACKAGES = Path(__file__).resolve().parents[1]  # the folder of both
LIMIT_S = 1800  # of one notebook, on the clock
_PLAIN = re.compile(r"\x1b\[[0-9;]*m")  # colours of a traceback


class Record(TypedDict):
    """Digests of what a notebook was made from and of what it made."""

    inputs: dict[str, str]
    made: dict[str, str]


@dataclass(frozen=True)
class Task:
    """A notebook to execute: its name, the profile, the parameters that are not its defaults, the
    runs that it draws on, the files that it makes in `folder`, and notebooks whose tables it
    reads."""

    notebook: str
    profile: str
    parameters: Mapping[str, Any]
    runs: Sequence[str]
    folder: Path
    after: Sequence[str] = ()

    @property
    def home(self) -> Path:
        """Where the executed copy goes."""
        return self.folder / "notebooks"

    @property
    def executed(self) -> Path:
        return self.home / f"{self.notebook}.ipynb"

    @property
    def stem(self) -> str:
        """What the names of its files begin with: fig05 of fig05_19_samples, table of tables."""
        return self.notebook.partition("_")[0].rstrip("s")

    @property
    def record(self) -> Path:
        return self.home / f"{self.notebook}.json"


def source(name: str) -> Path:
    """The notebook's own file. Raises FileNotFoundError."""
    path = FOLDER / f"{name}.ipynb"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in {FOLDER}")
    return path


def inputs(task: Task) -> dict[str, str]:
    """Digests of what a notebook's results depend on, by what a reader would call it."""
    chosen = profile(task.profile)
    code = hashlib.sha256()
    for path in sorted(
            f for package in ("gdd", "analysis") for f in (PACKAGES / package).rglob("*.py")):
        code.update(path.read_bytes())
    measured = hashlib.sha256()
    for path in sorted(tables.path("", task.profile).parent.glob("*.csv")):
        if path.stem in (*tables.MEASURED, *task.after):
            measured.update(path.read_bytes())
    return {
        "the notebook": hashlib.sha256(source(
            task.notebook).read_bytes()).hexdigest(), "its parameters": json.dumps(
                dict(task.parameters), sort_keys=True), "the code": code.hexdigest(), "a run":
        json.dumps({name: digest(chosen, name) for name in task.runs}), "a measured table":
        measured.hexdigest()}


def stale(task: Task) -> str:
    """Why the notebook must be executed, in words; "" if nothing has changed since it was."""
    if not task.executed.is_file() or not task.record.is_file():
        return "it has not been made yet"
    try:
        record = read_json(task.record.read_bytes(), Record, task.record.name)
        before, made = record["inputs"], record["made"]
        for name, found in inputs(task).items():
            if before.get(name) != found:
                return f"{name} has changed"
        for name, found in made.items():
            path = task.folder / name
            if path.parent != task.folder or not path.is_file() or _digest(path) != found:
                return f"{name} is missing or was changed"
    except (ValueError, OSError) as error:
        return f"its record is damaged: {error}"
    return ""


def execute(task: Task, threads: int = 1) -> None:
    """Run the notebook in a fresh kernel, on so many threads. A failed one is left beside the last
    good one, and raises RuntimeError with the cell's traceback."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config
    from zmq.error import ZMQError

    known, failed = inputs(task), task.executed.with_suffix(".failed.ipynb")
    before = _states(task)
    task.home.mkdir(parents=True, exist_ok=True)
    named = task.profile
    if named.endswith(".py"):  # the kernel works in another folder
        named = str(Path(named).resolve())
    given = {"profile": named} | dict(task.parameters)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with scratch() as folder:
        partial = folder / "notebook.ipynb"
        # it is stopped by an interrupt, which it would tell of
        settings: dict[str, Any] = {"NotebookClient": {"extra_arguments": ["--log-level=CRITICAL"]}}
        if os.name == "posix":  # not open to other users
            settings |= {
                "KernelManager": {
                    "transport": "ipc", "ip": str(folder / "kernel"), "connection_file": str(
                        folder / "kernel.json")}}
        try:
            with _limited(LIMIT_S):
                notebook = papermill.execute_notebook(str(source(
                    task.notebook)), str(partial), given, kernel_name="python3", cwd=str(ROOT),
                                                      progress_bar=sys.stderr.isatty(),
                                                      start_timeout=120, config=Config(settings))
        except PapermillExecutionError as error:
            if error.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt from None
            write_atomically(failed, partial.read_bytes())
            trace = "\n".join(_PLAIN.sub("", line) for line in error.traceback)
            raise RuntimeError(f"{task.notebook} failed in cell {error.exec_count}: {error.ename}: "
                               f"{error.evalue}; see {failed}\n{trace}") from None
        except ZMQError as error:  # of the kernel's sockets
            raise RuntimeError(f"{task.notebook} could not be run: {error}") from None
        except TimeoutError:
            write_atomically(failed, partial.read_bytes())
            raise RuntimeError(f"{task.notebook} took more than {LIMIT_S} s and was stopped; see "
                               f"{failed}") from None
        for path in ("input_path", "output_path"):  # of this machine
            del notebook.metadata["papermill"][path]
        papermill.iorw.write_ipynb(notebook, str(partial))
        write_atomically(task.executed, partial.read_bytes())
    failed.unlink(missing_ok=True)
    made = {name: _digest(task.folder / name) for name, state in _states(task).items()
            if before.get(name) != state}  # yapf: disable
    text = json.dumps({"inputs": known, "made": made}, indent=1)
    write_atomically(task.record, text.encode())


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds on the clock, where signals can."""
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _states(task: Task) -> dict[str, tuple[int, int]]:
    """The files that the notebook may have made, each with what changes when it is written."""
    files = [f for f in task.folder.glob(f"{task.stem}*") if f.is_file()]
    return {f.name: (f.stat().st_mtime_ns, f.stat().st_ino) for f in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
