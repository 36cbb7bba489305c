"""Profiles: all that differs between data sets, as data. One file a data set; nothing else names
one.

`desk` is the paper at the scale of two CPU cores, `smoke` the same runs, a few steps each. The
paper's own name a public teacher, pretrained backbones and a prepared data set, each with the place
where it is expected. A file of one's own that defines PROFILE is a profile too: `--profile
mine.py`.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gdd.config import TrainConfig

RECIPE = 2  # raise it when code, not config, changes what a run trains to: shipped weights go stale


@dataclass(frozen=True)
class Classifier:
    """A small network that a profile trains on its own data."""

    # what the discriminator looks through, or what judges: plain, or residual for pictures
    role: Literal["backbone", "features", "residual features"]
    epochs: int
    lr: float
    seed: int


@dataclass(frozen=True, eq=False)  # known by itself: its tables cannot be hashed
class Profile:
    """A data set with its runs, and with what makes, judges and describes them."""

    name: str
    title: str  # of the data, for headings: "scikit-learn's digits, 8x8"
    real: str  # what its images are called in a caption: "digits"
    data: str  # as `open_images` takes it
    classes: int  # of the data, 0 if it has no labels
    networks: Mapping[str, Mapping[str,
                                   Any]]  # of every teacher, by its name; the first is the usual
    runs: Mapping[str, TrainConfig]
    extractors: tuple[str, ...]  # what judges: classifiers below, or names of analysis.features
    n: int  # images per measurement
    n_activations: int = 256
    seed_ranges: int = 3
    training_seeds: tuple[int, ...] = (0, )
    # how many of them a run takes, if not all; one suffices for those of another teacher
    seeds_of: Mapping[str, int] = field(default_factory=dict)
    # runs that are compared at equal images, by the question they answer
    ablations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    snapshots: tuple[int, ...] = ()  # images at which a student's average is kept
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    mirror: bool = False  # whether its classifiers may see an image mirrored
    holdout: int = 5  # they never see every so-manieth: no divisor of a period in the classes
    live: bool = True  # whether figures measure what seeds.csv lacks; else only `make seeds` does
    test: str = ""  # other images of the same kind, that no training sees
    files: tuple[str, ...] = ()  # public ones, beside those of its runs: of what judges
    reference: str = ""  # what generators are measured against, if not the data: statistics
    pages: int = 0  # the first of the paper's three pages of samples of it, in Figures 5 to 19
    unshipped: tuple[str, ...] = ()  # runs whose weights do not come with the package
    shipped: Path | None = None  # folder of weights that come with the package

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of the images."""
        network = self.networks[self.teacher]
        return network["img_channels"], network["img_resolution"], network["img_resolution"]

    def config(self, run: str) -> TrainConfig:
        """Of `run`, or of `run@2`, the same with training seed 2. Raises ValueError listing
        names."""
        name, _, seed = run.partition("@")
        if name in self.public:
            return TrainConfig(objective="edm", data=self.data)
        known = require(name, self.runs, f"run of profile {self.name}")
        if seed and not seed.isdecimal():
            raise ValueError(f"a training seed is a number, as in {name}@1; got {run!r}")
        return replace(known, seed=int(seed)) if seed else known

    @property
    def public(self) -> tuple[str, ...]:
        """Teachers whose weights are downloaded and not trained."""
        return tuple(name for name in self.networks if name not in self.runs)

    @property
    def splits(self) -> tuple[str, ...]:
        """What generators are measured against."""
        return ("data", "test") if self.test else ("data", )

    @property
    def teacher(self) -> str:
        """The usual teacher: a run, or a public checkpoint."""
        return next(iter(self.networks))

    def network(self, run: str) -> Mapping[str, Any]:
        """The config of a run's network."""
        config = self.config(run)
        teacher = run.partition("@")[0] if config.objective == "edm" else config.teacher
        return self.networks.get(teacher, self.networks[self.teacher])

    def further_seeds(self) -> list[str]:
        """The runs that are trained with further seeds, as `run@seed`."""
        return [
            f"{name}@{seed}" for index, seed in enumerate(self.training_seeds[1:], 2)
            for name in self.runs if index <= self.seeds(name)]

    def seeds(self, run: str) -> int:
        """How many training seeds a run takes."""
        usual = len(self.training_seeds) if self.runs[run].teacher == self.teacher else 1
        return self.seeds_of.get(run, usual)


def require(name: str, known: Iterable[str], what: str) -> Any:
    """`known[name]`, or a ValueError that shows the nearest names and, if they are few, all."""
    if name in known:
        return known[name] if isinstance(known, Mapping) else name
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    nearest = f"; did you mean {' or '.join(near)}?" if near else ""
    few = len(names) <= 20
    listed = ", ".join(names) if few else f"the {len(names)} of `python -m gdd train --help`"
    raise ValueError(f"{what} must be one of {listed}; got {name!r}{nearest}")


@cache
def profiles() -> dict[str, Profile]:
    """All that come with the package, by name: the PROFILES of every file in this folder."""
    names = (found.name for found in pkgutil.iter_modules(__path__, f"{__name__}."))
    tables = (getattr(importlib.import_module(name), "PROFILES", ()) for name in names)
    return {profile.name: profile for table in tables for profile in table}


def profile(name: str) -> Profile:
    """The profile of that name, or the PROFILE of a Python file. Raises ValueError or
    FileNotFoundError."""
    return _from_file(Path(name)) if name.endswith(".py") else require(name, profiles(), "profile")


@cache
def _from_file(path: Path) -> Profile:
    if not path.is_file():
        raise FileNotFoundError(f"profile {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "PROFILE", None)
    if not isinstance(found, Profile):
        raise ValueError(f"{path} defines no PROFILE = gdd.profiles.Profile(...)")
    return found


def preset(name: str) -> tuple[Profile, str]:
    """Profile and run of `desk-gdd-i`, `ffhq-gdd`, or `mine.py-gdd`; GDD is D2O, GDD-I D2O-F.

    Raises ValueError listing what there is.
    """
    file, _, run = name.partition(".py-")
    if run:
        found, run = profile(f"{file}.py"), _plain(run)
        require(run, found.runs, f"run of {file}.py")
        return found, run
    return require(_plain(name), presets(), "preset")


def _plain(name: str) -> str:
    return name.replace("d2o-f", "gdd-i").replace("d2o", "gdd")


@cache
def presets() -> dict[str, tuple[Profile, str]]:
    """Profile and run by the preset's name."""
    return {f"{p.name}-{run}": (p, run) for p in profiles().values() for run in p.runs}
