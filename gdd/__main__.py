"""python -m gdd train | sample | describe | convert | download | data"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from gdd.cli import run_cli
from gdd.training.command import Train, train


@dataclass
class Sample:
    """Write a grid of samples as one PNG."""

    ckpt: Path
    """Checkpoint of this project, for example gdd/weights/zoo/gdd-i.safetensors, or a network
    pickle of EDM or GDD."""
    out: Path = Path("samples.png")
    """The picture to write."""
    sampler: str = ""
    """heun:STEPS, euler:STEPS, one-step, k-step:STEPS or two-step:SIGMA; default: what the
    checkpoint was trained for."""
    n: int = 64
    """Number of images."""
    first_seed: int = 0
    """Image k is a function of the weights and of seed first_seed + k alone."""
    label: int | None = None
    """Class of all images, of a conditional network; default: each image's own stream draws it."""
    zoom: int = 4
    """Screen pixels per image pixel."""


@dataclass
class Describe:
    """Print what a checkpoint is: kind, network, size, share frozen by each policy, digest."""

    path: Positional[Path]
    """Checkpoint of this project, or a network pickle of EDM, GDD or D2O."""


@dataclass
class Convert:
    """Turn a network pickle of EDM, GDD or D2O into safetensors with its config inside; nothing in
    the pickle is run."""

    source: Positional[Path]
    """The pickle."""
    target: Positional[Path]
    """The safetensors file to write."""


@dataclass
class Download:
    """Fetch a public teacher, reference statistics, or a backbone's weights; goes on with a partial
    file."""

    name: Positional[str]
    """For example edm-cifar10-32x32-uncond-ve, cifar10-32x32, vgg16_bn; an unknown name lists them
    all."""
    folder: Path = Path("checkpoints")
    """Where the file goes."""
    sha256: str = ""
    """Digest to compare with, all of it or its first digits."""
    source: str = ""
    """Another address to fetch from, such as a mirror's."""


@dataclass
class Prepare:
    """Write a folder, zip or CIFAR-10's python batches as a zip in EDM's layout."""

    source: Positional[Path]
    """Folder (classes are its top-level folders), zip, or cifar-10-python.tar.gz, packed or not."""
    target: Positional[Path]
    """The zip to write, for example datasets/ffhq-64x64.zip."""
    resolution: int | None = None
    """Resize to this square by Lanczos, as EDM's tool does; default: as it is."""
    transform: Literal["none", "center-crop"] = "none"
    """center-crop cuts the middle square first: for ImageNet."""
    rgb: bool = False
    """Convert grey, palette, CMYK and alpha pictures to RGB; by default grey among RGB and the
    other kinds are refused."""
    max_images: int | None = None
    """Only the first so many."""


@dataclass
class Check:
    """Decode every picture of a data set; report count, size, classes, duplicates, and what cannot
    be read."""

    source: Positional[Path]
    """Folder, zip, or cifar-10-python.tar.gz."""


@dataclass
class Data:
    """Prepare or check a data set."""

    action: tyro.conf.OmitSubcommandPrefixes[Prepare | Check]


def main(args: Train | Sample | Describe | Convert | Download | Data) -> None:
    match args:
        case Train():
            train(args)
        case Sample():
            sample(args)
        case Describe():
            describe(args.path)
        case Convert():
            convert(args)
        case Download():
            download(args)
        case Data(action=Prepare() as action):
            prepare(action)
        case Data(action=Check() as action):
            check(action)


def sample(args: Sample) -> None:
    import torch

    from gdd.data.images import to_uint8
    from gdd.grid import grid_png
    from gdd.sampling import generate
    from gdd.weights import checkpoint

    denoiser, metadata = checkpoint.load_with_metadata(args.ckpt)
    trained = metadata.get("train", {})
    default = "one-step" if denoiser.epsilon else "heun:18"
    default = trained[
        "sampler"] if "sampler" in trained and trained["objective"] != "edm" else default
    if args.n < 1 or args.zoom < 1:
        raise ValueError(f"n and zoom must be at least 1; got {args.n} and {args.zoom}")
    seeds = range(args.first_seed, args.first_seed + args.n)
    if args.label is not None and not 0 <= args.label < denoiser.label_dim:
        raise ValueError(
            f"label must be a class of the network, which has {denoiser.label_dim or 'none'}; got {args.label}"
        )
    labels = None if args.label is None else torch.full((args.n, ), args.label)
    batches = generate(denoiser, seeds, sampler=args.sampler or default, labels=labels)
    images = torch.cat([to_uint8(batch) for batch in batches])
    checkpoint.write_atomically(args.out, grid_png(images, zoom=args.zoom))
    print(
        f"{args.out}: {len(images)} images, seeds {seeds.start} to {seeds.stop - 1}, {args.sampler or default}"
    )


def describe(path: Path) -> None:
    from gdd.freezing import POLICIES, freeze
    from gdd.weights import checkpoint

    denoiser, metadata = checkpoint.load_with_metadata(path)
    kind = "one-step generator family" if denoiser.epsilon else "EDM denoiser"
    origin = f", {metadata['class']} of NVIDIA's format" if "class" in metadata else ""
    print(
        f"{path}: {kind}, epsilon {denoiser.epsilon:g}, weights {metadata.get('weights', 'unknown')}{origin}"
    )
    print(f"network: {denoiser.config.get('model_type', 'DhariwalUNet')} {denoiser.config}")
    print(
        f"{denoiser.resolution}x{denoiser.resolution} pixels, {denoiser.channels} channels, {denoiser.label_dim} labels"
    )
    print(f"{denoiser.num_parameters():,} parameters, file digest {digest(path)}")
    for policy in POLICIES:
        print(f"  {policy}: {freeze(denoiser, policy)}")
    if "source" in metadata:
        print(f"made from {metadata['source']['file']} with digest {metadata['source']['digest']}")
    if "train" in metadata:
        print(f"trained on {metadata['images_seen']:,} images: {metadata['train']}")


def convert(args: Convert) -> None:
    from gdd.weights import checkpoint

    denoiser = checkpoint.convert(args.source, args.target)
    print(
        f"{args.target}: {denoiser.num_parameters():,} parameters, file digest {digest(args.target)}"
    )


def download(args: Download) -> None:
    from gdd.profiles import TEACHERS
    from gdd.weights import checkpoint
    from gdd.weights.download import download as fetch

    path, found = fetch(args.name, folder=args.folder, sha256=args.sha256, source=args.source)
    print(f"{path}: SHA-256 {found}")
    if args.name in TEACHERS and (
            n := checkpoint.load(path).num_parameters()) != TEACHERS[args.name].parameters:
        raise ValueError(
            f"{path} has {n:,} parameters, {args.name} has {TEACHERS[args.name].parameters:,}; it is another file"
        )


def prepare(args: Prepare) -> None:
    from gdd.data.prepare import prepare as write

    start = time.monotonic()
    count = write(**dataclasses.asdict(args))
    print(f"{args.target}: {count:,} images, {count / (time.monotonic() - start):,.0f} images/s")


def check(args: Check) -> None:
    from gdd.data.prepare import check as look

    start = time.monotonic()
    report = look(args.source)
    print(*report.lines(), sep="\n")
    print(f"{report.count / (time.monotonic() - start):,.0f} images/s")
    if report.problems:
        print(*report.problems[:20], sep="\n")
        raise ValueError(f"{len(report.problems):,} problems, first: {report.problems[0]}")


if __name__ == "__main__":
    run_cli(Train | Sample | Describe | Convert | Download | Data, main)
