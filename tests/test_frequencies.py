"""Spectra against closed forms: white noise, single waves, and what a step changes."""

import math

import pandas as pd
import pytest
import torch

from analysis import frequencies
from analysis.spectrum import band_energy, band_modes, radial_power
from gdd.denoiser import Denoiser
from gdd.profiles.digits import NETWORK
from gdd.sampling import draw_latents, solve


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
    """A block whose skip is silenced has a skip part without power, and a backbone with it."""
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    blocks = [name for name in network.model.dec if "_block" in name]
    width = frequencies.skip_widths(network.model)[blocks[-1]]

    def silence(module, inputs):
        x = inputs[0].clone()
        x[:, -width:] = 0
        return (x, *inputs[1:])

    handle = network.model.dec[blocks[-1]].register_forward_pre_hook(silence)
    try:
        table = frequencies.measure_blocks(network, images, [80.0, 0.5], model="m")
    finally:
        handle.remove()
    assert list(table["block"].unique()) == blocks
    assert len(table) == len(blocks) * 2 * 2 * frequencies.BANDS
    sums = table.groupby(["block", "part", "step"])["share"].sum()
    assert sums.drop((blocks[-1], "skip")).between(0.999, 1.001).all()
    assert (sums[blocks[-1], "skip"] == 0).all()
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_batches_change_no_share(network, monkeypatch):
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = frequencies.measure_blocks(network, images, [80.0, 0.5], model="m")
    monkeypatch.setattr(frequencies, "BATCH", 2)
    parts = frequencies.measure_blocks(network, images, [80.0, 0.5], model="m")
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-4)


def test_the_change_of_a_step_is_between_its_images(network, monkeypatch):
    monkeypatch.setattr(frequencies, "BATCH", 2)
    table, made = frequencies.measure_steps(network, range(3), model="m", steps=4)
    assert set(table["step"]) == {0, 1, 2, 3}
    assert table[table["step"] == 0]["change"].isna().all()
    latents, _ = draw_latents(range(3), (1, 8, 8))
    with torch.inference_mode():
        *steps, last = solve(network, latents, steps=4)
    torch.testing.assert_close(made, last.x, rtol=0, atol=1e-5)
    images = [step.x0_hat for step in steps]
    for step in (1, 2, 3):
        rows = table[table["step"] == step]
        for column, x in (("x0", images[step]), ("change", images[step] - images[step - 1])):
            wanted = radial_power(x).mean(dim=0).tolist()
            assert rows[column].tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_steps_place_is_the_mean_over_its_power_and_modes():
    """Power 3 and 1 at 1 and 2 cycles, which have about 1 and 2 modes: (3 + 4) / (3 + 2)."""
    rows = [dict(model="m", step=step, sigma=1.0, cycles=cycles, change=change)
            for step, changes in ((0, (math.nan, math.nan)), (1, (3.0, 1.0)))
            for cycles, change in enumerate(changes, 1)]  # yapf: disable
    (row, ) = frequencies.direction(pd.DataFrame(rows)).to_dict("records")
    assert row == {"model": "m", "step": 1, "sigma": 1.0, "cycles": pytest.approx(7 / 5)}
