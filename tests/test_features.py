"""Extractors against clean-fid's own functions over stand-ins of the detectors: the same interface,
random weights."""

from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from cleanfid import fid as cleanfid
from cleanfid import inception_pytorch
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from analysis.features import ClassifierFeatures, classifier, extractor, family, timm_networks
from analysis.features.inception import INCEPTION, INCEPTION_PYTORCH
from analysis.features.timm_networks import TIMM_NAMES


class Layers(nn.Module):
    """From 299 pixels, normalised, to 2,048 features."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 9, 6)
        self.linear = nn.Linear(32 * 49, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 7).flatten(1)))


class Detector(nn.Module):
    """The interface of NVIDIA's inception-2015-12-05.pt."""
    def __init__(self):
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False,
                no_output_bias: bool = False) -> Tensor:
        x = F.interpolate(img, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    torch.jit.script(Detector()).save(str(folder / INCEPTION))
    with (
            mock.patch.object(inception_pytorch, "load_state_dict_from_url", return_value={}),
            mock.patch.object(nn.Module, "load_state_dict", return_value=None),
    ):
        torch.save(inception_pytorch.fid_inception_v3().state_dict(), folder / INCEPTION_PYTORCH)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder, torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("mode", "theirs"), [("edm", "legacy_tensorflow"), ("clean", "clean")])
def test_torchscript_inception_gives_clean_fids_numbers(mode, theirs, weights, pictures):
    folder, images = pictures
    model = InceptionV3W(str(weights), download=False, resize_inside=mode == "edm").eval()
    wanted = cleanfid.get_folder_features(str(folder), model=model, mode=theirs, num_workers=0,
                                          device="cpu", verbose=False)
    found = extractor(f"inception:{mode}", folder=weights)(images)
    assert found.shape == (6, 2048)
    assert np.allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_pytorch_inception_gives_clean_fids_numbers(weights, pictures):
    folder, images = pictures
    state = torch.load(weights / INCEPTION_PYTORCH, weights_only=True)
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url", return_value=state):
        model = build_feature_extractor("legacy_pytorch", torch.device("cpu"),
                                        use_dataparallel=False)
    wanted = cleanfid.get_folder_features(str(folder), model=model, mode="legacy_pytorch",
                                          num_workers=0, device="cpu", verbose=False)
    found = extractor("inception:legacy_pytorch", folder=weights)(images)
    assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


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


def test_a_timm_network_from_a_file(tmp_path):
    network = timm.create_model("test_vit", pretrained=False)
    save_file(network.state_dict(), tmp_path / "test_vit.safetensors")
    found = extractor("timm:test_vit", folder=tmp_path)
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
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
    assert found.identity == extractor("timm:test_vit", folder=tmp_path).identity


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(timm_networks.socket, "create_connection", offline)
    with pytest.raises(
            FileNotFoundError, match=
            rf"{INCEPTION} is not there and cannot be fetched \(no network\); put https://nvlabs"):
        extractor("inception", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{INCEPTION_PYTORCH} .*put https://github.com"):
        extractor("inception:legacy_pytorch", folder=tmp_path)
    with pytest.raises(
            FileNotFoundError,
            match=r"test_vit\.safetensors .* huggingface.co cannot be reached \(no network\)"):
        extractor("timm:test_vit", folder=tmp_path)
    with pytest.raises(ValueError, match="features timm:nothing"):
        extractor("timm:nothing", folder=tmp_path)
    with pytest.raises(ValueError, match="features must be one of inception, "):
        extractor("vgg", folder=tmp_path)
    (tmp_path / INCEPTION).write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a TorchScript detector"):
        extractor("inception", folder=tmp_path)
    (tmp_path / INCEPTION_PYTORCH).write_bytes(b"hello")
    with pytest.raises(ValueError, match="does not hold pytorch-fid's Inception"):
        extractor("inception:legacy_pytorch", folder=tmp_path)


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
