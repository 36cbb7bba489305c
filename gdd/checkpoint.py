"""Weights on disk: safetensors with a JSON config inside; no file can run code, and none is ever half-written.

`load` also takes the network pickles of EDM, GDD and D2O, which `convert` turns into files of ours. A run file holds one
denoiser, its network config, and what made it. A file may hold only the tensors that differ from a `base` file beside it: a
GDD-I generator is its teacher and a fifth of the weights. `save_state` keeps a whole training state for resuming.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gdd.denoiser import Denoiser
from gdd.edm_pickle import read_network
from gdd.sharding import full, like

FORMAT = "gdd-1"
_COUNTS = ("images_seen", "skipped", "rollbacks")  # of a TrainState


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one. Leaves nothing behind on failure.

    `content` is bytes, or a function that writes to the path it is given. Raises OSError naming the target.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
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
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def digest(path: Path | str) -> str:
    """First 16 hex digits of the file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def weights_digest(module: torch.nn.Module) -> str:
    """16 hex digits that name a module's weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


def digest_of(*parts: Any) -> str:
    """12 hex digits that name JSON-able values: the address of a config."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Tensors and JSON-able metadata as one safetensors file."""
    text = json.dumps(metadata)  # one entry: safetensors writes several in no set order, and equal runs make equal files
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), lambda partial: save_file(content, partial, {FORMAT: text}))


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a file of ours. Raises FileNotFoundError, or ValueError saying what the file is."""
    with _open(path) as file:
        return _metadata(file, path)


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, metadata)` of a file of ours; errors as `read_metadata`."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file, path)  # noqa: SIM118


def _open(path: Path | str):
    path = Path(path)
    head = _head(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors checkpoint but {_kind(head)} ({error})") from None


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist" if not path.exists() else f"checkpoint {path} is a folder")
    with path.open("rb") as file:
        return file.read(64)


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"\x80"):
        return "a pickle"
    if head.startswith(b"PK"):
        return "a zip archive, perhaps of torch.save, which is not opened here; give the network pickle"
    if head.isascii() and all(chr(byte).isprintable() or chr(byte).isspace() for byte in head):
        return "a text file"
    return "a damaged or foreign file"


def _metadata(file, path: Path | str) -> dict[str, Any]:
    raw = file.metadata() or {}
    if FORMAT not in raw:
        raise ValueError(f"{path} is a safetensors file of another program: its metadata has no entry {FORMAT}")
    try:
        metadata = json.loads(raw[FORMAT])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} has damaged metadata: a {type(metadata).__name__}")
    return metadata


def save_denoiser(path: Path | str, denoiser: Denoiser, *, base: Path | str | None = None, dtype: torch.dtype = torch.float32,
                  **metadata: Any) -> None:  # fmt: skip
    """Write a denoiser with its config; with `base`, a file in the same folder, only the tensors that differ from it."""
    tensors = {name: full(tensor).to(dtype) for name, tensor in denoiser.state_dict().items()}
    if base is not None:
        kept, _ = read_tensors(base)
        tensors = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor.cpu(), kept[name])}
        metadata |= {"base": Path(base).name, "base_digest": digest(base)}
    write_tensors(path, tensors, {"network": _plain(denoiser.config), "epsilon": denoiser.epsilon} | metadata)


def load(path: Path | str) -> Denoiser:
    """The denoiser of a run file, or of an EDM, GDD or D2O network pickle: float32, frozen, in eval mode."""
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path | str) -> tuple[Denoiser, dict[str, Any]]:
    """`(denoiser, metadata)`; raises FileNotFoundError or ValueError with what is wrong with the file."""
    tensors, metadata = _read(Path(path))
    return _build(path, tensors, metadata), metadata


def convert(source: Path | str, target: Path | str) -> Denoiser:
    """Write a network file of either format as one file of ours: the stored values, the config, and where they came from.

    Returns the denoiser. Raises FileExistsError rather than overwrite, and whatever `load` would say of the source.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists; name another file or delete it")
    tensors, metadata = _read(source)
    denoiser = _build(source, tensors, metadata)
    kept = {key: value for key, value in metadata.items() if not key.startswith("base")}
    provenance = {"network": _plain(denoiser.config), "source": {"file": source.name, "digest": digest(source)}}
    write_tensors(target, {name: tensor.clone() for name, tensor in tensors.items()}, kept | provenance)
    return denoiser


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a network file of either format, with what its `base` holds."""
    head = _head(path)
    pickled = head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle")
    if head and pickled and head[4:9] != b"\0\0\0\0{":  # safetensors begins with its header's length, which may look alike
        return read_network(path)
    tensors, metadata = read_tensors(path)
    if not isinstance(metadata.get("network"), dict):
        raise ValueError(f"{path} holds {metadata.get('kind', 'no denoiser')}, not a denoiser")
    if "base" in metadata:
        base, wanted = path.with_name(str(metadata["base"])), metadata.get("base_digest")
        if not base.is_file() or digest(base) != wanted:
            raise ValueError(f"{path} needs {base} with digest {wanted} beside it; it is missing or another file")
        tensors = read_tensors(base)[0] | tensors
    return tensors, metadata


def _build(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Denoiser:
    """The denoiser that `metadata` describes, with copies of `tensors`; what a file claims is held against what it has."""
    epsilon = metadata.get("epsilon", 0.0)
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
        raise ValueError(f"{path} has an epsilon that is no small number: {epsilon!r}")
    try:
        config = {k: float("inf") if v == "Infinity" else v for k, v in metadata["network"].items()}
        with torch.device("meta"):  # shapes only, no memory yet
            denoiser = Denoiser.from_config(config, epsilon=epsilon)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ValueError(f"{path} has a config that makes no network: {error}") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))
        raise ValueError(f"{path} does not fit its own config: {len(odd)} tensors differ, first {odd[0][0]} {list(odd[0][1])}")
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} holds values that are not finite in {len(broken)} tensors, first {broken[0]}")
    denoiser.load_state_dict(weights, assign=True)
    return denoiser.eval().requires_grad_(False)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "Infinity" if value == float("inf") else value for name, value in config.items()}


def pack_state(state) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and counts of a whole `TrainState`: generator, EMA, discriminator, both optimizers, fp16's scale.

    If weights are sharded, every process must ask.
    """
    tensors = {f"{part}.{name}": full(t) for part, module in _modules(state).items() for name, t in module.state_dict().items()}
    for part, optimizer in _optimizers(state).items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{index}.{slot}": full(value) for slot, value in slots.items()}
    counts = {name: getattr(state, name) for name in _COUNTS}
    scaler = state.scaler.state_dict() if state.scaler else {}
    return {name: tensor.clone() for name, tensor in tensors.items()}, counts | {"scaler": scaler}


