import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from gdd.backbones import TimmBackbone, fold_batch_norms
from gdd.discriminator import HEAD_WIDTHS, BatchNorm, ProjectedDiscriminator, RandomProjection


@pytest.fixture(scope="module")
def papers():
    """The paper's CIFAR-10 discriminator over backbones of random weights: the real pretrained ones
    have the same shapes."""
    return ProjectedDiscriminator([TimmBackbone("vgg16_bn"), TimmBackbone("tf_efficientnet_lite0")])


@pytest.mark.slow
def test_measured_sizes_of_the_papers_discriminator(papers):
    trained = sum(p.numel() for p in papers.parameters() if p.requires_grad)
    assert trained == 20_662_656  # docs/method.md, section 3
    with torch.no_grad():
        logits = papers(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert [tuple(x.shape) for x in logits] == [(2, 484), (2, 64)]
    assert HEAD_WIDTHS == {64: 64, 32: 128, 16: 256, 8: 512}


@torch.no_grad()
def test_vgg_taps_are_the_papers_slices(tmp_path):
    network = trained_norms(timm.create_model("vgg16_bn", pretrained=False).eval())
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    vgg = TimmBackbone("vgg16_bn", tmp_path / "w.safetensors").eval()
    x = torch.rand(1, 3, 224, 224) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    for tap, (first, last) in zip(vgg(x), ((0, 13), (13, 23), (23, 33), (33, 43)), strict=True):
        y = network.features[first:last](y)
        assert torch.allclose(tap, y, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_vit_becomes_a_pyramid():
    backbone = TimmBackbone("deit_tiny_distilled_patch16_224").eval()
    taps = backbone(torch.rand(2, 3, 64, 64))
    assert backbone.taps == [2, 5, 8, 11]
    assert [tuple(tap.shape) for tap in taps] == [(2, 192, size, size) for size in (56, 28, 14, 7)]
    logits = ProjectedDiscriminator([backbone])(torch.rand(2, 3, 64, 64))
    assert logits[0].shape == (2, 64)


def test_backbones_take_weights_from_a_file(tmp_path):
    network = timm.create_model("test_vit", pretrained=False)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = TimmBackbone("test_vit", tmp_path / "w.safetensors")
    kept = loaded.network.state_dict()
    assert all(
        torch.equal(kept[name], value) for name, value in network.state_dict().items()
        if name in kept)
    with pytest.raises(ValueError, match="backbone no_such_net"):
        TimmBackbone("no_such_net")
    with pytest.raises(ValueError, match="backbone test_efficientnet"):
        TimmBackbone("test_efficientnet", tmp_path / "w.safetensors")


class Shared(nn.Module):
    """A convolution whose output another layer takes too."""
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


def trained_norms(network):
    """The network with statistics and weights that training could leave."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                nn.init.normal_(tensor, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@torch.no_grad()
@pytest.mark.parametrize(("name", "left"), [("tf_efficientnet_lite0", 0), ("resnet18", 0),
                                            ("densenet121", 62), ("test_vit", 0)])
def test_frozen_batch_norms_are_folded_where_a_convolution_feeds_them(name, left):
    torch.manual_seed(0)
    network = trained_norms(timm.create_model(name, pretrained=False).eval()).double()
    folded = fold_batch_norms(network, 224)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
    x = torch.rand(1, 3, 224, 224).double()
    assert torch.allclose(folded(x), network(x), rtol=1e-9, atol=1e-9)


def test_a_batch_norm_that_shares_its_convolution_stays():
    network = trained_norms(Shared()).eval()
    assert fold_batch_norms(network, 8) is network


def test_classes_decide_the_logits(backbone):
    discriminator = ProjectedDiscriminator([backbone], channels=(8, 8, 16, 16), head_widths={
        8: 16, 4: 16}, label_dim=3).eval()
    x, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    (logits, ) = discriminator(x, labels)
    (plain, ) = desk(backbone)(x)
    assert logits.shape == plain.shape
    discriminator.classes.weight.data[1] = 0
    (changed, ) = discriminator(x, labels)
    assert changed[1].abs().max() == 0
    assert torch.equal(changed[[0, 2, 3]], logits[[0, 2, 3]])
    with pytest.raises(ValueError, match="needs labels"):
        discriminator(x)


def desk(backbone):
    return ProjectedDiscriminator([backbone], channels=(8, 8, 16, 16), head_widths={8: 16, 4: 16})


def test_only_heads_train_and_backbones_stay_in_eval(backbone):
    discriminator = desk(backbone).train()
    assert all(
        name.startswith("heads.") for name, p in discriminator.named_parameters()
        if p.requires_grad)
    assert any(p.requires_grad for p in discriminator.parameters())
    assert not any(module.training for module in discriminator.backbones.modules())
    assert discriminator.heads.training


def test_gradient_reaches_the_image_and_projections_are_fixed(backbone):
    discriminator = desk(backbone)
    before = [p.clone() for p in discriminator.projections.parameters()]
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    discriminator(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, discriminator.projections.parameters(), strict=True))


def test_a_missing_head_size_is_named(backbone):
    with pytest.raises(ValueError, match="d_head_sizes must include 8; got 4"):
        ProjectedDiscriminator([backbone], channels=(8, 8, 16, 16), head_widths={4: 16})


def test_heads_are_spectrally_normalised(backbone):
    discriminator = desk(backbone).train()
    for _ in range(30):  # power iteration converges over calls
        discriminator(torch.randn(4, 1, 8, 8))
    for conv in (m for m in discriminator.heads.modules() if isinstance(m, nn.Conv2d)):
        norm = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=0.05)


def test_projections_keep_pytorchs_default_initialisation():
    taps, channels = (8, 16, 24, 32), (4, 8, 16, 32)
    torch.manual_seed(5)
    projection = RandomProjection(taps, channels)
    torch.manual_seed(5)
    plain = [nn.Conv2d(a, b, 1) for a, b in zip(taps, channels, strict=True)]
    plain += [nn.Conv2d(a, b, 1) for a, b in zip(channels, (4, 4, 8, 16), strict=True)]
    ours = [*projection.across_channels, *projection.across_scales]
    for found, expected in zip(ours, plain, strict=True):
        assert torch.equal(found.weight, expected.weight)
        assert torch.equal(found.bias, expected.bias)
        assert found.bias.any()
        assert not found.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("size", [32, 300])
def test_smaller_and_larger_images_are_resized(name, size):
    """300 pixels give what the same picture gives when it is handed in at the network's size."""
    backbone = TimmBackbone(name).eval()
    x = torch.rand(1, 3, size, size) * 2 - 1
    resized = nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
    assert backbone.image_size == 224
    for found, expected in zip(backbone(x), backbone(resized), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_of_groups_is_that_of_each_alone():
    x = torch.randn(12, 3, 4, 4) * torch.arange(1, 13).view(-1, 1, 1, 1)
    found = BatchNorm(3, 4)(x)
    expected = torch.cat([nn.BatchNorm2d(3)(group) for group in x.split(4)])
    assert torch.equal(found, expected)
    assert torch.equal(BatchNorm(3, 0)(x), nn.BatchNorm2d(3)(x))
    assert not torch.allclose(found, BatchNorm(3, 0)(x))
