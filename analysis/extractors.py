"""What judges a profile's images: its own classifiers and the extractors of `analysis.features`, by
name, and the distance that a training run logs."""

from collections.abc import Callable, Sequence
from functools import cache as keep
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import features, fid
from analysis.fid.compare import check_pair
from analysis.fid.sources import Source, Statistics, of_denoiser, open_source
from analysis.fid.summaries import Summaries
from gdd.config import TrainConfig
from gdd.files import digest as file_digest
from gdd.profiles import Profile, profiles
from gdd.samplers import sampler_of
from gdd.training.start import finished, new_backbone, shipped
from gdd.weights import checkpoint

if TYPE_CHECKING:  # the trainer's engine takes seconds to import
    from gdd.training.trainer import TrainState


def new_classifier(name: str, chosen: Profile) -> Any:
    if (role := chosen.classifiers[name].role) == "backbone":
        return new_backbone(chosen, name)
    return features.ClassifierFeatures(*chosen.shape[:2], chosen.classes,
                                       residual=role == "residual features")


@keep
def extractor(name: str, chosen: Profile | None = None, device: str = "cpu",
              precision: str = "fp32") -> features.Extractor:
    """The feature extractor of that name: a classifier that a profile trains or ships (`chosen`, or
    the first that has it), or one of `features.NAMES`. Raises ValueError or FileNotFoundError."""
    known = [chosen] if chosen else list(profiles().values())
    owner = next((p for p in known if name in p.classifiers), None)
    if owner is None:
        return features.extractor(name, device=device, precision=precision)
    if owner.classifiers[name].role == "backbone":
        raise ValueError(f"features must not be a discriminator's backbone; got {name!r}")
    path = finished(owner, name) or (None if chosen else shipped(owner, name))
    if path is None:
        raise ValueError(f"features {name} of profile {owner.name} are not trained yet; "
                         f"`python -m analysis.figures --profile {owner.name}` does")
    network = new_classifier(name, owner)
    network.load_state_dict(checkpoint.read_tensors(path)[0])  # copies into its own dtypes
    return features.classifier(network, name, f"{name} {file_digest(path)}", device, precision)


def default_extractors(shape: Sequence[int]) -> tuple[str, ...]:
    """What judges images (C,H,W): the classifier of a profile made for them, else Inception and
    CLIP."""
    own = (name for p in profiles().values() if p.shape == tuple(shape)
           for name in p.extractors if name in p.classifiers)  # yapf: disable
    return tuple(islice(own, 1)) or ("inception", "clip")


def evaluator(chosen: Profile, feature_extractor: features.Extractor, n: int, config: TrainConfig,
              reference: str = "",
              cache: Path | None = None) -> tuple[str, Callable[["TrainState"], dict[str, float]]]:
    """The name of the distance to the data, over n images or as many as it has, and the function of
    a training state that measures it, of the EMA weights; a teacher's 35 calls per image are spent
    on its last tick only. `cache` keeps the reference's features between runs. Raises ValueError if
    it is statistics of others."""
    summaries = Summaries(feature_extractor, cache=cache)
    real = open_source(reference or chosen.reference or config.data)
    check_pair(real, real, feature_extractor, different_n=True)
    n = min(n, real.n or n)
    label = fid.label(feature_extractor.name, n)

    def evaluate(state: "TrainState") -> dict[str, float]:
        if config.objective == "edm" and state.images_seen < config.total_images:
            return {}
        source = of_denoiser(state.ema, sampler_of(config), f"{state.images_seen:,} images")
        stats = summaries.of(source(range(n))).stats
        return {label: fid.frechet_distance(stats, stats_of(real, summaries))}

    return label, evaluate


def stats_of(source: Source | Statistics, summaries: Summaries) -> fid.FeatureStats:
    """Moments of a source's features, or those of finished statistics."""
    return source.stats if isinstance(source, Statistics) else summaries.of(source).stats
