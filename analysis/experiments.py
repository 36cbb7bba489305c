"""A profile's runs by name: use what is trained, train what is missing, measure what they make.

Each run trains in one process with a set number of threads, so the same machine gives the same bits;
independent runs share the cores. `python -m analysis.figures` is the command.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analysis import features, fid
from analysis.fid.sources import Source, Statistics, of_checkpoint, of_denoiser, open_source
from analysis.fid.summaries import Summaries
from gdd.config import TrainConfig
from gdd.data.images import open_images
from gdd.denoiser import Denoiser
from gdd.files import digest as file_digest
from gdd.files import write_atomically
from gdd.freezing import freeze
from gdd.profiles import Profile, profile, profiles
from gdd.sampling import sampler_of
from gdd.training.classifier import train_classifier
from gdd.training.run import run as train_run
from gdd.training.start import digest, finished, load_start, new_backbone, run_folder, shipped
from gdd.training.trainer import TrainState
from gdd.weights import checkpoint

TEACHER_THREADS = 2  # every other run waits for the teacher; its bits depend on their number
KINDS = ("abs", "rel", "rel, disjoint seeds")


@dataclass(frozen=True)
class Run:
    """A trained run: its EMA network, where it lies, its config and its log (one row per tick)."""

    name: str
    path: Path
    denoiser: Denoiser
    config: TrainConfig
    log: pd.DataFrame


def train_missing(names: Sequence[str], profile_name: str, *, retrain: bool = False) -> None:
    """Train every run of `names`, and what they need, that has no file of today's digest; `retrain`
    trains all from nothing.

    Classifiers and teachers come first; then runs share the cores, the longest first, one thread
    each.
    """
    chosen = profile(profile_name)
    configs = {name: chosen.config(name) for name in names}
    teachers = {c.teacher for c in configs.values()} & set(chosen.runs)
    needed = [*chosen.classifiers, *sorted(teachers), *(n for n in names if n not in teachers)]
    if retrain:
        for name in needed:
            shutil.rmtree(run_folder(chosen, name), ignore_errors=True)
    missing = [name for name in needed if retrain or finished(chosen, name) is None]
    if not missing:
        return
    classifiers = [name for name in missing if name in chosen.classifiers]
    runs = {name: chosen.config(name) for name in missing if name not in classifiers}
    first = [name for name, config in runs.items() if config.objective == "edm"]
    rest = sorted(runs.keys() - first, key=lambda name: (-_cost(runs[name]), name))
    start = time.monotonic()
    workers = min(os.cpu_count() or 1, max(len(rest), len(classifiers), 1))
    with ProcessPoolExecutor(workers, get_context("spawn"), _die_quietly) as pool:
        try:
            for stage in (classifiers, *([name] for name in first), rest):
                tasks = [pool.submit(_train, name, profile_name) for name in stage]
                for future in as_completed(tasks):
                    name, summary = future.result()
                    seconds = time.monotonic() - start
                    print(f"[{seconds:6.0f} s] trained {name}: {summary}", flush=True)
        except BaseException:
            # else a failure waits for every run behind it
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_quietly() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was stopped, once


def _cost(config: TrainConfig) -> float:
    """Relative training time, to start long runs first."""
    kind, _, value = config.sampler.partition(":")
    calls = int(value) if kind == "k-step" else 2 if kind == "two-step" else 1
    return config.total_images * (calls + config.distillation + 2 * config.adversarial)


def _train(name: str, profile_name: str) -> tuple[str, str]:
    """Train one run or classifier to its folder, in a process of its own; returns its name and a
    line about it."""
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
    label, evaluate = evaluator(chosen, extractor(chosen.extractors[0], chosen), chosen.n, config)
    train_run(run_folder(chosen, name), config, open_images(config.data), start.network,
              start.backbones, distance=start.distance, dtype=torch.float16, evaluate=evaluate,
              bar_position=(current_process()._identity or (1, ))[0] - 1,
              provenance={"name": name, "digest": digest(chosen, name)})  # yapf: disable
    seconds = time.monotonic() - begin
    trained = obtain(name, profile_name)
    last, frozen = trained.log.iloc[-1], freeze(trained.denoiser, config.freeze)
    images = f"{int(last['images']):,} images in {seconds:.0f} s"
    return name, f"{images}, {frozen}, {label} {last[label]:.2f}"


def evaluator(chosen: Profile, judge: features.Extractor, n: int, config: TrainConfig,
              reference: str = "") -> tuple[str, Callable[[TrainState], dict[str, float]]]:
    """The name of the distance to the data, and the function of a training state that measures it,
    of the EMA weights; a teacher's 35 calls per image are spent on its last tick only."""
    summaries = Summaries(judge)
    real = open_source(reference or chosen.reference or config.data)
    label = fid.label(judge.name, n)

    def evaluate(state: TrainState) -> dict[str, float]:
        if config.objective == "edm" and state.images_seen < config.total_images:
            return {}
        source = of_denoiser(state.ema, sampler_of(config), f"{state.images_seen:,} images")
        stats = summaries.of(source(range(n))).stats
        return {label: fid.frechet_distance(stats, stats_of(real, summaries))}

    return label, evaluate


