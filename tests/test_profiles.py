"""The paper's profiles: the table of docs/method.md and measured sizes, and each one's whole path
on a few pictures, with its own discriminator and a UNet of its kind."""

import pickle
from dataclasses import replace

import edm_files
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from gdd import __main__ as commands
from gdd.config import Hardware
from gdd.data.images import open_images
from gdd.denoiser import Denoiser
from gdd.discriminator import ProjectedDiscriminator
from gdd.freezing import freeze
from gdd.profiles import preset, profiles
from gdd.profiles.paper import DEIT, LITE, LPIPS, TEACHERS, VGG
from gdd.sampling import generate
from gdd.training import command
from gdd.training.command import Train, parse, train
from gdd.training.run import run
from gdd.training.start import missing_files, new_backbone, new_timm_backbone
from gdd.weights import checkpoint
from gdd.weights.download import expected_path

# docs/method.md, section 5: batch, lr, d_lr, EMA half-life in M, images in M
TABLE = {
    "cifar10": (256, 1e-4, 1e-4, 0.5, 5),
    "cifar10-cond": (256, 1e-4, 1e-4, 0.5, 5),
    "afhqv2": (256, 2e-5, 4e-5, 0.5, 10),
    "ffhq": (256, 2e-5, 4e-5, 0.5, 10),
    "imagenet64": (512, 8e-6, 4e-5, 50, 10), }

PAPER = [name for name in profiles() if name in TABLE]


@pytest.mark.parametrize("name", TABLE)
def test_profiles_are_the_papers_table(name):
    profile, run = preset(f"{name}-gdd-i")
    config = profile.config(run)
    numbers = (config.batch_size, config.lr, config.d_lr, config.ema_halflife_images / 1e6,
               config.total_images / 1e6)
    assert numbers == TABLE[name]
    assert (config.betas, config.r1_gamma, config.r1_interval, config.seed,
            config.freeze) == ((0, 0.99), 1e-4, 16, 42, "gdd-i")
    assert (config.ema_rampup, config.gan_loss, config.d_image_size) == (0.05, "non-saturating",
                                                                         224)
    assert profile.network(run) == TEACHERS[config.teacher].network == profile.networks[
        config.teacher]
    assert (config.precision, config.reuse_fakes, config.reduction) == ("bf16", False, "sum")
    # so many images make a sum and share a BatchNorm: a process's, in the official command
    assert config.d_batch_norm_images == (128 if name == "imagenet64" else 64)
    assert config.backbones == (VGG if "cifar" in name else DEIT, LITE)
    assert preset(f"{name}-d2o-f") == (profile, run)
    assert profile.config(preset(f"{name}-d2o")[1]) == replace(config, freeze="none")
    assert profile.config("cd").distance == profile.config("gdd+cd").distance == "lpips"
    assert profile.config("gdd@7") == replace(config, freeze="none", seed=7)


def small_discriminators():
    """Those that runs of the small profiles ask for, each once."""
    asked = {}
    for profile in (profile for name, profile in profiles().items() if name not in TABLE):
        for name, config in profile.runs.items():
            if config.adversarial:
                heads = config.d_channels, config.d_head_sizes, config.d_head_widths
                asked.setdefault((profile.name, config.backbones, config.d_image_size, heads),
                                 pytest.param(profile, config, id=f"{profile.name}-{name}"))
    return asked.values()


@pytest.mark.parametrize(("profile", "config"), small_discriminators())
def test_heads_fit_the_maps_of_backbones(profile, config):
    backbones = [
        new_backbone(profile, name) if name in profile.classifiers else new_timm_backbone(
            name, config) for name in config.backbones]
    widths = dict(zip(config.d_head_sizes, config.d_head_widths, strict=True))
    discriminator = ProjectedDiscriminator(backbones, channels=config.d_channels,
                                           head_widths=widths)
    with torch.no_grad():
        logits = discriminator(torch.zeros(2, *profile.shape))
    assert [len(x) for x in logits] == [2] * len(backbones)


def test_d2o_is_another_name_of_runs_not_of_files(tmp_path):
    file = tmp_path / "d2o" / "mine.py"
    file.parent.mkdir()
    file.write_text("from gdd.profiles.digits import DESK as PROFILE\n")
    found, run = preset(f"{file}-d2o-f")
    assert (found.name, run) == ("desk", "gdd-i")


@pytest.mark.parametrize(("hardware", "change", "said"), [
    (Hardware(devices=4), {}, (64, "BatchNorm looks at 64 of them")),
    (Hardware(devices=2), {}, (128, "give --micro-batch-size 64,")),
    (Hardware(devices=2, micro_batch_size=96), dict(d_batch_norm_images=32),
     (96, "give --micro-batch-size 32,")),
    (Hardware(), dict(objective="edm"), (256, "give --micro-batch-size 128,")),
    (Hardware(micro_batch_size=1), dict(objective="edm"), (1, "there are no smaller passes"))])
