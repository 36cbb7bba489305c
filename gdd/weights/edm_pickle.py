"""Quarantine: NVIDIA's network pickles (EDM, GDD, D2O), read without running anything they carry.

A network file is a pickled dict with an `ema` entry: a "persistent object" that names its class,
holds that class's whole source text, which the official loader executes, and the module's
`__dict__`. Here the source is skipped, the attributes are read as data, and the result is what
`checkpoint` reads from its own files: tensors and a config. Storages, pickles with numbers behind
them, are taken apart likewise.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdd.denoiser import GENERATOR_EPSILON, PRECOND_ARGUMENTS
from gdd.reading import open_regular, quoted, shown
from gdd.weights.unpickle import Names, Record, RefusedError, opcodes, read

EPSILONS = {"EDMPrecond": 0.0, "GDDPrecond": GENERATOR_EPSILON, "D2OPrecond": GENERATOR_EPSILON}
_DAMAGE = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_PRECOND_POSITIONS = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min",
                      "sigma_max", "sigma_data", "model_type")
# torch.save's first pickle, before its zip format
_STORAGE_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # yapf: disable
# a ModuleDict, a dtype, a layer of an entry that need not be understood: kept as data under their
# names
_INERT = re.compile(r"torch\.nn\.modules\.[a-z\d_]+\.[A-Z]\w*|torch\.(b?float|u?int|bool)\d*")
_DEPTH = 32  # modules nest four deep in EDM's networks
_DIMENSIONS = 8
_PLAIN = (str, int, float, bool, type(None))
_MOST = 1000  # network arguments, and parts of one


def read_network(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, metadata)` of a network pickle, as `checkpoint.read_tensors` gives them for a file
    of ours.

    Raises ValueError with what the file is, what it asks for, or where it is damaged.
    """
    path = Path(path)
    with open_regular(path) as file:
        try:
            names = _Names(path.stat().st_size)
            entry, network = _network(read(file, names))
            tensors, metadata = dict(_tensors(network, "", names)), _metadata(network)
        except ValueError as error:
            raise ValueError(f"{quoted(path)} {quoted(error, 300)}") from None
        except _DAMAGE as error:  # values of other kinds than a network has
            raise ValueError(f"{quoted(path)} is damaged: {quoted(error)}") from None
    return tensors, metadata | {"weights": "EMA" if entry == "ema" else "raw"}


class _Names(Names):
    """The names of a network file: what every pickle may ask for, and torch's."""
    def __init__(self, size: int):
        super().__init__(size)
        self.seen: set[int] = set()  # modules whose tensors were taken
        self.functions |= {
            "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
            "dnnlib.util.EasyDict": lambda: {},
            "torch.storage._load_from_bytes": self.storage,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch.Size": lambda *args: Record("torch.Size", args),
            "torch.device": lambda *args: Record("torch.device", args), }

    def resolve(self, name: str) -> Callable[..., Any] | None:
        if _INERT.fullmatch(name):
            return lambda *args: Record(name, args)
        return super().resolve(name)

    def storage(self, content: bytes) -> Tensor:
        """A storage as a flat tensor: torch.save's five small pickles, of which the fourth names
        the type; then the count of values, and the values."""
        if type(content) is not bytes:
            raise ValueError("a storage that is not bytes")
        self.charge(bytes=len(content))
        if not content.startswith(_STORAGE_MAGIC):
            raise RefusedError("holds a storage that is not in torch's plain format; refused")
        header, kind = io.BytesIO(content), ""
        for part in range(5):
            for opcode, arg, _ in opcodes(header):
                self.charge(entries=1)
                if opcode.name == "GLOBAL":
                    kind = arg.removeprefix("torch ").removesuffix("Storage")
                    if arg != f"torch {kind}Storage" or kind not in _STORAGES:
                        raise RefusedError(f"asks for {quoted(arg.replace(' ', '.'))} inside a "
                                           "storage; refused, nothing of it was run")
                if part and type(arg) is int and not 0 <= arg <= max(len(content), 1001):
                    raise RefusedError("declares a storage larger than it is; refused")
                if opcode.name == "NEWFALSE":
                    raise RefusedError("holds a storage of the other byte order; refused")
        values, dtype = header.getbuffer()[header.tell():], _STORAGES.get(kind)
        if dtype is None or len(values) < 8 or len(
                values) != 8 + dtype.itemsize * struct.unpack_from("<q", values)[0]:
            raise ValueError("a storage of another size than it says")
        if len(values) == 8:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(values[8:]), dtype=dtype)


