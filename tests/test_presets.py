"""The paper's profiles: METHOD's table and measured sizes, and each one's whole path at full size
on a few pictures."""

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
from gdd.config import Hardware, Keep
from gdd.data.images import open_images
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.profiles import PAPER, TEACHERS, preset
from gdd.sampling import generate
from gdd.training.run import run
from gdd.weights import checkpoint
from gdd.weights.download import place

# METHOD section 5: batch, lr, d_lr, EMA half-life in M, images in M
TABLE = {
    "cifar10": (256, 1e-4, 1e-4, 0.5, 5),
    "cifar10-cond": (256, 1e-4, 1e-4, 0.5, 5),
    "afhqv2": (256, 2e-5, 4e-5, 0.5, 10),
    "ffhq": (256, 2e-5, 4e-5, 0.5, 10),
    "imagenet64": (512, 8e-6, 4e-5, 50, 10),
}


@pytest.mark.parametrize("name", PAPER)
def test_profiles_are_the_papers_table(name):
    found, profile = preset(f"{name}-gdd-i"), PAPER[name]
    config = found.config
    numbers = (config.batch_size, config.lr, config.d_lr, config.ema_halflife_images / 1e6,
               config.total_images / 1e6)
    assert numbers == TABLE[name]
    assert (config.betas, config.r1_gamma, config.r1_interval, config.seed,
            config.freeze) == ((0, 0.99), 1e-4, 16, 42, "gdd-i")
    assert (found.teacher, found.network, found.backbones) == (profile.teacher, profile.network,
                                                               profile.backbones)
    assert (config.d_batch_norm_images, config.precision) == (32, "bf16")
    assert profile.backbones == ("vgg16_bn" if "cifar" in name else
                                 "deit_base_distilled_patch16_224", "tf_efficientnet_lite0")
    assert preset(f"{name}-d2o-f") == found
    assert preset(f"{name}-d2o").config == replace(config, freeze="none")


@pytest.mark.parametrize("name", TEACHERS)
def test_public_checkpoints_have_the_measured_sizes(name):
    teacher = TEACHERS[name]
    with torch.device("meta"):
        denoiser = Denoiser.from_config(teacher.network)
    assert denoiser.num_parameters() == teacher.parameters
    assert round(100 * freeze(denoiser, "gdd-i").share, 1) == teacher.frozen_percent


def test_measured_sizes_are_methods():
    """METHOD sections 2 and 5, counted on the official networks."""
    assert [(t.parameters, t.frozen_percent) for t in TEACHERS.values()] == [
        (55_733_891, 85.4),
        (56_397_827, 84.4),
        (56_400_643, 84.4),
        (62_761_091, 83.8),
        (62_761_091, 83.8),
        (295_899_267, 78.8),
    ]


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
    return {
        "resolution": 64
    } | ({
        "transform": "center-crop",
        "rgb": True
    } if name == "imagenet64" else {})


@pytest.fixture(scope="module")
def backbone_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    for name in {name for profile in PAPER.values() for name in profile.backbones}:
        save_file(
            timm.create_model(name, pretrained=False).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.slow
# which differs from ffhq in its pictures only
@pytest.mark.parametrize("name", [name for name in PAPER if name != "afhqv2"])
def test_a_profile_runs_its_whole_path(name, tmp_path, monkeypatch, backbone_files, capsys):
    """Pictures to zip, pickle to teacher, a step of GDD-I with the profile's own networks, and
    images from the result."""
    monkeypatch.chdir(tmp_path)
    profile = PAPER[name]
    source = tmp_path / "source"
    commands.prepare(
        commands.Prepare(source, tmp_path / profile.runs["gdd"].data, **write_source(name, source)))
    teacher = place(profile.teacher)
    teacher.parent.mkdir()
    for backbone in profile.backbones:
        place(backbone).symlink_to(backbone_files / f"{backbone}.safetensors")
    edm_files.write(teacher, Denoiser.from_config(TEACHERS[profile.teacher].network))
    converted = teacher.with_suffix(".safetensors")
    commands.convert(commands.Convert(teacher, converted))
    teacher.unlink()

    settings = ["total_images=2", "batch_size=2", "d_batch_norm_images=2", "precision=fp32"]
    hardware, keep = Hardware(accelerator="cpu"), Keep(ticks=1)
    commands.train(
        commands.Train(tmp_path / "run", f"{name}-gdd-i", settings, keep=keep, hardware=hardware))
    generator, metadata = checkpoint.load_with_metadata(tmp_path / "run" / "final.safetensors")
    (images, ) = generate(generator, range(2), sampler="one-step")
    frozen = TEACHERS[profile.teacher].frozen_percent
    assert f"weights frozen ({frozen}%)" in capsys.readouterr().out
    assert {"loss_g", "loss_d", "r1"} <= metadata["log"][0].keys()
    assert images.shape == (2, 3, *[32 if "cifar" in name else 64] * 2)
    assert images.isfinite().all()
    before = checkpoint.read_tensors(converted)[0]
    report = freeze(generator, "gdd-i")
    changed = {n for n, p in generator.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert not changed & set(report.names)


def test_a_class_conditional_run_needs_classes(tmp_path):
    network = dict(img_resolution=8, img_channels=1, label_dim=4, model_type="SongUNet",
                   model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[4])
    config = replace(preset("smoke-teacher").config, total_images=64)
    with pytest.raises(ValueError, match="data digits has 10 classes, the network expects 4"):
        run(tmp_path / "r", config, open_images("digits"), Denoiser.from_config(network))


def test_what_is_missing_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
            FileNotFoundError,
            match=r"checkpoints/edm-ffhq-64x64-uncond-ve.pkl is not there; `python -m gdd download"
    ):
        commands.train(commands.Train(tmp_path / "run", preset="ffhq-gdd"))
    assert not list(tmp_path.iterdir())