def stats_of(source: Source | Statistics, summaries: Summaries) -> fid.FeatureStats:
    """Moments of a source's features, or those of finished statistics."""
    return source.stats if isinstance(source, Statistics) else summaries.of(source).stats


def _train_classifier(name: str, chosen: Profile) -> str:
    settings, dataset = chosen.classifiers[name], open_images(chosen.data)
    if dataset.labels is None:
        raise ValueError(f"data {chosen.data} has no labels for classifier {name} to learn")
    torch.manual_seed(settings.seed)
    network = _new_classifier(name, chosen)
    accuracy = train_classifier(network, dataset.images[:], dataset.labels, epochs=settings.epochs,
                                lr=settings.lr, seed=settings.seed)
    half = {key: x.half() if x.is_floating_point() else x for key, x in network.state_dict().items()}
    metadata = {"kind": f"a {name} classifier", "digest": digest(chosen, name),
                "config": asdict(settings), "accuracy": accuracy}  # yapf: disable
    checkpoint.write_tensors(run_folder(chosen, name) / "final.safetensors", half, metadata)
    return f"held-out accuracy {accuracy:.1%}"


def _new_classifier(name: str, chosen: Profile) -> Any:
    if chosen.classifiers[name].role == "backbone":
        return new_backbone(chosen, name)
    return features.ClassifierFeatures(*chosen.shape[:2], chosen.classes)


@cache
def extractor(name: str, chosen: Profile | None = None, device: str = "cpu",
              precision: str = "fp32") -> features.Extractor:
    """The feature extractor of that name: a classifier that a profile trains or ships (`chosen`, or
    the first that has it), or one of `features.NAMES`. Raises ValueError or FileNotFoundError."""
    known = [chosen] if chosen else list(profiles().values())
    owner = next((p for p in known if name in p.classifiers), None)
    if owner is None:
        return features.extractor(name, device=device, precision=precision)
    if owner.classifiers[name].role != "features":
        raise ValueError(f"features must not be a discriminator's backbone; got {name!r}")
    path = finished(owner, name) or (None if chosen else shipped(owner, name))
    if path is None:
        train_missing([], owner.name)
        path = finished(owner, name)
    assert path is not None
    network = _new_classifier(name, owner)
    network.load_state_dict(checkpoint.read_tensors(path)[0])  # copies into its own dtypes
    return features.classifier(network, name, f"{name} {file_digest(path)}", device, precision)


