"""Network pickles: every layout loads to the same weights, and nothing a file carries ever runs."""

import io
import os
import pickle
import pickletools
import random
import re
import struct
import subprocess
import time
from collections import OrderedDict

import edm_files
import fuzz_pickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdd.data.cifar import read_cifar_batch
from gdd.denoiser import GENERATOR_EPSILON, Denoiser
from gdd.weights import checkpoint, edm_pickle
from gdd.weights.unpickle import MAX_OPCODES, read

VARIANTS = {
    "ddpmpp":
    dict(model_type="SongUNet", embedding_type="positional"),
    "ncsnpp":
    dict(model_type="SongUNet", embedding_type="fourier", encoder_type="residual",
         channel_mult_noise=2, resample_filter=[1, 3, 3, 1], augment_dim=9, label_dim=3),
    "skips":
    dict(model_type="SongUNet", encoder_type="skip", decoder_type="skip", augment_dim=2),
    "adm":
    dict(model_type="DhariwalUNet", label_dim=4, augment_dim=3, model_channels=64), }
SMALL = dict(img_resolution=8, img_channels=2, model_channels=8, channel_mult=[1, 2], num_blocks=1,
             attn_resolutions=[4], use_fp16=True, sigma_max=float("inf"))


def make(variant="ddpmpp", epsilon=0.0):
    denoiser = Denoiser.from_config(SMALL | VARIANTS[variant], epsilon=epsilon)
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return denoiser.eval()