def test_out_of_memory_is_told_with_what_the_engine_takes(hardware, change, said, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    profile, run = preset("cifar10-gdd-i")
    micro, way_on = command.smaller_passes(replace(profile.config(run), **change), hardware)
    assert micro == said[0]
    assert way_on.startswith(said[1])


@pytest.mark.parametrize("name", TEACHERS)
def test_public_checkpoints_have_the_measured_sizes(name):
    teacher = TEACHERS[name]
    with torch.device("meta"):
        denoiser = Denoiser.from_config(teacher.network)
    assert denoiser.num_parameters() == teacher.parameters
    assert round(100 * freeze(denoiser, "gdd-i").share, 1) == teacher.frozen_percent


def test_measured_sizes_are_methods():
    """docs/method.md, sections 2 and 5, counted on the official networks."""
    assert [(t.parameters, t.frozen_percent) for t in TEACHERS.values()] == [
        (55_733_891, 85.4),
        (56_397_827, 84.4),
        (56_400_643, 84.4),
        (62_761_091, 83.8),
        (62_761_091, 83.8),
        (295_899_267, 78.8), ]


def write_source(name, folder):
    """A few pictures as each data set is published: batches, nested folders, class folders of other
    sizes and colours."""
    rng = np.random.default_rng(0)
    if name.startswith("cifar10"):
        folder.mkdir()
        for k in range(1, 6):
            batch = {"data": rng.integers(0, 256, (2, 3072), np.uint8), "labels": [k, 2 * k - 1]}
            (folder / f"data_batch_{k}").write_bytes(pickle.dumps(batch, 2))
        return {}
    for k in range(4):
        (folder / f"n{k:05d}").mkdir(parents=True)
        size = (100 + 10 * k, 90, 3) if name == "imagenet64" else (96, 96, 3)
        image = Image.fromarray(rng.integers(
            0, 256, size, np.uint8)).convert("L" if name == "imagenet64" and k == 2 else "RGB")
        image.save(folder / f"n{k:05d}" / "a.jpg")
    return {"resolution": 64
            } | ({"transform": "center-crop", "rgb": True} if name == "imagenet64" else {})


@pytest.fixture(scope="module")
def backbone_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    for name in (VGG, LITE, DEIT):
        state = timm.create_model(name, pretrained=False).state_dict()
        save_file(state, folder / f"{name}.safetensors")
    return folder


def narrow(network):
    """The UNet with a fraction of its channels: the same blocks, attention and names."""
    return network | dict(model_channels=32, num_blocks=1, channel_mult_emb=2)


@pytest.mark.slow
# afhqv2 differs from ffhq in its pictures only, cifar10 from cifar10-cond in its labels
@pytest.mark.parametrize("name", ["cifar10-cond", "ffhq", "imagenet64"])
def test_a_profile_runs_its_whole_path(name, tmp_path, monkeypatch, backbone_files, capsys):
    """Pictures to zip, pickle to teacher, two steps of GDD-I and one of R1 with the profile's own
    discriminator, and images from the result."""
    monkeypatch.chdir(tmp_path)
    profile, source = profiles()[name], tmp_path / "source"
    run = profile.runs["gdd"]
    commands.prepare(commands.Prepare(source, tmp_path / run.data, **write_source(name, source)))
    teacher = expected_path(run.teacher)
    teacher.parent.mkdir()
    for backbone in run.backbones:
        expected_path(backbone).symlink_to(backbone_files / f"{backbone}.safetensors")
    network = Denoiser.from_config(narrow(TEACHERS[run.teacher].network) | dict(dropout=0.13))
    edm_files.write(teacher, network)
    converted = teacher.with_suffix(".safetensors")
    commands.convert(commands.Convert(teacher, converted))
    teacher.unlink()

    changes = [
        "--total-images", "4", "--batch-size", "2", "--d-batch-norm-images", "2", "--r1-interval",
        "1", "--ticks", "1", "--samples", "2", "--accelerator", "cpu", "--no-tensorboard",
        "--folder",
        str(tmp_path / "run")]
    train(parse(Train, [f"{name}-gdd-i", *changes], "test"))
    generator, metadata = checkpoint.load_with_metadata(tmp_path / "run" / "final.safetensors")
    (images, ) = generate(generator, range(2), sampler="one-step")
    report = freeze(generator, "gdd-i")
    assert f"weights frozen ({report.share:.1%})" in capsys.readouterr().out
    assert {"loss_g", "loss_d", "r1"} <= metadata["log"][0].keys()
    assert metadata["train"]["precision"] == "bf16"
    assert generator.config["dropout"] == 0
    assert images.shape == (2, 3, *[32 if "cifar" in name else 64] * 2)
    assert images.isfinite().all()
    before = checkpoint.read_tensors(converted)[0]
    changed = {n for n, p in generator.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert not changed & set(report.names)


def test_a_class_conditional_run_needs_classes(tmp_path):
    network = dict(img_resolution=8, img_channels=1, label_dim=4, model_type="SongUNet",
                   model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[4])
    config = replace(profiles()["smoke"].config("teacher"), total_images=64)
    with pytest.raises(ValueError, match="data digits has 10 classes, the network expects 4"):
        run(tmp_path / "r", config, open_images("digits"), Denoiser.from_config(network))


def test_what_is_missing_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"checkpoints/\S+ is not there; `python -m gdd download \w+` fetches it from https"
    with pytest.raises(FileNotFoundError, match=message):
        train(parse(Train, ["ffhq-gdd", "--folder", str(tmp_path / "run")], "test"))
    assert not list(tmp_path.iterdir())
    missing = " ".join(missing_files(profiles()["ffhq"]))
    for name in ("datasets/ffhq-64x64.zip", "edm-ffhq-64x64-uncond-ve.pkl", "ffhq-64x64.npz", DEIT,
                 LITE, LPIPS):
        assert f"{name} " in missing or f"{name}.safetensors " in missing
    assert not missing_files(profiles()["smoke"])
