"""The command `python -m gdd train`, and what it needs to start: preset, changes to it, teacher, backbones, data."""

import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction

from gdd.config import Hardware, Keep, TrainConfig
from gdd.presets import LPIPS, TEACHERS, Preset, preset


@dataclass
class Train:
    """Train in a run folder, or go on with what is there: a desk network on digits, or one of the paper's profiles."""

    folder: Path | None = None
    """The run's, for all but a dry run: config, environment, log.csv, samples/, tensorboard/, state, best and final weights."""
    preset: str = "desk-gdd-i"
    """desk-teacher, -gdd, -gdd-i, -cd, -cd-i, -gdd+cd, -k-step-4, -cond-gdd-i ..., or smoke- and the same; -gdd, -gdd-i, -cd,
    -cd-i, -gdd+cd, -pd, -ctm after cifar10, cifar10-cond, afhqv2, ffhq, imagenet64; these and -teacher after cifar10-small."""
    set: Annotated[UseAppendAction[list[str]], tyro.conf.arg(aliases=["-s"])] = field(default_factory=list)
    """A change to the preset, name=value, such as lr=3e-4, freeze=none, precision=bf16, data=PATH; once for each."""
    teacher: Path | None = None
    """Checkpoint or EDM pickle to start from; default: the shipped digits teacher, or the profile's in checkpoints/."""
    dry_run: bool = False
    """Print the resolved config, what is frozen, and an estimate of the memory; train nothing, and need no file."""
    keep: OmitArgPrefixes[Keep] = field(default_factory=lambda: Keep(samples=64, tensorboard=True))
    hardware: OmitArgPrefixes[Hardware] = field(default_factory=Hardware)


def train(args: Train, *, evaluate: Any = None, best_by: str = "") -> None:
    """Run the command; `evaluate(state)` and `best_by` as `gdd.run.run` takes them."""
    chosen = preset(args.preset)
    config = changed(chosen.config, args.set)
    args.keep.check()
    args.hardware.check()
    if args.dry_run:
        return _describe(chosen, config, args)
    if args.folder is None:
        raise ValueError("folder must be named, as in --folder runs/mine")

    import torch
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from gdd.data import open_images
    from gdd.freezing import freeze
    from gdd.run import Stopped, asked_to_stop, run

    say = rank_zero_only(partial(print, flush=True))
    start, backbones, distance = _models(chosen, config, args.teacher)
    dataset = open_images(config.data)
    try:
        with asked_to_stop() as asked:
            say(f"freeze={config.freeze}: {freeze(start, config.freeze)}")
            final = run(args.folder, config, dataset, start, backbones, keep=args.keep, hardware=args.hardware, distance=distance,
                        evaluate=evaluate, best_by=best_by, asked=asked)  # fmt: skip
            say(str(final))
    except Stopped as stopped:
        say(f"{stopped}; go on with: {shlex.join([*_launcher(), *sys.argv[1:]])}")
    except torch.OutOfMemoryError:
        micro = args.hardware.micro_batch_size or config.batch_size
        raise RuntimeError(
            f"out of memory with {micro} images at once: give --micro-batch-size {max(micro // 2, 1)}, which leaves the "
            "gradients as they are; --dry-run estimates what is needed"
        ) from None


def _launcher() -> list[str]:
    """What stood before the arguments: `python -m gdd`, or the module that wraps it, or torchrun before them."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = ["-m", spec.name.removesuffix(".__main__") if spec else "gdd"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *module]
    return ["python", *module]


def _models(chosen: Preset, config: TrainConfig, teacher: Path | None) -> tuple[Any, list[Any], Any]:
    """The network to start from, the discriminator's backbones, and the distance, if it is LPIPS."""
    import torch

    from gdd import checkpoint, zoo
    from gdd.backbones import TimmBackbone, load_digits_backbone
    from gdd.denoiser import Denoiser
    from gdd.download import find
    from gdd.perceptual import Lpips

    if config.objective == "edm":
        torch.manual_seed(config.seed)
        return Denoiser.from_config(chosen.network), [], None
    if teacher is None:
        if not chosen.teacher:
            raise ValueError("teacher must be named: train it first with the preset's profile and -teacher, then --teacher PATH")
        teacher = find(chosen.teacher) if chosen.teacher in TEACHERS else zoo.path(chosen.teacher)
    needed = [find(name) for name in chosen.backbones]
    distance = Lpips(find(LPIPS)) if config.objective not in ("edm", "gdd") and config.distance == "lpips" else None
    start = checkpoint.load(teacher)
    if not chosen.backbones:
        return start, [load_digits_backbone(zoo.path("digits-backbone"))], distance
    return start, [TimmBackbone(name, path) for name, path in zip(chosen.backbones, needed, strict=True)], distance


def _describe(chosen: Preset, config: TrainConfig, args: Train) -> None:
    import torch

    from gdd import zoo
    from gdd.backbones import TimmBackbone, load_digits_backbone
    from gdd.denoiser import Denoiser
    from gdd.freezing import freeze
    from gdd.memory import estimate
    from gdd.perceptual import Lpips

    print(json.dumps(dataclasses.asdict(config), indent=1))
    with torch.device("meta"):
        network = Denoiser.from_config(chosen.network)
    report = freeze(network, config.freeze)
    print(f"network: {chosen.network}\nfreeze={config.freeze}: {report}")
    for block, (held, total) in report.blocks.items():
        print(f"  {block}: {held:,} of {total:,} frozen")
    backbones: list[Any] = []
    if config.objective != "edm":
        shipped = [load_digits_backbone(zoo.path("digits-backbone"))]
        backbones = [TimmBackbone(name) for name in chosen.backbones] if chosen.backbones else shipped
    lpips = Lpips() if config.objective not in ("edm", "gdd") and config.distance == "lpips" else None
    processes = max(args.hardware.devices, 1) * max(args.hardware.nodes, 1)
    micro = min(args.hardware.micro_batch_size or config.batch_size, config.batch_size // processes)
    print(f"memory of one of {processes} processes, {micro} images at once:")
    needs = estimate(config, chosen.network, backbones, lpips, micro_batch_size=micro)
    for what, size in {**needs, "in all, beside PyTorch itself": sum(needs.values())}.items():
        print(f"  {what}: {_size(size)}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def changed(config: TrainConfig, changes: list[str]) -> TrainConfig:
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