def same(a, b):
    return a.config == b.config and all(
        torch.equal(v,
                    b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_network_and_protocol_loads_to_the_same_outputs(variant, protocol, tmp_path):
    denoiser = make(variant)
    loaded, metadata = checkpoint.load_with_metadata(
        edm_files.write(tmp_path / "a.pkl", denoiser, protocol=protocol))
    assert same(loaded, denoiser)
    assert not loaded.training
    assert metadata["weights"] == "EMA"
    x, sigma = torch.randn(3, 2, 8, 8), torch.tensor([0.01, 1.0, 50.0])
    assert torch.equal(loaded(x, sigma), denoiser(x, sigma))


@pytest.mark.parametrize("class_name", ["GDDPrecond", "D2OPrecond"])
def test_generators_keep_their_boundary(class_name, tmp_path):
    denoiser = make(epsilon=GENERATOR_EPSILON)
    path = edm_files.write(tmp_path / "a.pkl", denoiser, class_name=class_name)
    assert checkpoint.load(path).epsilon == GENERATOR_EPSILON
    assert edm_pickle.read_network(path)[1]["class"] == class_name


def test_half_precision_parameters_and_raw_weights(tmp_path):
    denoiser = make()
    path = edm_files.write(tmp_path / "a.pkl", denoiser, dtype=torch.float16, entry="net")
    loaded, metadata = checkpoint.load_with_metadata(path)
    assert metadata["weights"] == "raw"
    assert same(loaded, denoiser.half().float())


def test_what_numpy_1_wrote(tmp_path):
    denoiser = make()
    path = edm_files.write(tmp_path / "a.pkl", denoiser, protocol=2)
    renamed = edm_files.rename_numpy(path.read_bytes())
    assert renamed != path.read_bytes()
    path.write_bytes(renamed)
    assert same(checkpoint.load(path), denoiser)


def test_converted_files_carry_everything(tmp_path):
    denoiser = make("adm")
    source = edm_files.write(tmp_path / "a.pkl", denoiser, dtype=torch.float16)
    target = tmp_path / "new" / "a.safetensors"
    checkpoint.convert(source, target)
    loaded, metadata = checkpoint.load_with_metadata(target)
    assert same(loaded, checkpoint.load(source))
    assert metadata["source"] == {"file": "a.pkl", "digest": checkpoint.digest(source)}
    assert metadata["class"] == "EDMPrecond"
    tensors, _ = checkpoint.read_tensors(target)
    assert {t.dtype for n, t in tensors.items() if "resample_filter" not in n} == {torch.float16}
    with pytest.raises(FileExistsError, match="exists; name another"):
        checkpoint.convert(source, target)


# --- what must not run


class Call:
    """Pickles as a call of anything with anything."""
    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def network_with(**attributes):
    made = edm_files.network(make())
    made.meta["state"] |= attributes
    return {"ema": made}


def evil_storage(tmp_path):
    content = io.BytesIO()
    torch.save(Call(os.system, f"touch {tmp_path}/ran"), content,
               _use_new_zipfile_serialization=False)
    return content.getvalue()


def storage_of(values, *, claimed=None):
    content = io.BytesIO()
    torch.save(
        torch.arange(float(values))._typed_storage(), content, _use_new_zipfile_serialization=False)
    claim = struct.pack("<I", claimed) if claimed else None
    return content.getvalue().replace(b"cpuq\x03K" + bytes([values]), b"cpuq\x03J" +
                                      claim) if claim else content.getvalue()


def raw(text):
    return b"\x80\x02" + text


def gadgets(tmp_path):
    run = f"touch {tmp_path}/ran"
    rebuilt = torch.storage._load_from_bytes
    return {
        "os.system": ({"ema": Call(os.system, run)}, "posix.system"),
        "builtins.eval": ({"ema": Call(eval,
                                       f"__import__('os').system('{run}')")}, "builtins.eval"),
        "builtins.getattr": ({"ema": Call(getattr, {}, "__class__")}, "builtins.getattr"),
        "subprocess": ({"ema": Call(subprocess.Popen,
                                    ["touch", f"{tmp_path}/ran"])}, "subprocess.Popen"),
        "torch.load": ({"ema": Call(torch.load, "x")}, "torch.serialization.load"),
        "torch.hub.load": ({"ema": Call(torch.hub.load, "x", "y")}, "torch.hub.load"),
        "numpy.load": ({"ema": Call(np.load, "x", None, True)}, "numpy.load"),
        "in an extra entry": (network_with() | {"loss_fn": Call(os.system, run)}, "posix.system"),
        "in a state": (network_with(extra=Call(os.system, run)), "posix.system"),
        "nested storage": ({"ema": Call(rebuilt,
                                        evil_storage(tmp_path))}, "posix.system inside a storage"),
        "storage of a zip": ({"ema": Call(
            rebuilt, b"PK\x03\x04" + bytes(100))}, "not in torch's plain format"),
        "storage larger than it is": (
            {"ema": Call(rebuilt, storage_of(8, claimed=1 << 30))},
            "declares a storage larger than it is",
        ),
        "state on a dict": ({"ema": Call(OrderedDict, state={"__class__":
                                                             "x"})}, "sets the state of a dict"),
        "state on a class": (raw(b"ctorch.nn.modules.linear\nLinear\n}X\x01\x00\x00\x00aK\x01sb."),
                             "state of the name"),
        "slots on a function":
        (raw(b"ctorch.storage\n_load_from_bytes\nN}X\x01\x00\x00\x00aK\x01s\x86b."),
         "state of the name"),
        "setstate twice": (
            raw(b"ctorch.nn.modules.linear\nLinear\n)\x81}X\x01\x00\x00\x00aK\x01sb}"
                b"X\x01\x00\x00\x00aK\x02sb."),
            "sets the state of a torch.nn",
        ),
        "call of data": (raw(b"X\x02\x00\x00\x00os)R."), "calls a str"),
        "dotted attribute": (raw(b"ctorch.nn.modules.linear\nLinear.__init__.__globals__\n)R."),
                             "Linear.__init__.__globals__"),
        "name made of data": (b"\x80\x04]\x8c\x06system\x93.", r"asks for \[\]"),
        "persistent id": (raw(b"X\x01\x00\x00\x00aQ."), "opcode BINPERSID"),
        "textual persistent id": (raw(b"Pabc\n."), "opcode PERSID"),
        "instance opcode": (raw(b"(ios\nsystem\n."), "asks for os.system"),
        "object opcode": (raw(b"(cos\nsystem\no."), "asks for os.system"),
        "text protocol":
        (f"(dp0\nS'ema'\ncos\nsystem\n(S'{run}'\ntRs.".encode(), "asks for os.system"),
        "text protocol, one line": (f"(S'{run}'\nios\nsystem\n.".encode(), "asks for os.system"),
        "extension registry": (raw(b"\x82\x01."), "opcode EXT1"),
        "out-of-band buffer": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        "keyword construction":
        (raw(b"ctorch.nn.modules.linear\nLinear\n)}\x92."), "opcode NEWOBJ_EX"),
        "memo of nothing": (raw(b"j\xff\xff\xff\x7f."), "is damaged"),
        "mark of nothing": (raw(b"t."), "is damaged"),
        "pop of nothing": (raw(b"0."), "is damaged"),
        "huge declared text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc",
                               "4,611,686,018,427,387,904 bytes declared"),
        "huge declared bytes": (raw(b"B\xff\xff\xff\x7fabc"), "2,147,483,647 bytes declared"),
        "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.", "entry ema"),
        "long integer": (raw(b"\x8b\xff\xff\xff\x7f"), "is damaged"),
        "tuple as key": (raw(b"})))tK\x01s."), "is damaged|as a key"),
        "deep nesting": (raw(b"]" * 300_000 + b"a" * 299_999 + b"."), "a pickled list"),
        "deep key": (raw(b"}" + b")" + b"\x85" * 200_000 + b"K\x01s."), "a tuple as a key"),
        "too many opcodes": (raw(b"N" * (MAX_OPCODES + 1) + b"."), "1 entries more than"),
        "one storage many times": (
            raw(b"B" + struct.pack("<I", len(storage_of(8))) + storage_of(8) + b"q\x00(" +
                b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * 5000 + b"t."),
            "more than the file holds",
        ),
        "protocol 9": (b"\x80\x09N.", "protocol 9"),
        "duplicate": (raw(b"N2."), "opcode DUP"), }


