"""The command `python -m gdd train`: a preset, whose config's fields are flags, and a folder."""

import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, Suppress

from gdd.cli import called, on_interrupt
from gdd.config import Hardware, Keep, TrainConfig
from gdd.profiles import Profile, preset, profiles
from gdd.profiles.paper import TEACHERS
from gdd.weights import zoo


class _Unchecked(TrainConfig):
    """Checked once all flags are read, so that what is wrong is one line like any other error."""
    def __post_init__(self):
        pass


@dataclass
class Train:
    """Train in a run folder, or go on with what is there; `train --help` lists the presets."""

    preset: Suppress[str] = ""
    folder: Path | None = None
    """The run's, for all but a dry run: config, environment, log.csv, samples/, tensorboard/,
    state, best and final weights."""
    dry_run: bool = False
    """Print the resolved config, what is frozen, and an estimate of the memory; train nothing, and
    need no file."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=_Unchecked)
    keep: OmitArgPrefixes[Keep] = field(default_factory=lambda: Keep(samples=64, tensorboard=True))
    hardware: OmitArgPrefixes[Hardware] = field(default_factory=Hardware)


def parse(kind: type[Train], arguments: list[str], prog: str) -> Train:
    """The command's arguments; the defaults of its config are those of the preset that is named."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(f"usage: {prog} PROFILE-RUN [OPTIONS]\n\n"
              f"`{prog} desk-gdd-i --help` lists the options, with the values of that preset.\n"
              "gdd is also called d2o, gdd-i d2o-f; mine.py-gdd is of a profile of one's own.\n")
        print(*(f"{p.name:14} {' '.join(p.runs)}" for p in profiles().values()), sep="\n")
        sys.exit(0)
    if not name or name.startswith("-"):
        raise ValueError(f"a preset must be named first, as in {prog} desk-gdd-i; --help lists all")
    profile, run = preset(name)
    default = kind(preset=name, config=_Unchecked(**vars(profile.config(run))))
    args = tyro.cli(kind, args=arguments[1:], default=default, prog=f"{prog} {name}")
    args.config = TrainConfig(**vars(args.config))
    return args


def train(args: Train, *, evaluate: Any = None, best_by: str = "") -> None:
    """Run the command; `evaluate(state)` and `best_by` as `gdd.training.run.run` takes them."""
    profile, name = preset(args.preset)
    config = args.config
    args.keep.validate()
    args.hardware.validate()
    if args.dry_run:
        return _describe(profile, name, args)
    if args.folder is None:
        raise ValueError("folder must be named, as in --folder runs/mine")
    if config.teacher not in ("", "random", *profile.runs, *TEACHERS):
        zoo.locate(config.teacher)
    if config.data != profile.config(name).data:
        from gdd.data.pictures import check_path

        check_path(config.data)

    import torch
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from gdd.data.images import open_images
    from gdd.freezing import freeze
    from gdd.training.run import Stopped, asked_to_stop, run
    from gdd.training.start import any_finished, load_start

    say = rank_zero_only(partial(print, flush=True))
    state = args.folder / "state.safetensors"
    file, _, own = args.preset.partition(".py-")
    find = partial(any_finished, profile, called=f"{file}.py" if own else "")
    start = load_start(profile, config, find, name)
    dataset = open_images(config.data)
    try:
        with on_interrupt(lambda: _left(state)), asked_to_stop() as asked:
            say(f"freeze={config.freeze}: {freeze(start.network, config.freeze)}")
            say(
                run(args.folder, config, dataset, start.network, start.backbones, keep=args.keep,
                    hardware=args.hardware, distance=start.distance, evaluate=evaluate,
                    best_by=best_by, asked=asked))
    except Stopped as stopped:
        say(f"{stopped}; go on with: {shlex.join([*_launcher(), *sys.argv[1:]])}")
    except torch.OutOfMemoryError:
        micro, way_on = smaller_passes(config, args.hardware)
        raise RuntimeError(f"out of memory with {micro} images at once: {way_on}; --dry-run "
                           "estimates what is needed") from None


def smaller_passes(config: TrainConfig, hardware: Hardware) -> tuple[int, str]:
    """How many images a pass has, and what to do if they take more memory than there is."""
    share = config.batch_size // int(os.environ.get("WORLD_SIZE") or _processes(hardware))
    micro = min(hardware.micro_batch_size or share, share)
    # what the discriminator's BatchNorm looks at stays together
    group = (config.d_batch_norm_images or config.batch_size) if config.adversarial else 1
    less = micro // 2 // group * group
    if less:
        return micro, f"give --micro-batch-size {less}, which leaves the gradients as they are"
    if group > 1:
        return micro, f"BatchNorm looks at {group} of them (d_batch_norm_images)"
    return micro, "there are no smaller passes"


def _processes(hardware: Hardware) -> int:
    return max(hardware.devices, 1) * max(hardware.nodes, 1)


def _left(state: Path) -> str:
    """What is true once a run was told to stop twice."""
    if state.exists():
        return f"stopped at once; the same command goes on from the last tick, saved in {state}"
    return "stopped at once, before a state was saved; the same command begins anew"


def _launcher() -> list[str]:
    """What stood before the arguments: the command, or torchrun before its module."""
    words = called()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        module, machines = words[1:] or ["-m", "gdd"], os.environ.get("GROUP_WORLD_SIZE", "1")
        nodes = [f"--nnodes={machines}", "..."] if machines != "1" else []
        return ["torchrun", *nodes, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *module]
    return words


def _describe(profile: Profile, name: str, args: Train) -> None:
    import torch

    from gdd.backbones import Backbone
    from gdd.denoiser import Denoiser
    from gdd.freezing import freeze
    from gdd.perceptual import Lpips
    from gdd.training.memory import estimate
    from gdd.training.start import check_backbones, new_backbone, new_timm_backbone

    config, network = args.config, profile.network(name)
    check_backbones(profile, config)
    print(json.dumps(dataclasses.asdict(config), indent=1))
    with torch.device("meta"):
        denoiser = Denoiser.from_config(network)
    report = freeze(denoiser, config.freeze)
    print(f"network: {dict(network)}\nfreeze={config.freeze}: {report}")
    for block, (held, total) in report.blocks.items():
        print(f"  {block}: {held:,} of {total:,} frozen")
    backbones: list[Backbone] = [
        new_backbone(profile, name) if name in profile.classifiers else new_timm_backbone(
            name, config) for name in config.backbones]
    lpips = Lpips() if config.distillation and config.distance == "lpips" else None
    processes = _processes(args.hardware)
    share = config.batch_size // processes
    micro = min(args.hardware.micro_batch_size or share, share)
    print(f"memory of one of {processes} processes, {micro} images at once:")
    needs = estimate(dataclasses.replace(config, batch_size=share), network, backbones, lpips,
                     micro_batch_size=micro)
    for what, size in {**needs, "in all, beside PyTorch itself": sum(needs.values())}.items():
        print(f"  {what}: {size / 1e9:.2f} GB" if size >= 1e9 else f"  {what}: {size / 1e6:.1f} MB")
