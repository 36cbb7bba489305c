"""What a run of a profile starts from, and where it and others lie.

A run is addressed by the digest of its config and of all it starts from and is measured by. It is
looked for in `runs/`, then among the profile's shipped weights; both count only if the digest is
today's.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gdd.backbones import Backbone, ClassifierBackbone, TimmBackbone
from gdd.config import BUNDLED, TrainConfig
from gdd.denoiser import Denoiser
from gdd.files import ROOT, digest_of
from gdd.perceptual import Distance, Lpips
from gdd.profiles import RECIPE, Profile
from gdd.profiles.paper import BACKBONES, LPIPS, TEACHERS
from gdd.reading import quoted
from gdd.weights import checkpoint, download, zoo

RUNS = Path(os.environ.get("GDD_RUNS", ROOT / "runs"))
RANDOM = "random:"  # before the name of a backbone: without its weights
Find = Callable[[str], Path]  # the file of a run or classifier, by its name


@dataclass(frozen=True)
class Start:
    """What a run starts from: its network, and what its losses look through."""

    network: Denoiser
    backbones: list[Backbone]
    distance: Distance | None


def digest(profile: Profile, name: str) -> str:
    """What addresses a run or classifier of the profile."""
    if name in profile.classifiers:
        # shipped ones were stamped without what their profiles always had
        more = [profile.holdout, profile.mirror, profile.shape, profile.classes]
        return digest_of(RECIPE, profile.data, asdict(profile.classifiers[name]),
                         *([] if profile.shipped else more))
    config = profile.config(name)
    measured_by = [x for x in profile.extractors if x in profile.classifiers]
    needs = [config.teacher, *config.backbones, *measured_by]
    known = {*profile.runs, *profile.classifiers}
    starts = [digest(profile, x) if x in known else x for x in needs]
    return digest_of(RECIPE, asdict(config), dict(profile.network(name)), starts)


def run_folder(profile: Profile, name: str) -> Path:
    return RUNS / profile.name / f"{name}-{digest(profile, name)}"


def snapshot_name(images: int) -> str:
    """Of the file in a run's folder with the EMA network after so many images."""
    return f"images-{images:09d}.safetensors"


def shipped(profile: Profile, name: str) -> Path | None:
    """The file of that name among the profile's shipped weights, whatever its digest."""
    path = profile.shipped / f"{name}.safetensors" if profile.shipped else None
    return path if path and path.is_file() else None


def finished(profile: Profile, name: str) -> Path | None:
    """A finished file of the run or classifier, whose digest is today's."""
    wanted = digest(profile, name)
    for path in (run_folder(profile, name) / "final.safetensors", shipped(profile, name)):
        if path and path.is_file() and checkpoint.read_metadata(path).get("digest") == wanted:
            return path
    return None


def any_finished(profile: Profile, name: str, called: str = "") -> Path:
    """Today's file of the run or classifier, else a shipped one of its name; raises ValueError with
    a way on, for which a profile of one's own is `called` by its file."""
    path, called = finished(profile, name) or shipped(profile, name), called or profile.name
    if path is None and name in profile.classifiers:
        raise ValueError(f"classifier {name} of profile {profile.name} is not trained yet: `python "
                         f"-m analysis.figures --profile {called}` trains it, beside the runs")
    if path is None:
        raise ValueError(f"teacher {name} of profile {profile.name} is not trained yet: `python -m "
                         f"gdd train {called}-{name} --folder FOLDER` makes it; then name its file "
                         "by --teacher")
    return path


def missing_files(profile: Profile) -> list[str]:
    """What the profile's runs need and is not on disk, a sentence each."""
    found: list[str] = []
    paths = {
        profile.data, profile.test or profile.data,
        *(config.data for config in profile.runs.values())}.difference(BUNDLED)
    for path in sorted(path for path in paths if not Path(path).exists()):
        found.append(f"the data set {path} (`python -m gdd data prepare SOURCE {path}` writes it)")
    if profile.reference and not Path(profile.reference).exists():
        name = Path(profile.reference).stem
        found.append(f"{profile.reference} (`python -m gdd download {name}`)")
    names = {
        name for config in profile.runs.values() for name in (config.teacher, *config.backbones)}
    names |= set(profile.files)
    if any(config.distance == "lpips" for config in profile.runs.values()):
        names.add(LPIPS)
    for name in sorted(names - {"", "random", *profile.runs, *profile.classifiers}):
        if name.startswith(RANDOM):
            continue
        try:
            (download.require_file if name in download.FILES else zoo.locate)(name)
        except FileNotFoundError as error:
            found.append(str(error))
    return found


def load_start(profile: Profile, config: TrainConfig, find: Find, run: str = "") -> Start:
    """Load what a run with this config starts from; `run` names its network if it is a teacher.

    Raises FileNotFoundError or ValueError naming what is missing and how to get it.
    """
    if config.objective == "edm":
        torch.manual_seed(config.seed)
        return Start(Denoiser.from_config(profile.network(run)), [], None)
    if not config.teacher:
        raise ValueError(f"teacher must be named with objective {config.objective}; got ''")
    check_backbones(profile, config)
    weights = {
        name: None if name.startswith(RANDOM) else download.require_file(name)
        for name in config.backbones if name not in profile.classifiers}
    lpips = config.distillation and config.distance == "lpips"
    distance = Lpips(download.require_file(LPIPS)) if lpips else None
    torch.manual_seed(config.seed)
    if config.teacher in profile.runs:
        teacher = checkpoint.load(find(config.teacher))
    elif config.teacher in TEACHERS:
        teacher = checkpoint.load(download.require_file(config.teacher))
    elif config.teacher == "random":
        teacher = Denoiser.from_config(profile.network(run))
    else:
        teacher = checkpoint.load(zoo.locate(config.teacher))
    backbones = [
        new_timm_backbone(name, config, weights[name]) if name in weights else load_backbone(
            profile, name, find(name)) for name in config.backbones]
    return Start(teacher, backbones, distance)


def check_backbones(profile: Profile, config: TrainConfig) -> None:
    """Raise ValueError if one is no classifier of the profile, no network whose weights are known,
    and not random."""
    known = [*profile.classifiers, *BACKBONES]
    for name in config.backbones:
        if name not in known and not name.startswith(RANDOM):
            raise ValueError(
                f"backbones must be of {', '.join(known)}, or {RANDOM} before the name "
                f"of a network of timm; got {quoted(name)}")


def new_timm_backbone(name: str, config: TrainConfig, weights: Path | None = None) -> TimmBackbone:
    backbone = TimmBackbone(name.removeprefix(RANDOM), weights, config.d_image_size)
    backbone.name = name
    return backbone


def new_backbone(profile: Profile, name: str) -> ClassifierBackbone:
    """A classifier of the profile for a discriminator to look through, untrained."""
    return ClassifierBackbone(name, *profile.shape[:2], profile.classes)


def load_backbone(profile: Profile, name: str, path: Path) -> Backbone:
    """A trained classifier of the profile. Raises ValueError if the file holds others' weights, or
    such as are not finite."""
    backbone, tensors = new_backbone(profile, name), checkpoint.read_tensors(path)[0]
    wanted = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if odd := sorted(set(wanted.items()) ^ set(found.items())):
        raise ValueError(f"{path} does not fit classifier {name} of profile {profile.name}: "
                         f"{len(odd)} tensors differ, first {quoted(odd[0][0])}")
    if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} holds values that are not finite in {len(broken)} tensors, first "
                         f"{broken[0]}")
    backbone.load_state_dict(tensors)  # copies into its own dtypes
    return backbone.eval().requires_grad_(False)
