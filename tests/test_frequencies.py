"""Spectra against closed forms: white noise, single waves, and what a step changes."""

import math

import pytest
import torch

from analysis import frequencies
from analysis.spectrum import band_energy, band_modes, radial_power
from gdd.denoiser import Denoiser
from gdd.profiles.digits import NETWORK


def test_white_noise_has_power_one_at_every_radius():
    noise = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(radial_power(noise).mean(dim=0), torch.ones(8), atol=0.05, rtol=0)


@pytest.mark.parametrize("cycles", [1, 3, 7])
def test_a_wave_has_power_at_its_radius_alone(cycles):
    x = torch.cos(2 * math.pi * cycles * torch.arange(16) / 16).expand(1, 1, 16, 16)
    power = radial_power(x)[0]
    assert power.argmax() == cycles - 1
    assert power.sum() == pytest.approx(float(power.max()), rel=1e-5)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_white_noise_fills_bands_by_their_modes(size):
    noise = torch.randn(3000, 4, size, size, generator=torch.Generator().manual_seed(1))
    power = torch.fft.fft2(noise, norm="ortho").abs().square()
    assert float(power.mean()) == pytest.approx(1, abs=0.05)
    # shares of a sum: their mean is the modes' share only where many modes are summed
    found = band_energy(noise).mean(dim=0)
    torch.testing.assert_close(found, band_modes(size), atol=0.04, rtol=0)
    assert float(band_modes(size).sum()) == pytest.approx(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Denoiser.from_config(NETWORK).eval()


def test_skips_and_backbones_are_told_apart(network):
    """A network whose skips are silenced has skip parts without power, and backbones with it."""
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    table = frequencies.measure_blocks(network, images, [80.0, 0.5], model="m")
    blocks = [name for name in network.model.dec if "_block" in name]
    assert list(table["block"].unique()) == blocks
    assert set(table["part"]) == {"backbone", "skip"}
    assert len(table) == len(blocks) * 2 * 2 * frequencies.BANDS
    sums = table.groupby(["block", "part", "step"])["share"].sum()
    assert sums.between(0.999, 1.001).all()
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_change_of_a_step_is_between_its_images(network):
    table = frequencies.measure_steps(network, range(3), model="m", steps=4)
    assert set(table["step"]) == {0, 1, 2, 3}
    assert table[table["step"] == 0]["change"].isna().all()
    assert (table[table["step"] > 0]["change"] > 0).all()
    centres = frequencies.direction(table)
    assert centres["cycles"].between(1, 4).all()
    assert len(centres) == 3
