"""The paper's runs by name: use what is trained, train what is missing (`python -m analysis.figures` is the command).

A run is addressed by the digest of its config and of what it starts from. It is looked for in `runs/`, then among the weights
shipped in `gdd/zoo/`; both count only if the digest is today's. Each run trains in one process with a set number of threads,
so the same machine gives the same bits; independent runs share the cores.
"""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analysis import features, fid
from gdd import checkpoint, zoo
from gdd.backbones import DigitsBackbone, train_classifier
from gdd.config import TrainConfig
from gdd.data import load_digits, open_images, to_float, to_uint8
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.presets import DESK_NETWORKS, HEADLINE_SEEDS, RECIPE, profile, teacher_of
from gdd.run import run
from gdd.sampling import generate, sampler_of
from gdd.trainer import TrainState

_CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()  # notebooks run elsewhere than make does
RUNS = Path(os.environ.get("GDD_RUNS", ROOT / "runs"))
IMAGES = {"desk": 1797, "smoke": 256}  # per measurement; on the desk as many as there are digits
EXTRACTOR = "digits"
TEACHER_THREADS = 2  # every other run waits for the teacher, so it may use both cores; its bits depend on their number


@dataclass(frozen=True)
class ClassifierConfig:
    """How one of the two digits classifiers is trained; they share neither architecture nor seed."""

    network: str
    epochs: int
    lr: float
    seed: int


CLASSIFIERS = {
    "digits-backbone": ClassifierConfig("DigitsBackbone", epochs=15, lr=2e-3, seed=1),
    "digits-features": ClassifierConfig("DigitsFeatures", epochs=60, lr=4e-3, seed=2),
}


@dataclass(frozen=True)
class Run:
    """A trained run: its EMA network, where it lies, its config and its log (one row per tick)."""

    name: str
    path: Path
    denoiser: Denoiser
    config: TrainConfig
    log: pd.DataFrame


def runs(profile_name: str, *, seeds: bool = False) -> dict[str, TrainConfig]:
    """The profile's runs by name; with `seeds`, GDD and GDD-I again with further training seeds (`gdd@1`)."""
    named = dict(profile(profile_name))
    if seeds:
        named |= {f"{name}@{seed}": replace(named[name], seed=seed) for name in ("gdd", "gdd-i") for seed in HEADLINE_SEEDS[1:]}
    return named


def digest(name: str, profile_name: str) -> str:
    """What addresses a run or classifier: its config and the digests of all it starts from and is measured by."""
    if name in CLASSIFIERS:
        return checkpoint.digest_of(asdict(CLASSIFIERS[name]))
    config = runs(profile_name, seeds=True)[name]
    starts = teacher_of(name), "digits-backbone"
    needs: list = [DESK_NETWORKS[name]] if name in DESK_NETWORKS else [digest(start, profile_name) for start in starts]
    return checkpoint.digest_of(RECIPE, config.identity(), needs, digest("digits-features", profile_name))


def find(name: str, profile_name: str) -> Path | None:
    """A finished file of the run in `runs/`, else in the zoo, whose digest is today's."""
    wanted = digest(name, profile_name)
    for path in (_folder(name, profile_name) / "final.safetensors", zoo.FOLDER / f"{name}.safetensors"):
        if path.is_file() and checkpoint.read_metadata(path).get("digest") == wanted:
            return path
    return None


def _folder(name: str, profile_name: str) -> Path:
    return RUNS / f"{name}-{digest(name, profile_name)}"