@pytest.mark.parametrize("name", gadgets("x"))
def test_no_gadget_runs(name, tmp_path):
    content, message = gadgets(tmp_path)[name]
    content = content if isinstance(content, bytes) else pickle.dumps(content, 4)
    path = tmp_path / "evil.pkl"
    fuzz_pickle.attempt(
        edm_files.write(tmp_path / "good.pkl", make()).read_bytes(), path, watch=False)
    # raises if anything was executed, imported or written
    outcome = fuzz_pickle.attempt(content, path)
    assert re.search(message, outcome), outcome
    assert outcome.startswith(str(path))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        checkpoint.load(path)


def test_pickle_itself_would_have_run_it(tmp_path):
    """The gadgets are live: Python's unpickler executes the first of them."""
    pickle.loads(pickle.dumps(gadgets(tmp_path)["os.system"][0]))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("_parameters", 7), ("_modules", {"model": {}}), ("_modules", {"model": 3}),
     ("_buffers", {"b": "text"}), ("_init_kwargs", None), ("_init_kwargs", {"img_resolution": {}}),
     ("_init_args", {}),
     ("_init_kwargs", {"model_type": ["SongUNet"], "img_resolution": 8, "img_channels": 2}),
     ("sigma_data", "0.5"), ("_init_kwargs", {7: 7}), ("img_channels", OrderedDict)],
)
def test_attributes_of_other_kinds_are_one_error(name, value, tmp_path):
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps(network_with(**{name: value}), 4))
    with pytest.raises(ValueError, match=r"odd\.pkl"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "data",
    [b"cbuiltins\nobject\n)R", b"cnumpy\nndarray\n)R", b"cnumpy\nndarray\n)R(NNNNNtb", b"}"])
def test_arrays_of_other_kinds_are_one_error(data):
    content = raw(b"}(U\x04data" + data + b"U\x06labels]u.")
    with pytest.raises(ValueError, match="is no CIFAR-10 batch"):
        read_cifar_batch(io.BytesIO(content), len(content))


def test_a_module_that_contains_itself_ends():
    loop = (b"ctorch.nn.modules.container\nModuleDict\n)\x81q\x00}X\x08\x00\x00\x00_modules}"
            b"X\x01\x00\x00\x00ah\x00ssb.")
    names = edm_pickle._Names(100)
    record = read(io.BytesIO(raw(loop)), names)
    with pytest.raises(ValueError, match="no module of its own at a"):
        list(edm_pickle._tensors(record, "", names))


def test_tensors_stay_inside_their_storage():
    flat = torch.arange(6.0)
    assert edm_pickle._tensor(flat, 0, (2, 3), (3, 1), False, {}).tolist() == [[0, 1, 2], [3, 4, 5]]
    for arguments in [(1, (2, 3), (3, 1)), (0, (10**12, ), (0, )), (-1, (1, ), (1, )),
                      (0, (2**62, 4), (1, 1)), (0, ("2", ), (1, ))]:
        with pytest.raises((ValueError, RuntimeError)):
            edm_pickle._tensor(flat, *arguments, False, {})


# --- what would take for ever

KINDS = ("list", "tuple", "dict")


