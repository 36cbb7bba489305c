"""What is scaled is the branch and nothing else, and what is measured is what sampling with another
network at some levels gives."""

import copy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_denoiser
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from analysis import activations, figures, importance, importance_plots, tables
from gdd.layers import UNetBlock
from gdd.profiles import profile
from gdd.sampling import draw_latents, heun, one_step, sigma_ladder

CONV, ATTENTION = "model.dec.8x8_up.conv1", "model.dec.4x4_in0.proj"


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


def without(denoiser, branch):
    """A copy whose branch has no weights: an ablation that needs no hook."""
    other = copy.deepcopy(denoiser)
    for parameter in other.get_submodule(branch).parameters():
        parameter.data.zero_()
    return other


def rms(images, others):
    return (images.clamp(-1, 1) - others.clamp(-1, 1)).square().mean(dim=(1, 2, 3)).sqrt()


@pytest.fixture(scope="module")
def measured():
    denoiser = small_denoiser()
    return denoiser, importance.measure(denoiser, model="tiny", seeds=range(5), steps=6, bands=3)


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("channels", [4, 6])  # the skip path is the identity, or a convolution
def test_without_its_branches_a_block_is_its_skip_path(channels, heads):
    block = UNetBlock(4, channels, 8, num_heads=heads, skip_scale=0.5**0.5, eps=1e-6)
    for parameter in block.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x, emb = torch.randn(3, 4, 8, 8), torch.randn(3, 8)
    branches = ["conv1", *(["proj"] if heads else [])]
    with torch.no_grad():
        skip = x if block.skip is None else block.skip(x)
        whole = block(x, emb)
        with importance.scaled(block, dict.fromkeys(branches, 0.0)):
            assert torch.allclose(block(x, emb), skip * 0.5**(len(branches) / 2), atol=1e-6)
        with importance.scaled(block, dict.fromkeys(branches, 1.0)):
            assert torch.equal(block(x, emb), whole)
        if not heads:  # linear in the factor
            with importance.scaled(block, {"conv1": 0.25}):
                part = block(x, emb)
            assert torch.allclose(part, 0.25 * whole + 0.75 * skip * 0.5**0.5, atol=1e-6)
    assert not torch.allclose(whole, skip, atol=0.1)


def test_each_row_has_its_own_factor(tiny):
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        whole, ablated = tiny(x, 1.0), without(tiny, CONV)(x, 1.0)
        with importance.scaled(tiny, {CONV: torch.tensor([1.0, 0.0, 1.0])}):
            mixed = tiny(x, 1.0)
    assert torch.allclose(mixed[[0, 2]], whole[[0, 2]], atol=1e-6)
    assert torch.allclose(mixed[1], ablated[1], atol=1e-6)
    assert (mixed[1] - whole[1]).abs().max() > 1e-3


def test_of_a_tuple_the_first_item_is_scaled():
    attention, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 3, 4)
    outside = nn.ModuleDict({"attention": attention})
    with torch.no_grad():
        whole, weights = attention(x, x, x)
        with importance.scaled(outside, {"attention": 0.5}):
            half, same = attention(x, x, x)
    assert torch.allclose(half, whole / 2)
    assert torch.equal(same, weights)


def test_nothing_is_left_behind_and_what_cannot_be_scaled_is_refused(tiny):
    with pytest.raises(ZeroDivisionError), importance.scaled(tiny, {CONV: 0.0}):
        _ = 1 / (hooks(tiny) - 1)
    assert hooks(tiny) == 0
    with pytest.raises(ValueError, match="factors must name submodules of the Denoiser; got conv9"):
        importance.scaled(tiny, {"conv9": 0.0}).__enter__()
    with pytest.raises(RuntimeError, match=f"never called while scaled: {CONV}"), importance.scaled(
            tiny, {CONV: 0.0}):
        pass
    counted = nn.ModuleDict({"shape": type("Shape", (nn.Module, ), {"forward": lambda s, x: 3})()})
    with pytest.raises(ValueError, match="shape returns no tensor but int"), importance.scaled(
            counted, {"shape": 0.0}):
        counted["shape"](torch.zeros(1))
    assert hooks(tiny) == hooks(counted) == 0


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_bands_partition_the_ladder(case):
    steps, bands = case
    spans = importance.split_ladder(steps, bands)
    assert [level for span in spans for level in span] == list(range(steps))
    assert len(spans) == bands
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


