"""Sources, one pass, the cache, and the whole command: what is compared, what is refused, and that
no option moves a number."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_denoiser
from test_cli import ROOT, call, start
from test_data import png, write_zip

from analysis import features
from analysis.extractors import default_extractors, evaluator
from analysis.features import Extractor
from analysis.fid import FeatureStats, fd_infinity, frechet_distance
from analysis.fid.compare import (
    abs_fid,
    compare,
    measure,
    over_ranges,
    rel_fid,
    shared_backbones,
)
from analysis.fid.samples import density_coverage, precision_recall
from analysis.fid.sources import (
    Source,
    Statistics,
    of_checkpoint,
    of_denoiser,
    open_source,
    save_statistics,
)
from analysis.fid.summaries import BLOCK, SAMPLE, Summaries
from gdd.data.images import load_digits
from gdd.profiles import profile
from gdd.sampling import draw_latents, one_step
from gdd.weights import checkpoint, zoo


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return features.classifier(features.ClassifierFeatures(1, 8, 10), "digits", "untrained")


@pytest.fixture
def generator(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoint.save_denoiser(path, tiny.copy(epsilon=0.002), backbones=["tf_efficientnet_lite0"])
    return str(path)


def array_source(images, name="array", identity=None):
    def batches(indices, batch_size):
        for part in torch.tensor(list(indices)).split(batch_size):
            yield images[part]

    return Source(name, len(images), tuple(images.shape[1:]), identity or {"array": name}, batches)


def noise(n, seed=0, channels=1):
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


# --- sources ---


def test_a_generator_is_its_images(generator, judge, tiny):
    source = open_source(f"{generator}@one-step").reseed(range(5, 45))
    (images, ) = source.batches(range(40), 64)
    latents, _ = draw_latents(range(5, 45), (1, 8, 8))
    with torch.no_grad():
        wanted = one_step(tiny.copy(epsilon=0.002), latents)
    assert torch.equal(images, (wanted * 127.5 + 128).clip(0, 255).to(torch.uint8))
    stats = Summaries(judge).of(source).stats
    direct = FeatureStats.of(judge(images))
    assert frechet_distance(stats, direct) < 1e-6
    assert open_source(generator).name == "tiny@one-step"  # a generator's default
    with pytest.raises(ValueError, match="sampler must be one of"):
        open_source(f"{generator}@ddim")


def test_arrays_folders_and_zips_are_the_same_images(tmp_path, judge):
    pictures = {f"{k}.png": png(value=9 * k, mode="L") for k in range(20)}
    (tmp_path / "folder").mkdir()
    for name, content in pictures.items():
        (tmp_path / "folder" / name).write_bytes(content)
    images = torch.cat(list(open_source(str(tmp_path / "folder")).batches(range(20), 8)))
    np.save(tmp_path / "nchw.npy", images.numpy())
    np.savez(tmp_path / "nhwc.npz", samples=images.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "nhw.npy", images[:, 0].numpy())
    write_zip(tmp_path / "a.zip", pictures)
    base = Summaries(judge).of(open_source(str(tmp_path / "folder"))).stats
    for name in ("nchw.npy", "nhwc.npz", "nhw.npy", "a.zip"):
        source = open_source(str(tmp_path / name))
        assert source.shape == (1, 8, 8)
        assert torch.allclose(
            Summaries(judge).of(source).stats.scatter, base.scatter, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict(mu=np.zeros(3)),
         "holds neither one uint8 array of images nor mu and sigma; it holds mu float64"),
        (dict(a=np.zeros((2, 3, 8, 8))), "holds neither"),
        (dict(a=np.zeros((2, 8, 8, 5), np.uint8)), "1 or 3 channels"),
        (dict(a=np.array([None])), "Object arrays cannot be loaded"),
        (dict(mu=np.zeros(3), sigma=np.zeros((3, 2))), r"must be \(d,\) and \(d,d\)"),
        (dict(mu=np.full(2, np.nan), sigma=np.eye(2)), "mu or sigma holds NaN"),
        (b"no zip", "is not a plain .npz file"),
        (dict(mu=np.zeros(2), sigma=np.eye(2), provenance=np.frombuffer(
            b"{", np.uint8)), "provenance is damaged"), ],
)
def test_wrong_arrays_say_what_they_hold(tmp_path, content, message):
    path = tmp_path / "x.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"x\.npz.*{message}"):
        open_source(str(path))


def test_statistics_round_trip_and_know_their_extractor(tmp_path, judge):
    source = array_source(noise(100))
    summaries = Summaries(judge)
    stats = summaries.of(source).stats
    save_statistics(tmp_path / "s.npz", stats, {"extractor": "digits"})
    loaded = open_source(str(tmp_path / "s.npz"))
    assert (loaded.n, loaded.extractor) == (100, "digits")
    assert frechet_distance(loaded.stats, stats) < 1e-9
    found = np.load(tmp_path / "s.npz")
    assert np.allclose(found["sigma"], np.cov(judge(noise(100)).double().numpy(), rowvar=False))
    # as EDM publishes them: nothing else in it
    np.savez(tmp_path / "edm.npz", mu=found["mu"], sigma=found["sigma"])
    published = open_source(str(tmp_path / "edm.npz"))
    assert (published.n, published.extractor) == (None, None)
    table = compare([array_source(noise(50, 1)), published], summaries, ["fd"])
    assert table["metric"].tolist() == ["FD50[digits]"]
    with pytest.raises(ValueError,
                       match=r"s\.npz holds statistics of digits features, not of inception"):
        compare([source, loaded], Summaries(replace(judge, name="inception")), ["fd"])
    with pytest.raises(ValueError, match=r"a metric of samples needs images; s\.npz holds"):
        compare([source, loaded], summaries, ["kid"])


# --- one pass ---


@pytest.mark.parametrize("batch_size", [1, 16, 64, 5000])
def test_the_batch_size_decides_nothing(judge, batch_size):
    images = noise(1500)
    found, whole = Summaries(judge, batch_size).of(array_source(images),
                                                   classify=True), judge(images)
    assert found.stats.n == 1500
    assert torch.allclose(found.stats.covariance,
                          torch.from_numpy(np.cov(whole.double().numpy(), rowvar=False)), rtol=1e-5,
                          atol=1e-8)
    # all of them, in order, while there are fewer than SAMPLE
    assert torch.allclose(found.sample, whole, atol=1e-5)
    assert float(found.scores.count.sum()) == 1500
    reference = Summaries(judge, 256).of(array_source(images))
    assert frechet_distance(found.stats, reference.stats) < 1e-6


def test_a_large_source_keeps_a_fixed_sample():
    n, wide = SAMPLE + 3 * BLOCK + 17, Extractor("index", "index", "1",
                                                 lambda x: x.flatten(1)[:, :4].float())
    images = torch.arange(n, dtype=torch.int32).view(torch.uint8).reshape(n, 1, 2, 2)
    one, two = (Summaries(wide, batch_size).of(array_source(images)) for batch_size in (100, 1000))
    assert len(one.sample) == SAMPLE
    assert torch.equal(one.sample, two.sample)
    index = one.sample.to(torch.int64) @ torch.tensor([1, 256, 65536, 1 << 24])
    assert (index.diff() > 0).all()  # different images, in order
    assert one.stats.n == n


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    script = """
import resource, torch
from analysis.features import Extractor
from analysis.fid.sources import Source
from analysis.fid import summaries
from analysis.fid.summaries import Summaries
summaries.SAMPLE = 200  # few rows kept of each block: small tensors among large ones
mixing = torch.randn(64, 2048)
wide = Extractor("wide", "wide", "1", lambda x: x.flatten(1).float() @ mixing)
def source(n):
    def batches(indices, batch_size):
        yield torch.randint(0, 256, (len(indices), 1, 8, 8), dtype=torch.uint8)
    return Source(str(n), n, (1, 8, 8), {"n": n}, batches)
