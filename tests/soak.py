"""Mutates files of every kind that is read, and watches what the readers do with them.

    python tests/soak.py SECONDS [SEED]     # counts per reader; keeps each failure in the current
    folder

A failure is anything but a value, a ValueError or an OSError; an event that only running code
causes (Python's audit hooks tell); more than 10 s; or more than 1 GB beyond the start. Half of the
mutations are of bytes, half know the format: headers and metadata are taken apart, changed and put
together again.
"""

import io
import json
import random
import re
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_pickle import NETWORK, WATCHED, mutate, seeds
from PIL import Image

from analysis.features import ClassifierFeatures, classifier
from analysis.fid import summaries
from analysis.fid.frechet import FeatureStats
from analysis.fid.sources import Source, open_source, save_statistics
from gdd.config import TrainConfig
from gdd.data.pictures import open_pictures
from gdd.denoiser import Denoiser
from gdd.training.engine import Engine
from gdd.training.folder import RunFolder
from gdd.training.state import load_state, save_state
from gdd.training.trainer import init_state
from gdd.weights import checkpoint

SECONDS, BYTES = 10, 1 << 30
ODD: list[Any] = [None, True, -1, 0, 1 << 62, 1e308, -0.5, "", "x" * 5000, "\x1b[31m\n", [], {},
                  [[[]]], {"a": {"a": {}}}, "../../etc/passwd", [0] * 300]  # yapf: disable
Mutation = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or left out."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(len(data), 1))
        match rng.randrange(5):
            case 0:
                data[at:at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at:at + rng.choice((1, 4, 64, 4096))]
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 3:
                other = rng.randrange(max(len(data), 1))
                data[at:at] = data[other:other + rng.choice((4, 64, 1024))]
            case 4:
                del data[at:]
    return bytes(data)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A value of a JSON text replaced, left out, doubled or moved."""
    try:
        root = json.loads(content)
    except ValueError:
        return flipped(content, rng)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(
            value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            places.append((value, key))
            walk(item)

    walk(root)
    if not places:
        return json.dumps(rng.choice(ODD)).encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rng.choice(places)
        try:
            match rng.randrange(4):
                case 0 | 1:
                    holder[key] = rng.choice(ODD)
                case 2:
                    del holder[key]
                case 3:
                    other, there = rng.choice(places)
                    holder[key] = other[there]
        except (LookupError, TypeError):
            continue
    try:
        return json.dumps(root).encode()
    except (ValueError, RecursionError):  # moved into itself
        return flipped(content, rng)


def changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file, or the metadata inside it, changed."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    inside = header.get("__metadata__", {})
    if inside and rng.random() < 0.7:
        key = rng.choice(list(inside))
        inside[key] = changed_json(inside[key].encode(), rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = changed_json(json.dumps(header).encode(), rng)
    return len(text).to_bytes(8, "little") + text + content[8 + length:]


def changed_zip(content: bytes, rng: random.Random) -> bytes:
    """An entry of a zip changed, renamed, doubled or left out, with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(entries))
    name, inner = entries[at]
    match rng.randrange(5):
        case 0 | 1:
            change = changed_json if name.endswith(".json") else flipped
            entries[at] = name, change(inner, rng)
        case 2:
            entries[at] = rng.choice(["../x.png", "a.png", "dataset.json", "\x1b.png", name]), inner
        case 3:
            del entries[at]
        case 4:
            entries.insert(at, rng.choice(entries))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        with zipfile.ZipFile(out, "w", rng.choice((0, 8))) as archive:
            for name, inner in entries:
                archive.writestr(name, inner)
    return out.getvalue()


