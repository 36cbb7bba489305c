"""A run in a folder: the loop around `train` that logs, measures, saves, and picks up where it was
stopped."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers import TensorBoardLogger
from tqdm.auto import tqdm

from gdd.backbones import Backbone
from gdd.config import ONE_CPU, Hardware, Keep, TrainConfig
from gdd.data.images import Images, to_uint8
from gdd.denoiser import Denoiser
from gdd.files import write_atomically
from gdd.grid import grid_png
from gdd.perceptual import Distance
from gdd.samplers import sampler_of
from gdd.sampling import generate
from gdd.training.engine import Engine
from gdd.training.folder import TIMINGS, RunFolder
from gdd.training.sharding import whole
from gdd.training.start import snapshot_name
from gdd.training.state import load_state, pack_state, state_bytes, write_state
from gdd.training.trainer import TrainState, init_state, train
from gdd.weights import checkpoint

Evaluate = Callable[[TrainState], dict[str, float]]
Row = dict[str, float]
_KEEP = Keep()


def run(folder: Path | str, config: TrainConfig, dataset: Images, start: Denoiser,
        backbones: Sequence[Backbone] = (), *, keep: Keep = _KEEP, hardware: Hardware = ONE_CPU,
        distance: Distance | None = None, evaluate: Evaluate | None = None, best_by: str = "",
        dtype: torch.dtype = torch.float32, bar_position: int = 0, asked: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None) -> Path:
    """Train, or go on training, in `folder` (gdd/training/folder.py lists its files); returns the
    finished `final.safetensors`.

    `evaluate(state)`, called in every process, adds to each row of the log; the EMA network with
    the least `best_by` of them is kept. `bar_position` keeps the progress bars of runs side by side
    apart; `provenance` goes into the files' metadata. Raises ValueError or OSError if something
    does not fit or the folder is not this run's, FloatingPointError as `keep.on_nan` has it, and
    Stopped, with the state saved, once `asked` is not empty, as `asked_to_stop` makes it.
    """
    keep.validate()
    engine = Engine(config, hardware)
    state = init_state(config, start, backbones, engine)

    def training() -> Iterator[TrainState]:
        return train(config, dataset, start, backbones, distance=distance, state=state,
                     on_nan=keep.on_nan, max_skips=keep.max_skips)

    steps = training()
    origin = {**(provenance or {}), "train": asdict(config),
              "backbones": [backbone.name for backbone in backbones]}  # yapf: disable
    with RunFolder(Path(folder), engine) as files:
        engine.on_rank_zero(lambda: files.verify_config(config, keep.allow_change))
        engine.on_rank_zero(files.sweep)
        finished, resumed = engine.broadcast((files.final.exists(), files.state.exists()))
        if finished:
            engine.on_rank_zero(lambda: files.finish(config, keep.allow_change))
            return files.final
        teacher = checkpoint.weights_digest(start)
        record = _Record(files, state, keep, evaluate, best_by, origin | {"teacher": teacher})
        if resumed:
            record.load()
        engine.on_rank_zero(lambda: files.begin(config, state.images_seen, state_bytes(state)))
        if keep.on_nan == "rollback" and not resumed:
            record.save()
        record.open(bar_position)
        count = -(-config.total_images // config.batch_size)
        ticks = {-(-count * (tick + 1) // keep.ticks) for tick in range(keep.ticks)}
        snapshots = {-(-images // config.batch_size) for images in keep.snapshots}
        with record.bar:
            while state.images_seen < config.total_images:
                try:
                    next(steps)
                except FloatingPointError as error:
                    rollbacks = state.rollbacks + 1
                    if keep.on_nan != "rollback" or rollbacks > keep.max_skips:
                        saved = f"last good state: {files.state}" if files.state.exists() else ""
                        raise FloatingPointError(
                            f"stopped after {state.images_seen} images: {error}; "
                            f"{saved or 'no state had been saved yet'}") from None
                    record.load()
                    state.rollbacks = rollbacks
                    steps = training()
                    continue
                record.step()
                if state.step in snapshots:
                    record.snapshot()
                if state.step in ticks:
                    record.tick()
                if engine.any(bool(asked)) and state.images_seen < config.total_images:
                    record.save()
                    raise Stopped(f"stopped after {state.images_seen:,} of {config.total_images:,} "
                                  f"images, saved in {files.state}")
        record.finish(dtype)
    return files.final


@dataclass
class _Record:
    """What is written about a run while it goes on."""

    files: RunFolder
    state: TrainState
    keep: Keep
    evaluate: Evaluate | None
    best_by: str
    provenance: dict[str, Any]
    log: list[Row] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)  # of the tick's losses
    measured: Row = field(default_factory=dict)  # by `evaluate`, at the last tick
    began: tuple[float, int] = (0.0, 0)  # when the tick did, and at how many images

    def load(self) -> None:
        path, config = self.files.state, self.state.config
        metadata = load_state(path, self.state)
        if lacking := {"log", "sums", "teacher"} - metadata.keys():
            raise ValueError(f"{path} is no state of a run in a folder: it lacks {min(lacking)}")
        if metadata["teacher"] != self.provenance["teacher"]:
            raise ValueError(f"{self.files.path} holds a run that started from another network; "
                             "name its teacher or another folder")
        self.log, self.sums = metadata["log"], metadata["sums"]
        seen, longer = metadata["images_seen"], {"total_images", "batch_size"}
        ticks = [row.get("images", -1) for row in self.log]
        if any(not 0 < images <= seen for images in ticks) or ticks != sorted(ticks):
            raise ValueError(f"{path} has a log that is not of its {seen:,} images")
        if seen >= config.total_images + config.batch_size and not longer & {
                *self.keep.allow_change}:
            raise ValueError(f"{path} has seen {seen:,} images; the run has {config.total_images:,}"
                             " in all")

    def save(self) -> None:
        tensors, counts = pack_state(self.state)
        metadata = counts | {
            "log": self.log, "sums": self.sums, "teacher": self.provenance["teacher"]}
        self.files.engine.on_rank_zero(lambda: write_state(self.files.state, tensors, metadata))

    def open(self, bar_position: int) -> None:
        config, images = self.state.config, self.state.images_seen
        quiet = None if self.files.engine.is_rank_zero else True  # None: unless nobody watches
        self.bar = tqdm(total=config.total_images, initial=images, unit="image", unit_scale=True,
                        desc=self.files.path.name, position=bar_position, leave=bar_position == 0,
                        disable=quiet)
        self.began = time.monotonic(), images
        self.curves = None
        if self.keep.tensorboard and self.files.engine.is_rank_zero:
            try:
                self.curves = TensorBoardLogger(self.files.path, name="tensorboard", version="",
                                                purge_step=images + 1)
            except ModuleNotFoundError:
                print("TensorBoard is not installed: log.csv has the same curves")

    def step(self) -> None:
        for name, value in self.state.metrics.items():
            self.sums.setdefault(name, []).append(value)
        self.bar.n = self.state.images_seen - self.state.config.batch_size  # a rollback goes back
        shown = {
            name: f"{value:.3g}" for name, value in (self.measured | self.state.metrics).items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(self.state.config.batch_size)

    def tick(self) -> None:
        """A row of the log with its pictures and curves, then the state: killed in between, the
        tick is done again."""
        state, (since, images) = self.state, self.began
        average = replace(state, ema=whole(state.ema))
        row: Row = {
            "images": state.images_seen, **{
                name: sum(values) / len(values) for name, values in self.sums.items()}}
        row |= {name: count for name in ("skipped", "rollbacks") if (count := getattr(state, name))}
        if state.engine.scaler:
            row["fp16_scale"] = state.engine.scaler.get_scale()
        row["images_per_s"] = (state.images_seen - images) / (time.monotonic() - since)
        if self.files.engine.device.type == "cuda":
            row["gpu_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        measured = self.evaluate(average) if self.evaluate else {}
        # JSON has no NaN; the log shows an empty place
        measured = {name: value for name, value in measured.items() if math.isfinite(value)}
        self.log.append(row | measured)
        self.sums = {}
        self.measured = measured
        self.files.engine.on_rank_zero(lambda: self._show(average.ema))
        self.save()
        self.began = time.monotonic(), state.images_seen

    def _show(self, average: Denoiser) -> None:
        self.files.write_log(self.log)
        earlier = [row[self.best_by] for row in self.log if self.best_by in row]
        if self.best_by in self.measured and self.measured[self.best_by] <= min(earlier):
            given = self.provenance | self.measured | {
                "images_seen": self.state.images_seen, "weights": "EMA"}
            checkpoint.save_denoiser(self.files.best, average, **given)
        if self.keep.samples:
            self._picture(average)
        if self.curves:
            curves = {name: value for name, value in self.log[-1].items() if name != "images"}
            self.curves.log_metrics(curves, self.state.images_seen)
            self.curves.save()

    def _picture(self, denoiser: Denoiser) -> None:
        config, classes = self.state.config, denoiser.label_dim if denoiser.label_dim <= 16 else 0
        # a column for each of a few classes
        labels = torch.arange(self.keep.samples) % classes if classes else None
        batches = generate(denoiser, range(self.keep.samples), sampler=sampler_of(config),
                           labels=labels)
        images = torch.cat([to_uint8(batch).cpu() for batch in batches])
        content = grid_png(images, columns=classes, zoom=max(1, 64 // denoiser.resolution))
        write_atomically(self.files.path / "samples" / f"{self.state.images_seen:012d}.png",
                         content)
        if self.curves:
            self.curves.experiment.add_images("samples", images, self.state.images_seen)

    def snapshot(self) -> None:
        average, images = whole(self.state.ema), self.state.images_seen
        self.files.engine.on_rank_zero(lambda: checkpoint.save_denoiser(
            self.files.path / snapshot_name(images), average, dtype=torch.float16, images_seen=
            images, weights="EMA", **self.provenance))

    def finish(self, dtype: torch.dtype) -> None:
        average = whole(self.state.ema)
        self.files.engine.on_rank_zero(lambda: self._finish(average, dtype))

    def _finish(self, average: Denoiser, dtype: torch.dtype) -> None:
        log = [
            {name: value for name, value in row.items() if name not in TIMINGS} for row in self.log]
        given = {name: value for name, value in self.provenance.items() if name != "teacher"}
        given |= {"log": log, "images_seen": self.state.images_seen, "weights": "EMA"}
        checkpoint.save_denoiser(self.files.final, average, dtype=dtype, **given)
        self.files.finish(self.state.config, self.keep.allow_change)
        if self.curves:
            self.curves.finalize("success")


class Stopped(Exception):  # noqa: N818
    """A run that was asked to stop, and has saved its state."""


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills: the step in progress is finished, then the state saved.
    A SIGINT after that is a KeyboardInterrupt at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