def default_extractors(shape: Sequence[int]) -> tuple[str, ...]:
    """What judges images (C,H,W): that of a profile made for them, else Inception and CLIP."""
    own = (p.extractors for p in profiles().values() if p.classifiers and p.shape == tuple(shape))
    return next(own, ("inception", "clip"))


def obtain(name: str, profile_name: str) -> Run:
    """The finished run, trained now if it must be. Raises ValueError on an unknown name."""
    chosen = profile(profile_name)
    config = chosen.config(name)
    if finished(chosen, name) is None:
        train_missing([name], profile_name)
    path = finished(chosen, name)
    assert path is not None
    denoiser, metadata = checkpoint.load_with_metadata(path)
    return Run(name, path, denoiser, config, pd.DataFrame(metadata["log"]))


@cache
def summaries_of(profile_name: str) -> Summaries:
    """Where the figures' feature statistics are kept while a process lives."""
    chosen = profile(profile_name)
    return Summaries(extractor(chosen.extractors[0], chosen))


def metric(profile_name: str) -> str:
    """The name of every distance of a profile, such as `FD1797[digits]`."""
    chosen = profile(profile_name)
    return fid.label(summaries_of(profile_name).extractor.name, chosen.n)


@cache
def generated(name: str, sampler: str, profile_name: str, index: int) -> fid.FeatureStats:
    """Feature statistics of a run's images from the `index`-th range of n seeds."""
    n = profile(profile_name).n
    source = of_checkpoint(obtain(name, profile_name).path, sampler)(range(index * n, (index + 1) * n))
    return summaries_of(profile_name).of(source).stats


@cache
def real_stats(profile_name: str) -> fid.FeatureStats:
    chosen = profile(profile_name)
    return stats_of(open_source(chosen.reference or chosen.data), summaries_of(profile_name))


def distances(points: Sequence[tuple[str, str]], profile_name: str, *, student: str = "",
              seed_ranges: int = 0) -> pd.DataFrame:
    """Distances of generators, (run, sampler) each; one row per point, kind and range of n seeds.

    Kinds: `abs`, to the data; with a `student`, also `rel`, to its images from the same seeds, and
    from other seeds, since shared seeds remove noise that abs keeps. The student's own distance to
    itself over disjoint seeds is the floor of sampling noise; over shared seeds it is 0 and left out.
    """
    chosen, rows = profile(profile_name), []
    ranges, n = seed_ranges or chosen.seed_ranges, chosen.n
    own = sampler_of(chosen.config(student)) if student else ""
    for index in range(ranges):
        for name, sampler in points:
            stats = generated(name, sampler, profile_name, index)
            others = {"abs": real_stats(profile_name)}
            if student:
                other = (index + 1) % max(ranges, 2)
                others[KINDS[1]] = generated(student, own, profile_name, index)
                others[KINDS[2]] = generated(student, own, profile_name, other)
            if (name, sampler) == (student, own):
                del others[KINDS[1]]
            run, config = name.partition("@")[0], chosen.config(name)
            for kind, reference in others.items():
                rows.append((run, config.seed, sampler, kind, student if "rel" in kind else "data",
                             fid.frechet_distance(stats, reference), metric(profile_name), n,
                             f"{index * n}-{(index + 1) * n - 1}", digest(chosen, name)))
    columns = ["run", "training_seed", "sampler", "kind", "against", "distance", "metric", "n",
               "seeds", "digest"]  # yapf: disable
    return pd.DataFrame(rows, columns=columns)