def changed_tar(content: bytes, rng: random.Random) -> bytes:
    """A member of a tar.gz changed, made a link, or given odd pax headers."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]  # type: ignore
    out = io.BytesIO()
    chosen = rng.randrange(len(members))
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for place, (member, inner) in enumerate(members):
            if place == chosen:
                match rng.randrange(4):
                    case 0 | 1:
                        inner = mutate(inner, rng)
                        member.size = len(inner)
                    case 2:
                        member.type = rng.choice([
                            tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
                        member.linkname = rng.choice([member.name, "/etc/passwd", "x"])
                    case 3:
                        member.pax_headers = {
                            "comment": "x" * rng.choice((10, 10_000)), "GNU.sparse.size":
                            rng.choice(["-1", "9" * 30])}
            archive.addfile(member, io.BytesIO(inner))
    return out.getvalue()


def either(knowing: Mutation) -> Mutation:
    return lambda content, rng: (knowing if rng.random() < 0.5 else flipped)(content, rng)


class Reader:
    """Real-shaped files, how they are mutated, and what reads them."""
    def __init__(self, suffix: str, corpus: list[bytes], change: Mutation, read: Callable[[Path],
                                                                                          Any]):
        self.suffix, self.corpus, self.change, self.read = suffix, corpus, change, read


def readers(folder: Path) -> dict[str, Reader]:
    torch.manual_seed(0)
    denoiser = Denoiser.from_config(NETWORK)
    found: dict[str, Reader] = {}

    def file(name: str, write: Callable[[Path], Any]) -> bytes:
        path = folder / name
        write(path)
        return path.read_bytes()

    pickles = [content for content in seeds() if b"class_name" in content or b"module_src" in
               content] or seeds()[:5]  # yapf: disable
    found["pickle"] = Reader(".pkl", pickles, mutate, checkpoint.load_with_metadata)
    config = TrainConfig(objective="edm", batch_size=4, total_images=8, lr=1e-3, seed=0)
    weights = file("w.safetensors", lambda p: checkpoint.save_denoiser(
        p, denoiser, images_seen=8, weights="EMA", train={"data": "digits", "objective": "edm"},
        log=[{"images": 8.0, "loss_edm": 1.0}], backbones=["x"]))  # yapf: disable
    found["safetensors"] = Reader(".safetensors", [weights], either(changed_safetensors),
                                  checkpoint.load_with_metadata)
    state = init_state(config, denoiser)
    content = file("s.safetensors",
                   lambda p: save_state(p, state, log=[{"images": 4.0}], sums={}, teacher="x"))
    found["state"] = Reader(".safetensors", [content], either(changed_safetensors),
                            lambda path: load_state(path, init_state(config, denoiser)))
    found["zip"] = Reader(".zip", [file("p.zip", _picture_zip)], either(changed_zip), _decode)
    found["tar"] = Reader(".tar.gz", [file("c.tar.gz", _cifar_tar)], either(changed_tar), _decode)
    pictures = []
    for kind in ("png", "jpeg", "webp", "bmp"):
        out = io.BytesIO()
        _picture(kind).save(out, kind)
        pictures.append(out.getvalue())
    found["picture"] = Reader(".png", pictures, flipped, _decode_folder)
    stats = FeatureStats.of(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    npz = file("r.npz", lambda p: save_statistics(p, stats, {"extractor": "digits"}))
    images = io.BytesIO()
    np.save(images, np.zeros((3, 8, 8, 3), np.uint8))
    found["npz"] = Reader(".npz", [npz], either(changed_zip), _open)
    found["npy"] = Reader(".npy", [images.getvalue()], flipped, _open)
    found["cache"] = _cache(folder)
    run = folder / "run"
    plain = json.dumps({
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(config).items()}).encode()
    found["config"] = Reader(".json", [plain], either(changed_json),
                             lambda path: _verify(run, path, config))
    return found


def _picture(kind: str) -> Image.Image:
    pixels = np.random.default_rng(len(kind)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _picture_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(4):
            out = io.BytesIO()
            _picture("x" * index).save(out, "png")
            archive.writestr(f"00000/img{index:08d}.png", out.getvalue())
        labels = [[f"00000/img{index:08d}.png", index % 2] for index in range(4)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def _cifar_tar(path: Path) -> None:
    import pickle

    with tarfile.open(path, "w:gz") as archive:
        for index in range(1, 6):
            batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [3, index]}
            content = pickle.dumps(batch, 2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{index}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _decode(path: Path) -> None:
    pictures = open_pictures(path)
    for index in range(min(len(pictures), 8)):
        pictures.array(index)


def _decode_folder(path: Path) -> None:
    _decode(path.parent)


def _open(path: Path) -> None:
    open_source(str(path))


def _cache(folder: Path) -> Reader:
    """A summary in the cache, read again by the source that it was made of: a changed one is made
    again, with the same result."""
    network = ClassifierFeatures(1, 8, 10)
    extractor = classifier(network, "digits", "soak")
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    source = Source("soak", 20, (1, 8, 8), {"soak": 1},
                    lambda indices, size: iter(images[list(indices)].split(size)))
    home = folder / "cache"
    made = summaries.Summaries(extractor, cache=home).of(source)
    (file, ) = home.glob("*.safetensors")
    content = file.read_bytes()

    def read(path: Path) -> None:
        file.write_bytes(path.read_bytes())
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            again = summaries.Summaries(extractor, cache=home).of(source)
        finally:
            sys.stderr = stderr
        torch.testing.assert_close(again.stats.mean, made.stats.mean)

    return Reader(".bin", [content], either(changed_safetensors), read)


def _verify(run: Path, path: Path, config: TrainConfig) -> None:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_bytes(path.read_bytes())
    RunFolder(run, Engine(config)).verify_config(config, ())


def peak_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) << 10  # type: ignore[index]


def main(seconds: float, seed: int) -> None:
    rng, counts, failures = random.Random(seed), Counter(), 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = readers(folder)
        for reader in known.values():  # honest files are read, and lazy imports happen here
            for content in reader.corpus:
                target = folder / f"honest{reader.suffix}"
                if reader.read is _decode_folder:
                    (folder / "pictures").mkdir(exist_ok=True)
                    target = folder / "pictures" / "x.png"
                target.write_bytes(content)
                reader.read(target)
        began, started = peak_bytes(), time.monotonic()
        slowest: Counter[str] = Counter()
        most = 0
        while time.monotonic() - started < seconds:
            kind = rng.choice(list(known))
            reader = known[kind]
            content = reader.change(rng.choice(reader.corpus), rng)
            target = folder / f"soak{reader.suffix}"
            if reader.read is _decode_folder:
                target = folder / "pictures" / "x.png"
            target.write_bytes(content)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is of this file
            WATCHED.events.clear()
            start, outcome = time.process_time(), "read"
            signal.alarm(SECONDS)
            try:
                WATCHED.on = kind not in ("cache", "config", "state")  # these write by design
                reader.read(target)
            except (ValueError, OSError) as error:
                outcome = "refused"
                said = str(error)
                assert said.isprintable(), said
                assert len(said) <= 600, said
            except BaseException as error:
                outcome = f"{type(error).__name__}"
                Path(f"found-{seed}-{sum(counts.values())}{reader.suffix}").write_bytes(content)
                print(kind, outcome, traceback.format_exc()[-1500:], flush=True)
                failures += 1
            finally:
                WATCHED.on = False
                signal.alarm(0)
            # listing a folder runs nothing, nor does the literal_eval of numpy's headers
            harmless = {"os.scandir", "compile"} if kind in ("npy", "npz") else {"os.scandir"}
            events = [event for event in WATCHED.events if event[0] not in harmless]
            if events:
                print(kind, "ran", events, flush=True)
                failures += 1
            if (grown := peak_bytes() - began) > BYTES:
                Path(f"found-{seed}-{sum(counts.values())}{reader.suffix}").write_bytes(content)
                print(kind, f"took {grown >> 20} MiB", flush=True)
                failures += 1
            most = max(most, grown)
            slowest[kind] = max(slowest[kind], round(1000 * (time.process_time() - start)))
            counts[kind, outcome] += 1
    print(f"{sum(counts.values()):,} files in {seconds:g} s, seed {seed}: {failures} failures, "
          f"at most {most >> 20} MiB beyond the start")
    for kind in known:
        of = {outcome: n for (k, outcome), n in sorted(counts.items()) if k == kind}
        print(f"{kind:12} {of}, slowest {slowest[kind]} ms")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
