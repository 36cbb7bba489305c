"""Statistics, arrays and cached summaries that are not what they say: refused in one line, or made
again; and what is honest, which passes."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import ROOT, call
from test_data import png
from test_fid_compare import array_source, counted, judge, noise  # noqa: F401

from analysis.fid import FeatureStats, frechet_distance
from analysis.fid.compare import compare
from analysis.fid.frechet import TOLERANCE, check_moments
from analysis.fid.sources import content_digest, open_source
from analysis.fid.statistics import save_statistics
from analysis.fid.summaries import Summaries
from gdd.weights import checkpoint


def text(value):
    return np.frombuffer(value if isinstance(value, bytes) else json.dumps(value).encode(),
                         np.uint8)


def said_of(path):
    """Why a source is refused; nothing if it is not."""
    try:
        open_source(str(path))
    except ValueError as error:
        return str(error)
    return ""


def refused(path, message=""):
    """One printable line that names the file and says `message`, a pattern."""
    said = said_of(path)
    assert said
    assert re.search(message, said), said
    assert said.isprintable()
    assert len(said) < 500
    assert path.name[:100] in said


EYE = np.eye(3)
SKEW = np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1.0]])

# --- statistics ---


@pytest.mark.parametrize(
    ("change", "message"), [
        (dict(sigma=-EYE), "sigma has a negative eigenvalue"),
        (dict(sigma=np.diag([1, 1, -1e-3])), "negative eigenvalue"),
        (dict(sigma=1e-30 * np.diag([1, 1, -1e-3])), "negative eigenvalue"),
        (dict(sigma=np.diag([-5.0, 1, 1])), "negative eigenvalue"),
        (dict(sigma=np.ones((3, 3)) - EYE), "negative eigenvalue"),
        (dict(sigma=SKEW), "not symmetric"), (dict(sigma=SKEW.T), "not symmetric"),
        (dict(sigma=np.full((3, 3), np.inf)), "NaN, inf"),
        (dict(sigma=np.diag([1, 1, np.nan])), "NaN"), (dict(sigma=1e300 * EYE), "beyond 1e[+]100"),
        (dict(mu=np.full(3, -1e200)), "beyond 1e[+]100"),
        (dict(mu=np.array([0, np.inf, 0])), "NaN, inf"),
        (dict(sigma=EYE.astype(complex)), "real floats; got float64 and complex128"),
        (dict(mu=np.zeros(3, complex)), "real floats; got complex128"),
        (dict(sigma=EYE.astype(bool)), "real floats; got float64 and bool"),
        (dict(sigma=EYE.astype("M8[s]")), "real floats"),
        (dict(mu=np.zeros(3, "m8[s]")), "real floats"),
        (dict(mu=np.zeros(3, "f8,f8")), "real floats"),
        (dict(mu=np.array(["a", "b", "c"])), "real floats"),
        (dict(mu=np.array([b"a"] * 3)), "real floats"),
        (dict(mu=np.array([None] * 3)), "real floats; got object"),
        (dict(mu=np.zeros(())), "must be"), (dict(mu=np.zeros((3, 1))), "must be"),
        (dict(mu=np.zeros(4)), "must be"), (dict(sigma=np.zeros((3, 3, 1))), "must be"),
        (dict(sigma=np.zeros(9)), "must be"), (dict(mu=np.zeros(0), sigma=np.eye(0)), "must be"),
        (dict(sigma=np.zeros((1, ) * 32)), "must be"),
        (dict(provenance=text({"n": 1})), "n must be a count of 2 or more; got 1"),
        (dict(provenance=text({"n": 0})), "count"), (dict(provenance=text({"n": -5})), "count"),
        (dict(provenance=text({"n": 10**400})), "count|integer"),
        (dict(provenance=text({"n": True})), "n must be an integer"),
        (dict(provenance=text({"n": 2.5})), "integer"),
        (dict(provenance=text({"n": "9"})), "integer"),
        (dict(provenance=text({"n": [9]})), "integer"),
        (dict(provenance=text({"n": {}})), "integer"),
        (dict(provenance=text(b'{"n": NaN}')), "not JSON"),
        (dict(provenance=text(b'{"n": 1e999}')), "integer"),
        (dict(provenance=text(b'{"n": ' + b"9" * 5000 + b"}")), "not JSON"),
        (dict(provenance=text(b"[" * 100_000)), "not JSON"),
        (dict(provenance=text(b"\xff\xfe")), "not JSON"), (dict(provenance=text(b"")), "not JSON"),
        (dict(provenance=text([1])), "mapping"), (dict(provenance=text("x")), "mapping"),
        (dict(provenance=np.zeros((2, 2), np.uint8)), "no JSON as bytes"),
        (dict(provenance=np.zeros(3)), "no JSON as bytes"),
        (dict(provenance=np.array(None)), "no JSON as bytes"),
        (dict(provenance=text({"extractor": 3})), "extractor must be text"),
        (dict(provenance=text({"extractor": "a\x1b[2J\nb"})), "no name of features"),
        (dict(provenance=text({"extractor": "x" * 100_000})), "no name of features"),
        (dict(provenance=text({"extractor": ["x" * 100_000]})), "extractor must be text")])
def test_statistics_that_are_none_are_refused(tmp_path, change, message):
    np.savez(tmp_path / "s.npz", **(dict(mu=np.zeros(3), sigma=EYE) | change))
    refused(tmp_path / "s.npz", message)


def test_a_negative_definite_covariance_is_no_perfect_match(judge, tmp_path):  # noqa: F811
    np.savez(tmp_path / "s.npz", mu=np.zeros(64), sigma=-1e6 * np.eye(64))
    done = call("analysis.fid", tmp_path / "s.npz", tmp_path / "s.npz", "--no-cache")
    assert done.returncode == 2
    assert "s.npz: sigma has a negative eigenvalue" in done.stderr
    assert "Traceback" not in done.stderr
    bad = FeatureStats(10, torch.zeros(3).double(), -torch.eye(3).double())
    with pytest.raises(ValueError, match=r"no covariance: it has a negative eigenvalue, -0\.111"):
        frechet_distance(bad, FeatureStats.of(torch.randn(9, 3)))


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), d=st.integers(1, 40), n=st.integers(2, 60),
       scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]), kind=st.sampled_from(["f8", "f4", ">f8"]))
def test_honest_statistics_pass(tmp_path_factory, seed, d, n, scale, kind):
    """Full rank, fewer images than dimensions, dead features, and rounded to float32."""
    path = tmp_path_factory.getbasetemp() / "honest.npz"
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).relu() * scale
    stats = FeatureStats.of(x * (torch.arange(d) % 3 > 0))
    np.savez(path, mu=stats.mean.numpy().astype(kind), sigma=stats.covariance.numpy().astype(kind))
    found = open_source(str(path)).stats
    size = float(stats.covariance.trace())
    assert frechet_distance(found, stats) <= 1e-3 * size + 1e-30


def test_the_tolerance_is_of_the_largest_eigenvalue():
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    for share, fails in ((-0.5, False), (-2.0, True)):
        values = torch.logspace(3, -9, 60, dtype=torch.float64)
        values[-1] = share * TOLERANCE * 1000
        found = basis @ torch.diag(values) @ basis.T
        before = found.clone()
        if fails:
            with pytest.raises(ValueError, match=r"negative eigenvalue, below -0\.0"):
                check_moments(torch.zeros(60).double(), found)
        else:
            check_moments(torch.zeros(60).double(), found)
        assert torch.equal(found, before)  # it is looked at, not changed


def test_ours_round_trip_and_name_features_that_are_here(tmp_path):
    stats = FeatureStats.of(torch.randn(50, 20))
    save_statistics(tmp_path / "s.npz", stats, {"extractor": "digits", "seeds": [0, 5], "n": 3})
    found = open_source(str(tmp_path / "s.npz"))
    assert (found.n, found.extractor) == (50, "digits")
    with pytest.raises(ValueError, match=r"written as \.npz"):
        save_statistics(tmp_path / "s.npy", stats, {})


def test_a_file_does_not_choose_what_is_fetched(tmp_path):
    for name in ("timm:hf-hub:someone/network", "timm:local-dir:/tmp/x", "timm:a/b", "a b"):
        np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=EYE, provenance=text({"extractor":
                                                                                 name}))
        done = call("analysis.fid", tmp_path / "s.npz", tmp_path / "s.npz", "--no-cache")
        assert done.returncode == 2
        assert "are features that a file asks for; give --features" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# --- arrays ---


def npy(header, data=b"", version=1, length=None):
    content = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == 1 else "<I",
                       len(content) if length is None else length)  # yapf: disable
    return b"\x93NUMPY" + bytes([version, 0]) + size + content + data


def described(shape, descr="|u1"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


HEADERS = {
    "more than there is": npy(described("(1000000000000, 3, 8, 8)"), b"abc"),
    "less than there is": npy(described("(1, 1, 1)"), bytes(9)),
    "a negative length": npy(described("(-1, 1, 8, 8)"), bytes(64)),
    "two negative lengths": npy(described("(-1, 1, -8, 8)"), bytes(64)),
    "an endless shape": npy(described(f"(0, 1{'0' * 4000})")),
    "endless lengths": npy(described(f"({'1, ' * 2000})"), b"a"),
    "endless lengths of nothing": npy(described(f"(0, {'9' * 19}, {'9' * 19})")),
    "no tuple": npy(described("3"), bytes(3)), "no header": npy("{}\n"), "no dict": npy("[" * 900),
    "no text": npy(b"\xff\xfe\x00"), "no version": b"\x93NUMPY\x09\x09\x00\x00",
    "version 3": npy(described("(1, 1, 1)"), b"a", 3),
    "an endless header": npy(described("(1, 1, 1)"), b"a", 2, 0xFFFFFFFF),
    "a long header": npy("{" + " " * 60_000 + "}\n"), "magic alone": b"\x93NUMPY",
    "an unknown type": npy(described("(1,)", "zz9"), b"a"),
    "a structure": npy("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,1,1)}\n",
                       b"a"),
    "code": npy("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}\n"),
    "nothing": b"", "text": b"hello",
    "no images": npy(described("(0, 1, 8, 8)")), "no pixels": npy(described("(5, 1, 0, 8)")),
    "text for pixels": npy(described("(2,)", "<U3"), bytes(24)),
    "a name of a type with a code": npy(described("(1,)", "|u1\x1b[2J"), b"a")}  # yapf: disable


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_arrays_that_lie_are_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy")
    for name in ("x.npy", "mu.npy"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        refused(tmp_path / "a.npz")


def test_only_what_is_asked_for_is_unpacked(tmp_path):
    """A bomb of 128 MiB lies beside mu and sigma: EDM's and ADM's files hold images there."""
    path = tmp_path / "s.npz"
    np.savez_compressed(path, mu=np.zeros(3), sigma=EYE)
    zeros = bytes(1 << 24)
    with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(described(f"({8 << 24},)")))
        for _ in range(8):
            file.write(zeros)
    tracked = _peak(f"open_source({str(path)!r})")
    assert tracked < 30


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    zeros, images = bytes(1 << 24), tmp_path / "images.npz"
    with (
            zipfile.ZipFile(images, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("a.npy", "w") as file,
    ):
        file.write(npy(described(f"({64 << 14}, 1, 32, 32)")))
        for _ in range(64):
            file.write(zeros)
    assert images.stat().st_size < 2 << 20
    started = time.monotonic()
    refused(images,
            "1,073,741,824 bytes more than a file of its kind may|it asks for 1,073,741,824")
    sigma = tmp_path / "sigma.npz"
    with zipfile.ZipFile(sigma, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", npy(described("(8192,)", "<f8"), bytes(8 * 8192)))
        with archive.open("sigma.npy", "w") as file:
            file.write(npy(described("(8192, 8192)", "<f8")))
            for _ in range(32):
                file.write(zeros)
    refused(sigma, "too small a file for 8,192 dimensions")
    with zipfile.ZipFile(sigma, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("mu.npy", npy(described("(3,)", "<f8"), bytes(24)))
    refused(sigma, "never does")
    assert time.monotonic() - started < 5


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_too_many_names_or_of_one_twice(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(40_000):
            archive.writestr(f"{index}.npy", b"")
    started = time.monotonic()
    refused(path, "its directory takes")
    assert time.monotonic() - started < 2
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("mu.npy", npy(described("(1,)"), b"a"))
    refused(path, "two of one name")


def test_flipped_bytes_are_refused_or_read(tmp_path):
    """Whatever the bytes: a source, or one line."""
    path, stream = tmp_path / "s.npz", np.random.default_rng(0)
    save_statistics(path, FeatureStats.of(torch.randn(30, 4)), {"extractor": "digits"})
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole[:stream.integers(1, len(whole) + 1)])
        for place in stream.integers(0, len(damaged), stream.integers(1, 4)):
            damaged[place] = stream.integers(0, 256)
        path.write_bytes(damaged)
        said = said_of(path)
        assert said.isprintable()
        assert len(said) < 500


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_only_regular_files(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    refused(path, "a device, pipe or socket")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(path, "a device")
    path.unlink()
    path.mkdir()
    refused(path, "a folder")
    path.rmdir()
    path.symlink_to(path)
    refused(path, "cannot be opened")


def test_names_are_printed_plainly(tmp_path):
    path = tmp_path / "a\x1b[2J\n.npz"
    np.savez(path, mu=np.zeros(3), sigma=EYE)
    assert open_source(str(path)).name == r"a\x1b[2J\n.npz"
    np.savez(path, **{f"evil\x1b{index}" * 10: np.zeros(2) for index in range(50)})
    with pytest.raises(ValueError, match="neither") as raised:
        open_source(str(path))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def _peak(code):
    """MiB that a process's memory grows by while it runs the code, once all is imported."""
    script = ("import resource\nfrom analysis.fid.sources import open_source\n"
              "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
              f"{code}\n"
              "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    return int(done.stdout) / (1 << (20 if sys.platform == "darwin" else 10))


# --- what a checkpoint says ---


@pytest.mark.parametrize("change", [
    dict(backbones="vgg"), dict(backbones=[1]), dict(backbones={}), dict(train=[]),
    dict(train={"sampler": 3}), dict(train={"objective": None}), dict(base_digest=7),
    dict(train={"sampler": "x" * 100_000}), dict(train={"sampler": "\x1b[2J"}),
    dict(backbones=["a\x1b[2J\n"]), dict(backbones=["b" * 10_000])])  # yapf: disable
def test_what_a_checkpoint_says_is_typed(tiny, tmp_path, change):
    path = tmp_path / "x.safetensors"
    checkpoint.save_denoiser(path, tiny.copy(epsilon=0.002))
    tensors, metadata = checkpoint.read_tensors(path)
    checkpoint.write_tensors(path, tensors, metadata | change)
    refused(path)


# --- the cache ---


def cached(tmp_path, judge, classify=False):  # noqa: F811
    """A cache with one entry, its path, and a function that says whether it was used."""
    extractor, calls = counted(judge)
    source = array_source(noise(60), identity={"array": "a"})

    def run():
        calls.clear()
        summary = Summaries(extractor, cache=tmp_path / "cache").of(source, classify=classify)
        return not calls, summary

    _, fresh = run()
    (path, ) = (tmp_path / "cache").iterdir()
    assert len(path.stem) == 32  # 128 bits
    assert run()[0]
    return path, run, fresh


CHANGES = {
    "negative": lambda t, m: t.update(scatter=-t["scatter"]),
    "skew": lambda t, m: t["scatter"][0].mul_(2),
    "NaN": lambda t, m: t["mean"].fill_(float("nan")),
    "inf in the sample": lambda t, m: t["sample"].fill_(float("inf")),
    "float32": lambda t, m: t.update(mean=t["mean"].float()),
    "integers": lambda t, m: t.update(sample=t["sample"].int()),
    "smaller": lambda t, m: t.update({n: x[:5] for n, x in t.items()}),
    "another dimension": lambda t, m: t.update(
        mean=torch.zeros(3).double(), scatter=torch.eye(3).double(), sample=torch.zeros(60, 3)),
    "no dimension": lambda t, m: t.update(
        mean=torch.zeros(0).double(), scatter=torch.zeros(0, 0).double(),
        sample=torch.zeros(60, 0)),
    "one bit": lambda t, m: t["sample"].view(torch.int32)[3, 3].bitwise_xor_(1),
    "plausible": lambda t, m: t["scatter"].mul_(1.5),
    "a tensor less": lambda t, m: t.pop("sample"),
    "a tensor more": lambda t, m: t.update(more=torch.zeros(2)),
    "scores unasked": lambda t, m: t.update({"scores.count": torch.zeros(10).double()}),
    "another n": lambda t, m: m["asked"].update(n=61),
    "another source": lambda t, m: m["asked"].update(source={"array": "b"}),
    "another extractor": lambda t, m: m["asked"].update(extractor="x"),
    "no provenance": lambda t, m: m.clear(),
    "provenance of another kind": lambda t, m: m.update(asked=[1]),
    "a checksum of another kind": lambda t, m: m.update(sha256=3),
    "another checksum": lambda t, m: m.update(sha256="0" * 64)}  # yapf: disable


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_summary_is_made_again(tmp_path, judge, change, capsys):  # noqa: F811
    path, run, fresh = cached(tmp_path, judge)
    tensors, metadata = checkpoint.read_tensors(path)
    change(tensors, metadata)
    checkpoint.write_tensors(path, tensors, metadata)
    capsys.readouterr()
    used, summary = run()
    said = capsys.readouterr().err
    assert not used
    assert torch.equal(summary.stats.scatter, fresh.stats.scatter)
    assert said.startswith(f"warning: the cached summary {path} is made again: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert len(said) < 500
    assert run()[0]  # it was written again
    assert capsys.readouterr().err == ""


def test_scores_are_checked_and_asked_for(tmp_path, judge):  # noqa: F811
    path, run, _ = cached(tmp_path, judge, classify=True)
    tensors, metadata = checkpoint.read_tensors(path)
    for name in ("scores.count", "scores.total", "scores.negentropy"):
        for changed in ({n: x for n, x in tensors.items() if n != name},
                        tensors | {name: tensors[name].float()},
                        tensors | {name: tensors[name][1:]},
                        tensors | {name: tensors[name] * float("nan")}):  # yapf: disable
            checkpoint.write_tensors(path, changed, metadata)
            assert not run()[0]
    assert run()[0]


@pytest.mark.parametrize("content", [
    b"", b"x", b"\xff" * 100, struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 2) + b"[]"])  # yapf: disable
def test_a_foreign_file_in_the_cache_is_made_again(tmp_path, judge, content, capsys):  # noqa: F811
    path, run, _ = cached(tmp_path, judge)
    path.write_bytes(content)
    capsys.readouterr()
    assert not run()[0]
    said = capsys.readouterr().err
    assert "is made again: " in said
    assert said[:-1].isprintable()
    assert run()[0]


def test_a_cache_that_cannot_be_written_costs_a_word(tmp_path, judge, capsys):  # noqa: F811
    source, wanted = array_source(noise(60)), Summaries(judge).of(array_source(noise(60)))
    (tmp_path / "file").write_bytes(b"a file where the folder should be")
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    read_only.chmod(0o555)
    places = [tmp_path / "file", tmp_path / "file" / "below"]
    places += [read_only] if os.access("/root", os.W_OK) is False else []  # root writes anywhere
    places += [tmp_path / "full"]

    def full(*_, **__):
        raise OSError(28, "No space left on device\x1b")

    for place in places:
        with pytest.MonkeyPatch.context() as patched:
            if place.name == "full":
                patched.setattr(checkpoint, "save_file", full)
            found = Summaries(judge, cache=place).of(source)
        assert torch.equal(found.stats.scatter, wanted.stats.scatter)
        said = capsys.readouterr().err
        assert "is not kept: " in said
        assert len(said.splitlines()) == 1
        assert said[:-1].isprintable()
    read_only.chmod(0o755)
    path, run, _ = cached(tmp_path, judge)
    path.unlink()
    path.mkdir()  # a folder where the file should be
    assert not run()[0]
    assert "is not kept: " in capsys.readouterr().err


def test_a_folder_is_known_by_its_content(tmp_path, judge):  # noqa: F811
    """Not by times and sizes, which stay as they were here."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        (folder / f"{index}.bmp").write_bytes(_bmp(rng.integers(0, 256, (8, 8), np.uint8)))
    summaries = Summaries(judge, cache=tmp_path / "cache")
    first = open_source(str(folder))
    before = summaries.of(first).stats
    file, kept = folder / "2.bmp", (folder / "2.bmp").stat()
    file.write_bytes(_bmp(rng.integers(0, 256, (8, 8), np.uint8)))
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (kept.st_size, kept.st_mtime_ns)
    second = open_source(str(folder))
    assert first.identity != second.identity
    assert not torch.equal(summaries.of(second).stats.mean, before.mean)
    # and nowhere else, at no other time, is it another one
    folder.rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "2.bmp", (1, 1))
    assert open_source(str(tmp_path / "moved")).identity == second.identity


def _bmp(pixels):
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def test_digests_of_folders_tell_names_and_contents_apart(tmp_path):
    def made(name, files):
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return content_digest(tmp_path / name)

    digests = [
        made("a", {"x": b"1", "y": b"2"}),
        made("b", {"x": b"12", "y": b""}),
        made("c", {"x": b"2", "y": b"1"}),
        made("d", {"x/y": b"1", "z": b"2"}),
        made("e", {"x": b"1", "y": b"2", "z": b""}),
        made("f", {"xy": b"12"})]
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {32}
    os.mkfifo(tmp_path / "a" / "pipe")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "zero").symlink_to("/dev/zero")
    assert content_digest(tmp_path / "a") == digests[0]  # no picture is read from there


# --- the command ---


@pytest.mark.parametrize(("options", "message"), [
    (["--n", "1000000000000"], "--n must be 2 to 10,000,000; got 1000000000000"),
    (["--n", "-3"], "--n must be 2"), (["--ranges", "0"], "--ranges must be 1"),
    (["--batch-size", "0"], "--batch-size must be 1"),
    (["--bootstrap", "-1"], "--bootstrap must be 0"),
    (["--first-seed", "-1"], "--first-seed must be 0"),
    (["--save-statistics", "x.npy"], "statistics are written as .npz"),
    (["--save-statistics", "x.npz"], "no moments were made")])
def test_wrong_options_are_one_line(tmp_path, options, message):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=EYE, provenance=text({"extractor":
                                                                             "digits"}))
    done = call("analysis.fid", tmp_path / "s.npz", tmp_path / "s.npz", "--no-cache", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_features_of_a_planted_detector_are_refused(tmp_path):
    """The command, in a folder with `checkpoints/`: exit code 2, and nothing is run or written."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("inception-2015-12-05.pt", "pt_inception-2015-12-05-6726825d.pth"):
        (folder / name).write_bytes(b"PK\x03\x04 planted")
    (tmp_path / "a.png").write_bytes(png())
    for features in ("inception", "inception:clean", "inception:torchscript"):
        done = subprocess.run([
            sys.executable, "-m", "analysis.fid", str(tmp_path), "digits", "--features", features,
            "--no-cache"], capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)})  # yapf: disable
        assert done.returncode == 2
        assert "is not the published file and is not opened" in done.stderr
        assert "Traceback" not in done.stderr


def test_statistics_compare_as_they_did(judge):  # noqa: F811
    """What is honest is worth what it was."""
    table = compare([array_source(noise(60, seed), str(seed)) for seed in range(2)],
                    Summaries(judge), ["fd"])
    stats = [FeatureStats.of(judge(noise(60, seed))) for seed in range(2)]
    assert table["value"].item() == pytest.approx(frechet_distance(*stats), rel=1e-6)
