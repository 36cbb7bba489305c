"""Mutates network pickles and CIFAR-10 batches, and watches what the reader does with them.

    python tests/fuzz_pickle.py SECONDS [SEED]     # prints what it tried; keeps each failure as a
    file in the current folder

A failure is anything but a value or a ValueError, any event that only running code causes (Python's
audit hooks tell), or memory far beyond the file's size. With `atheris` installed, `--atheris CORPUS
...` fuzzes by coverage instead (libFuzzer's options).
"""

import io
import json
import os
import pickle
import pickletools
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import edm_files
import numpy as np
import torch

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(
            include=["gdd.weights.unpickle", "gdd.weights.edm_pickle", "pickletools"]):
        from gdd.weights import edm_pickle
else:
    atheris = None
    from gdd.weights import edm_pickle
from gdd.data.cifar import read_cifar_batch
from gdd.denoiser import Denoiser

NETWORK = dict(img_resolution=4, img_channels=1, model_type="SongUNet", model_channels=4,
               channel_mult=[1, 1], num_blocks=1, attn_resolutions=[
                   2], dropout=0.0, embedding_type="fourier")
FORBIDDEN = ("exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.",
             "pickle.find_class")
MEMORY = 300 << 20  # bytes above the start: the files are below half a megabyte

GADGETS = [
    b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
    b"cbuiltins\neval\n(X\x01\x00\x00\x001tR",
    b"ctorch\nload\n)R",
    b"}}b",
    b"Q",
    b"csubprocess\nPopen\n)\x81",
    b"ctorch.storage\n_load_from_bytes\n(C\x04aaaatR",
    b"\x8b\xff\xff\xff\x7f",
    b"(((((((((((((",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"ccollections\nOrderedDict\n)R",
    b"\x93",
    b"\x92",
    b"o",
    b"i", ]


def seeds() -> list[bytes]:
    """Real-shaped files: a tiny network under every protocol, in both classes, and a CIFAR-10
    batch."""
    torch.manual_seed(0)
    denoiser = Denoiser.from_config(NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pkl"
        found = [
            edm_files.write(path, denoiser, protocol=protocol).read_bytes()
            for protocol in (2, 3, 4, 5)]
        found.append(
            edm_files.write(path, denoiser.copy(epsilon=0.002), dtype=torch.float16).read_bytes())
    found.append(edm_files.rename_numpy(found[0]))
    found.append(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [3, 7]}, 2))
    return found


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A few byte flips, cuts, repeats, gadgets, or opcode swaps."""
    data = bytearray(content)
    starts = [position
              for _, _, position in pickletools.genops(content)] if rng.random() < 0.5 else None
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.choice(starts) if starts and rng.random() < 0.8 else rng.randrange(len(data))
        at = min(at, len(data) - 1)
        match rng.randrange(7):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:at + rng.choice((1, 2, 8, 100))]
            case 3:
                data[at:at] = rng.choice(GADGETS)
            case 4:
                other = rng.randrange(len(data))
                data[at:at] = data[other:other + rng.choice((1, 4, 40, 400))]
            case 5:
                data[at] = ord(rng.choice(pickletools.opcodes).code)
            case 6:
                del data[at:]
        if len(data) < 2:
            break
    return bytes(data)


class Watched:
    """Audit events seen while a file is read."""
    def __init__(self):
        self.on, self.events = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        writes = event == "open" and isinstance(args[1], str) and "w" in args[1]
        if self.on and (event.startswith(FORBIDDEN) or writes):
            names, frame = set(), sys._getframe(1)
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
            if "_find_and_load" not in names:  # which is a library's own lazy import
                self.events.append((event, str(args)[:200]))


WATCHED = Watched()


def attempt(content: bytes, path: Path, *, watch: bool = True) -> str:
    """Read one file both ways; returns `read`, or the reason it was refused. Raises AssertionError
    on a failure."""
    path.write_bytes(content)
    outcome = "read"
    WATCHED.events.clear()
    WATCHED.on = watch
    try:
        if b"labels" in content and b"class_name" not in content:
            read_cifar_batch(io.BytesIO(content), len(content))
        else:
            edm_pickle.read_network(path)
    except ValueError as error:
        outcome = str(error)
    finally:
        WATCHED.on = False
    assert not WATCHED.events, WATCHED.events
    return outcome


_BOUNDED = """
import importlib, json, pathlib, re, sys, time
status = pathlib.Path("/proc/self/status")  # getrusage would count the parent's peak
module, name, *paths = sys.argv[1:]
function = getattr(importlib.import_module(module), name)
for path in paths:
    start, outcome = time.process_time(), "read"
    try:
        function(path)
    except (ValueError, FileNotFoundError) as error:
        outcome = str(error)
    peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else [0, 0]
    took = time.process_time() - start
    print(json.dumps([path, outcome, took, int(peak[1]) >> 10]), flush=True)
"""


def bounded(function: str, paths: Sequence[Path], *, seconds: float = 10,
            megabytes: int = 1000) -> dict[str, str]:
    """What `module:function` says of each file, by its name, in a process of its own: `read`, or
    one ValueError or FileNotFoundError. Raises AssertionError where it takes longer, or more
    memory, or says what no terminal should be given."""
    command = [sys.executable, "-c", _BOUNDED, *function.split(":"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 2 * len(paths),
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
                          cwd=Path(__file__).parent)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(paths), (paths[len(found)], done.stderr[-2000:])
    for path, outcome, took, peak in found:
        assert took < seconds, (path, took)
        assert peak < megabytes, (path, peak)
        assert outcome.isprintable(), (path, outcome)
        assert len(outcome) <= 500, (path, outcome)
        assert outcome == "read" or Path(path).name in outcome, (path, outcome)
    return {Path(path).name: outcome for path, outcome, *_ in found}


def main(seconds: float, seed: int) -> None:
    rng, corpus, start = random.Random(seed), seeds(), time.monotonic()
    warnings.simplefilter("error")
    kinds: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.pkl"
        for content in corpus:
            attempt(content, path, watch=False)  # lazy imports happen here
        before, tried = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        while time.monotonic() - start < seconds:
            content = mutate(rng.choice(corpus), rng)
            tried += 1
            began = time.process_time()
            try:
                outcome = attempt(content, path)
                assert time.process_time() - began < 5, "took longer than 5 s"
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown * 1024 < MEMORY, f"grew by {grown / 1024:.0f} MiB"
            except Exception as error:
                Path(f"found-{seed}-{tried}.pkl").write_bytes(content)
                raise AssertionError(f"file {tried} of seed {seed}: {error!r}") from error
            key = " ".join(word for word in outcome.replace(str(path), "").split()
                           if not any(c.isdigit() for c in word))[:48]
            kinds[key] = kinds.get(key, 0) + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{tried:,} files in {seconds:g} s, {kinds.pop('read', 0):,} read, "
          f"memory grew by {grown:.0f} MiB; refused as:")
    for key, count in sorted(kinds.items(), key=lambda item: -item[1])[:25]:
        print(f"{count:8,}  {key}")


if __name__ == "__main__":
    if atheris:
        sys.argv.remove("--atheris")
        scratch = Path(tempfile.mkdtemp()) / "fuzz.pkl"
        for seed_file in seeds():
            attempt(seed_file, scratch, watch=False)
        atheris.Setup(sys.argv, lambda content: attempt(content, scratch))
        atheris.Fuzz()
    else:
        main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
