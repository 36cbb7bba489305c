"""How soon a command answers that has nothing to compute, against importing torch."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.clock import FULL, medians
from benchmarks.row import Row
from gdd.files import ROOT

COMMANDS = {
    "--help": ["--help"],
    "a wrong sampler": ["sample", "--ckpt", "gdd-i", "--sampler", "nonsense"],
    "an unknown name": ["sample", "--ckpt", "nothing"],
    "an unknown file": ["describe", "nothing.safetensors"], }
if not FULL:
    COMMANDS = {"--help": ["--help"]}


def rows() -> Iterator[Row]:
    works = [partial(_run, "-m", "gdd", *words) for words in COMMANDS.values()]
    *ours, theirs = medians(*works, partial(_run, "-c", "import torch"), repeats=2)
    for (name, words), seconds in zip(COMMANDS.items(), ours, strict=True):
        yield Row(f"python -m gdd, {name}", "import torch", seconds, theirs, at_most=0.5,
                  reason=_reason(words))


def _run(*words: str) -> str:
    """What it writes to standard error."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return done.stderr


def _reason(words: list[str]) -> str:
    heavy = [
        name for name in ("torch", "pandas", "matplotlib")
        if f" {name}\n" in _run("-X", "importtime", "-m", "gdd", *words)]
    return f"imports {', '.join(heavy)} before it answers" if heavy else \
        "Python and the parser of arguments take it"