def _persistent(meta: dict[str, Any]) -> Record:
    """NVIDIA's persistent object: the class by name, its attributes as data; `module_src` is left
    alone."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or type(
            meta.get("class_name")) is not str:
        raise ValueError("a persistent object without a class")
    if not isinstance(meta.get("state"), dict):
        raise ValueError(f"a persistent {quoted(meta['class_name'])} without attributes")
    return Record(meta["class_name"], state=meta["state"])


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...],
            *_) -> Tensor:
    if not isinstance(storage, Tensor) or max(len(size), len(stride)) > _DIMENSIONS or not all(
            type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor that is not made of a storage and counts")
    tensor = storage.as_strided(size, stride, offset)  # refuses what lies outside the storage
    if tensor.numel() > storage.numel():
        raise ValueError(f"a tensor {list(size)} of only {storage.numel()} stored values")
    return tensor


def _network(content: Any) -> tuple[str, Record]:
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"is a pickled {kind}, not a network file with an entry ema")
    for entry in ("ema", "net"):
        found = content.get(entry)
        if isinstance(found, Record) and isinstance(found.state, dict):
            if found.kind not in EPSILONS:
                raise ValueError(f"holds a {quoted(found.kind)}; read are {', '.join(EPSILONS)}")
            return entry, found
    listed = ", ".join(quoted(name) for name in list(content)[:8]) or "nothing"
    raise ValueError(f"has no network under ema or net; it holds {listed}")


def _metadata(network: Record) -> dict[str, Any]:
    """The config by which `Denoiser.from_config` rebuilds the network: its init arguments, and its
    attributes since then."""
    state = network.state
    args, kwargs = state.get("_init_args"), state.get("_init_kwargs")
    if not isinstance(args, tuple | list) or not isinstance(
            kwargs, dict) or len(args) > len(_PRECOND_POSITIONS):
        raise ValueError(f"holds a {network.kind} without a record of its arguments")
    config = dict(zip(_PRECOND_POSITIONS, args, strict=False)) | kwargs
    config |= {name: state[name] for name in _PRECOND_POSITIONS[:-1] if name in state}
    if len(config) > _MOST:
        raise ValueError(f"has {len(config):,} network arguments")
    epsilon = state.get("eps", EPSILONS[network.kind]) if EPSILONS[network.kind] else 0.0
    config = {name: _plain(name, value) for name, value in config.items()}
    return {"network": config, "epsilon": epsilon, "class": network.kind}


def _plain(name: Any, value: Any) -> Any:
    """A network argument as JSON has it, if it is short and flat."""
    values = list(value) if type(value) in (list, tuple) and len(value) <= _MOST else [value]
    if type(name) is not str or not all(type(v) in _PLAIN for v in values):
        raise ValueError(f"has a network argument {shown(name)} that is no plain value")
    return "Infinity" if value == float("inf") else value if type(value) in _PLAIN else values


def _tensors(module: Any, prefix: str, names: _Names) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module read as data: parameters and persistent buffers by their dotted
    names."""
    state = module.state if isinstance(module, Record) else None
    if not isinstance(state, dict) or id(module) in names.seen or prefix.count(".") > _DEPTH:
        raise ValueError(f"has no module of its own at {quoted(prefix) or 'its root'}")
    names.seen.add(id(module))  # a module that is its own child would never end
    transient = state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else set()
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in _mapping(state, group).items():
            # modules may share these, and tensors their storage: K^2 names, or any memory
            full = f"{prefix}{name}" if type(name) is str else ""
            names.charge(entries=1, characters=len(full))
            if value is None or (group == "_buffers" and name in transient):
                continue
            if group == "_modules":
                yield from _tensors(value, f"{full}.", names)
            elif isinstance(value, Tensor) and full:
                names.charge(bytes=value.nbytes)
                yield full, value
            else:
                raise ValueError(f"has no tensor at {quoted(prefix)}{shown(name)}")


def _mapping(state: dict[str, Any], group: str) -> dict[str, Any]:
    found = state.get(group) or {}
    if not isinstance(found, dict):
        raise ValueError(f"has {group} that are not named")
    return found


assert set(_PRECOND_POSITIONS) == PRECOND_ARGUMENTS
