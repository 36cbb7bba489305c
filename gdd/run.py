"""A run in a folder: the loop around `train` that logs, measures, saves, and picks up where it was stopped.

Files: `config.json`, `log.csv` (one row per tick), `state.safetensors` (all that resuming needs, gone once finished) and
`final.safetensors` (the finished EMA network, with config and log inside).
"""

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from tqdm.auto import tqdm

from gdd import checkpoint
from gdd.backbones import Backbone
from gdd.config import TrainConfig
from gdd.data import Images
from gdd.denoiser import Denoiser
from gdd.trainer import TrainState, init_state, train

Evaluate = Callable[[TrainState], dict[str, float]]


def run(folder: Path | str, config: TrainConfig, dataset: Images, start: Denoiser, backbones: Sequence[Backbone] = (), *,
        ticks: int = 8, evaluate: Evaluate | None = None, dtype: torch.dtype = torch.float32, fabric: Fabric | None = None,
        bar_position: int = 0, asked: Sequence[int] = (), **provenance: Any) -> Path:  # fmt: skip
    """Train, or go on training, in `folder`; returns the finished `final.safetensors`.

    After each of `ticks` equal parts the losses' means and `evaluate(state)` become a row of the log, and the state is saved.
    `bar_position` keeps the progress bars of runs side by side apart; `provenance` goes into the file's metadata.
    Raises ValueError if the folder holds a run of another config, naming the fields that differ, and Stopped, with the state
    saved, once `asked` is not empty, as `asked_to_stop` makes it.
    """
    folder = Path(folder)
    final = folder / "final.safetensors"
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    _check_config(folder, wanted)
    if final.exists():
        return final
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    state = init_state(config, start, backbones)
    saved, log = folder / "state.safetensors", []
    sums: dict[str, list[float]] = {}  # of the tick's losses
    if saved.exists():
        metadata = checkpoint.load_state(saved, state)
        log, sums = metadata["log"], metadata.get("sums", {})
    training = train(config, dataset, start, backbones, fabric=fabric, state=state)
    checkpoint.write_atomically(folder / "config.json", json.dumps(wanted, indent=1).encode())
    steps = -(-config.total_images // config.batch_size)
    tick_steps = {-(-steps * (tick + 1) // ticks) for tick in range(ticks)}

    bar = tqdm(total=config.total_images, initial=state.images_seen, unit="image", unit_scale=True, desc=folder.name,
               position=bar_position, leave=bar_position == 0, disable=None)  # fmt: skip
    with bar:
        try:
            for _ in training:
                for name, value in state.metrics.items():
                    sums.setdefault(name, []).append(value)
                bar.update(config.batch_size)
                if state.images_seen // config.batch_size in tick_steps:
                    log.append(_row(state, sums, evaluate))
                    sums.clear()
                    bar.set_postfix({k: f"{v:.3g}" for k, v in log[-1].items() if k != "images"})
                    if fabric.is_global_zero:
                        _write_log(folder, log)
                        checkpoint.save_state(saved, state, log=log)
                if asked and state.images_seen < config.total_images:
                    if fabric.is_global_zero:
                        checkpoint.save_state(saved, state, log=log, sums=sums)
                    raise Stopped(f"stopped after {state.images_seen:,} of {config.total_images:,} images, saved in {saved}")
        except FloatingPointError as error:
            good = f"last good state: {saved}" if saved.exists() else "no state had been saved yet"
            raise FloatingPointError(f"stopped after {state.images_seen} images: {error}; {good}") from None
    if fabric.is_global_zero:
        provenance |= {"train": dataclasses.asdict(config), "log": log, "images_seen": state.images_seen, "weights": "EMA"}
        provenance["backbones"] = [backbone.name for backbone in backbones]  # what must not grade the result
        checkpoint.save_denoiser(final, state.ema, dtype=dtype, **provenance)
        saved.unlink(missing_ok=True)
    return final


class Stopped(Exception):  # noqa: N818
    """A run that was asked to stop, and has saved its state."""


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGINT fills: the step in progress is finished, then the state saved. A second one does not wait."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _row(state: TrainState, sums: dict[str, list[float]], evaluate: Evaluate | None) -> dict[str, float]:
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    return {"images": state.images_seen, **means, **(evaluate(state) if evaluate else {})}


def _write_log(folder: Path, log: list[dict[str, float]]) -> None:
    checkpoint.write_atomically(folder / "log.csv", pd.DataFrame(log).to_csv(index=False, float_format="%.6g").encode())


def _check_config(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); name another run folder") from None
    found = json.loads(json.dumps(dataclasses.asdict(TrainConfig()))) | found  # a run of an older version lacks younger fields
    if odd := [f"{key}: {found.get(key)!r} there, {value!r} now" for key, value in wanted.items() if found.get(key) != value]:
        raise ValueError(f"{folder} holds a run of another config ({'; '.join(odd)}); name another folder or delete it")
