"""python -m gdd train | sample | describe"""

import dataclasses
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gdd.cli import run_cli
from gdd.config import TrainConfig
from gdd.presets import preset


@dataclass
class Train:
    """Train in a run folder, or go on with what is there: the desk network on 8x8 grey images, by default on digits."""

    run: Path
    """Run folder: config.json, log.csv, state.safetensors while it runs, final.safetensors when it is done."""
    preset: str = "desk-gdd-i"
    """desk-teacher, desk-gdd, desk-gdd-i, desk-cd, desk-cd-i, desk-gdd+cd, desk-k-step-4 ..., or smoke- and the same."""
    set: Annotated[list[str], tyro.conf.arg(aliases=["-s"])] = field(default_factory=list)
    """Changes to the preset, name=value, such as lr=3e-4 freeze=none total_images=20000 data=PATH."""
    teacher: Path | None = None
    """Checkpoint to start from; default: the shipped digits teacher."""
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
    """Checkpoint of this project, for example gdd/zoo/gdd-i.safetensors."""
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
    """Print what a checkpoint is."""

    ckpt: Path
    """Checkpoint of this project."""


def main(args: Train | Sample | Describe) -> None:
    if isinstance(args, Train):
        train(args)
    elif isinstance(args, Sample):
        sample(args)
    else:
        describe(args)


def train(args: Train) -> None:
    config = _changed(preset(args.preset), args.set)

    import torch
    from lightning_fabric import Fabric

    from gdd import checkpoint, zoo
    from gdd.backbones import load_digits_backbone
    from gdd.data import open_images
    from gdd.denoiser import Denoiser
    from gdd.freezing import freeze
    from gdd.presets import DESK_NETWORK
    from gdd.run import run

    fabric = Fabric(accelerator=args.accelerator, devices=args.devices, precision=args.precision)
    fabric.launch()
    backbones = []
    if config.objective == "edm":
        torch.manual_seed(config.seed)
        start = Denoiser.from_config(DESK_NETWORK)
    else:
        start = checkpoint.load(args.teacher or zoo.path("teacher"))
        backbones = [load_digits_backbone(zoo.path("digits-backbone"))]
    print(f"freeze={config.freeze}: {freeze(start, config.freeze)}")
    print(run(args.run, config, open_images(config.data), start, backbones, ticks=args.ticks, fabric=fabric))


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
    default = "heun:18" if trained.get("objective", "edm") == "edm" else trained["sampler"]
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


def describe(args: Describe) -> None:
    from gdd import checkpoint
    from gdd.freezing import POLICIES, freeze

    denoiser, metadata = checkpoint.load_with_metadata(args.ckpt)
    kind = "one-step generator family" if denoiser.epsilon else "EDM denoiser"
    print(f"{args.ckpt}: {kind}, epsilon {denoiser.epsilon:g}, weights {metadata.get('weights', 'unknown')}")
    print(f"network: {denoiser.config}")
    print(f"{denoiser.num_parameters():,} parameters, {denoiser.label_dim} labels, file digest {checkpoint.digest(args.ckpt)}")
    for policy in POLICIES:
        print(f"  {policy}: {freeze(denoiser, policy)}")
    if "train" in metadata:
        print(f"trained on {metadata['images_seen']:,} images: {metadata['train']}")


if __name__ == "__main__":
    run_cli(Train | Sample | Describe, main)
