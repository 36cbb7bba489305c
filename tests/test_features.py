"""Extractors against clean-fid's and torch-fidelity's own functions, with random weights in both;
which files are opened, and which never."""

import hashlib
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from cleanfid import fid as cleanfid
from cleanfid import inception_pytorch
from cleanfid.downloads_helper import inception_url
from cleanfid.features import build_feature_extractor
from cleanfid.inception_pytorch import FID_WEIGHTS_URL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from analysis.features import (
    ClassifierFeatures,
    classifier,
    extractor,
    family,
    inception,
    timm_networks,
)
from analysis.features.inception import TORCHSCRIPT, WEIGHTS, resized_as_tensorflow1
from analysis.features.inception_network import InceptionV3
from analysis.features.timm_networks import TIMM_NAMES

PUBLISHED = dict(inception.SHA256)


def random_state():
    """Weights of no meaning that keep the features apart, under the names of the published file."""
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.05)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.state_dict()


class Detector(nn.Module):
    """The interface of NVIDIA's inception-2015-12-05.pt."""
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(3 * 49, 1008)

    def forward(self, img: Tensor, return_features: bool = False,
                no_output_bias: bool = False) -> Tensor:
        features = F.adaptive_avg_pool2d((img - 128) / 128, 7).flatten(1)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


class Writer(nn.Module):
    """What a planted file may do: TorchScript makes a file of a name of its choice."""
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        made = torch.from_file("planted", shared=True, size=4)
        return img.flatten(1)[:, :64] + made.sum()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Stand-ins in the place of both files, and their digests in that of the published ones."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(random_state(), folder / WEIGHTS)
    torch.jit.script(Detector()).save(str(folder / TORCHSCRIPT))
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (WEIGHTS, TORCHSCRIPT)}
    with mock.patch.dict(inception.SHA256, digests):
        yield folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder, torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's Inception with the same random weights."""
    with mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url",
                           return_value=random_state()):
        return FeatureExtractorInceptionV3("it", ["2048", "logits_unbiased"])


def test_inception_is_torch_fidelitys_which_is_tensorflows(weights, pictures, theirs):
    """The same operations on the same numbers: nothing differs, resize, network and classes."""
    found = extractor("inception", folder=weights)
    for size in ((32, 32), (40, 7), (301, 299)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        with torch.inference_mode():
            features, logits = theirs(images)
        assert torch.allclose(found(images), features, rtol=1e-6, atol=1e-6)
        assert torch.allclose(found.classify(images), logits.softmax(1), rtol=1e-5, atol=1e-9)
        assert torch.equal(
            resized_as_tensorflow1(images.float()),
            interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299),
                                                      align_corners=False))
    assert features[0].std() > 0.1  # features that random weights do not flatten
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_clean_inception_resizes_as_clean_fid(weights, pictures):
    """clean-fid's own function over a detector of the interface it wants."""
    class Wanted(nn.Module):
        """As clean-fid's InceptionV3W, which runs NVIDIA's layers."""
        def forward(self, x):
            return network((x - 128) / 128)

    network = InceptionV3().eval()
    network.load_state_dict(random_state())
    folder, images = pictures
    wanted = cleanfid.get_folder_features(str(folder), model=Wanted(), mode="clean", num_workers=0,
                                          device="cpu", verbose=False)
    found = extractor("inception:clean", folder=weights)(images)
    assert found.shape == (6, 2048)
    assert np.allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_legacy_pytorch_inception_gives_clean_fids_numbers(weights, pictures):
    folder, images = pictures
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url",
                           return_value=random_state()):
        model = build_feature_extractor("legacy_pytorch", torch.device("cpu"),
                                        use_dataparallel=False)
    wanted = cleanfid.get_folder_features(str(folder), model=model, mode="legacy_pytorch",
                                          num_workers=0, device="cpu", verbose=False)
    found = extractor("inception:legacy_pytorch", folder=weights)(images)
    assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inception", "inception:clean", "inception:legacy_pytorch"])
def test_no_torchscript_is_run_unasked(name, weights, tmp_path, monkeypatch):
    """A planted detector lies where the old code looked; the features come from the weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.jit.script(Writer()).save(str(folder / TORCHSCRIPT))
    (folder / WEIGHTS).write_bytes((weights / WEIGHTS).read_bytes())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("TorchScript was opened"))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert extractor(name)(images).shape == (2, 2048)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_only_the_published_files_are_opened(tmp_path, monkeypatch):
    """Whatever is planted: its digest is looked at before torch is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inception, "SHA256", PUBLISHED)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.jit.script(Writer()).save(str(folder / TORCHSCRIPT))
    torch.save(random_state(), folder / WEIGHTS)
    for opener in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(*opener, lambda *_, **__: pytest.fail("it was opened"))
    for name in ("inception", "inception:clean", "inception:legacy_pytorch",
                 "inception:torchscript"):
        with pytest.raises(ValueError, match="is not the published file and is not opened: its"):
            extractor(name)
    assert len(list(tmp_path.iterdir())) == 1
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(ValueError, match="is no file, or above"):
        extractor("inception")
    (folder / WEIGHTS).rmdir()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is no file, or above"):
        extractor("inception")
    (folder / WEIGHTS).unlink()
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="is no file, or above"):
        extractor("inception")


def test_digests_are_those_that_were_published():
    assert WEIGHTS.endswith(f"-{PUBLISHED[WEIGHTS][:8]}.pth")
    assert {len(digest) for digest in PUBLISHED.values()} == {64}
    assert inception.URLS[WEIGHTS] == FID_WEIGHTS_URL
    assert inception_url == inception.URLS[TORCHSCRIPT]