for n in (0, 7_000, 28_000):
    n and Summaries(wide).of(source(n))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    libraries, small, large = map(int, done.stdout.split())
    assert large - small < 60  # MiB; 21,000 more features would be 164
    assert large - libraries < 600


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(1), "one has n = 1; statistics need at least 2 images"),
        (torch.full((30, 1, 8, 8), 7, dtype=torch.uint8), "one: all 30 images are equal"),
        (noise(30).repeat(1, 2, 1, 1), "one: features take uint8 images"),
        (noise(30).float(), "one: features take uint8 images"), ],
)
def test_images_without_a_distance(judge, images, message):
    with pytest.raises(ValueError, match=message):
        Summaries(judge).of(array_source(images, "one"))


def test_features_that_are_not_finite(judge):
    broken = replace(judge, features=lambda x: torch.full((len(x), 3), float("nan")),
                     probabilities=None)
    with pytest.raises(ValueError, match="one: features contain NaN or inf"):
        Summaries(broken).of(array_source(noise(30), "one"))


# --- comparisons ---


def test_grey_rgb_different_n_and_unknown_metrics_are_refused(judge):
    grey, rgb, fewer = array_source(noise(30), "one"), array_source(noise(30, channels=3),
                                                                    "two"), array_source(
                                                                        noise(20), "few")
    with pytest.raises(ValueError, match="one is grey and two is RGB"):
        compare([grey, rgb], Summaries(judge), ["fd"])
    with pytest.raises(
            ValueError,
            match=r"one has n = 30, few n = 20, and the distance depends on n: give --n"):
        compare([grey, fewer], Summaries(judge), ["fd"])
    assert len(compare([grey, fewer], Summaries(judge), ["fd"], allow_different_n=True)) == 1
    with pytest.raises(ValueError,
                       match="metrics must be of fd, kid, pr, dc, is, fd-infinity; got mmd"):
        measure([grey, grey], Summaries(judge), metrics=["mmd"])
    with pytest.raises(ValueError,
                       match="two sources, one range and n = 2 are the least; got 1 sources"):
        measure([grey], Summaries(judge))
    other = Statistics("other.npz", FeatureStats.of(torch.randn(9, 5)))
    with pytest.raises(
            ValueError,
            match=r"differ in dimension \(one 64, other\.npz 5\); the features are digits"):
        compare([grey, other], Summaries(judge), ["fd"])


