"""A whole `TrainState` on disk, for resuming: one safetensors file with everything but the data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdd.training.sharding import full, like
from gdd.training.trainer import TrainState
from gdd.weights import checkpoint

_COUNTS = ("images_seen", "skipped", "rollbacks")


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
    checkpoint.write_tensors(path, tensors, counts | metadata)


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
    metadata."""
    tensors, metadata = checkpoint.read_tensors(path)
    for part, module in _modules(state).items():
        found = {
            k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(f"{part}.")}
        try:
            module.load_state_dict({
                name: like(found[name], t) for name, t in module.state_dict().items()
                if name in found})
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the run's {part}: {error}") from None
    for part, optimizer in _optimizers(state).items():
        parameters = optimizer.param_groups[0]["params"]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{part}."):
                _, index, slot = key.split(".")
                placed = like(tensor, parameters[int(index)]) if tensor.ndim else tensor
                slots.setdefault(int(index), {})[slot] = placed
        optimizer.load_state_dict({
            "state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if state.engine.scaler and metadata["scaler"]:
        state.engine.scaler.load_state_dict(metadata["scaler"])
    for name in _COUNTS:
        setattr(state, name, metadata[name])
    return metadata


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
