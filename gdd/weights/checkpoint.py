"""Weights on disk: safetensors with a JSON config inside; no file can run code, and none is ever
half-written.

`load` also takes the network pickles of EDM, GDD and D2O, which `convert` turns into files of ours.
A run file holds one denoiser, its network config, and what made it, as `Metadata` has it. A file
may hold only the tensors that differ from a `base` file beside it: a GDD-I generator is its teacher
and a fifth of the weights.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gdd.denoiser import Denoiser
from gdd.files import digest, write_atomically
from gdd.reading import (
    METADATA,
    Budget,
    Line,
    json_values,
    open_regular,
    quoted,
    read_json,
    shown,
    typed,
)
from gdd.weights import zoo
from gdd.weights.edm_pickle import read_network

FORMAT = "gdd-1"
_HEADER_VALUES = 1 << 20  # ten for each tensor, however empty; a state of training has thousands
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class Network(TypedDict, total=False):
    """EDMPrecond's arguments, those that `Denoiser.from_config` holds against no range."""

    model_type: Line
    embedding_type: Line
    encoder_type: Line
    decoder_type: Line
    use_fp16: bool
    sigma_min: float
    sigma_max: float | Literal["Infinity"]


class Trained(TypedDict, total=False):
    """The config of a run, as far as it is used again."""

    objective: Line
    sampler: Line
    data: str


class Source(TypedDict):
    """What a file was converted from."""

    file: Line
    digest: Line


Metadata = TypedDict("Metadata", {
    "network": Network, "epsilon": float, "class": Line, "weights": Line, "base": Line,
    "base_digest": Line, "source": Source, "name": Line, "digest": Line, "train": Trained,
    "images_seen": int, "backbones": list[Line], "log": list[dict[str, float | str | None]],
    "kind": Line, "accuracy": float,
}, total=False)  # yapf: disable


class Run(TypedDict):
    """What goes with the config of a run."""

    images_seen: int


def weights_digest(module: torch.nn.Module) -> str:
    """16 hex digits that name a module's weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str,
                                                                                     Any]) -> None:
    """Tensors and JSON-able metadata as one safetensors file."""
    # one entry: safetensors writes several in no set order, and equal runs make equal files
    text = json.dumps(metadata)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(partial: Path) -> None:
        try:
            save_file(content, partial, {FORMAT: text})
        except SafetensorError as error:
            raise OSError(str(error)) from None

    write_atomically(Path(path), write)


def read_metadata(path: Path | str, kind: Any = Metadata) -> dict[str, Any]:
    """The metadata of a file of ours, of a `kind` that `gdd.reading.typed` takes. Raises
    FileNotFoundError, or ValueError saying what the file is."""
    path = Path(path)
    with _open(path) as file:
        return _metadata(file, path, kind)


def read_tensors(path: Path | str,
                 kind: Any = dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, metadata)` of a file of ours; errors as `read_metadata`."""
    path = Path(path)
    with _open(path) as file:
        metadata = _metadata(file, path, kind)
        try:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        except (SafetensorError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{quoted(path)} holds a tensor of a kind that torch does not know: "
                             f"{quoted(error)}") from None


def _open(path: Path):
    with _regular(path) as file:
        head = file.read(64)
        file.seek(8)
        length = int.from_bytes(head[:8], "little")
        header = file.read(length) if length <= METADATA else b""
    try:
        Budget(entries=_HEADER_VALUES).charge(entries=json_values(header))
        if METADATA < length < 1 << 27:  # safetensors would take some of these
            raise ValueError(f"its header has {length:,} bytes")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{quoted(path)} is not a safetensors checkpoint but {_kind(head)} "
                         f"({quoted(error)})") from None


def _regular(path: Path) -> BinaryIO:
    if path.is_dir():
        raise FileNotFoundError(f"checkpoint {quoted(path)} is a folder")
    return open_regular(path)


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"\x80"):
        return "a pickle"
    if head.startswith(b"PK"):
        return ("a zip archive, perhaps of torch.save, which is not opened here; give the network "
                "pickle")
    if head.isascii() and all(chr(byte).isprintable() or chr(byte).isspace() for byte in head):
        return "a text file"
    return "a damaged or foreign file"


def _metadata(file, path: Path, kind: Any) -> dict[str, Any]:
    raw = file.metadata() or {}
    if FORMAT not in raw:
        raise ValueError(f"{quoted(path)} is a safetensors file of another program: its metadata "
                         f"has no entry {FORMAT}")
    return read_json(raw[FORMAT].encode(), kind, f"{quoted(path)} has damaged metadata: it")


