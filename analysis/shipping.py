"""What comes with the package: a profile's trained runs, real images to look at beside them, the
statistics of its data, and zoo/models.json, which lists what each file is.

python -m analysis.figures --profile PROFILE --ship
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis import measurements, tables
from analysis.experiments import REAL, drawn_sample
from analysis.fid.frechet import FeatureStats
from analysis.fid.sources import save_statistics
from analysis.judges import judges, real
from gdd.data.images import open_images
from gdd.files import digest as file_digest
from gdd.files import write_atomically
from gdd.profiles import Profile, profile
from gdd.samplers import sampler_of
from gdd.training.start import finished
from gdd.weights import checkpoint


def ship(profile_name: str) -> None:
    """Copy the trained runs to the profile's folder of shipped weights; a generator with frozen
    weights keeps only what differs from its teacher's file. Raises ValueError if none is trained;
    what is not yet is named and left out."""
    chosen = profile(profile_name)
    if chosen.shipped is None:
        raise ValueError(f"profile {profile_name} ships no weights")
    wanted = [name for name in (*chosen.classifiers, *chosen.runs) if name not in chosen.unshipped]
    names = [name for name in wanted if finished(chosen, name)]
    if not names:
        raise ValueError(f"no run of {profile_name} is trained; `make figures RETRAIN=1` trains it")
    if lacking := [name for name in wanted if name not in names]:
        print(f"not trained yet: {', '.join(lacking)}")
    for name in names:
        _copy(name, chosen)
    if not chosen.live:  # else the data are at hand wherever figures are made
        write_real(profile_name)
    _list(profile_name, names)


def _copy(name: str, chosen: Profile) -> None:
    assert chosen.shipped is not None
    source, target = finished(chosen, name), chosen.shipped / f"{name}.safetensors"
    assert source is not None
    if source == target:
        return
    if name in chosen.classifiers or chosen.config(name).freeze == "none":
        write_atomically(target, source.read_bytes())
        return
    denoiser, metadata = checkpoint.load_with_metadata(source)
    kept = {key: value for key, value in metadata.items() if key not in ("network", "epsilon")}
    base = chosen.shipped / f"{chosen.config(name).teacher}.safetensors"
    checkpoint.save_denoiser(target, denoiser, base=base, dtype=torch.float16, **kept)


def write_real(profile_name: str) -> None:
    """As many real images as figures take, and of the whole data the usual judge's moments."""
    chosen = profile(profile_name)
    assert chosen.shipped is not None
    most = min(max(chosen.n_activations, 256), len(open_images(chosen.data, in_memory=0)))
    sample, content = drawn_sample(chosen, most), io.BytesIO()
    assert sample.labels is not None
    np.savez_compressed(content, images=np.asarray(sample.images), labels=sample.labels.numpy())
    write_atomically(chosen.shipped / REAL, content.getvalue())
    name = chosen.extractors[0]
    stats: FeatureStats = real(profile_name, judges(profile_name)[0], "data")
    save_statistics(chosen.shipped / f"real-{name}.npz", stats,
                    {"source": Path(chosen.data).name, "extractor": name})


def _list(profile_name: str, names: list[str]) -> None:
    """The entries of the profile in models.json, anew."""
    chosen = profile(profile_name)
    assert chosen.shipped is not None
    models = chosen.shipped.parent / "models.json"
    listed = json.loads(models.read_text()) if models.is_file() else {}
    listed = {key: entry for key, entry in listed.items() if not key.startswith(f"{chosen.name}/")}
    for name in names:
        path = chosen.shipped / f"{name}.safetensors"
        entry: dict[str, Any] = {"digest": file_digest(path)}
        if name in chosen.classifiers:
            entry |= {"accuracy": checkpoint.read_metadata(path).get("accuracy")}
        else:
            entry |= _described(name, profile_name)
        listed[f"{chosen.name}/{name}"] = entry
    text = json.dumps(dict(sorted(listed.items())), indent=1)
    write_atomically(models, text.encode())


def _described(name: str, profile_name: str) -> dict[str, Any]:
    chosen = profile(profile_name)
    config = chosen.config(name)
    sampler = sampler_of(config)
    if chosen.live:
        table = measurements.distances([(name, sampler)], profile_name)
    else:
        table = tables.read("seeds", profile_name)
        table = table[(table["run"] == name) & (table["training_seed"] == config.seed)]
    table = table[(table["kind"] == "abs") & (table["sampler"] == sampler) &
                  (table["against"] == "data")]
    distances = table.groupby("metric", sort=False)["distance"].mean()
    return {
        "sampler": sampler, "images": config.total_images, "teacher": config.teacher, "distances": {
            metric: float(f"{value:.4g}") for metric, value in distances.items()}, "n": chosen.n,
        "seeds": list(table["seeds"].drop_duplicates()), "training_seed": config.seed}
