import pandas as pd
import pytest
import torch
from conftest import small_denoiser

from analysis import activations
from analysis.spectrum import band_energy
from gdd.data.images import to_float
from gdd.sampling import draw_latents, sigma_ladder


def test_table_is_tidy_and_complete(tiny, digits):
    images = to_float(digits.images[:3])
    table = activations.measure(tiny, model="tiny", seeds=range(4), images=images, steps=5)
    blocks = [
        name for name in [*tiny.model.enc, *tiny.model.dec]
        if "conv" not in name and "aux" not in name]
    assert list(table.columns) == activations.COLUMNS
    assert len(table) == 2 * 5 * len(blocks)
    assert not table.isna().any().any()
    assert set(table["process"]) == {"sampling", "denoising"}
    assert dict(table.groupby("process")["n"].first()) == {"sampling": 4, "denoising": 3}
    steps = table.drop_duplicates("step").sort_values("step")["sigma"]
    assert list(steps) == pytest.approx(sigma_ladder(5)[:-1].tolist())
    order = table.drop_duplicates(["side", "block"]).sort_values(["side", "depth"])
    assert list(order.query("side == 'encoder'")["block"]) == [
        name for name in tiny.model.enc if "conv" not in name]
    assert (order.groupby("side")["depth"].diff().dropna() == 1).all()


def test_values_are_what_a_plain_hook_sees(tiny):
    table = activations.measure(tiny, model="tiny", seeds=range(2), steps=4, statistic="rms")
    latents, _ = draw_latents(range(2), (1, 8, 8))
    seen = []
    handle = tiny.model.enc["4x4_down"].conv1.register_forward_hook(
        lambda m, i, o: seen.append(o.clone()))
    with torch.no_grad():
        tiny(latents.double() * 80, 80.0)
    handle.remove()
    row = table.query("block == '4x4_down' and side == 'encoder' and step == 0")
    assert row["value"].item() == pytest.approx(
        float(seen[0].square().mean((1, 2, 3)).sqrt().mean()), rel=1e-5)


@pytest.mark.parametrize("statistic", activations.statistics())
def test_statistics_do_not_depend_on_the_batch_size(tiny, digits, statistic):
    images = to_float(digits.images[:5])
    what = dict(model="t", seeds=range(5), images=images, steps=3, statistic=statistic,
                parts=("conv1", "proj"))
    a, b = (activations.measure(tiny, **what, batch_size=size) for size in (2, 5))
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-6)
    assert set(a["part"]) == {"conv1", "proj"}
    assert a["index"].max() == {"channel": 15, "bands": 3}.get(statistic, 0)


def test_a_conditional_network_denoises_images_with_their_own_labels(digits):
    denoiser = small_denoiser(label_dim=10)
    given: list[list[int]] = []
    forward = denoiser.forward
    denoiser.forward = lambda x, sigma, labels=None: (given.append(labels.tolist()),
                                                      forward(x, sigma, labels))[1]
    images, labels = to_float(digits.images[:5]), digits.labels[:5]
    what = dict(model="t", seeds=range(4), images=images, steps=2, batch_size=3)
    table = activations.measure(denoiser, **what, labels=labels)
    drawn = draw_latents(range(4), (1, 8, 8), 10)[1].tolist()
    # sampling: two calls of the first step, one of the last; denoising: one a level
    assert given == [drawn[:3]] * 3 + [drawn[3:]] * 3 + [labels[:3].tolist()] * 2 + [
        labels[3:].tolist()] * 2
    others = activations.measure(denoiser, **what, labels=(labels + 1) % 10)
    same = table["value"] == others["value"]
    assert same[table["process"] == "sampling"].all()
    assert not same[table["process"] == "denoising"].any()
    for wrong in (None, labels + 9, labels[:3]):
        with pytest.raises(ValueError, match="10 classes denoises images with their own labels"):
            activations.measure(denoiser, **what, labels=wrong)
    activations.measure(denoiser, model="t", seeds=range(2), steps=2)  # needs none


def test_unknown_names_are_refused(tiny):
    assert tuple(activations.statistics()) == activations.STATISTICS
    with pytest.raises(ValueError, match="statistic must be one of mean_abs"):
        activations.measure(tiny, model="t", statistic="median")
    with pytest.raises(ValueError, match="parts must be of conv1, proj; got conv9"):
        activations.measure(tiny, model="t", parts=("conv9", ))


def test_band_energy_finds_the_frequency():
    column = torch.arange(16) * torch.pi
    # half a cycle per pixel, along one axis: radius 0.5 of 0.71
    fast = torch.cos(column).expand(1, 1, 16, 16)
    slow = torch.cos(column / 8).expand(1, 1, 16, 16)
    assert band_energy(fast)[0].tolist() == pytest.approx([0, 0, 1, 0], abs=1e-5)
    assert band_energy(slow)[0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert band_energy(torch.randn(2, 3, 8, 8)).sum(1).tolist() == pytest.approx([1, 1])
    assert band_energy(torch.ones(1, 2, 1, 1)).tolist() == [[0, 0, 0, 0]]
