"""A whole `TrainState` on disk, for resuming: one safetensors file with everything but the data.

A checksum over tensors and metadata stands among the metadata, so that a flipped bit is noticed;
files of older versions have none, and are held against the run's shapes and ranges all the same.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from gdd.reading import quoted, typed
from gdd.training.sharding import full, like
from gdd.training.trainer import TrainState
from gdd.weights import checkpoint

_COUNTS = ("images_seen", "skipped", "rollbacks")
_MOST = 10**13  # images; a run may have a tenth
_SLOTS = {"exp_avg", "exp_avg_sq", "step"}  # of Adam
_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


class StateMetadata(TypedDict):
    """What a state file says beside its tensors."""

    images_seen: int
    skipped: int
    rollbacks: int
    scaler: dict[str, float]
    checksum: NotRequired[str]
    # of runs in a folder
    log: NotRequired[list[dict[str, float]]]
    sums: NotRequired[dict[str, list[float]]]
    teacher: NotRequired[str]


def pack_state(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and counts of a whole `TrainState`: generator, EMA, discriminator, both optimizers,
    fp16's scale.

    If weights are sharded, every process must ask.
    """
    tensors = {
        f"{part}.{name}": full(t) for part, module in _modules(state).items()
        for name, t in module.state_dict().items()}
    for part, optimizer in _optimizers(state).items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{index}.{slot}": full(value) for slot, value in slots.items()}
    counts = {name: getattr(state, name) for name in _COUNTS}
    scaler = state.engine.scaler.state_dict() if state.engine.scaler else {}
    return {name: tensor.clone() for name, tensor in tensors.items()}, counts | {"scaler": scaler}


def save_state(path: Path | str, state: TrainState, **metadata: Any) -> None:
    """Write a `TrainState` as one file."""
    tensors, counts = pack_state(state)
    write_state(path, tensors, counts | metadata)