def train_missing(names: Sequence[str], profile_name: str, *, retrain: bool = False) -> None:
    """Train every run of `names`, and what they need, that has no file of today's digest; `retrain` trains all from nothing.

    Classifiers and teachers come first; then runs share the cores, the longest first, one thread each.
    """
    needed = list(dict.fromkeys([*CLASSIFIERS, *map(teacher_of, names), *names]))
    if retrain:
        for name in needed:
            shutil.rmtree(_folder(name, profile_name), ignore_errors=True)
    missing = [name for name in needed if retrain or find(name, profile_name) is None]
    if not missing:
        return
    configs = runs(profile_name, seeds=True)
    classifiers = [name for name in missing if name in CLASSIFIERS]
    teachers = [name for name in missing if name in DESK_NETWORKS]
    rest = sorted(set(missing) - {*classifiers, *teachers}, key=lambda name: -_cost(configs[name]))
    start = time.monotonic()
    workers = min(os.cpu_count() or 1, max(len(rest), len(classifiers), 1))
    with ProcessPoolExecutor(workers, get_context("spawn"), _die_quietly) as pool:
        try:
            for stage in (classifiers, *([teacher] for teacher in teachers), rest):
                for future in as_completed([pool.submit(_train, name, profile_name) for name in stage]):
                    name, summary = future.result()
                    print(f"[{time.monotonic() - start:6.0f} s] trained {name}: {summary}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else a failure waits for every run behind it
            raise


def _die_quietly() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was stopped, once


def _cost(config: TrainConfig) -> float:
    """Relative training time, to start long runs first."""
    calls = int(config.sampler.split(":")[1]) if config.sampler.startswith("k-step") else 2 if ":" in config.sampler else 1
    return config.total_images * (calls + ("cd" in config.objective) + 2 * ("gdd" in config.objective))


def _train(name: str, profile_name: str) -> tuple[str, str]:
    """Train one run or classifier to its folder, in a process of its own; returns its name and a line about it."""
    torch.set_num_threads(TEACHER_THREADS if name in DESK_NETWORKS else 1)
    if name in CLASSIFIERS:
        return name, _train_classifier(name, profile_name)
    config = runs(profile_name, seeds=True)[name]
    if name in DESK_NETWORKS:
        torch.manual_seed(config.seed)
        started, backbones = Denoiser.from_config(DESK_NETWORKS[name]), []
    else:
        started = obtain(teacher_of(name), profile_name).denoiser
        backbones = [load_classifier("digits-backbone", profile_name)]
    begin = time.monotonic()
    run(_folder(name, profile_name), config, open_images(config.data), started, backbones, dtype=torch.float16,
        evaluate=lambda state: _evaluate(state, profile_name), bar_position=(current_process()._identity or (1,))[0] - 1,
        provenance={"name": name, "digest": digest(name, profile_name)})  # fmt: skip
    seconds = time.monotonic() - begin
    trained = obtain(name, profile_name)
    last, frozen = trained.log.iloc[-1], freeze(trained.denoiser, config.freeze)
    return name, f"{int(last['images']):,} images in {seconds:.0f} s, {frozen}, {metric(profile_name)} {last['fd']:.2f}"


def _train_classifier(name: str, profile_name: str) -> str:
    settings, digits = CLASSIFIERS[name], load_digits()
    assert digits.labels is not None
    torch.manual_seed(settings.seed)
    network, path = _classifier(name), _folder(name, profile_name) / "final.safetensors"
    accuracy = train_classifier(network, digits.images[:], digits.labels, epochs=settings.epochs, lr=settings.lr,
                                seed=settings.seed)  # fmt: skip
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    metadata = {
        "kind": f"a {name} classifier",
        "digest": digest(name, profile_name),
        "config": asdict(settings),
        "accuracy": accuracy,
    }
    checkpoint.write_tensors(path, tensors, metadata)
    return f"held-out accuracy {accuracy:.1%}"


def _evaluate(state: TrainState, profile_name: str) -> dict[str, float]:
    """A tick's FD of the EMA weights; the teacher's 35 calls per image are spent on its last tick only."""
    config = state.config
    if config.objective == "edm" and state.images_seen < config.total_images:
        return {}
    return {"fd": abs_fd(state.ema, sampler_of(config), profile_name)}


def _classifier(name: str) -> DigitsBackbone | features.DigitsFeatures:
    return {"digits-backbone": DigitsBackbone, "digits-features": features.DigitsFeatures}[name]()


@cache
def load_classifier(name: str, profile_name: str) -> Any:
    """`digits-backbone` (the discriminator's) or `digits-features` (the judge's), frozen, in eval mode."""
    network = _classifier(name)
    path = find(name, profile_name)
    assert path is not None, f"{name} is not trained"
    network.load_state_dict(checkpoint.read_tensors(path)[0])  # copies into the network's own dtypes
    return network.eval().requires_grad_(False)


def obtain(name: str, profile_name: str) -> Run:
    """The finished run, trained now if it must be. Raises ValueError on an unknown name."""
    known = runs(profile_name, seeds=True)
    if name not in known:
        raise ValueError(f"run must be one of {', '.join(known)}; got {name!r}")
    if find(name, profile_name) is None:
        train_missing([name], profile_name)
    path = find(name, profile_name)
    assert path is not None
    denoiser, metadata = checkpoint.load_with_metadata(path)
    return Run(name, path, denoiser, known[name], pd.DataFrame(metadata["log"]))


def judge(name: str, device: str = "cpu") -> features.Extractor:
    """`features.extractor`, and `digits`, the desk's own judge."""
    if name != "digits":
        return features.extractor(name, device=device)
    shipped = zoo.path("digits-features")
    return features.digits(load_classifier("digits-features", "desk"), f"digits {checkpoint.digest(shipped)}")


def metric(profile_name: str) -> str:
    """The name of every distance here, `FD1797[digits]` on the desk."""
    return fid.label(EXTRACTOR, IMAGES[profile_name])


def image_stats(images: Tensor, profile_name: str) -> fid.FeatureStats:
    """Feature statistics of uint8 images (N,C,H,W)."""
    with torch.inference_mode():
        return fid.FeatureStats.of(load_classifier("digits-features", profile_name)(images))


@cache
def real_stats(profile_name: str) -> fid.FeatureStats:
    return image_stats(load_digits().images[:], profile_name)


def sample(denoiser: Denoiser, sampler: str, profile_name: str, *, first_seed: int = 0) -> Tensor:
    """uint8 images (N,C,H,W), one per seed from `first_seed` on."""
    seeds = range(first_seed, first_seed + IMAGES[profile_name])
    return torch.cat([to_uint8(batch) for batch in generate(denoiser, seeds, sampler=sampler)])


def abs_fd(denoiser: Denoiser, sampler: str, profile_name: str, *, first_seed: int = 0) -> float:
    """FD of a generator's images to the real digits."""
    images = sample(denoiser, sampler, profile_name, first_seed=first_seed)
    return fid.frechet_distance(image_stats(images, profile_name), real_stats(profile_name))


def class_agreement(denoiser: Denoiser, sampler: str, profile_name: str, *, first_seed: int = 0) -> float:
    """Share of a class-conditional network's images that the judge, which no training sees, takes for the class asked for."""
    seeds = range(first_seed, first_seed + IMAGES[profile_name])
    labels = torch.arange(len(seeds)) % denoiser.label_dim
    images = torch.cat([to_uint8(batch) for batch in generate(denoiser, seeds, sampler=sampler, labels=labels)])
    with torch.inference_mode():
        found = load_classifier("digits-features", profile_name).classify(to_float(images)).argmax(dim=1)
    return float((found == labels).float().mean())


def halves_fd(profile_name: str, *, repeats: int = 10) -> list[float]:
    """FD between two random halves of the real digits, one value per split: what sampling noise alone amounts to."""
    images = load_digits().images
    values = []
    for seed in range(repeats):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        halves = order.chunk(2)
        values.append(fid.frechet_distance(*(image_stats(images[half], profile_name) for half in halves)))
    return values


def ship(profile_name: str = "desk") -> None:
    """Copy the trained runs into `gdd/zoo/`; a generator with frozen weights keeps only what differs from the teacher's file."""
    for name in (*CLASSIFIERS, *runs(profile_name)):
        source, target = _folder(name, profile_name) / "final.safetensors", zoo.FOLDER / f"{name}.safetensors"
        if name in CLASSIFIERS or runs(profile_name)[name].freeze == "none":
            checkpoint.write_atomically(target, source.read_bytes())
            continue
        denoiser, metadata = checkpoint.load_with_metadata(source)
        kept = {key: value for key, value in metadata.items() if key not in ("network", "epsilon")}
        checkpoint.save_denoiser(target, denoiser, base=zoo.path(teacher_of(name)), dtype=torch.float16, **kept)


@cache
def _generated_stats(path: Path, sampler: str, profile_name: str, first_seed: int) -> fid.FeatureStats:
    return image_stats(sample(checkpoint.load(path), sampler, profile_name, first_seed=first_seed), profile_name)


def distances(points: Sequence[tuple[float, Run, str]], student: Run, profile_name: str, *, seed_ranges: int = 3) -> pd.DataFrame:
    """abs-FD of each generator, and its rel-FD to `student` over the same seeds; one row per (x, kind, seed range).

    `points` are (x, run, sampler). The student's own point has an abs-FD only: its rel-FD to itself is 0 by definition.
    `spearman` is the rank correlation of the means over seed ranges with x, one value per kind.
    """
    n, rows = IMAGES[profile_name], []
    for index in range(seed_ranges):
        first = index * n
        reference = _generated_stats(student.path, sampler_of(student.config), profile_name, first)
        for x, point, sampler in points:
            stats = _generated_stats(point.path, sampler, profile_name, first)
            kinds = {"abs": real_stats(profile_name)} | ({} if point.path == student.path else {"rel": reference})
            for kind, other in kinds.items():
                distance = fid.frechet_distance(stats, other)
                rows.append((x, point.name, sampler, kind, distance, metric(profile_name), f"{first}-{first + n - 1}"))
    table = pd.DataFrame(rows, columns=["x", "run", "sampler", "kind", "distance", "metric", "seeds"])
    means = table.groupby(["kind", "x"], as_index=False)["distance"].mean()
    rho = {kind: group["x"].corr(group["distance"], method="spearman") for kind, group in means.groupby("kind")}
    return table.assign(spearman=table["kind"].map(rho))


def headline(profile_name: str, *, seed_ranges: int = 3) -> pd.DataFrame:
    """abs-FD of the teacher and of every training seed of GDD and GDD-I, beside the FD of two random halves of the digits."""
    names = [name for name in runs(profile_name, seeds=True) if name.split("@")[0] in ("teacher", "gdd", "gdd-i")]
    train_missing(names, profile_name)
    halves, n = halves_fd(profile_name), IMAGES[profile_name]
    rows = [("two halves of the digits", "-", "10 random splits", sum(halves) / len(halves), min(halves), max(halves))]
    for name in sorted(names, key=lambda name: (not name.startswith("teacher"), name.split("@"))):
        run_ = obtain(name, profile_name)
        values = [fid.frechet_distance(_generated_stats(run_.path, sampler_of(run_.config), profile_name, index * n),
                                       real_stats(profile_name)) for index in range(seed_ranges)]  # fmt: skip
        seeds = f"{seed_ranges} ranges of {n} seeds"
        rows.append((name.split("@")[0], str(run_.config.seed), seeds, sum(values) / len(values), min(values), max(values)))
    label = metric(profile_name)
    return pd.DataFrame(rows, columns=["what", "training_seed", "over", f"{label}_mean", f"{label}_min", f"{label}_max"])
