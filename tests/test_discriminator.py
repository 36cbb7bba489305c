import pytest
import torch
from torch import nn

from gdd.discriminator import HEAD_WIDTHS, ProjectedDiscriminator


class Taps(nn.Module):
    """A stand-in with the tap shapes of a real backbone at 224 pixels: METHOD section 4."""

    map_sizes = (128, 64, 32, 16)

    def __init__(self, tap_channels, finest):
        super().__init__()
        self.tap_channels, self.finest = tap_channels, finest
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        sizes = [self.finest >> level for level in range(4)]
        return [x.new_ones(len(x), c, s, s) * x.mean((1, 2, 3), True) for c, s in zip(self.tap_channels, sizes, strict=True)]


def test_measured_sizes_of_the_papers_discriminator():
    vgg, lite = Taps((128, 256, 512, 512), 112), Taps((24, 40, 112, 320), 56)
    discriminator = ProjectedDiscriminator([vgg, lite])
    trained = sum(p.numel() for p in discriminator.parameters() if p.requires_grad)
    assert trained == 20_662_656
    with torch.no_grad():
        logits = discriminator(torch.randn(2, 3, 32, 32))
    assert [tuple(x.shape) for x in logits] == [(2, 484), (2, 64)]
    assert HEAD_WIDTHS == {64: 64, 32: 128, 16: 256, 8: 512}


def desk(backbone):
    return ProjectedDiscriminator([backbone], channels=(8, 8, 16, 16), head_widths={8: 16, 4: 16})


def test_only_heads_train_and_backbones_stay_in_eval(backbone):
    discriminator = desk(backbone).train()
    assert all(name.startswith("heads.") for name, p in discriminator.named_parameters() if p.requires_grad)
    assert any(p.requires_grad for p in discriminator.parameters())
    assert not any(module.training for module in discriminator.backbones.modules())
    assert discriminator.heads.training


def test_gradient_reaches_the_image_and_projections_are_fixed(backbone):
    discriminator = desk(backbone)
    before = [p.clone() for p in discriminator.projections.parameters()]
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    discriminator(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, discriminator.projections.parameters(), strict=True))


def test_a_missing_head_size_is_named(backbone):
    with pytest.raises(ValueError, match="head sizes must include 8; got 4"):
        ProjectedDiscriminator([backbone], channels=(8, 8, 16, 16), head_widths={4: 16})


def test_heads_are_spectrally_normalised(backbone):
    discriminator = desk(backbone).train()
    for _ in range(30):  # power iteration converges over calls
        discriminator(torch.randn(4, 1, 8, 8))
    for conv in (m for m in discriminator.heads.modules() if isinstance(m, nn.Conv2d)):
        assert torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2) <= 1.05
