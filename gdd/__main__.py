"""python -m gdd train | sample | describe | convert | download | data"""

import dataclasses
import io
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from gdd.cli import run_cli
from gdd.config import TrainConfig
from gdd.presets import preset


@dataclass
class Train:
    """Train in a run folder, or go on with what is there: a desk network on digits, or one of the paper's profiles."""

    run: Path
    """Run folder: config.json, log.csv, state.safetensors while it runs, final.safetensors when it is done."""
    preset: str = "desk-gdd-i"
    """desk-teacher, desk-gdd, desk-gdd-i, desk-cd, desk-cd-i, desk-gdd+cd, desk-k-step-4 ..., or smoke- and the same;
    -gdd or -gdd-i after cifar10, cifar10-cond, afhqv2, ffhq, imagenet64."""
    set: Annotated[list[str], tyro.conf.arg(aliases=["-s"])] = field(default_factory=list)
    """Changes to the preset, name=value, such as lr=3e-4 freeze=none total_images=20000 data=PATH."""
    teacher: Path | None = None
    """Checkpoint or EDM pickle to start from; default: the shipped digits teacher, or the profile's in checkpoints/."""
    ticks: int = 8
    """Log rows and saved states per run."""
    accelerator: str = "auto"
    """Lightning Fabric's: auto, cpu, cuda, mps."""
    devices: int = 1
    """Processes."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """32-true, or bf16-mixed: bfloat16 where autocast thinks it safe."""


@dataclass
class Sample:
    """Write a grid of samples as one PNG."""

    ckpt: Path
    """Checkpoint of this project, for example gdd/zoo/gdd-i.safetensors, or a network pickle of EDM or GDD."""
    out: Path = Path("samples.png")
    """The picture to write."""
    sampler: str = ""
    """heun:STEPS, euler:STEPS, one-step, k-step:STEPS or two-step:SIGMA; default: what the checkpoint was trained for."""
    n: int = 64
    """Number of images."""
    first_seed: int = 0
    """Image k is a function of the weights and of seed first_seed + k alone."""
    zoom: int = 4
    """Screen pixels per image pixel."""


@dataclass
class Describe:
    """Print what a checkpoint is: kind, network, size, share frozen by each policy, digest."""

    path: Positional[Path]
    """Checkpoint of this project, or a network pickle of EDM, GDD or D2O."""


@dataclass
class Convert:
    """Turn a network pickle of EDM, GDD or D2O into safetensors with its config inside; nothing in the pickle is run."""

    source: Positional[Path]
    """The pickle."""
    target: Positional[Path]
    """The safetensors file to write."""


@dataclass
class Download:
    """Fetch a public teacher, reference statistics, or a backbone's weights; goes on with a partial file."""

    name: Positional[str]
    """For example edm-cifar10-32x32-uncond-ve, cifar10-32x32, vgg16_bn; an unknown name lists them all."""
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
    """Convert grey, palette, CMYK and alpha pictures to RGB; by default grey among RGB and the other kinds are refused."""
    max_images: int | None = None
    """Only the first so many."""


@dataclass
class Check:
    """Decode every picture of a data set; report count, size, classes, duplicates, and what cannot be read."""

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


def train(args: Train) -> None:
    config, profile = preset(args.preset)
    config = _changed(config, args.set)

    import torch
    from lightning_fabric import Fabric

    from gdd import checkpoint, zoo
    from gdd.backbones import Backbone, TimmBackbone, load_digits_backbone
    from gdd.data import open_images
    from gdd.denoiser import Denoiser
    from gdd.download import find
    from gdd.freezing import freeze
    from gdd.presets import DESK_NETWORK
    from gdd.run import Stopped, asked_to_stop, run

    fabric = Fabric(accelerator=args.accelerator, devices=args.devices, precision=args.precision)
    fabric.launch()
    backbones: list[Backbone] = []
    if profile:
        teacher, weights = args.teacher or find(profile.teacher), {name: find(name) for name in profile.backbones}
        start = checkpoint.load(teacher)
        backbones = [TimmBackbone(name, path) for name, path in weights.items()]
    elif config.objective == "edm":
        torch.manual_seed(config.seed)
        start = Denoiser.from_config(DESK_NETWORK)
    else:
        start = checkpoint.load(args.teacher or zoo.path("teacher"))
        backbones = [load_digits_backbone(zoo.path("digits-backbone"))]
    print(f"freeze={config.freeze}: {freeze(start, config.freeze)}")
    dataset = open_images(config.data)
    try:
        with asked_to_stop() as asked:
            print(run(args.run, config, dataset, start, backbones, ticks=args.ticks, fabric=fabric, asked=asked))
    except Stopped as stopped:
        print(f"{stopped}; go on with: {shlex.join(['python', '-m', 'gdd', *sys.argv[1:]])}")