def save_state(path: Path | str, state, **metadata: Any) -> None:
    """Write a `TrainState` as one file."""
    tensors, counts = pack_state(state)
    write_tensors(path, tensors, counts | metadata)


def state_bytes(state) -> int:
    """About what `save_state` will write: all weights, and Adam's two moments of the trained ones."""
    weights = [p for module in _modules(state).values() for p in (*module.parameters(), *module.buffers())]
    moments = [p for optimizer in _optimizers(state).values() for p in optimizer.param_groups[0]["params"]]
    return sum(t.numel() * t.element_size() for t in (*weights, *moments, *moments))


def load_state(path: Path | str, state) -> dict[str, Any]:
    """Fill a fresh `TrainState` of the same config with what `save_state` wrote; returns the metadata."""
    tensors, metadata = read_tensors(path)
    for part, module in _modules(state).items():
        found = {k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(f"{part}.")}
        try:
            module.load_state_dict({name: like(found[name], t) for name, t in module.state_dict().items() if name in found})
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
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if state.scaler and metadata["scaler"]:
        state.scaler.load_state_dict(metadata["scaler"])
    for name in _COUNTS:
        setattr(state, name, metadata[name])
    return metadata


def _modules(state) -> dict[str, torch.nn.Module]:
    modules = {"generator": state.generator, "ema": state.ema}
    if state.discriminator is not None:  # without its backbones, which have files of their own
        parts = {"projections": state.discriminator.projections, "heads": state.discriminator.heads}
        if state.discriminator.classes is not None:
            parts["classes"] = state.discriminator.classes
        modules["discriminator"] = torch.nn.ModuleDict(parts)
    return modules


def _optimizers(state) -> dict[str, torch.optim.Optimizer]:
    optimizers = {"optimizer": state.optimizer, "d_optimizer": state.d_optimizer}
    return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}
