"""A profile's runs by name: use what is trained, train what is missing, measure what they make.

Each run trains in one process with a set number of threads, so the same machine gives the same
bits; independent runs share the cores. `python -m analysis.figures` is the command.
"""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import current_process, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from analysis import tables
from analysis.extractors import evaluator, extractor, new_classifier
from analysis.fid.arrays import array_headers, read_array
from gdd.cli import end_with_parent
from gdd.config import ONE_CPU, Keep, TrainConfig
from gdd.data.images import Images, open_images
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.profiles import Profile, profile
from gdd.reading import Budget
from gdd.samplers import sampler_of
from gdd.sampling import available_device
from gdd.training.classifier import train_classifier
from gdd.training.start import digest, finished, load_start, run_folder, snapshot_name
from gdd.weights import checkpoint, download

REAL = "real.npz"  # among a profile's shipped files: real images
T = TypeVar("T")
DEVICE = "GDD_DEVICE"  # what runs are trained and measured on, in every process; else the CPU
TEACHER_THREADS = 2  # every other run waits for the teacher; its bits depend on their number


@dataclass(frozen=True)
class Run:
    """A trained run: its EMA network, where it lies, its config and its log (one row per tick)."""

    name: str
    path: Path
    denoiser: Denoiser
    config: TrainConfig
    log: pd.DataFrame


def device() -> str:
    """cpu, cuda or mps. Raises ValueError if the one asked for is not there."""
    return str(available_device(os.environ.get(DEVICE) or "cpu"))


def train_missing(names: Sequence[str], profile_name: str, *, anew: Collection[str] = ()) -> None:
    """Train every run of `names`, and what they need, that has no file of today's digest; and
    those of `anew` from nothing, whatever there is.

    Classifiers and teachers come first; then runs share the cores, the longest first, one thread
    each.
    """
    chosen = profile(profile_name)
    configs = {name: chosen.config(name) for name in names}
    teachers = {c.teacher for c in configs.values()} & chosen.runs.keys()
    needed = [*chosen.classifiers, *sorted(teachers), *(n for n in names if n not in teachers)]
    for name in set(needed).intersection(anew):
        shutil.rmtree(run_folder(chosen, name), ignore_errors=True)
    missing = [name for name in needed if name in anew or finished(chosen, name) is None]
    if not missing:
        return
    classifiers = [name for name in missing if name in chosen.classifiers]
    runs = {name: chosen.config(name) for name in missing if name not in classifiers}
    first = [name for name, config in runs.items() if config.objective == "edm"]
    rest = sorted(runs.keys() - first, key=lambda name: (-_cost(runs[name]), name))
    start = time.monotonic()
    stages = (classifiers, *([name] for name in first), rest)
    for name, summary in side_by_side(_train, stages, profile_name):
        print(f"[{time.monotonic() - start:6.0f} s] trained {name}: {summary}", flush=True)


def side_by_side(function: Callable[[str, str], T], stages: Sequence[Sequence[str]],
                 profile_name: str) -> Iterator[T]:
    """`function(name, profile_name)` of all names, each in a process, as many at once as there are
    cores; a stage waits for the one before it."""
    for stage in stages:
        yield from as_ready(function, [(name, profile_name) for name in stage], preload=[
            "analysis.surveys", "gdd.training.run"])


def as_ready(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], workers: int = 0, *,
             preload: Sequence[str]) -> Iterator[T]:
    """`function(*each)`, each in a process, at most `workers` or one a core at once; results as
    they are ready. `preload` are modules that take long to import."""
    if not arguments:
        return
    most = min(workers or os.cpu_count() or 1, len(arguments))
    context = _context(preload)
    with ProcessPoolExecutor(most, context, _begin, initargs=(dict(os.environ), )) as pool:
        try:
            tasks = [pool.submit(function, *each) for each in arguments]
            for future in as_completed(tasks):
                yield future.result()
        except BaseException:
            # else a failure waits for every run behind it
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _context(preload: Sequence[str]) -> BaseContext:
    """How processes start: on Linux's CPUs as forks of one that has imported the first `preload`
    and computed nothing, which takes seconds less for each; elsewhere, and where an import may have
    touched a GPU, which no fork survives, from nothing."""
    if sys.platform != "linux" or device() != "cpu":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _begin(environment: dict[str, str]) -> None:
    os.environ.clear()  # it is that of when the first process was started
    os.environ.update(environment)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was stopped, once


def _cost(config: TrainConfig) -> float:
    """Relative training time, to start long runs first."""
    kind, _, value = config.sampler.partition(":")
    calls = int(value) if kind == "k-step" else 2 if kind == "two-step" else 1
    return config.total_images * (calls + config.distillation + 2 * config.adversarial)