def places(laughs):
    """Wherever a file can put a value that must not be written out, hashed or compared."""
    e = edm_files
    one = e.name("torch._utils", "_rebuild_tensor_v2") + b"(" + e.stored(3)
    arguments = e.ARGUMENTS | {"channel_mult": laughs}
    return {
        "file": b"\x80\x04" + laughs + b".",
        "entry": b"\x80\x04" + e.mapping({"ema": laughs}) + b".",
        "module": b"\x80\x04" + laughs + e.text("x") + b"\x93.",
        "name": b"\x80\x04" + e.text("x") + laughs + b"\x93.",
        "encoding": b"\x80\x04" + e.name("_codecs", "encode") + e.text("x") + laughs + b"\x86R.",
        "encoded": b"\x80\x04" + e.name("_codecs", "encode") + laughs + b"\x85R.",
        "set": b"\x80\x04" + e.name("builtins", "set") + laughs + b"\x85R.",
        "frozenset": b"\x80\x04(" + laughs + b"\x91.",
        "key": b"\x80\x04}" + laughs + b"K\x01s.",
        "call": b"\x80\x04" + laughs + b")R.",
        "arguments": b"\x80\x04" + e.name("torch", "Size") + laughs + b"R.",
        "base": b"\x80\x04" + e.name("copyreg", "_reconstructor") + 3 * laughs + b"\x87R.",
        "target": b"\x80\x04" + laughs + b"}b.",
        "scalar": b"\x80\x04" + e.name("numpy.core.multiarray", "scalar") +
                  e.name("numpy", "dtype") + laughs + b"\x85R" + e.text("aaaa") + b"\x86R.",
        "storage": b"\x80\x04" + e.name("torch.storage", "_load_from_bytes") + laughs + b"\x85R.",
        "shape": b"\x80\x04" + one + b"K\x00" + laughs + b"K\x01\x85\x89}tR.",
        "stride": b"\x80\x04" + one + b"K\x00K\x03\x85" + laughs + b"\x89}tR.",
        "class": e.network_of(class_name=laughs),
        "epsilon": e.network_of(eps=laughs),
        "attribute": e.network_of(sigma_data=laughs),
        "unchecked": e.network_of(sigma_max=laughs),
        "argument": e.network_of(_init_kwargs=e.mapping(arguments)),
        "positions": e.network_of(_init_args=laughs),
        "keywords": e.network_of(_init_kwargs=laughs),
        "parameters": e.network_of(_parameters=laughs),
        "parameter": e.network_of(_parameters=e.mapping({"w": laughs})),
        "child": e.network_of(_modules=e.mapping({"w": laughs})),
        "transient": e.network_of(_buffers=e.mapping({"w": e.tensor(3)}),
                                  _non_persistent_buffers_set=laughs),
    }  # yapf: disable


def test_nested_values_are_never_written_out(tmp_path):
    files = []
    for kind in KINDS:
        for place, content in places(edm_files.laughs(kind)).items():
            files.append(tmp_path / f"{place}-{kind}.pkl")
            files[-1].write_bytes(content)
    outcomes = fuzz_pickle.bounded("gdd.weights.checkpoint:load", files)
    assert "read" not in outcomes.values()
    assert "'sigma_max' that is no plain value" in outcomes["unchecked-list.pkl"]
    assert re.search(r"asks for \[\[.*\.'x', which are no names", outcomes["module-list.pkl"])