def write_state(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write what `pack_state` gave, with its checksum."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    checkpoint.write_tensors(path, plain, metadata | {"checksum": checksum(plain, metadata)})


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """32 hex digits over names, types, shapes and bytes of tensors, and all metadata but itself."""
    found = hashlib.blake2b(digest_size=16)
    said = {name: value for name, value in metadata.items() if name != "checksum"}
    found.update(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def state_bytes(state: TrainState) -> int:
    """About what `save_state` will write: all weights, and Adam's two moments of the trained
    ones."""
    weights = [
        p for module in _modules(state).values() for p in (*module.parameters(), *module.buffers())]
    moments = [
        p for optimizer in _optimizers(state).values() for p in optimizer.param_groups[0]["params"]]
    return sum(t.numel() * t.element_size() for t in (*weights, *moments, *moments))


def load_state(path: Path | str, state: TrainState) -> dict[str, Any]:
    """Fill a fresh `TrainState` of the same config with what `save_state` wrote; returns the
    metadata. Raises ValueError, before anything is filled, if the file is damaged or not of this
    run."""
    tensors, said = checkpoint.read_tensors(path)
    metadata = _checked(path, tensors, said, state)
    # of steps left out Adam knows nothing, and a scaler leaves some out uncounted
    seen, skipped = metadata["images_seen"], metadata["skipped"]
    stepped = not state.engine.scaler and seen > skipped * state.config.batch_size
    slots = {part: _slots(path, tensors, part, optimizer, seen, stepped)
             for part, optimizer in _optimizers(state).items()}  # yapf: disable
    for part, module in _modules(state).items():
        module.load_state_dict({
            name: like(tensors[f"{part}.{name}"], t) for name, t in module.state_dict().items()})
    for part, optimizer in _optimizers(state).items():
        parameters = optimizer.param_groups[0]["params"]
        placed = {
            index: {slot: like(t, parameters[index]) if t.ndim else t for slot, t in found.items()}
            for index, found in slots[part].items()}
        optimizer.load_state_dict({
            "state": placed, "param_groups": optimizer.state_dict()["param_groups"]})
    if state.engine.scaler and metadata["scaler"]:
        state.engine.scaler.load_state_dict(metadata["scaler"])
    for name in _COUNTS:
        setattr(state, name, metadata[name])
    return metadata


def _checked(path: Path | str, tensors: Mapping[str, Tensor], said: Any,
             state: TrainState) -> dict[str, Any]:
    """The metadata. Raises ValueError if they are of wrong kinds or ranges, or if the tensors are
    not those that were written, not finite, or not those of the run's modules."""
    what = f"{quoted(path)}: metadata"
    metadata = typed(said, StateMetadata, what)
    if "checksum" in metadata and metadata["checksum"] != checksum(tensors, said):
        raise ValueError(f"{quoted(path)} is damaged: its checksum is of other tensors or counts; "
                         "delete it, and the run begins anew")
    for name in _COUNTS:
        if not 0 <= metadata[name] <= _MOST:
            raise ValueError(f"{what}.{name} must be a count; got {metadata[name]}")
    if metadata["scaler"] and metadata["scaler"].keys() != _SCALER:
        raise ValueError(f"{what}.scaler must have {', '.join(sorted(_SCALER))}; "
                         f"got {quoted(sorted(metadata['scaler']))}")
    if any(value < 0 for value in metadata["scaler"].values()):
        raise ValueError(f"{what}.scaler must have no number below 0")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{quoted(path)} holds values that are not finite in {quoted(name)}")
    modules = _modules(state)
    for part, module in modules.items():
        wanted = {f"{part}.{name}": _form(t) for name, t in module.state_dict().items()}
        found = {name: _form(t) for name, t in tensors.items() if name.startswith(f"{part}.")}
        if odd := sorted(set(wanted.items()) ^ set(found.items()), key=lambda item: item[0]):
            raise ValueError(f"{quoted(path)} does not fit the run's {part}: {len(odd)} tensors "
                             f"differ, first {quoted(odd[0][0])} {list(odd[0][1][0])}")
    known = modules.keys() | _optimizers(state).keys()
    if foreign := sorted(name for name in tensors if name.partition(".")[0] not in known):
        raise ValueError(f"{quoted(path)} holds {len(foreign)} tensors that are no part of the "
                         f"run, first {quoted(foreign[0])}")
    return metadata


def _slots(path: Path | str, tensors: Mapping[str, Tensor], part: str,
           optimizer: torch.optim.Optimizer, images_seen: int,
           stepped: bool) -> dict[int, dict[str, Tensor]]:  # yapf: disable
    """What the optimizer keeps of each parameter, by its index. Raises ValueError if a slot is
    missing or no parameter's, or all are of one that has `stepped`; a parameter that gets no
    gradient has none."""
    parameters = optimizer.param_groups[0]["params"]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(f"{part}."):
            continue
        index, _, slot = key.removeprefix(f"{part}.").partition(".")
        number = int(index) if index.isascii() and index.isdecimal() and len(index) < 9 else -1
        if str(number) != index or not 0 <= number < len(parameters) or slot not in _SLOTS:
            raise ValueError(f"{quoted(path)}: {quoted(key)} is no slot of the run's {part}")
        wanted = (torch.Size(), torch.float32) if slot == "step" else _form(parameters[number])
        # a step takes an image or more, and R1 a step of its own; squares are not negative
        most = 2 * images_seen + 1 if slot == "step" else math.inf
        fits = slot == "exp_avg" or (tensor.min() >= 0 and tensor.max() <= most)
        if _form(tensor) != wanted or not fits:
            raise ValueError(f"{quoted(path)}: {quoted(key)} does not fit the run's {part}")
        slots.setdefault(number, {})[slot] = tensor
    lacking = [index for index, found in slots.items() if found.keys() != _SLOTS]
    if lacking or (stepped and not slots):
        first = f"parameter {lacking[0]}" if lacking else "all parameters"
        raise ValueError(f"{quoted(path)} lacks a slot of {part} for {first}")
    return slots


def _form(tensor: Any) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _modules(state: TrainState) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"generator": state.generator, "ema": state.ema}
    if state.discriminator is not None:  # without its backbones, which have files of their own
        found = state.discriminator
        parts: dict[str, nn.Module] = {"projections": found.projections, "heads": found.heads}
        if found.classes is not None:
            parts["classes"] = found.classes
        modules["discriminator"] = nn.ModuleDict(parts)
    return modules


def _optimizers(state: TrainState) -> dict[str, torch.optim.Optimizer]:
    optimizers = {"optimizer": state.optimizer, "d_optimizer": state.d_optimizer}
    return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}