def _train(name: str, profile_name: str) -> tuple[str, str]:
    """Train one run or classifier to its folder, in a process of its own; returns its name and a
    line about it. Asked to stop, it saves a run's state first."""
    from gdd.training.run import Stopped, asked_to_stop  # takes seconds to import
    from gdd.training.run import run as train_run

    chosen = profile(profile_name)
    if name in chosen.classifiers:
        torch.set_num_threads(1)
        return name, _train_classifier(name, chosen)
    config = chosen.config(name)
    torch.set_num_threads(TEACHER_THREADS if config.objective == "edm" else 1)

    def find(needed: str) -> Path:
        path = finished(chosen, needed)
        assert path is not None, f"{needed} is not trained"
        return path

    start = load_start(chosen, config, find, name)
    begin = time.monotonic()
    judge = extractor(chosen.extractors[0], chosen, device())
    label, evaluate = evaluator(chosen, judge, chosen.n, config)
    hardware = replace(ONE_CPU, accelerator=device().partition(":")[0])  # type: ignore[arg-type]
    keep = Keep(ticks=max(8, config.total_images // 100_000), snapshots=chosen.snapshots)
    try:
        with asked_to_stop() as asked:
            train_run(run_folder(chosen, name), config, open_images(config.data), start.network,
                      start.backbones, distance=start.distance, dtype=torch.float16,
                      evaluate=evaluate, hardware=hardware, keep=keep, asked=asked,
                      bar_position=(current_process()._identity or (1, ))[0] - 1,
                      provenance={"name": name, "digest": digest(chosen, name)})  # yapf: disable
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None  # in the parent, too
    seconds = time.monotonic() - begin
    trained = obtain(name, profile_name)
    last, frozen = trained.log.iloc[-1], freeze(trained.denoiser, config.freeze)
    images = f"{int(last['images']):,} images in {seconds:.0f} s"
    return name, f"{images}, {frozen}, {label} {last[label]:.2f}"


def _train_classifier(name: str, chosen: Profile) -> str:
    settings, dataset = chosen.classifiers[name], open_images(chosen.data)
    if dataset.labels is None:
        raise ValueError(f"data {chosen.data} has no labels for classifier {name} to learn")
    torch.manual_seed(settings.seed)
    network = new_classifier(name, chosen)
    accuracy = train_classifier(network, dataset.images[:], dataset.labels, epochs=settings.epochs,
                                lr=settings.lr, seed=settings.seed, holdout=chosen.holdout,
                                mirror=chosen.mirror)
    half = {
        key: x.half() if x.is_floating_point() else x for key, x in network.state_dict().items()}
    metadata = {"kind": f"a {name} classifier", "digest": digest(chosen, name),
                "config": asdict(settings), "accuracy": accuracy}  # yapf: disable
    checkpoint.write_tensors(run_folder(chosen, name) / "final.safetensors", half, metadata)
    return f"held-out accuracy {accuracy:.1%}"


def at_hand(profile_name: str) -> list[str]:
    """The runs that figures can show: all, where they measure live; else those that are trained,
    and measured over all ranges of seeds."""
    chosen = profile(profile_name)
    if chosen.live:
        return list(chosen.runs)
    rows = tables.read("seeds", profile_name)
    points = zip(rows["run"], rows["training_seed"], rows["sampler"], rows["seeds"], strict=True)
    ranges = Counter(point[:3] for point in set(points))
    own = {name: (name, config.seed, sampler_of(config)) for name, config in chosen.runs.items()}
    return [name for name, point in own.items()
            if ranges[point] >= chosen.seed_ranges and finished(chosen, name)]  # yapf: disable


def obtain(name: str, profile_name: str) -> Run:
    """The finished run, trained now if it must be. Raises ValueError on an unknown name."""
    path = _path(name, profile_name)
    denoiser, metadata = checkpoint.load_with_metadata(path)
    config = profile(profile_name).config(name)
    return Run(name, path, denoiser, config, pd.DataFrame(metadata.get("log", [])))


def _path(name: str, profile_name: str) -> Path:
    chosen = profile(profile_name)
    chosen.config(name)  # an unknown name is refused
    if name in chosen.public:
        return download.require_file(name)
    if finished(chosen, name) is None:
        train_missing([name], profile_name)
    path = finished(chosen, name)
    assert path is not None
    return path


def obtain_at(name: str, profile_name: str, images: int = 0) -> Path:
    """The file of a finished run, or of its average after so many training images. Raises
    ValueError if that was not kept."""
    chosen = profile(profile_name)
    if not images or images == chosen.config(name).total_images:
        return _path(name, profile_name)
    path = run_folder(chosen, name) / snapshot_name(images)
    if not path.is_file():
        raise ValueError(f"{path} is not there: it is kept while {name} is trained")
    return path


def real_sample(profile_name: str, n: int) -> Images:
    """n real images with their labels, drawn once for all: those that come with the package, or
    else from the data. Raises ValueError if there are fewer."""
    chosen = profile(profile_name)
    path = chosen.shipped / REAL if chosen.shipped else None
    if not path or not path.is_file():
        return drawn_sample(chosen, n)
    wanted = {"images": (np.uint8, chosen.shape), "labels": (np.int64, ())}
    headers = array_headers(path)
    for name, (dtype, rest) in wanted.items():
        if name not in headers or headers[name].dtype != dtype or headers[name].shape[1:] != rest:
            raise ValueError(f"{path} has no {name} of this profile; delete it, or ship anew")
    images, labels = (torch.from_numpy(read_array(path, name, Budget(bytes=1 << 28)))
                      for name in wanted)
    _check_count(len(images), n, path)
    return Images(chosen.title, images[:n], labels[:n])


def drawn_sample(chosen: Profile, n: int) -> Images:
    """n images of a profile's data with their labels, always the same. Raises ValueError if there
    are fewer."""
    data = open_images(chosen.data, in_memory=0)
    _check_count(len(data), n, chosen.data)
    picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:n]
    labels = None if data.labels is None else data.labels[picked]
    return Images(chosen.title, data.images[picked], labels)


def _check_count(found: int, n: int, place: Path | str) -> None:
    if found < n:
        raise ValueError(f"{place} has {found} real images; {n} are asked for")