def amplified():
    """Short files, or such below 100 MB, that ask for a thousand times as much."""
    e, many = edm_files, range(3000)
    keep = e.memo
    linear = e.name("torch.nn.modules.linear", "Linear")
    shared = e.tensor(3) + keep(b"r", 1) + b"0" + e.mapping({f"p{k}": keep(b"j", 1)
                                                             for k in many}) + keep(b"r", 2) + b"0"
    sharing = e.mapping({
        f"m{k}":
        linear + b")\x81" + e.mapping({"_parameters": keep(b"j", 2)}) + b"b" for k in many})
    views = e.stored(200_000) + keep(b"r", 1) + b"0"
    empty = e.tensor(0) + keep(b"r", 1) + b"0"
    again = keep(b"j", 1) + keep(b"j", 2)
    long_list = b"(" + b"K\x01" * 200_000 + b"l" + keep(b"r", 1) + b"0"
    return {
        "names": e.network_of(shared, _modules=sharing),
        "nothings": e.network_of(
            e.mapping({f"p{k}": b"N" for k in many}) + keep(b"r", 2) + b"0", _modules=sharing),
        "views": e.network_of(views, _parameters=e.mapping({
            f"p{k}": e.tensor(200_000, keep(b"j", 1)) for k in range(1000)})),
        "empty": e.network_of(empty, _parameters=e.mapping({
            f"p{k}": keep(b"j", 1) for k in range(300_000)})),
        "storages": b"\x80\x04(" + e.stored(0) * 150_000 + b"t.",
        "arguments": b"\x80\x04" + linear + keep(b"r", 1) + b"(" + b"N" * 300_000 + b"t" +
                     keep(b"r", 2) + (again + b"\x81") * 100_000 + b".",
        "long names": b"\x80\x04" + e.text("torch.nn.modules.x") + keep(b"r", 1) +
                      e.text("A" * 10_000_000) + keep(b"r", 2) + (again + b"\x93") * 300_000 + b".",
        "encoded": b"\x80\x04" + e.name("_codecs", "encode") + keep(b"r", 1) +
                   e.text("A" * 10_000_000) + b"\x85" + keep(b"r", 2) +
                   (again + b"R") * 100_000 + b".",
        "wide text": b"\x80\x04" + e.text(b"a" * 90_000_000 + "\U0001f600".encode()) + b".",
        "long class": e.network_of(class_name=e.text("\x1b[31m" * 3_000_000)),
        "keywords": e.network_of(long_list, _init_kwargs=e.mapping({
            f"k{k}": keep(b"j", 1) for k in range(200_000)})),
        "buffers": e.network_of(long_list, _non_persistent_buffers_set=keep(b"j", 1),
                                _buffers=e.mapping({f"p{k}": b"N" for k in range(100_000)})),
        "sets": b"\x80\x04" + b"\x8f" * 90_000_000 + b".",
        "control": b"\x80\x04" + e.text("os\n\x1b[2J") + e.text("sys\rtem") + b"\x93.",
    }  # yapf: disable


def test_memory_and_time_are_bounded_before_anything_is_built(tmp_path):
    files = []
    for name, content in amplified().items():
        files.append(tmp_path / f"{name}.pkl")
        files[-1].write_bytes(content)
    outcomes = fuzz_pickle.bounded("gdd.weights.checkpoint:load", files)
    for name in ("names", "nothings", "views", "storages", "arguments", "sets"):
        assert "unpacks to more than the file holds" in outcomes[f"{name}.pkl"], outcomes
    assert "asks for os\\n\\x1b[2J.sys\\rtem" in outcomes["control.pkl"]
    for path in files:
        path.unlink()


def test_a_network_of_56_million_weights_is_read_in_a_second(tmp_path):
    """CIFAR-10's networks have as many; torch is warm by now."""
    content, values = edm_files, 560_000
    path = tmp_path / "a.pkl"
    path.write_bytes(
        content.network_of(
            _parameters=content.mapping({f"p{k}": content.tensor(values) for k in range(100)})))
    edm_pickle.read_network(edm_files.write(tmp_path / "b.pkl", make()))
    start = time.process_time()
    tensors, _ = edm_pickle.read_network(path)
    assert time.process_time() - start < 1
    assert sum(tensor.numel() for tensor in tensors.values()) == 56_000_000


@pytest.mark.parametrize("dtype", edm_pickle._STORAGES.values())
def test_storages_are_read_as_torch_reads_them(dtype):
    """Ours takes torch.save's format apart; torch's own reader is the witness."""
    tensor, content = torch.tensor([0, 1, 0, 1, 1]).to(dtype), io.BytesIO()
    torch.save(tensor._typed_storage(), content, _use_new_zipfile_serialization=False)
    found = edm_pickle._Names(len(content.getvalue())).storage(content.getvalue())
    wanted = torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    assert found.dtype == wanted.dtype == dtype
    assert found.tolist() == list(wanted) == tensor.tolist()


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c[:-1], "of another size"), (lambda c: c + b"x", "of another size"),
    (lambda c: c.replace(b"\x88", b"\x89"), "other byte order"),
    (lambda c: c.replace(b"FloatStorage", b"QInt8Storage"), "QInt8Storage inside a storage")])
def test_storages_that_are_not_what_they_say(change, message):
    with pytest.raises(ValueError, match=message):
        edm_pickle._Names(1000).storage(change(storage_of(3)))