def _changed(config: TrainConfig, changes: list[str]) -> TrainConfig:
    """`config` with name=value changes, each read as the field's own type."""
    kinds = {f.name: type(getattr(config, f.name)) for f in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or name not in kinds:
            raise ValueError(f"--set takes name=value with name one of {', '.join(kinds)}; got {change!r}")
        try:
            values[name] = _read(text, getattr(config, name))
        except ValueError:
            raise ValueError(f"{name} must be {kinds[name].__name__} like {getattr(config, name)!r}; got {text!r}") from None
    return dataclasses.replace(config, **values)


def _read(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        return bool(["false", "true"].index(text.lower()))
    if isinstance(like, tuple):
        return tuple(type(like[0])(part) for part in text.split(","))
    if isinstance(like, int):
        return int(float(text)) if float(text).is_integer() else int(text)
    return type(like)(text)


def sample(args: Sample) -> None:
    import torch
    from PIL import Image

    from gdd import checkpoint
    from gdd.data import to_uint8
    from gdd.sampling import generate

    denoiser, metadata = checkpoint.load_with_metadata(args.ckpt)
    trained = metadata.get("train", {})
    default = "one-step" if denoiser.epsilon else "heun:18"
    default = trained["sampler"] if "sampler" in trained and trained["objective"] != "edm" else default
    if args.n < 1 or args.zoom < 1:
        raise ValueError(f"n and zoom must be at least 1; got {args.n} and {args.zoom}")
    seeds = range(args.first_seed, args.first_seed + args.n)
    images = torch.cat([to_uint8(batch) for batch in generate(denoiser, seeds, sampler=args.sampler or default)])
    images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=128)  # a grey frame keeps neighbours apart
    columns = -(-len(images) // max(int(len(images) ** 0.5), 1))
    rows = -(-len(images) // columns)
    blank = torch.full((rows * columns - len(images), *images.shape[1:]), 128, dtype=torch.uint8)
    c, h, w = images.shape[1:]
    grid = torch.cat([images, blank]).view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    picture = Image.fromarray(grid.squeeze(2).numpy() if c == 1 else grid.numpy())
    content = io.BytesIO()
    picture.resize((picture.width * args.zoom, picture.height * args.zoom), Image.Resampling.NEAREST).save(content, "png")
    checkpoint.write_atomically(args.out, content.getvalue())
    print(f"{args.out}: {len(images)} images, seeds {seeds.start} to {seeds.stop - 1}, {args.sampler or default}")


def describe(path: Path) -> None:
    from gdd import checkpoint
    from gdd.freezing import POLICIES, freeze

    denoiser, metadata = checkpoint.load_with_metadata(path)
    kind = "one-step generator family" if denoiser.epsilon else "EDM denoiser"
    origin = f", {metadata['class']} of NVIDIA's format" if "class" in metadata else ""
    print(f"{path}: {kind}, epsilon {denoiser.epsilon:g}, weights {metadata.get('weights', 'unknown')}{origin}")
    print(f"network: {denoiser.config.get('model_type', 'DhariwalUNet')} {denoiser.config}")
    print(f"{denoiser.resolution}x{denoiser.resolution} pixels, {denoiser.channels} channels, {denoiser.label_dim} labels")
    print(f"{denoiser.num_parameters():,} parameters, file digest {checkpoint.digest(path)}")
    for policy in POLICIES:
        print(f"  {policy}: {freeze(denoiser, policy)}")
    if "source" in metadata:
        print(f"made from {metadata['source']['file']} with digest {metadata['source']['digest']}")
    if "train" in metadata:
        print(f"trained on {metadata['images_seen']:,} images: {metadata['train']}")


def convert(args: Convert) -> None:
    from gdd import checkpoint

    denoiser = checkpoint.convert(args.source, args.target)
    print(f"{args.target}: {denoiser.num_parameters():,} parameters, file digest {checkpoint.digest(args.target)}")


def download(args: Download) -> None:
    from gdd import checkpoint
    from gdd.download import download as fetch
    from gdd.presets import TEACHERS

    path, found = fetch(args.name, folder=args.folder, sha256=args.sha256, source=args.source)
    print(f"{path}: SHA-256 {found}")
    if args.name in TEACHERS and (n := checkpoint.load(path).num_parameters()) != TEACHERS[args.name].parameters:
        raise ValueError(f"{path} has {n:,} parameters, {args.name} has {TEACHERS[args.name].parameters:,}; it is another file")


def prepare(args: Prepare) -> None:
    from gdd.prepare import prepare as write

    start = time.monotonic()
    count = write(**dataclasses.asdict(args))
    print(f"{args.target}: {count:,} images, {count / (time.monotonic() - start):,.0f} images/s")


def check(args: Check) -> None:
    from gdd.prepare import check as look

    start = time.monotonic()
    report = look(args.source)
    print(*report.lines(), sep="\n")
    print(f"{report.count / (time.monotonic() - start):,.0f} images/s")
    if report.problems:
        print(*report.problems[:20], sep="\n")
        raise ValueError(f"{len(report.problems):,} problems, first: {report.problems[0]}")


if __name__ == "__main__":
    run_cli(Train | Sample | Describe | Convert | Download | Data, main)
