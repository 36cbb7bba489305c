import json
import os
import struct
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_pickle
import pytest
import torch
from safetensors.torch import save_file

from gdd.__main__ import describe
from gdd.denoiser import GENERATOR_EPSILON
from gdd.files import write_atomically
from gdd.freezing import freeze
from gdd.weights import checkpoint


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(),
                                          b.state_dict().values(), strict=True))


def test_round_trip_keeps_weights_config_and_provenance(tiny, tmp_path):
    path = tmp_path / "deep" / "a.safetensors"
    generator = tiny.copy(epsilon=GENERATOR_EPSILON)
    generator.config["sigma_max"] = float("inf")
    checkpoint.save_denoiser(path, generator, note="made here", log=[{"images": 1}])
    loaded, metadata = checkpoint.load_with_metadata(path)
    assert same(loaded, generator)
    assert loaded.config == generator.config
    assert loaded.epsilon == GENERATOR_EPSILON
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert metadata["note"] == "made here"
    assert list(path.parent.iterdir()) == [path]  # no partial file beside it


def test_a_frozen_generator_is_its_teacher_and_the_rest(tiny, tmp_path):
    teacher, student = tmp_path / "teacher.safetensors", tmp_path / "gdd-i.safetensors"
    checkpoint.save_denoiser(teacher, tiny, dtype=torch.float16)
    generator = checkpoint.load(teacher)
    report = freeze(generator, "gdd-i")
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += parameter.requires_grad
    checkpoint.save_denoiser(student, generator, base=teacher, dtype=torch.float16)
    stored, _ = checkpoint.read_tensors(student)
    assert not set(stored) & set(report.names)
    assert same(checkpoint.load(student), generator.half().float())
    checkpoint.save_denoiser(teacher, generator)
    with pytest.raises(ValueError, match="missing or another file"):
        checkpoint.load(student)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"lr = 3\nhello there\n", "a text file"),
        (b"PK\x03\x04" + bytes(50),
         "a zip archive, perhaps of torch.save, which is not opened here"),
        (bytes(range(200, 256)), "a damaged or foreign file"), ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError,
                       match=rf"x.safetensors is not a safetensors checkpoint but {message}"):
        checkpoint.load(path)


def test_other_bad_files(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        checkpoint.load(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="of another program"):
        checkpoint.load(tmp_path / "other.safetensors")
    checkpoint.write_tensors(tmp_path / "c.safetensors", {"w": torch.zeros(2)},
                             {"kind": "a classifier"})
    with pytest.raises(ValueError, match="holds a classifier, not a denoiser"):
        checkpoint.load(tmp_path / "c.safetensors")
    state = {k: v for k, v in tiny.state_dict().items() if k != "model.map_layer0.bias"}
    metadata = {"network": tiny.config, "epsilon": 0.0}
    checkpoint.write_tensors(tmp_path / "d.safetensors", state, metadata)
    with pytest.raises(
            ValueError,
            match=r"does not fit its own config: 1 tensors differ, first model.map_layer0.bias"):
        checkpoint.load(tmp_path / "d.safetensors")
    for name, metadata, message in [
        ("f", "[1]", "damaged metadata: it must be a mapping of names; got .1"),
        ("g", "{", "damaged metadata: it is not JSON: Expecting"),
        ("h", "[" * 100_000, "damaged metadata"),
        ("i", '{"network": {}, "base": "../a"}', r"needs \.\./a with digest None"),
        ("j", '{"network": {}, "base": 5}', "it.base must be a short line of text; got 5"),
        ("k", '{"network": {}, "epsilon": "0"}', "it.epsilon must be a finite number; got '0'"),
        ("l", '{"network": {"img_resolution": "8", "img_channels": 1}}',
         "img_resolution must be one of the integers"),
        ("m", '{"network": [8]}', "it.network must be a mapping of names; got .8"),
        ("n", '{"network": {}, "epsilon": 2}', "an epsilon that is no small number: 2"), ]:
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors",
                  {checkpoint.FORMAT: metadata})
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path / f"{name}.safetensors")
    whole = tmp_path / "e.safetensors"
    checkpoint.save_denoiser(whole, tiny)
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a safetensors checkpoint"):
        checkpoint.load(whole)


NETWORK = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet"}
WRONG = [None, 5, -1, 10**400, True, "x" * 10_000, "\x1b[2J", [], {}, [[]], [None], {"a": [{}]}]
FIELDS = [
    "network", "network.sigma_min", "network.sigma_max", "network.use_fp16", "network.model_type",
    "network.dropout", "network.channel_mult", "network.label_dim", "network.other", "epsilon",
    "class", "weights", "base", "base_digest", "source", "source.file", "train", "train.data",
    "train.sampler", "train.objective", "images_seen", "backbones", "log", "digest", "name"]


def file_of(path, metadata, tensors=None):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(tensors or {"w": torch.zeros(2)}, path, {checkpoint.FORMAT: text})
    return path


@pytest.mark.parametrize("field", FIELDS)
def test_metadata_of_any_kind_is_right_or_one_line(field, tiny, tmp_path, capsys):
    """Whoever reads it: describe, and what sampling and measuring ask for."""
    tensors = {name: tensor.contiguous() for name, tensor in tiny.state_dict().items()}
    for wrong in WRONG:
        metadata = {"network": dict(tiny.config), "epsilon": 0.0, "images_seen": 1,
                    "train": {}, "source": {"file": "a", "digest": "b"}}  # yapf: disable
        *above, name = field.split(".")
        (metadata[above[0]] if above else metadata)[name] = wrong
        path, said = file_of(tmp_path / "a.safetensors", metadata, tensors), ""
        try:
            denoiser, found = checkpoint.load_with_metadata(path)
            assert isinstance(checkpoint.sampler_of(denoiser, found), str)
            assert isinstance(found["train"].get("data", ""), str)
            assert all(isinstance(name, str) for name in found.get("backbones", ()))
            describe(str(path))
            assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
        except ValueError as error:
            said = str(error)
        assert not said or said.startswith(str(path))
        assert said.isprintable()
        assert len(said) <= 500


