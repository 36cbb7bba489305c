"""Distances of what a user holds in Python: any generator, any denoiser, images, features and
metrics of one's own."""

from unittest import mock

import numpy as np
import pytest
import torch
from conftest import small_denoiser
from test_features import random_state
from test_fid_compare import judge  # noqa: F401
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from analysis.features import of_function
from analysis.fid import (
    FeatureStats,
    abs_fid,
    frechet_distance,
    matrix,
    measure,
    of_denoiser,
    of_generator,
    of_images,
    rel_fid,
)
from analysis.fid.own import as_source
from analysis.fid.summaries import Summaries
from gdd.data.images import load_digits, to_uint8
from gdd.denoiser import scalings
from gdd.sampling import draw_latents


def gan(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64),
                         nn.Tanh(), nn.Unflatten(1, (1, 8, 8)), **options)  # yapf: disable


class Dit(nn.Module):
    """A transformer over 2x2 patches that no one here shaped, with what a source asks of it."""

    channels, resolution, label_dim = 1, 8, 0

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4 + 1, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, x, sigma, labels=None):
        sigma = torch.as_tensor(sigma).float().expand(len(x))
        c_skip, c_out, c_in, c_noise = (c.view(-1, 1, 1, 1)
                                        for c in scalings(sigma, 0.5, epsilon=0.0))
        patches = nn.functional.unfold((c_in * x).float(), 2, stride=2).mT  # (N,16,4)
        found = torch.cat([patches, c_noise.flatten(1).expand(-1, 16)[..., None]], dim=2)
        found = self.out(self.block(self.embed(found))).mT
        return c_skip * x.float() + c_out * nn.functional.fold(found, 8, 2, stride=2)


def flat(images):
    return images.flatten(1).float()


# --- generators ---


def test_a_generator_is_a_source_of_its_seeds(judge):  # noqa: F811
    network = gan()
    source = of_generator(network, (6, ), "gan").reseed(range(3, 53))
    assert (source.n, source.shape, source.identity) == (50, (1, 8, 8), None)
    with torch.no_grad():
        wanted = to_uint8(network(draw_latents(range(3, 53), (6, ))[0]))
    for batch_size in (7, 50):
        images = torch.cat(list(source.batches(range(50), batch_size)))
        assert (images.int() - wanted.int()).abs().max() <= 1
    assert torch.equal(next(source.batches([4], 1)), next(source.batches([3, 4, 5], 3))[1:2])


def test_rel_fid_of_two_gans_is_that_of_their_images(judge):  # noqa: F811
    one, two = (of_generator(gan(seed), (6, ), f"gan{seed}") for seed in (0, 1))
    row = rel_fid(one, two, judge, n=80, ranges=2)
    assert (row["a"], row["b"], row["metric"]) == ("gan0", "gan1", "FD80[digits]")
    values = []
    for start in (0, 80):
        stats = [FeatureStats.of(judge(next(source.reseed(range(start, start + 80)).batches(
            range(80), 80)))) for source in (one, two)]  # yapf: disable
        values.append(frechet_distance(*stats))
    assert (row["min"], row["max"]) == pytest.approx((min(values), max(values)), rel=1e-3)
    assert rel_fid(one, of_generator(gan(0), (6, ), "again"), judge, n=80)["max"] < 1e-6


def test_labels_of_a_conditional_generator_come_from_its_streams():
    def conditional(latents, labels):
        asked.append(labels)
        return (latents * 0 + labels.view(-1, 1, 1, 1) / 10).tanh()

    asked: list[torch.Tensor] = []
    source = of_generator(conditional, (1, 4, 4), "classes", label_dim=10).reseed(range(20))
    next(source.batches(range(20), 20))
    assert torch.equal(asked[-1], draw_latents(range(20), (1, 4, 4), 10)[1])


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (lambda z: z, r"must return float images \(1, 1 or 3, H, W\); got torch.float32 \(1, 6\)"),
        (lambda z: [z], "got list"),
        (lambda z: torch.zeros(len(z), 1, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (lambda z: torch.zeros(1, 5, 8, 8), r"got torch.float32 \(1, 5, 8, 8\)"),
        (lambda z: torch.full((len(z), 1, 8, 8), 200.0), r"in \[-1,1\]; got values up to 200"),
        (lambda z: torch.full((len(z), 1, 8, 8), torch.nan), "got values up to nan"),
        (lambda z: torch.rand(len(z), 1, 8, 8), "take all its noise from its latents"),
        (lambda z: torch.zeros(len(z), 1, 8, 8) + z.mean(), "another beside image 1"),
        (lambda z: nn.Sequential(*gan().train())(torch.cat([z, z + 1])).detach()[:len(z)],
         "batch norm must be in evaluation mode"), ])  # yapf: disable
def test_what_is_no_generator_is_told_why(generator, message):
    with pytest.raises(ValueError, match=rf"mine.*{message}"):
        of_generator(generator, (6, ), "mine")


# --- anything else ---


