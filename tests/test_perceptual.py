import lpips
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from gdd.perceptual import Lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg16.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("vgg16", pretrained=False).state_dict(), path)
    return path


@pytest.mark.slow
# lpips calls torchvision as it was called years ago
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_the_packages_with_timms_weights_at_224_pixels(weights):
    """timm's file of VGG16 holds torchvision's weights under the same names."""
    from safetensors.torch import load_file

    network = torchvision.models.vgg16(weights=None)
    found = load_file(weights)
    network.features.load_state_dict({
        n.removeprefix("features."): t for n, t in found.items() if n.startswith("features.")})
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for part in (getattr(reference.net, f"slice{k}") for k in range(1, 6)):
        for index, layer in part.named_children():
            layer.load_state_dict(network.features[int(index)].state_dict())
    distance = Lpips(weights)
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    large = [
        torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
        for x in (a, b)]
    with torch.no_grad():
        assert torch.allclose(distance(a, b), reference(*large).flatten(), rtol=1e-5)
        assert torch.equal(distance(a, a), torch.zeros(2))
        assert (distance(a, b) > 0).all()
        assert torch.allclose(distance(a, b), distance(b, a))
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    prediction = a.clone().requires_grad_()
    distance(prediction, b).sum().backward()
    assert prediction.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_images_of_more_than_224_pixels_are_resized_too():
    distance, seen = Lpips(), []
    distance.metric.register_forward_pre_hook(lambda module, args: seen.extend(args))
    distance.metric.forward = lambda a, b: (a - b).square().mean((1, 2, 3))
    for size in (32, 224, 300):
        a, b = torch.rand(2, 1, 3, size, size)
        distance(a, b)
    assert {tuple(x.shape) for x in seen} == {(1, 3, 224, 224)}


def test_another_networks_file_is_refused(tmp_path):
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors is not timm's vgg16"):
        Lpips(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match=r"y.safetensors is not timm's vgg16"):
        Lpips(tmp_path / "y.safetensors")
