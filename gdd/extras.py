"""Packages that only some commands need: which extra of `gdd-toolkit` installs each, and the one
sentence to say where it is not installed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# by the names they are imported by; an extra brings what stands above it, too
EXTRAS = {
    "train": ("lightning_fabric", "timm", "torchvision", "lpips", "sklearn", "filelock"),
    "metrics": ("pandas", "matplotlib", "seaborn", "scipy", "cleanfid", "rich"),
    "notebooks": ("jupyterlab", "ipywidgets", "papermill", "nbconvert"),
}  # yapf: disable


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra."""


@contextmanager
def named() -> Iterator[None]:
    """A package of an extra that is not found in here is a MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        for extra, packages in EXTRAS.items():
            if error.name in packages:
                raise MissingExtraError(
                    f"{error.name} is not installed; pip install 'gdd-toolkit[{extra}]' brings it",
                    name=error.name) from None
        raise


def require_installed(*packages: str) -> None:
    """Raise MissingExtraError for the first package that is not installed: before long work, not
    after."""
    with named():
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)


def public(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a package whose public names are each imported when first asked for, from
    the module of it that `home` tells: torch takes seconds, and `--help` must not wait."""
    def attribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package} has no attribute {name}")
        with named():
            return getattr(import_module(f"{package}.{home[name]}"), name)

    return attribute
