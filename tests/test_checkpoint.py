import os
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gdd.denoiser import GENERATOR_EPSILON
from gdd.files import sweep_partials, write_atomically
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
        ("f", "[1]", "damaged metadata: a list"),
        ("g", "{", "damaged metadata: Expecting"),
        ("h", "[" * 100_000, "damaged metadata"),
        ("i", '{"network": {}, "base": "../a"}', r"Invalid name '\.\./a'"),
        ("j", '{"network": {}, "base": 5}', "needs .*5 with digest None"),
        ("k", '{"network": {}, "epsilon": "0"}', "an epsilon that is no small number: '0'"),
        ("l", '{"network": {"img_resolution": "8", "img_channels": 1}}',
         "img_resolution must be one of the integers"),
        ("m", '{"network": [8]}', "not a denoiser"), ]:
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors",
                  {checkpoint.FORMAT: metadata})
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path / f"{name}.safetensors")
    whole = tmp_path / "e.safetensors"
    checkpoint.save_denoiser(whole, tiny)
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a safetensors checkpoint"):
        checkpoint.load(whole)


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


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / ".a.bin.12-34.partial").write_text("torn")
    (tmp_path / "a.bin").write_text("whole")
    sweep_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


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