def test_what_is_fetched_is_held_against_its_digest(tmp_path, monkeypatch):
    asked = {}

    def fetch(url, path, hash_prefix, progress):
        asked[url] = hash_prefix
        raise RuntimeError(f"invalid hash value\x1b[2J (expected {hash_prefix}, got 0)")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(invalid hash") as raised:
        extractor("inception", folder=tmp_path)
    assert str(raised.value).isprintable()
    assert list(asked.values()) == [inception.SHA256[WEIGHTS]]


def test_weights_of_another_network_are_named(tmp_path, monkeypatch):
    for content in ({}, {"fc.weight": torch.zeros(2)}, [1, 2], torch.zeros(3)):
        torch.save(content, tmp_path / WEIGHTS)
        monkeypatch.setitem(inception.SHA256, WEIGHTS,
                            hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest())
        with pytest.raises(ValueError, match="does not hold pytorch-fid's Inception"):
            extractor("inception", folder=tmp_path)


def test_nvidias_detector_by_its_name_alone(weights):
    images = torch.randint(0, 256, (3, 3, 14, 14), dtype=torch.uint8)
    found = extractor("inception:torchscript", folder=weights)
    wanted = F.adaptive_avg_pool2d((images.float() - 128) / 128, 7).flatten(1)
    assert torch.allclose(found(images), wanted, atol=1e-6)
    assert found.classify(images).shape == (3, 1008)
    assert found.name == "inception:torchscript"


def test_names_families_and_probabilities(weights, pictures):
    inception = extractor("inception", folder=weights)
    assert (inception.name, inception.family) == ("inception", "inception")
    probabilities = inception.classify(pictures[1])
    assert probabilities.shape == (6, 1008)
    assert torch.allclose(probabilities.sum(1), torch.ones(6), atol=1e-5)
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(inception(grey), inception(grey.expand(-1, 3, -1, -1)))
    assert extractor("inception:clean", folder=weights).identity != inception.identity
    assert [
        family(name) for name in ("vgg16_bn", "tf_efficientnet_lite0", TIMM_NAMES["clip"],
                                  TIMM_NAMES["dinov2"], "abc")] == [
                                      "vgg",
                                      "efficientnet",
                                      "clip",
                                      "dino",
                                      "abc", ]


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_timm_network_from_a_file(name, tmp_path):
    network = timm.create_model(name, pretrained=False)
    save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    found = extractor(f"timm:{name}", folder=tmp_path)
    images = torch.randint(0, 256, (timm_networks.AT_ONCE + 3, 3, 20, 20), dtype=torch.uint8)
    size = network.pretrained_cfg["input_size"][-1]
    x = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True).clip(
        0, 255) / 255
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None]
                 for key in ("mean", "std"))
    with torch.no_grad():
        wanted = network.eval().forward_head(network.forward_features((x - mean) / std),
                                             pre_logits=True)
    assert torch.allclose(found(images), wanted, atol=1e-4)
    assert found.classify(images) is None
    assert found.identity == extractor(f"timm:{name}", folder=tmp_path).identity


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(timm_networks.socket, "create_connection", offline)
    for name, file, host in (("inception", WEIGHTS, "github.com"), ("inception:torchscript",
                                                                    TORCHSCRIPT, "nvlabs")):
        with pytest.raises(
                FileNotFoundError, match=
                rf"{file} is not there and cannot be fetched \(no network\); put https://{host}"):
            extractor(name, folder=tmp_path)
    with pytest.raises(
            FileNotFoundError,
            match=r"test_vit\.safetensors .* huggingface.co cannot be reached \(no network\)"):
        extractor("timm:test_vit", folder=tmp_path)
    with pytest.raises(ValueError, match="features timm:nothing"):
        extractor("timm:nothing", folder=tmp_path)
    with pytest.raises(ValueError, match="features must be one of inception, "):
        extractor("vgg", folder=tmp_path)
    with pytest.raises(ValueError, match=r"features must be one of inception, .*inception:clean"):
        extractor("inception:", folder=tmp_path)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8),
     torch.zeros(2, 4, 8, 8, dtype=torch.uint8),
     torch.zeros(3, 8, 8)])
def test_only_uint8_images(images, weights):
    with pytest.raises(ValueError, match="features take uint8 images"):
        extractor("inception", folder=weights)(images)


def test_clip_and_dinov2_have_their_sizes(tmp_path):
    """Architectures only, on the meta device: the embedding CLIP-FID is computed on, and DINOv2's
    class token."""
    with torch.device("meta"):
        clip = timm.create_model(TIMM_NAMES["clip"], pretrained=False)
        dino = timm.create_model(TIMM_NAMES["dinov2"], pretrained=False, num_classes=0,
                                 img_size=224)
        x = torch.empty(1, 3, 224, 224)
        assert clip(x).shape == (1, 512)
        assert dino(x).shape == (1, 1024)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.02), ("fp16", 0.003), ("tf32", 1e-6)])
def test_features_in_half_precision_are_nearly_the_same(precision, error):
    torch.manual_seed(0)
    network = ClassifierFeatures(3, 12, 4)
    images = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    exact = classifier(network, "small", "untrained")
    rough = classifier(network, "small", "untrained", precision=precision)
    assert rough.identity != exact.identity  # another entry of the cache
    assert rough(images).dtype == torch.float32
    assert (rough(images) - exact(images)).abs().max() < error * exact(images).abs().max()
    assert not torch.backends.cuda.matmul.allow_tf32  # as it was before
    assert torch.allclose(rough.classify(images).sum(dim=1), torch.ones(16), atol=2e-2)