def test_a_denoiser_is_taken_as_it_is(judge, tiny):  # noqa: F811
    one_step = tiny.copy(epsilon=0.002)
    assert as_source(one_step).name == "Denoiser@one-step"
    assert as_source(tiny).name == "Denoiser@heun:18"
    wanted = of_denoiser(one_step, "one-step", "x")(range(40))
    stats = Summaries(judge).of(wanted).stats
    row = abs_fid(one_step, next(wanted.batches(range(40), 40)), judge, n=40, ranges=1)
    assert row["mean"] < 1e-6 * float(stats.covariance.trace())
    dit = Dit().eval()
    row = rel_fid(dit, of_denoiser(dit, "euler:2", "dit")(range(0)), judge, n=30, ranges=1)
    assert (row["a"], row["b"]) == ("Dit@heun:18", "dit")
    assert row["mean"] > 0


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhw", "numpy"])
def test_images_in_memory_in_any_layout(layout, judge):  # noqa: F811
    images = load_digits().images[:60]
    same = {"nchw": images, "nhwc": images.permute(0, 2, 3, 1), "nhw": images[:, 0],
            "numpy": images.numpy()}[layout]  # yapf: disable
    source = of_images(same)
    assert torch.equal(torch.cat(list(source.batches(range(60), 25))), images)
    found = matrix([same, "digits"], judge, allow_different_n=True)
    assert found.loc["images", "digits"] == pytest.approx(
        frechet_distance(*(FeatureStats.of(judge(x)) for x in (images, load_digits().images))),
        rel=1e-5)


def test_images_are_known_by_their_content(judge):  # noqa: F811
    images, summaries = load_digits().images, Summaries(judge)
    summaries.of(of_images(images[:50]))
    summaries.of(of_images(images[:50].clone(), "the same"))
    summaries.of(of_images(images[1:51]))
    assert len(summaries.made) == 2


def test_a_matrix_is_every_pair_by_name(judge, tiny):  # noqa: F811
    """Two of one name are told apart, and rows of three are not mixed."""
    one, other = tiny.copy(epsilon=0.002), small_denoiser(model_channels=4).copy(epsilon=0.002)
    found = matrix([one, other, load_digits().images], judge, n=60, ranges=2,
                   allow_different_n=True)
    names = ["Denoiser@one-step", "Denoiser@one-step (2)", "images"]
    assert list(found.index) == list(found.columns) == names
    assert np.array_equal(found, found.T)
    assert (found.to_numpy()[~np.eye(3, dtype=bool)] > 0).all()
    alone = abs_fid(other, "digits", judge, n=60, ranges=2, allow_different_n=True)
    assert found.loc[names[1], "images"] == pytest.approx(alone["mean"])


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (gan(), r"of another generator, of_generator\(f, latent_shape\); got Sequential"),
        (lambda z: z, "a source must be a text, a Source, uint8 images, or a denoiser"),
        (3, "got 3"), (None, "got None"),
        (torch.zeros(4, 1, 8, 8), r"images must be uint8 .*to_uint8; got float32 \[4, 1, 8, 8\]"),
        (np.zeros((4, 8), np.uint8), r"got uint8 \[4, 8\]"),
        (np.zeros((4, 8, 8, 5), np.uint8), "1 or 3 channels"),
        (np.zeros((0, 8, 8), np.uint8), "images holds no images"), ])  # yapf: disable
def test_what_is_no_source_is_told_what_is(thing, message, judge):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        abs_fid(thing, "digits", judge)


# --- features and metrics of one's own ---


def test_features_of_a_function(judge):  # noqa: F811
    mine = of_function(flat, "flat")
    row = abs_fid(load_digits().images[:90], "digits", mine, allow_different_n=True)
    assert row["metric"] == "FD90[flat]"
    wanted = frechet_distance(*(FeatureStats.of(flat(x))
                                for x in (load_digits().images[:90], load_digits().images)))
    assert row["mean"] == pytest.approx(wanted, rel=1e-6)
    summaries = Summaries(mine)
    summaries.of(of_images(load_digits().images))
    assert summaries.made == {}  # nothing tells two functions apart
    with pytest.raises(ValueError, match=r"extractor must be .*of_function\(f, NAME\).*got <func"):
        abs_fid("gdd-i", "digits", flat)
    with pytest.raises(ValueError, match="must be a function of images; got 'clip'"):
        of_function("clip", "mine")


@pytest.mark.parametrize(("function", "got"), [(lambda x: x.float(), r"\(20, 1, 8, 8\)"),
                                               (lambda x: flat(x).mean(0, True), r"\(1, 64\)"),
                                               (lambda x: flat(x).numpy(), "ndarray"),
                                               (lambda x: (), "tuple"),
                                               (lambda x: None, "NoneType")])
def test_features_of_another_shape_are_refused(function, got):
    with pytest.raises(ValueError, match=rf"features mine must be a tensor \(N,D\).*got {got}"):
        of_function(function, "mine")(load_digits().images[:20])


def test_torch_fidelitys_extractor_fits():
    """With random weights: its tuple of outputs is what torchmetrics' module, a child of it, takes
    apart."""
    with mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url",
                           return_value=random_state()):
        network = FeatureExtractorInceptionV3("it", ["64"])  # its first taps
    theirs = of_function(network, "fidelity")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        (wanted, ) = network(images)
    row = abs_fid(images[:2], of_images(images[2:], "others"), theirs)
    assert row["metric"] == "FD2[fidelity]"
    distance = frechet_distance(FeatureStats.of(wanted[:2]), FeatureStats.of(wanted[2:]))
    assert row["mean"] == pytest.approx(distance, rel=1e-3)


def test_a_metric_of_ones_own_is_given_the_features(judge):  # noqa: F811
    def shift(fake, real):
        return (fake.mean(0) - real.mean(0)).norm()

    images = load_digits().images
    table = measure([images[:70], of_images(images[70:140], "b")], Summaries(judge), metrics=[
        "fd", shift, shift])
    assert table["metric"].tolist() == ["FD70[digits]", "shift70[digits]"]
    wanted = float((judge(images[:70]).mean(0) - judge(images[70:140]).mean(0)).norm())
    assert table["value"][1] == pytest.approx(wanted, rel=1e-4)