@pytest.mark.parametrize(("branch", "band"), [(CONV, 0), (CONV, 1), (CONV, 2), (ATTENTION, 1)])
def test_a_cell_is_what_another_network_at_these_levels_gives(measured, branch, band):
    denoiser, table = measured
    other = without(denoiser, branch)
    low, high = sigma_ladder(6)[2 * band + 1], sigma_ladder(6)[2 * band]

    def switched(x, sigma, labels=None):
        return (other if low <= sigma <= high else denoiser)(x, sigma, labels)

    latents, _ = draw_latents(range(5), (1, 8, 8))
    with torch.no_grad():
        change = rms(heun(switched, latents, steps=6), heun(denoiser, latents, steps=6))
    row = table[(table["branch"] == branch) & (table["band"] == band)].iloc[0]
    assert (row["sigma_high"], row["sigma_low"]) == pytest.approx((float(high), float(low)))
    assert row["value"] == pytest.approx(float(change.mean()), rel=1e-3)
    assert row["value"] > 1e-3
    assert row["spread"] == pytest.approx(float(change.std()), rel=1e-3)
    low, high = stats.t.interval(0.95, 4, loc=change.mean(), scale=stats.sem(change))
    assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-3)


def test_the_table_is_tidy_and_complete(measured):
    denoiser, table = measured
    branches = [name for name, _ in denoiser.named_modules() if name.endswith((".conv1", ".proj"))]
    assert list(table.columns) == importance.COLUMNS
    assert len(table) == 3 * len(branches) > 20
    assert list(table["branch"].unique()) == branches
    assert not table.drop(columns="fd").isna().any().any()
    assert set(table["levels"]) == {2}
    assert hooks(denoiser) == 0


def test_neither_batches_nor_the_mode_change_a_cell(measured):
    denoiser, table = measured
    again = importance.measure(denoiser.train(), model="tiny", seeds=range(5), steps=6, bands=3,
                               patterns=[CONV, ATTENTION], batch_size=3)
    alone = table[table["branch"].isin([CONV, ATTENTION])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.drop(columns="depth"), alone.drop(columns="depth"),
                                  rtol=1e-3, atol=1e-5)


