"""Writes network pickles shaped like NVIDIA's: persistent objects with source text and attributes,
from networks of ours.

The layout is that of EDM's `torch_utils/persistence.py`, version 6; the writer is our own, so what
it proves is that the reader takes this layout. The source text in every file would stop the
interpreter that ran it.
"""

import io
import pickle
import struct
import sys
import types
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from gdd.denoiser import PRECOND_ARGUMENTS, Denoiser

SOURCE = "import os\nos._exit(77)  # the official loader runs this text\n"


def _module(name, **functions):
    module = types.ModuleType(name)
    for key, value in functions.items():
        value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def _reconstruct_persistent_obj(meta):
    raise AssertionError("nothing in these tests may call what a file names")


class EasyDict(dict):
    pass


_module("torch_utils")
_module("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj)
_module("dnnlib")
_module("dnnlib.util", EasyDict=EasyDict)


class Persistent:
    """Pickles as NVIDIA's persistent objects do."""
    def __init__(self, class_name, state, *, easy=False):
        meta = dict(type="class", version=6, module_src=SOURCE, class_name=class_name, state=state)
        self.meta = EasyDict(meta) if easy else meta

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta, ), None


def persistent(module: nn.Module, *, dtype=None, **kwargs):
    """A module of ours as a persistent object: the same attributes, with children converted and
    parameters kept."""
    state = dict(module.__dict__)
    state["_modules"] = OrderedDict(
        (name, _child(child, dtype)) for name, child in module._modules.items())
    for group, wrap in (("_parameters", lambda t: nn.Parameter(t, requires_grad=False)),
                        ("_buffers", lambda t: t)):
        state[group] = {
            k: None if t is None else wrap(t.detach().clone().to(dtype or t.dtype))
            for k, t in state[group].items()}
    return Persistent(
        type(module).__name__,
        state | {"_init_args": (), "_init_kwargs": kwargs, "skip_scale": np.sqrt(0.5)})


def _child(module, dtype):
    if not isinstance(module, nn.ModuleDict):
        return persistent(module, dtype=dtype)
    container = nn.ModuleDict()
    container.__dict__["_modules"] = OrderedDict(
        (name, _child(child, dtype)) for name, child in module._modules.items())
    return container


def network(denoiser: Denoiser, *, dtype=None, class_name=None):
    """EDMPrecond, or GDDPrecond for a denoiser with epsilon, as NVIDIA's code would hand it to
    pickle."""
    config = denoiser.config
    wrapped = nn.Module()
    wrapped.model = denoiser.model
    made = persistent(wrapped, dtype=dtype, **config)
    attributes = {
        name: config[name] for name in PRECOND_ARGUMENTS if name in config and name != "model_type"}
    made.meta["state"] |= attributes | ({"eps": denoiser.epsilon, "counter": 0}
                                        if denoiser.epsilon else {})
    made.meta["class_name"] = class_name or ("GDDPrecond" if denoiser.epsilon else "EDMPrecond")
    return made


def write(path, denoiser, *, protocol=4, entry="ema", **options):
    """A snapshot file with the extra entries EDM's training loop writes."""
    augment = Persistent("AugmentPipe",
                         {"p": 0.12, "xflip": 1e8, "_init_args": (), "_init_kwargs": {"p": 0.12}})
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": np.float64(1.2), "taps": np.arange(3.0)},
                      easy=True)
    content = {
        entry: network(denoiser, **options), "loss_fn": loss, "augment_pipe": augment,
        "dataset_kwargs": EasyDict(path="data.zip", resolution=32, labels=np.int64(0))}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def rename_numpy(content: bytes) -> bytes:
    """The same pickle as numpy 1 would have written it (protocols below 4: names are lines of
    text)."""
    return content.replace(b"cnumpy._core.", b"cnumpy.core.")


# --- by hand, opcode by opcode, what no pickler would write


def text(content) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return b"\x8d" + struct.pack("<Q", len(content)) + content


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def memo(opcode: bytes, place: int) -> bytes:
    """r stores the top of the stack at a place, j gets it."""
    return opcode + struct.pack("<I", place)


def mapping(items) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def laughs(kind="list", levels=60) -> bytes:
    """A value of 2^60 parts in a kilobyte: each of its two is the same."""
    made = b"]" + memo(b"r", 1000) + b"0"
    for level in range(1000, 1000 + levels):
        one = memo(b"j", level)
        body = {"list": b"](" + one + one + b"e", "tuple": one + one + b"\x86",
                "dict": mapping({"a": one, "b": one})}[kind]  # yapf: disable
        made += body + memo(b"r", level + 1) + b"0"
    return made + memo(b"j", 1000 + levels)


def stored(values: int) -> bytes:
    """A storage of so many float32 values."""
    content = io.BytesIO()
    torch.save(torch.zeros(values)._typed_storage(), content, _use_new_zipfile_serialization=False)
    found = content.getvalue()
    return name("torch.storage", "_load_from_bytes") + b"B" + struct.pack(
        "<I", len(found)) + found + b"\x85R"


def tensor(values: int, storage: bytes = b"") -> bytes:
    """A flat tensor, of a new storage or of one that is given."""
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + (
        storage or stored(values)) + b"K\x00J" + struct.pack("<i", values) + b"\x85K\x01\x85\x89}tR"


ARGUMENTS = {"img_resolution": b"K\x08", "img_channels": b"K\x01"}


def network_of(before=b"", class_name=None, **state) -> bytes:
    """A network file whose attributes are given as opcodes, after `before`, which leaves nothing on
    the stack."""
    state = {"_init_args": b")", "_init_kwargs": mapping(ARGUMENTS)} | state
    made = {"type": text("class"), "class_name": class_name or text("GDDPrecond"),
            "state": mapping(state)}  # yapf: disable
    return b"\x80\x04" + before + mapping({
        "ema":
        name("torch_utils.persistence", "_reconstruct_persistent_obj") + mapping(made) + b"\x85R"
    }) + b"."


__all__ = [
    "Persistent", "laughs", "network", "network_of", "persistent", "rename_numpy", "torch", "write"]
