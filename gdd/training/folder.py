"""A run's folder: what lies in it, who may write to it, and whether it is this run's.

config.json        the TrainConfig
environment.json   for every start: images seen, git revision, versions, hardware
log.csv            a row per tick: images, mean losses, sign rates, distances, images/s
samples/           a grid of the EMA network's images per tick, from the same seeds
tensorboard/       the same as curves, if TensorBoard is installed
state.safetensors  all that resuming needs; gone once the run is finished
images-COUNT.safetensors  the EMA network at a snapshot
best.safetensors   the EMA network of the tick with the least distance, if one is measured
final.safetensors  the finished EMA network, with config and log inside
"""

import csv
import dataclasses
import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from filelock import FileLock, Timeout

from gdd.config import TrainConfig
from gdd.files import sweep_partials, write_atomically
from gdd.reading import METADATA, open_regular, quoted, read_json, typed
from gdd.training.engine import Engine
from gdd.weights import checkpoint

# they decide which tensors a state has
FIXED = ("objective", "backbones", "d_image_size", "freeze", "d_channels", "d_head_sizes",
         "d_head_widths")
TIMINGS = ("images_per_s", "gpu_peak_gb")  # columns of the log that no two runs share
_PACKAGES = ("gdd-toolkit", "torch", "torchvision", "lightning-fabric", "timm", "lpips", "numpy")


class _Start(TypedDict):
    """An entry of environment.json; what else it has is for the reader."""

    images_seen: int


class RunFolder:
    """The folder of one run, held by a lock while in use as a context; process zero writes.

    Raises, in every process, BlockingIOError if another run holds it and OSError if it cannot be
    written.
    """
    def __init__(self, path: Path, engine: Engine):
        self.path, self.engine = path, engine
        self.state, self.best, self.final = (path / f"{name}.safetensors"
                                             for name in ("state", "best", "final"))
        self.lock = FileLock(path / ".lock", blocking=False)

    def __enter__(self) -> "RunFolder":
        self.engine.on_rank_zero(self._claim)
        return self

    def __exit__(self, *_: Any) -> None:
        self.lock.release()

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout:
            raise BlockingIOError(
                f"{self.path} is in use by another run; wait for it, or name another folder"
            ) from None
        except OSError as error:
            raise OSError(f"cannot write in {self.path}: {error.strerror or error}") from None

    def verify_config(self, config: TrainConfig, allowed: Sequence[str]) -> None:
        """Raise ValueError, naming the fields, if the folder holds a run of another config;
        `allowed` may differ."""
        fields = TrainConfig.__dataclass_fields__.keys() - FIXED
        if unknown := [name for name in allowed if name not in fields]:
            raise ValueError(f"allow_change takes fields of the config but {', '.join(FIXED)}; "
                             f"got {', '.join(unknown)}")
        path = self.path / "config.json"
        if path.exists():
            found = read_json(_content(path), dict[str, Any], f"{quoted(path)}")
            self._compare(config, found, allowed, f"{quoted(path)}")

    def _compare(self, config: TrainConfig, found: dict[str, Any], allowed: Sequence[str],
                 what: str) -> None:
        now, hints = _plain(config), get_type_hints(TrainConfig)
        found = {
            name: typed(found[name], hints[name], f"{what}: {name}") if name in found else default
            for name, default in _plain(TrainConfig()).items()}  # younger fields have defaults
        found = json.loads(json.dumps(found))
        odd = [name for name in now if found[name] != now[name] and name not in allowed]
        if odd:
            drift = "; ".join(
                f"{name}: {quoted(repr(found[name]))} there, {now[name]!r} now" for name in odd)
            way_on = f", or go on with what changed by --allow-change {' '.join(odd)}"
            raise ValueError(f"{self.path} holds a run of another config ({drift}); name another "
                             f"folder or delete it{'' if set(odd) & set(FIXED) else way_on}")

    def sweep(self) -> None:
        """Remove what a run that was killed while it wrote has left; only once the folder is known
        to be this run's."""
        sweep_partials(self.path)

    def finish(self, config: TrainConfig, allowed: Sequence[str]) -> None:
        """Remove the state, now that there is a `final`. Raises ValueError, and keeps the state, if
        that is not whole, or of another config."""
        try:
            _, metadata = checkpoint.load_with_metadata(self.final)
            what = f"{quoted(self.final)}: train"
            seen = typed(metadata.get("images_seen"), int, f"{quoted(self.final)}: images_seen")
            if seen < config.total_images:
                raise ValueError(f"{quoted(self.final)} has seen {seen:,} images, not "
                                 f"{config.total_images:,}")
            self._compare(config, typed(metadata.get("train"), dict[str, Any], what), allowed, what)
        except (ValueError, OSError) as error:
            kept = " from the state beside it" if self.state.exists() else " from nothing"
            raise ValueError(f"{error}; delete {quoted(self.final)}, and the same command goes on"
                             f"{kept}") from None
        self.state.unlink(missing_ok=True)

    def begin(self, config: TrainConfig, images_seen: int, state_bytes: int) -> None:
        """Note what starts, before anything is trained. Raises OSError if the states will not fit
        on the disk."""
        free = shutil.disk_usage(self.path).free
        if free < 2 * state_bytes:
            needs = f"a state takes {state_bytes / 1e9:.3g} GB, twice that while it is written"
            raise OSError(f"{self.path} has {free / 1e9:.3g} GB free; {needs}")
        path = self.path / "environment.json"
        known = read_json(_content(path), list[_Start], quoted(path)) if path.exists() else []
        starts = [*known, {"images_seen": images_seen, **environment(), **_hardware(self.engine)}]
        write_atomically(path, json.dumps(starts, indent=1).encode())
        write_atomically(self.path / "config.json", json.dumps(_plain(config), indent=1).encode())

    def write_log(self, log: list[dict[str, float]]) -> None:
        names = dict.fromkeys(name for row in log for name in row)  # what is measured may change
        text = io.StringIO()
        table = csv.DictWriter(text, list(names), lineterminator="\n")
        table.writeheader()
        table.writerows({
            name: f"{value:.6g}" if isinstance(value, float) else value
            for name, value in row.items()} for row in log)
        write_atomically(self.path / "log.csv", text.getvalue().encode())


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(METADATA + 1)


def environment() -> dict[str, Any]:
    """Python, package versions, and the git revision of this code, `+` if it was changed since; ""
    outside a checkout."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"git": _revision(Path(__file__).resolve().parents[2]), "versions": versions}


def _revision(checkout: Path) -> str:
    if not (checkout / ".git").exists():
        return ""
    try:
        revision, changes = (subprocess.run(["git", "-C", str(checkout), *command],
                                            capture_output=True, text=True,
                                            check=True).stdout.strip()
                             for command in (("rev-parse", "HEAD"), ("status", "--porcelain",
                                                                     "--untracked-files=no")))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{revision}+" if changes else revision


def _hardware(engine: Engine) -> dict[str, Any]:
    kind = engine.device.type
    name = torch.cuda.get_device_name(
        engine.device) if kind == "cuda" else platform.processor() or platform.machine()
    threads = {"threads": torch.get_num_threads()} if kind == "cpu" else {}
    used = {
        "strategy": engine.hardware.strategy, "compile": engine.hardware.compile,
        "micro_batch_size": engine.micro_batch_size}
    return {"device": kind, "name": name, "processes": engine.world, **threads, **used}


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))