def test_every_metric_of_every_pair(judge):
    sources = [array_source(noise(200, seed), f"s{seed}") for seed in range(3)]
    metrics = ["fd", "kid", "pr", "dc", "is", "fd-infinity"]
    table = measure(sources, Summaries(judge), metrics=metrics, bootstrap=5)
    assert len(table) == 3 * 7 + 3
    assert set(table["metric"]) == {
        "FD200[digits]",
        "FD[digits]-infinity",
        "KID200[digits]",
        "precision200[digits]",
        "recall200[digits]",
        "density200[digits]",
        "coverage200[digits]",
        "IS200[digits]", }
    fd = table[table["metric"] == "FD200[digits]"]
    assert (fd["low"] <= fd["high"]).all()
    # the first is judged by the second
    sources[1] = array_source(noise(200, 1) // 2, "s1")
    table = measure(sources[:2], Summaries(judge), metrics=["pr", "dc", "fd-infinity"])
    fake, real = (Summaries(judge).of(source) for source in sources[:2])
    wanted = (fd_infinity(fake.sample, real.stats), *precision_recall(fake.sample, real.sample),
              *density_coverage(fake.sample, real.sample))
    assert table["value"].tolist() == pytest.approx(wanted, rel=1e-6)
    assert wanted != pytest.approx(
        (fd_infinity(real.sample, fake.stats), *precision_recall(real.sample, fake.sample),
         *density_coverage(real.sample, fake.sample)), rel=1e-3)
    assert (over_ranges(table)["ranges"] == 1).all()  # nothing here has seeds


def test_abs_and_rel_over_three_ranges(generator, judge):
    """Same seeds for both generators, another range each time; a generator against itself is at no
    distance."""
    sources = [open_source(generator), open_source(f"{generator}@k-step:2")]
    table = measure(sources, Summaries(judge), n=40)
    assert table["seeds"].tolist() == ["0-39", "40-79", "80-119"]
    row = rel_fid(generator, f"{generator}@k-step:2", judge, n=40)
    assert (row["mean"], row["min"], row["max"]) == pytest.approx(
        (table["value"].mean(), table["value"].min(), table["value"].max()))
    assert rel_fid(generator, generator, judge, n=40)["max"] < 1e-6
    row = abs_fid(generator, "digits", judge)
    assert row["metric"] == "FD1797[digits]"
    assert row["min"] <= row["mean"] <= row["max"]
    with pytest.raises(ValueError, match="rel-FID is between two generators; digits is none"):
        rel_fid(generator, "digits", judge)


def test_a_backbone_of_the_judges_family_is_named(generator, judge):
    source = open_source(generator)
    efficientnet = replace(judge, name="timm:efficientnet_b0", family="efficientnet")
    (line, ) = shared_backbones(source.name, source.backbones, efficientnet)
    assert "tiny@one-step looked through tf_efficientnet_lite0, which is of the family of" in line
    assert shared_backbones(source.name, source.backbones, judge) == []
    (line, ) = shared_backbones("a", ["vgg16_bn", "deit_base"], replace(judge, family="vgg"))
    assert "vgg16_bn" in line


def test_no_profiles_own_judge_is_of_its_backbones_family(judge):
    """What it trains, and what its runs look through, as their files say."""
    desk = profile("desk")
    for name, config in desk.runs.items():
        for own in desk.extractors:
            named = replace(judge, name=own, family=own)
            assert shared_backbones(name, config.backbones, named) == []
    assert open_source("gdd-i").backbones == tuple(desk.runs["gdd-i"].backbones)
    assert open_source("teacher").backbones == ()


def test_default_features_follow_the_shape():
    assert default_extractors((1, 8, 8)) == ("digits", )
    assert default_extractors((3, 16, 16)) == ("cifar10-classifier", )
    assert default_extractors((3, 32, 32)) == ("inception", "clip")


def test_shipped_runs_are_sources_by_name(tmp_path, monkeypatch):
    (tmp_path / "gdd-i").mkdir()
    (tmp_path / "gdd-i" / "a.png").write_bytes(png(mode="L"))
    monkeypatch.chdir(tmp_path)
    assert open_source("gdd-i").name == "gdd-i@one-step"
    assert open_source("teacher@euler:3").name == "teacher@euler:3"
    assert open_source("./gdd-i").n == 1  # the folder
    with pytest.raises(FileNotFoundError, match=r"source gdd-j does not.* did you mean gdd-i"):
        open_source("gdd-j")


@pytest.mark.parametrize(("name", "precision", "most", "average"),
                         [("gdd-i", "bf16", 0.15, 0.01), ("gdd-i", "fp16", 0.02, 0.001),
                          ("teacher", "bf16", 0.1, 0.005)])
def test_precision_moves_images_and_distances_little(name, precision, most, average):
    """Of a thousand pixels 999 by less than `most`: what `gdd.sampling.to_device` states, at twice
    what was measured."""
    n, digits = 300, load_digits().images
    path = zoo.path(name)
    exact, rough = (torch.cat(list(source.batches(range(n), n)))
                    for source in (of_checkpoint(path, device="cpu", precision=p)(range(n))
                                   for p in ("fp32", precision)))
    difference = (exact.float() - rough.float()).abs() / 127.5
    assert difference.max() > 0
    assert difference.flatten().quantile(0.999) < most
    assert difference.mean() < average
    judge = features.classifier(features.ClassifierFeatures(1, 8, 10), "digits", "untrained")
    real, one, two = (FeatureStats.of(judge(images)) for images in (digits, exact, rough))
    assert frechet_distance(two, real) == pytest.approx(frechet_distance(one, real), rel=0.03)


def test_a_curve_is_of_as_many_images_as_the_data_has(judge, tmp_path, digits):
    config = profile("smoke").config("gdd")
    label, evaluate = evaluator(profile("smoke"), judge, 5_000, config)
    assert label == "FD1797[digits]"
    assert callable(evaluate)
    save_statistics(tmp_path / "s.npz", FeatureStats.of(judge(digits.images)),
                    {"extractor": "clip"})
    with pytest.raises(ValueError, match="holds statistics of clip features, not of digits"):
        evaluator(profile("smoke"), judge, 100, config, str(tmp_path / "s.npz"))


# --- the cache ---


def counted(judge):
    calls = []

    def look(images):
        calls.append(len(images))
        return judge.features(images)

    return replace(judge, features=look), calls


def test_a_picture_is_looked_at_once_unless_its_class_is_asked_for(judge):
    extractor, calls = counted(judge)
    classes: list[int] = []
    extractor = replace(extractor,
                        probabilities=lambda x: classes.append(len(x)) or judge.probabilities(x))
    summaries = Summaries(extractor)
    compare([array_source(noise(60, 0), "one"),
             array_source(noise(60, 1), "two")], summaries, ["fd", "kid", "pr"])
    assert (sum(calls), sum(classes)) == (120, 0)
    compare([array_source(noise(60, 0), "one"),
             array_source(noise(60, 1), "two")], summaries, ["is"])
    assert sum(classes) == 120


def test_the_cache_is_addressed_by_content(judge, tmp_path, generator):
    extractor, calls = counted(judge)

    def run(source, extractor=extractor):
        calls.clear()
        summary = Summaries(extractor, cache=tmp_path / "cache").of(source, classify=True)
        return bool(calls), summary

    def source(seeds=range(50), sampler="one-step"):
        return open_source(f"{generator}@{sampler}").reseed(seeds)

    fresh, first = run(source())
    again, second = run(source())
    assert (fresh, again) == (True, False)
    assert torch.equal(first.stats.scatter, second.stats.scatter)
    assert torch.equal(first.sample, second.sample)
    assert second.scores.score() == first.scores.score()
    half = of_checkpoint(Path(generator), precision="bf16")(range(50))
    for changed in (source(range(1, 51)), source(range(51)), source(sampler="k-step:2"), half):
        assert run(changed)[0]
    assert run(source(), replace(extractor, identity="other weights"))[0]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert run(source())[0]  # a damaged entry is made again
    assert not run(source())[0]


def test_two_networks_never_share_a_summary(judge, tmp_path):
    """Without a digest of its weights nothing of a denoiser is kept, in memory neither."""
    extractor, calls = counted(judge)
    summaries = Summaries(extractor, cache=tmp_path)
    one, two = (of_denoiser(small_denoiser(dropout=0.0).copy(epsilon=0.002), "one-step", "same")
                for _ in range(2))
    other = small_denoiser().copy(epsilon=0.002)
    for parameter in other.parameters():
        parameter.data *= 1.1
    three = of_denoiser(other, "one-step", "same")
    stats = [summaries.of(source(range(60))).stats for source in (one, two, three)]
    assert torch.equal(stats[0].scatter, stats[1].scatter)
    assert frechet_distance(stats[0], stats[2]) > 1e-6
    table = measure([one(range(0)), three(range(0))], summaries, n=60, ranges=1)
    assert table["value"].item() == pytest.approx(frechet_distance(stats[0], stats[2]))
    assert sum(calls) == 5 * 60
    assert summaries.made == {}
    assert not list(tmp_path.iterdir())


def test_a_key_names_the_file_that_was_loaded(judge, tmp_path):
    """Also of a generator that keeps only what differs from its base: the same differences upon
    another base are another network."""
    base, other = small_denoiser(), small_denoiser()
    for parameter in other.parameters():
        parameter.data *= 1.5
    keys = {}
    for name, start_from in (("a", base), ("b", other)):
        folder = tmp_path / name
        checkpoint.save_denoiser(folder / "base.safetensors", start_from)
        student = start_from.copy(epsilon=0.002)
        next(student.parameters()).data.fill_(0.1)  # the one tensor that differs, the same in both
        checkpoint.save_denoiser(folder / "student.safetensors", student,
                                 base=folder / "base.safetensors")
        source = open_source(str(folder / "student.safetensors")).reseed(range(40))
        keys[name] = source.identity
        assert len(checkpoint.read_tensors(folder / "student.safetensors")[0]) == 1
    assert keys["a"] != keys["b"]
    # one name for two files, one after the other
    path, summaries = tmp_path / "run.safetensors", Summaries(judge, cache=tmp_path / "cache")
    scatters = []
    for folder in ("a", "b", "b"):
        path.write_bytes((tmp_path / folder / "base.safetensors").read_bytes())
        source = open_source(f"{path}@euler:2").reseed(range(40))
        scatters.append(summaries.of(source).stats.scatter)
    assert not torch.equal(scatters[0], scatters[1])
    assert torch.equal(scatters[1], scatters[2])
    assert len(summaries.made) == 2
    (tmp_path / "a" / "base.safetensors").write_bytes(
        (tmp_path / "b" / "base.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"needs .*base\.safetensors with digest"):
        open_source(str(tmp_path / "a" / "student.safetensors"))


def test_writers_at_once_leave_a_whole_cache(judge, tmp_path):
    def work(_):
        for seed in range(4):
            Summaries(judge, cache=tmp_path).of(
                array_source(noise(60, seed), identity={"seed": seed}))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [None] * 4  # raises what a thread raised
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        checkpoint.read_tensors(path)


# --- the command ---


@pytest.mark.slow
def test_one_process_or_two_give_the_same_numbers(monkeypatch, tmp_path):
    # as torchrun sets it: float32 sums depend on it, the moments do not
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GDD_CACHE", str(tmp_path))
    options = ["gdd-i", "digits", "--metrics", "fd", "kid", "pr", "is", "--ranges", "1", "--json"]
    alone = call("analysis.fid", *options, "--no-cache")
    together = start("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
                     "analysis.fid", *options)
    assert alone.returncode == together.returncode == 0, together.stderr
    assert alone.stderr == ""  # no warning: its discriminator shares nothing with the judge
    for one, two in zip(json.loads(alone.stdout), json.loads(together.stdout), strict=True):
        assert one.pop("value") == pytest.approx(two.pop("value"), rel=1e-9)
        errors = [row.pop("spread") or 0 for row in (one, two)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)
        assert one == two


def test_table_csv_and_saved_statistics(tmp_path):
    done = call("analysis.fid", "gdd-i", "digits", "--no-cache", "--ranges", "2", "--precision",
                "bf16", "--device", "cpu", "--save-statistics", tmp_path / "s.npz")
    assert done.returncode == 0, done.stderr
    assert "FD1797[digits]" in done.stdout
    again = call("analysis.fid", tmp_path / "s.npz", "digits", "--csv", "--no-cache")
    row = dict(zip(*(line.split(",") for line in again.stdout.splitlines()), strict=True))
    assert row["metric"] == "FD1797[digits]"
    assert 0.5 < float(row["value"]) < 1.7