def floor(profile_name: str, *, seed_ranges: int = 0) -> pd.DataFrame:
    """What sampling noise alone amounts to at n: two disjoint draws of n from the data, or where it
    has fewer than 2n images, from the first teacher by its own sampler."""
    chosen = profile(profile_name)
    ranges = seed_ranges or chosen.seed_ranges
    real, summaries = open_source(chosen.data), summaries_of(profile_name)
    if isinstance(real, Source) and real.n >= 2 * chosen.n:
        pairs = [(summaries.of(a).stats, summaries.of(b).stats)
                 for a, b in (real.disjoint(chosen.n, seed) for seed in range(ranges))]
        name = "data"
    else:
        name = next(run for run, config in chosen.runs.items() if config.objective == "edm")
        stats = [generated(name, sampler_of(chosen.config(name)), profile_name, index)
                 for index in range(max(ranges, 2))]
        pairs = [(stats[index], stats[(index + 1) % len(stats)]) for index in range(len(stats))]
    values = [fid.frechet_distance(a, b) for a, b in pairs]
    return pd.DataFrame({"of": name, "distance": values, "metric": metric(profile_name), "n": chosen.n})


def spearman(table: pd.DataFrame, x: str = "x") -> pd.DataFrame:
    """Rank correlation of the mean distance with `x` for each kind, over the points that all kinds
    have, with their number; none below 5 points."""
    means = table.groupby(["kind", x])["distance"].mean().unstack("kind").dropna().reset_index()
    kinds = [kind for kind in KINDS if kind in means]
    enough = len(means) >= 5
    rho = [means[x].corr(means[kind], method="spearman") if enough else float("nan")
           for kind in kinds]  # yapf: disable
    return pd.DataFrame({"kind": kinds, "spearman": rho, "points": len(means)})


def class_agreement(name: str, profile_name: str, *, index: int = 0) -> float:
    """Share of a class-conditional run's images, from the `index`-th range of n seeds, that the
    judge, which no training sees, takes for the class asked for."""
    run, chosen = obtain(name, profile_name), profile(profile_name)
    seeds = range(index * chosen.n, (index + 1) * chosen.n)
    labels = torch.arange(chosen.n) % run.denoiser.label_dim
    source = of_denoiser(run.denoiser, sampler_of(run.config), name, labels=labels)(seeds)
    judge, hits = summaries_of(profile_name).extractor, 0
    for start in range(0, chosen.n, 256):
        part = range(start, min(start + 256, chosen.n))
        for images in source.batches(part, 256):
            classes = judge.classify(images)
            assert classes is not None, f"{judge.name} does not classify"
            hits += int((classes.argmax(dim=1) == labels[part.start:part.stop]).sum())
    return hits / chosen.n


def seeds_table(profile_name: str) -> pd.DataFrame:
    """Train every run with the profile's further training seeds, and measure them: what cannot be
    measured live from shipped weights."""
    chosen = profile(profile_name)
    names = chosen.further_seeds()
    train_missing(names, profile_name)
    points = [(name, sampler_of(chosen.config(name))) for name in names]
    return distances(points, profile_name, student=student_of(chosen))


def student_of(chosen: Profile) -> str:
    """The one-step generator that rel-distances are taken to: of as many images as the multi-step
    ones, if there is such a run."""
    return "k-step-1" if "k-step-1" in chosen.runs else "gdd"


def ship(profile_name: str) -> None:
    """Copy the trained runs to the profile's folder of shipped weights; a generator with frozen
    weights keeps only what differs from its teacher's file."""
    chosen = profile(profile_name)
    if chosen.shipped is None:
        raise ValueError(f"profile {profile_name} ships no weights")
    for name in (*chosen.classifiers, *chosen.runs):
        source, target = finished(chosen, name), chosen.shipped / f"{name}.safetensors"
        if source is None:
            raise ValueError(f"{name} is not trained; `make figures RETRAIN=1` trains all")
        if source == target:
            continue
        if name in chosen.classifiers or chosen.config(name).freeze == "none":
            write_atomically(target, source.read_bytes())
            continue
        denoiser, metadata = checkpoint.load_with_metadata(source)
        kept = {key: value for key, value in metadata.items() if key not in ("network", "epsilon")}
        base = chosen.shipped / f"{chosen.config(name).teacher}.safetensors"
        checkpoint.save_denoiser(target, denoiser, base=base, dtype=torch.float16, **kept)