def test_magnitude_is_that_of_figure_3(measured):
    denoiser, table = measured
    found = activations.measure(denoiser, model="tiny", seeds=range(5), steps=6, parts=[
        "conv1", "proj"])
    found["branch"] = "model." + found["side"].str[:3] + "." + found["block"] + "." + found["part"]
    means = found.groupby(["branch", found["step"] // 2])["value"].mean()
    ours = table.set_index(["branch", "band"])["magnitude"]
    assert np.allclose(ours, means.reindex(ours.index), rtol=1e-4)


@pytest.mark.parametrize("label_dim", [0, 3])
def test_one_step_is_a_ladder_of_one_level(label_dim):
    denoiser = small_denoiser(label_dim=label_dim)
    table = importance.measure(denoiser, model="one", seeds=range(4), steps=1, bands=1,
                               distance=lambda images: float(images.mean()))
    latents, labels = draw_latents(range(4), (1, 8, 8), label_dim)
    with torch.no_grad():
        made = one_step(denoiser, latents, labels=labels)
        for row in table.itertuples():
            changed = one_step(without(denoiser, row.branch), latents, labels=labels)
            expected = float(rms(changed, made).mean())
            assert (row.value, row.at_once) == pytest.approx((expected, expected), abs=1e-5)
            assert row.fd == pytest.approx(float((changed.clamp(-1, 1) - made.clamp(-1, 1)).mean()),
                                           abs=1e-5)
    apart = rms(made, made.roll(1, 0)).mean()
    assert set(table["apart"].round(4)) == {round(float(apart), 4)}


def test_a_factor_of_one_changes_nothing(tiny):
    table = importance.measure(tiny, model="tiny", seeds=range(2), steps=4, bands=2, factor=1.0)
    assert table[["value", "at_once"]].to_numpy().max() < 1e-5 < table["apart"].min()


class Residual(nn.Module):
    """A network of one's own, whose second branch is computed first and does nothing."""
    channels, resolution, label_dim = 1, 4, 0

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(1, 1, 3, padding=1)
        self.early = nn.Conv2d(1, 1, 3, padding=1)
        self.early.requires_grad_(False).weight.zero_()
        self.early.bias.zero_()

    def forward(self, x, sigma, labels=None):
        x = x.to(torch.float32) / (1 + torch.as_tensor(sigma))
        x = x + self.early(x)
        return torch.tanh(x + self.late(x)) / 2


def test_any_module_whose_output_is_added():
    table = importance.measure(Residual(), model="own", seeds=range(3), steps=5, bands=5, patterns=[
        "late", "ear*"])
    assert list(table["branch"].unique()) == ["early", "late"]
    by_branch = table.groupby("branch")[["value", "at_once", "magnitude"]]
    assert by_branch.max().loc["early"].max() < 1e-6
    assert by_branch.min().loc["late"].min() > 1e-4


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(ValueError, match=r"bands must be from 1 to the number of steps, 4; got 5"):
        importance.measure(tiny, model="tiny", steps=4, bands=5)
    with pytest.raises(ValueError, match=r"bands must be from 1 .*; got 0"):
        importance.split_ladder(4, 0)
    with pytest.raises(ValueError, match="seeds must be at least 2, for an interval; got 1"):
        importance.measure(tiny, model="tiny", seeds=[0])
    with pytest.raises(ValueError, match="pattern 'conv77' matches no submodule"):
        importance.measure(tiny, model="tiny", patterns=["conv77"])


def made_up(model="teacher", bands=6, branches=5):
    """Importance rises with magnitude over branches, and falls with it over bands."""
    rows = [{"model": model, "branch": f"model.enc.8x8_block{b}.conv1", "depth": b, "band": k,
             "sigma_high": 80.0 / 4**k, "sigma_low": 40.0 / 4**k, "levels": 3, "factor": 0.0,
             "n": 16, "value": 0.01 + 0.001 * (b * b + k), "spread": 0.01, "at_once": 0.1,
             "magnitude": 1 + b - 0.1 * k, "apart": 0.7, "fd": np.nan}
            for b in range(branches) for k in range(bands)]  # yapf: disable
    table = pd.DataFrame(rows)
    return table.assign(low=table["value"] - 0.002, high=table["value"] + 0.002)


def test_agreement_over_branches_and_over_bands():
    rho = importance_plots.agreement(made_up()).set_index("over")
    assert rho.loc["branches", "spearman"] == pytest.approx(1)
    assert rho.loc["bands", "spearman"] == pytest.approx(-1)
    assert -1 < rho.loc["cells", "spearman"] < 1
    assert list(rho["points"]) == [30, 5, 6]
    assert list(rho["groups"]) == [1, 6, 5]
    few = importance_plots.agreement(made_up(bands=4, branches=4)).set_index("over")["spearman"]
    assert list(few.isna()) == [False, True, True]


def test_pictures_show_the_table():
    table = pd.concat([made_up(), made_up("gdd", bands=1), made_up("gdd-i", bands=1)])
    first = table[table["model"] == "teacher"]
    _, axes = plt.subplots(1, 3)
    shown = importance_plots.plot_importance(first, ax=axes[0]).images[0].get_array()
    assert np.allclose(shown, first["value"].to_numpy().reshape(5, 6))
    assert axes[0].get_yticklabels()[1].get_text() == "enc 8x8_block1"
    assert axes[0].get_xticklabels()[5].get_text() == ".078\n.039"
    importance_plots.plot_magnitude(first, ax=axes[1])
    assert [text.get_text() for text in axes[1].texts[:2]] == ["1.00", "0.90"]
    importance_plots.plot_one_step(table, ax=axes[2])
    assert axes[2].get_legend_handles_labels()[1] == ["teacher", "GDD", "GDD-I"]
    assert list(axes[2].containers[1].lines[0].get_xdata()) == pytest.approx(
        list(table[table["model"] == "gdd"]["value"]))
    caption = importance_plots.describe(table)
    assert "+1.00 (mean of 6: +1.00 to +1.00) over 5 branches" in caption
    assert "GDD-I, n = 16, rank correlation with mean |a| +1.00 over 5 branches" in caption
    plt.close("all")


@pytest.mark.parametrize(("live", "options", "wanted"), [
    (True, {}, ["teacher", "gdd"]),
    (False, {}, ["gdd"]),
    (False, {"n": 0}, ["gdd"]),
    (False, {"factor": 0.5}, ["teacher", "gdd"]),
])  # yapf: disable
def test_what_was_measured_before_is_read_and_the_rest_is_measured(measured, tmp_path, monkeypatch,
                                                                   live, options, wanted):
    desk, asked = profile("desk"), []

    def measure(name, profile_name, **options):
        asked.append((name, options))
        stamped = dict(run=name, training_seed=0, digest=tables.stamp(desk, name))
        return measured[1].drop(columns="fd").assign(model=name, **stamped)

    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    monkeypatch.setattr(importance, "measured_branches", measure)
    old = measure("gdd", "desk").assign(digest="of another recipe")
    tables.write(pd.concat([measure("teacher", "desk"), old]), "branches", "desk")
    asked.clear()
    monkeypatch.setattr(importance, "profile", lambda _: replace(desk, live=live))
    found = importance.branches(["teacher", "gdd"], "desk", **options)
    assert asked == [(name, options) for name in wanted]
    assert list(found.columns) == importance.COLUMNS
    assert list(found["model"].unique()) == ["teacher", "gdd"]
    for name in ("teacher", "gdd"):
        rows = found[found["model"] == name].reset_index(drop=True)
        pd.testing.assert_series_equal(rows["value"], measured[1]["value"], rtol=1e-3)