# --- what is merely wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:p.stat().st_size // 2]), "is damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is damaged"),
        (lambda p: p.write_bytes(pickle.dumps({"G": 1, "D": 2})), "holds G, D"),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "a pickled list"),
        (lambda p: p.write_bytes(pickle.dumps({"ema": None})),
         "no network under ema or net; it holds ema"),
        (lambda p: edm_files.write(p, make(), class_name="VPPrecond"),
         "holds a VPPrecond; read are EDMPrecond"), ],
)
def test_wrong_files_say_what_they_are(change, message, tmp_path):
    path = edm_files.write(tmp_path / "a.pkl", make())
    change(path)
    with pytest.raises(ValueError, match=rf"a\.pkl .*{message}"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_channels": 16}, "does not fit its own config"),
        ({"model_channels": 10**9
          }, r"model_channels must be one of the integers from 1 to 8192; got 1000000000"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"channel_mult": [1] * 1000}, "channel_mult must be a list of numbers"),
        ({"channel_mult": 3}, "channel_mult must be a list of numbers"),
        ({"label_dim": True}, "label_dim"),
        ({"model_type": "UViT"}, "UViT"),
        ({"depth": 3}, "does not take depth"),
        ({"resample_filter": []}, "does not fit|makes no network"), ],
)
def test_a_config_that_is_not_the_networks(change, message, tmp_path):
    denoiser = make("ncsnpp")
    denoiser.config |= change
    with pytest.raises(ValueError, match=message):
        checkpoint.load(edm_files.write(tmp_path / "a.pkl", denoiser))


def test_values_that_are_not_finite(tmp_path):
    denoiser = make()
    denoiser.model.map_layer0.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite in 1 tensors, first model.map_layer0.bias"):
        checkpoint.load(edm_files.write(tmp_path / "a.pkl", denoiser))


# --- CIFAR-10's batches


def python2_batch(images, labels):
    """A batch as CIFAR-10's authors wrote it with Python 2: byte strings, numpy's old names."""
    data = images.tobytes()
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" +
             b"J" + struct.pack("<i", len(images)) +
             b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R" +
             b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" +
             struct.pack("<i", len(data)) + data + b"tb")
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"U\x0bbatch_labelU\x01xu."


@pytest.mark.parametrize("protocol", [None, 2, 4, 5])
def test_cifar_batches_old_and_new(protocol):
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    content = (python2_batch(images, [3, 0, 9]) if protocol is None else pickle.dumps(
        {"data": images, "labels": [3, 0, 9]}, protocol))
    if protocol is None:  # the hand-made bytes are what Python 2 means
        assert np.array_equal(pickle.loads(content, encoding="latin1")["data"], images)
    found, labels = read_cifar_batch(io.BytesIO(content), len(content))
    assert np.array_equal(found.reshape(3, 3072), images)
    assert labels == [3, 0, 9]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]}, r"uint8 \[2, 10\]"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "float64"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "1 labels for 2 images"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, r"not in 0\.\.9"),
        ({"data": np.array([None]), "labels": [0]}, "numpy data of type 'O8'"),
        ({"labels": [0]}, "no data and labels"), ],
)
def test_what_is_no_cifar_batch(batch, message):
    content = pickle.dumps(batch, 2)
    with pytest.raises(ValueError, match=message):
        read_cifar_batch(io.BytesIO(content), len(content))


# --- mutations


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.pkl"
    files = fuzz_pickle.seeds()
    assert [fuzz_pickle.attempt(content, path, watch=False)
            for content in files] == ["read"] * len(files)
    return files, path


@settings(max_examples=300)
@given(which=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_mutated_files_are_read_or_refused(corpus, which, seed):
    """`python tests/fuzz_pickle.py SECONDS` does this for as long as one likes."""
    files, path = corpus
    fuzz_pickle.attempt(fuzz_pickle.mutate(files[which % len(files)], random.Random(seed)), path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", [b"\x80\x02c\\\x0bos\nsystem\n.",
                storage_of(3).replace(b"torch\n", b"to\\/ch\n")])
def test_escapes_in_names_warn_nobody(content):
    """Found by mutation: pickletools unescapes names, with a warning on standard error."""
    names = edm_pickle._Names(1000)
    with pytest.raises(ValueError, match="backslash"):
        names.storage(content) if content.startswith(edm_pickle._STORAGE_MAGIC) else read(
            io.BytesIO(content), names)


def test_real_files_use_few_opcodes(tmp_path):
    content = edm_files.write(tmp_path / "a.pkl", make()).read_bytes()
    assert 10 * sum(1 for _ in pickletools.genops(content)) < MAX_OPCODES