def test_a_run_says_how_long_it_was_trained(tmp_path):
    path = file_of(tmp_path / "a.safetensors", {"network": NETWORK, "train": {}})
    with pytest.raises(ValueError, match="it lacks images_seen"):
        checkpoint.load(path)


def test_what_could_not_be_read_is_not_written(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.weights must be a short line of text; got 5"):
        checkpoint.save_denoiser(tmp_path / "a.safetensors", tiny, weights=5)
    assert not list(tmp_path.iterdir())


def header(content, body=b""):
    return struct.pack("<Q", len(content)) + content + body


def with_tensors(count):
    described = json.dumps({checkpoint.FORMAT: json.dumps({"network": NETWORK})})
    listed = "".join(f',"t{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                     for k in range(count))  # yapf: disable
    return header(f'{{"__metadata__":{described}{listed}}}'.encode())


def saying(text):
    return header(json.dumps({"__metadata__": {checkpoint.FORMAT: text}}).encode())


LARGEST = {
    "img_resolution": 4096, "img_channels": 256, "model_channels": 8192, "channel_mult": [64] * 16,
    "num_blocks": 64, "attn_resolutions": list(range(1, 17)), "label_dim": 1_000_000}


def test_memory_and_time_are_bounded_before_anything_is_built(tmp_path):
    dimensions = header(b'{"t":{"dtype":"F32","shape":[' + b",".join([b"1"] * 500_000) +
                        b'],"data_offsets":[0,4]}}', bytes(4))  # yapf: disable
    cases = {
        "600k": (with_tensors(600_000), "entries more than"),
        "90k": (with_tensors(90_000), "does not fit its own config"),
        "entries": (header(b'{"__metadata__":{' + b",".join(
            b'"%d":""' % k for k in range(4_000_000)) + b"}}"), "entries more than"),
        "lists": (saying('{"log":[' + "[]," * 10_000_000 + "[]]}"), "entries more than"),
        "text": (saying(json.dumps({"network": {}, "note": "x" * 60_000_000})), "lacks img_chan"),
        "header": (header(b'{"a":"' + b" " * 80_000_000 + b'"}'), "its header has 80,000,008"),
        "dimensions": (dimensions, "of another program"),
        "song": (saying(json.dumps({"network": LARGEST | {"model_type": "SongUNet"}})), "config"),
        "adm": (saying(json.dumps({"network": LARGEST})), "config")}  # yapf: disable
    for name, (content, _) in cases.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    outcomes = fuzz_pickle.bounded("gdd.weights.checkpoint:load",
                                   [tmp_path / f"{name}.safetensors" for name in cases])
    for name, (_, message) in cases.items():
        assert message in outcomes[f"{name}.safetensors"], (name, outcomes)


def test_devices_pipes_and_loops(tmp_path):
    for name, target in (("zero", "/dev/zero"), ("loop", "loop.safetensors")):
        (tmp_path / f"{name}.safetensors").symlink_to(target)
        (tmp_path / f"{name}.pkl").symlink_to(target)
    os.mkfifo(tmp_path / "pipe.safetensors")
    file_of(tmp_path / "base.safetensors",
            {"network": NETWORK, "base": "pipe.safetensors", "base_digest": "x"})
    outcomes = fuzz_pickle.bounded("gdd.weights.checkpoint:load", sorted(tmp_path.iterdir()))
    assert "read" not in outcomes.values()
    assert "is a device, pipe or socket" in outcomes["zero.pkl"]
    assert "needs pipe.safetensors" in outcomes["base.safetensors"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_are_floats(dtype, tiny, tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in tiny.state_dict().items()}
    tensors["model.map_layer0.bias"] = tensors["model.map_layer0.bias"].to(dtype)
    path = file_of(tmp_path / "a.safetensors", {"network": dict(tiny.config)}, tensors)
    with pytest.raises(ValueError, match=r"1 tensors that are not of floats, first model\.map_la"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save_denoiser(path, tiny)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a.safetensors: no space"):
        checkpoint.save_denoiser(path, tiny.copy(epsilon=1.0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path):
    """All at once, again and again; what a writer raises is raised here."""
    target, writers = tmp_path / "deep" / "x.bin", 16
    start = threading.Barrier(writers)

    def write(number):
        content = bytes([number]) * 50_000
        given = [content, lambda path: path.write_bytes(content)]
        try:
            for round_ in range(8):
                start.wait()
                write_atomically(target, given[round_ % 2])
                found = target.read_bytes()
                assert len(found) == 50_000
                assert len(set(found)) == 1
        except BaseException:
            start.abort()  # nobody waits for one that failed
            raise

    with ThreadPoolExecutor(writers) as pool:
        for done in [pool.submit(write, number) for number in range(writers)]:
            done.result()
    assert list(target.parent.iterdir()) == [target]


def test_a_thread_that_fails_fails_its_test(pytester):
    """The whole suite's setting in pyproject.toml, tried on a test of its own."""
    pytester.makepyfile("""
        import threading

        def test_it():
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
    """)
    setting = "error::pytest.PytestUnhandledThreadExceptionWarning"
    config = Path(__file__).resolve().parents[1] / "pyproject.toml"
    assert setting in tomllib.loads(
        config.read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]
    pytester.makeini(f"[pytest]\nfilterwarnings =\n    {setting}")
    pytester.runpytest_inprocess("-p", "no:xdist").assert_outcomes(failed=1)
