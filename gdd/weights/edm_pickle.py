"""Quarantine: NVIDIA's network pickles (EDM, GDD, D2O), read without running anything they carry.

A network file is a pickled dict with an `ema` entry: a "persistent object" that names its class,
holds that class's whole source text, which the official loader executes, and the module's
`__dict__`. Here the source is skipped, the attributes are read as data, and the result is what
`checkpoint` reads from its own files: tensors and a config. This is the only module that gives
bytes to an unpickler, torch's own with `weights_only=True`, for the storages.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdd.denoiser import GENERATOR_EPSILON, PRECOND_ARGUMENTS
from gdd.weights.unpickle import Names, Record, RefusedError, opcodes, read

EPSILONS = {"EDMPrecond": 0.0, "GDDPrecond": GENERATOR_EPSILON, "D2OPrecond": GENERATOR_EPSILON}
_DAMAGE = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_PRECOND_POSITIONS = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min",
                      "sigma_max", "sigma_data", "model_type")
# torch.save's first pickle, before its zip format
_STORAGE_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_STORAGE_HEADER_OPCODES = 400  # five small pickles; about 60 opcodes today
# a ModuleDict, a dtype, a layer of an entry that need not be understood: kept as data under their
# names
_INERT = re.compile(r"torch\.nn\.modules\.[a-z\d_]+\.[A-Z]\w*|torch\.(b?float|u?int|bool)\d*")
_DEPTH = 32  # modules nest four deep in EDM's networks


def read_network(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, metadata)` of a network pickle, as `checkpoint.read_tensors` gives them for a file
    of ours.

    Raises ValueError with what the file is, what it asks for, or where it is damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            content = read(file, _Names(path.stat().st_size))
            entry, network = _network(content)
            tensors, metadata = dict(_tensors(network, "", set())), _metadata(network)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        except _DAMAGE as error:  # values of other kinds than a network has
            raise ValueError(f"{path} is damaged: {error}") from None
    return tensors, metadata | {"weights": "EMA" if entry == "ema" else "raw"}


class _Names(Names):
    """The names of a network file: what every pickle may ask for, and torch's."""
    def __init__(self, budget: int):
        super().__init__(budget)
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
        """A storage as a flat tensor; its header is held against its length before torch is asked
        to read it."""
        if type(content) is not bytes:
            raise ValueError("a storage that is not bytes")
        self.spend(len(content))
        if not content.startswith(_STORAGE_MAGIC):
            raise RefusedError("holds a storage that is not in torch's plain format; refused")
        header, count = io.BytesIO(content), 0
        for part in range(5):
            for opcode, arg, _ in opcodes(header):
                count += 1
                if opcode.name == "GLOBAL" and not re.fullmatch(r"torch \w+Storage", arg):
                    raise RefusedError(f"asks for {arg.replace(' ', '.')} inside a storage; "
                                       "refused, nothing of it was run")
                if count > _STORAGE_HEADER_OPCODES or (part and type(arg) is int
                                                       and not 0 <= arg <= max(len(content), 1001)):
                    raise RefusedError("declares a storage larger than it is; refused")
        try:
            with warnings.catch_warnings():
                # typed storages are deprecated, and what these files hold
                warnings.simplefilter("ignore", UserWarning)
                storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        # whatever a hostile storage makes torch raise, it is this file's fault
        except Exception as error:
            raise ValueError(f"a storage torch cannot read: {str(error).splitlines()[0]}") from None


def _persistent(meta: dict[str, Any]) -> Record:
    """NVIDIA's persistent object: the class by name, its attributes as data; `module_src` is left
    alone."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or type(
            meta.get("class_name")) is not str:
        raise ValueError("a persistent object without a class")
    if not isinstance(meta.get("state"), dict):
        raise ValueError(f"a persistent {meta['class_name']} without attributes")
    return Record(meta["class_name"], state=meta["state"])


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...],
            *_) -> Tensor:
    if not isinstance(storage, Tensor) or not all(
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
                raise ValueError(f"holds a {found.kind}; read are {', '.join(EPSILONS)}")
            return entry, found
    listed = ", ".join(map(str, content)) or "nothing"
    raise ValueError(f"has no network under ema or net; it holds {listed[:250]}")


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
    for name, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        if type(name) is not str or not all(
                type(v) in (str, int, float, bool, type(None)) for v in values):
            raise ValueError(f"has a network argument {name} that is no plain value")
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    epsilon = state.get("eps", EPSILONS[network.kind]) if EPSILONS[network.kind] else 0.0
    if type(epsilon) is not float:
        raise ValueError(f"has an eps that is no number: {epsilon!r}")
    return {"network": config, "epsilon": epsilon, "class": network.kind}


def _tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module read as data: parameters and persistent buffers by their dotted
    names."""
    state = module.state if isinstance(module, Record) else None
    if not isinstance(state, dict) or id(module) in seen or prefix.count(".") > _DEPTH:
        raise ValueError(f"has no module of its own at {prefix[:200] or 'its root'}")
    seen.add(id(module))  # a module that is its own child would never end
    transient = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in _mapping(state, group).items():
            if value is not None and not (group == "_buffers" and name in transient):
                if not isinstance(value, Tensor):
                    raise ValueError(f"has no tensor at {prefix}{name}")
                yield f"{prefix}{name}", value
    for name, child in _mapping(state, "_modules").items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", seen)


def _mapping(state: dict[str, Any], group: str) -> dict[str, Any]:
    found = state.get(group) or {}
    if not isinstance(found, dict):
        raise ValueError(f"has {group} that are not named")
    return found


assert set(_PRECOND_POSITIONS) == PRECOND_ARGUMENTS