def save_denoiser(path: Path | str, denoiser: Denoiser, *, base: Path | str | None = None,
                  dtype: torch.dtype = torch.float32, **metadata: Any) -> None:
    """Write a denoiser with its config; with `base`, a file in the same folder, only the tensors
    that differ from it."""
    tensors = {name: tensor.to(dtype) for name, tensor in denoiser.state_dict().items()}
    if base is not None:
        kept, _ = read_tensors(base)
        tensors = {key: x for key, x in tensors.items() if not torch.equal(x.cpu(), kept[key])}
        metadata |= {"base": Path(base).name, "base_digest": digest(base)}
    described = {"network": _plain(denoiser.config), "epsilon": denoiser.epsilon} | metadata
    write_tensors(path, tensors, typed(described, Metadata, "metadata"))  # else nobody could read


def load(path: Path | str) -> Denoiser:
    """The denoiser of a run file, of a shipped run by its name, or of an EDM, GDD or D2O network
    pickle: float32, frozen, in eval mode."""
    return load_with_metadata(zoo.locate(path))[0]


def load_with_metadata(path: Path | str) -> tuple[Denoiser, dict[str, Any]]:
    """`(denoiser, metadata)`; raises FileNotFoundError or ValueError with what is wrong with the
    file."""
    tensors, metadata = _read(Path(path))
    return _build(path, tensors, metadata), metadata


def sampler_of(denoiser: Denoiser, metadata: Mapping[str, Any]) -> str:
    """What a file's network is sampled with, unless it is said: as it was trained."""
    trained = metadata.get("train", {})
    if trained.get("objective", "gdd" if denoiser.epsilon else "edm") == "edm":
        return "heun:18"
    return trained.get("sampler", "one-step")


def convert(source: Path | str, target: Path | str) -> Denoiser:
    """Write a network file of either format as one file of ours: the stored values, the config, and
    where they came from.

    Returns the denoiser. Raises FileExistsError rather than overwrite, and whatever `load` would
    say of the source.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists; name another file or delete it")
    tensors, metadata = _read(source)
    denoiser = _build(source, tensors, metadata)
    kept = {key: value for key, value in metadata.items() if not key.startswith("base")}
    origin = {"file": quoted(source.name), "digest": digest(source)}
    write_tensors(target, {name: tensor.clone() for name, tensor in tensors.items()},
                  kept | {"network": _plain(denoiser.config), "source": origin})
    return denoiser


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a network file of either format, with what its `base` holds."""
    with _regular(path) as file:
        head = file.read(9)
    pickled = head[:1] == b"\x80" or path.suffix in zoo.PICKLES
    # safetensors begins with its header's length, which may look alike
    pickled = bool(head) and pickled and head[4:9] != b"\0\0\0\0{"
    tensors, metadata = read_network(path) if pickled else read_tensors(path)
    for kind in (Metadata, Run) if "train" in metadata else (Metadata, ):
        typed(metadata, kind, f"{quoted(path)} has damaged metadata: it")
    if "network" not in metadata:
        raise ValueError(f"{quoted(path)} holds {metadata.get('kind', 'no denoiser')}, not a "
                         "denoiser")
    if "base" in metadata:
        base, wanted = path.parent / metadata["base"], metadata.get("base_digest")
        if base.parent != path.parent or not base.is_file() or digest(base) != wanted:
            raise ValueError(f"{quoted(path)} needs {quoted(metadata['base'])} with digest "
                             f"{wanted} beside it; it is missing or another file")
        tensors = read_tensors(base)[0] | tensors
    return tensors, metadata


def _build(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str,
                                                                              Any]) -> Denoiser:
    """The denoiser that `metadata` describes, with copies of `tensors`; what a file claims is held
    against what it has."""
    where, epsilon = quoted(Path(path)), metadata.get("epsilon", 0.0)
    if not 0 <= epsilon < 1:
        raise ValueError(f"{where} has an epsilon that is no small number: {epsilon:g}")
    try:
        config = {k: float("inf") if v == "Infinity" else v for k, v in metadata["network"].items()}
        with torch.device("meta"):  # shapes only, no memory yet
            denoiser = Denoiser.from_config(config, epsilon=epsilon)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ValueError(f"{where} has a config that makes no network: {quoted(error)}") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = wanted.items() ^ found.items()
        name, shape = min(odd)
        raise ValueError(f"{where} does not fit its own config: {len(odd)} tensors differ, "
                         f"first {quoted(name)} {shown(list(shape))}")
    if other := [name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]:
        raise ValueError(
            f"{where} holds {len(other)} tensors that are not of floats, first {other[0]}")
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{where} holds values that are not finite in {len(broken)} tensors, "
                         f"first {broken[0]}")
    denoiser.load_state_dict(weights, assign=True)
    return denoiser.eval().requires_grad_(False)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "Infinity" if value == float("inf") else value for name, value in config.items()}
