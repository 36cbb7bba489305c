"""What a command asks for, checked before torch is imported: numbers, metrics, sources by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gdd.config import BUNDLED
from gdd.reading import open_regular
from gdd.samplers import read_sampler
from gdd.weights import zoo

METRICS = ("fd", "kid", "pr", "dc", "is", "fd-infinity")
ARRAYS = (".npy", ".npz")


def check_metrics(names: Iterable[str]) -> None:
    """Raise ValueError if one is not of METRICS."""
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}; got {', '.join(unknown)}")


def check_numbers(args: Any) -> None:
    """Raise ValueError for one that is out of its range: memory and time go with each of them."""
    for name, least, most in (("n", 2, 10_000_000), ("ranges", 1, 1000), ("batch_size", 1, 1 << 20),
                              ("bootstrap", 0, 100_000), ("first_seed", 0, 1 << 40)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be {least} to {most:,}; got {value}")


def locate(spec: str) -> Path | None:
    """Where a source lies, None for a data set that comes with a package. Raises FileNotFoundError
    or ValueError, of its sampler too."""
    name, at, sampler = spec.partition("@")
    if sampler:
        read_sampler(sampler)
    if name in BUNDLED and not at:
        return None
    try:
        if Path(name).suffix in ARRAYS and not at:
            open_regular(name).close()
            return Path(name)
        return zoo.locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source {error}") from None
