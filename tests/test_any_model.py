"""Activations of networks that nobody here shaped, as tables and pictures."""

import io

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import timm
import torch
from conftest import small_denoiser
from torch import nn

import analysis
from analysis.activation_plots import describe, plot_page
from analysis.activations import COLUMNS, statistics
from gdd.sampling import draw_latents, sigma_ladder, solve

SHAPE = (3, 8, 8)


class Block(nn.Module):
    """A transformer's, conditioned by scale and shift (Peebles and Xie 2023); returns a tuple."""
    def __init__(self, width):
        super().__init__()
        self.condition = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.5))

    def forward(self, h, c):
        scale, shift = self.condition(c)[:, None].chunk(2, dim=2)
        h = h + self.attn(*[self.norm(h) * (1 + scale) + shift] * 3)[0]
        return h + self.mlp(self.norm(h)), c


class DiT(nn.Module):
    """A small diffusion transformer of x0: its last block is registered first, and the middle one
    is called twice."""
    channels, resolution, label_dim = SHAPE[0], SHAPE[1], 4

    def __init__(self, width=8):
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block(width) for name in ("last", "first", "middle")})
        self.time, self.label = nn.Linear(1, width), nn.Embedding(self.label_dim, width)
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.out, self.unused = nn.Linear(width, 12), nn.Linear(width, width)

    def forward(self, x, sigma, labels):
        x, sigma = x.float(), torch.as_tensor(sigma).float().expand(len(x))
        c = self.time(sigma.log()[:, None] / 4) + self.label(labels)  # (N,8)
        h = self.patches(x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1)).flatten(2).mT  # (N,16,8)
        for name in ("first", "middle", "middle", "last"):
            h, c = self.blocks[name](h, c)
        return nn.functional.pixel_shuffle(self.out(h).mT.unflatten(2, (4, 4)), 2)  # (N,3,8,8)


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


@pytest.fixture
def dit():
    module = DiT()
    module.blocks["middle"].eval()  # a mode of its own, which must be there afterwards
    return module


def test_layers_come_in_order_of_execution_whatever_they_return(dit):
    modes = [m.training for m in dit.modules()]
    images, labels = torch.rand(3, *SHAPE), torch.tensor([0, 3, 1])
    what = dict(model="DiT", seeds=range(5), steps=4, images=images, labels=labels)
    table = analysis.measure(dit, pattern=["blocks.*", "time", "patches"], **what)
    assert [m.training for m in dit.modules()] == modes
    assert hooks(dit) == 0
    assert list(table.columns) == COLUMNS
    assert not table.isna().any().any()
    layers = table.drop_duplicates("block").sort_values("depth")
    inner = ["condition", "norm", "attn", "mlp.0", "mlp.1", "mlp.2", "mlp"]
    # a block returns after what is in it
    blocks = [
        f"blocks.{name}{end}" for name in ("first", "middle", "last")
        for end in [*(f".{x}" for x in inner), ""]]
    assert list(layers["block"]) == ["time", "patches", *blocks]
    assert list(layers["depth"]) == list(range(len(layers)))
    assert (set(layers["side"]), set(layers["part"])) == ({"all"}, {"output"})
    heights = dict(zip(layers["block"], layers["resolution"], strict=True))
    assert (heights["patches"], heights["time"], heights["blocks.first"]) == (4, 0, 0)
    assert len(table) == 2 * 4 * len(layers)
    assert dict(table.groupby("process")["n"].first()) == {"sampling": 5, "denoising": 3}
    small = analysis.measure(dit, pattern=["blocks.*", "time", "patches"], batch_size=2, **what)
    pd.testing.assert_frame_equal(table, small, rtol=1e-4, atol=1e-6)


def test_a_layer_called_twice_counts_by_its_first_call_of_a_step(dit):
    dit.eval()
    latents, labels = draw_latents(range(2), SHAPE, 4)
    seen, wanted = [], []
    hook = dit.blocks["middle"].register_forward_hook(lambda m, i, o: seen.append(o[0].clone()))
    with torch.no_grad():
        for step in solve(dit, latents, labels=labels, steps=3):  # here after its first call
            wanted += [seen[-2].abs().mean(dim=(1, 2))] * (step.sigma > 0)
    hook.remove()
    assert len(seen) == 2 * 5
    table = analysis.measure(dit, pattern="blocks.middle", seeds=range(2), steps=3)
    assert list(table["value"]) == pytest.approx([float(v.mean()) for v in wanted], rel=1e-5)
    spreads = [float(v.std(correction=0)) for v in wanted]
    assert list(table["spread"]) == pytest.approx(spreads, rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 7, 5), (2, 5)])
def test_statistics_take_maps_tokens_and_vectors(shape):
    x = torch.randn(shape)
    known = statistics()
    assert torch.allclose(known["mean_abs"](x), x.flatten(1).abs().mean(1, keepdim=True))
    assert torch.allclose(known["rms"](x), x.flatten(1).square().mean(1, keepdim=True).sqrt())
    assert torch.allclose(known["std"](x), x.flatten(1).std(1, keepdim=True))
    wanted = {4: x.abs().mean((2, 3)) if x.ndim == 4 else None, 3: x.abs().mean(1), 2: x.abs()}
    assert torch.allclose(known["channel"](x), wanted[x.ndim])
    assert known["channel"](x).shape == (2, 5)
    if x.ndim < 4:
        with pytest.raises(ValueError, match=r"bands are of maps \(N,C,H,W\); got \(2, "):
            known["bands"](x)


def test_what_cannot_be_measured_is_refused(dit):
    for options, message in [
        ({"pattern": "unused"}, "never called while recording: unused"),
        ({"pattern": "decoder.*"}, r"'decoder.\*' matches no submodule; nearest: "),
        ({}, r"'model.\*.conv1' matches no submodule"),
        ({"pattern": "blocks.first.attn", "statistic": "bands"}, "blocks.first.attn: bands are of"),
    ]:  # yapf: disable
        with pytest.raises((ValueError, RuntimeError), match=message):
            analysis.measure(dit, seeds=range(2), steps=2, **options)
        assert hooks(dit) == 0
    with pytest.raises(ValueError, match="Linear lacks channels, resolution, label_dim; of other"):
        analysis.measure(nn.Linear(1, 1))
    summing = nn.Sequential(nn.Flatten(0), nn.Flatten(0))
    denoiser = analysis.wrap(lambda x, sigma: (summing(x), x)[1], SHAPE, network=summing)
    with pytest.raises(ValueError, match=r"0: of 2 images it makes \(384,\), not a row for each"):
        analysis.measure(denoiser, pattern="0", seeds=range(2), steps=2)


def test_a_network_of_timm_within_a_denoiser():
    network = timm.create_model("test_resnet", num_classes=8)
    counted = [
        m.num_batches_tracked.item() for m in network.modules() if hasattr(m, "running_mean")]

    def denoise(x, sigma):
        mean = network(x / (1 + sigma.view(-1, 1, 1, 1)**2).sqrt()).mean(dim=1)
        return x * mean.view(-1, 1, 1, 1).sigmoid()

    denoiser = analysis.wrap(denoise, (3, 32, 32), network=network)
    table = analysis.measure(denoiser, pattern="layer*.conv?", seeds=range(3), steps=3)
    order = list(table.drop_duplicates("block")["block"])
    names = [name for name, _ in network.named_modules() if name in order]
    assert order == names
    assert len(order) > 4
    assert counted == [
        m.num_batches_tracked.item() for m in network.modules() if hasattr(m, "running_mean")]


def test_the_levels_are_those_that_the_network_knows():
    network = nn.Sequential(nn.Identity())
    denoiser = analysis.adapters.Adapted(lambda x, sigma, labels: network(x), network, SHAPE,
                                         sigma_min=0.01, sigma_max=20.0)
    table = analysis.measure(denoiser, pattern="0", seeds=range(2), steps=5)
    wanted = sigma_ladder(5, sigma_min=0.01, sigma_max=20)[:-1].tolist()
    assert list(table["sigma"]) == pytest.approx(wanted)


def test_networks_with_edms_names_keep_their_sides():
    own = small_denoiser()
    own.img_channels, own.img_resolution = own.channels, own.resolution
    what = dict(seeds=range(2), steps=2)
    table = analysis.measure(analysis.from_edm(own), pattern="model.*.conv1", **what)
    pd.testing.assert_frame_equal(table, analysis.measure(own, **what), rtol=1e-5)


@pytest.mark.parametrize("statistic", ["mean_abs", "channel", "bands"])
def test_figure_3_of_a_unet_of_diffusers(statistic):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(sample_size=16, block_out_channels=(8, 8), layers_per_block=1,
                                 norm_num_groups=2, attention_head_dim=4,
                                 down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                 up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    denoiser = analysis.from_diffusers(unet, diffusers.DDPMScheduler())
    what = dict(model="unet", seeds=range(3), steps=4, statistic=statistic)
    table = analysis.measure(denoiser, pattern="*.resnets.*.conv2", images=torch.rand(2, 3, 16, 16),
                             **what)
    names = list(dict.fromkeys(table["block"]))
    registered = [name for name, _ in unet.named_modules() if name.endswith(".conv2")]
    # diffusers registers the middle last
    assert names == [
        name for part in ("down", "mid", "up") for name in registered if name.startswith(part)]
    assert list(table.drop_duplicates("block")["resolution"]) == [16, 8, 8, 8, 8, 8, 16, 16]
    caption = describe(table)
    assert "from sigma 80 to 0.01 (sampling" in caption
    assert "EMA" not in caption
    drawn = {"bands": "spectral power in each band", "channel": "at which they are most active"}
    assert drawn.get(statistic, "Lines: min-max normalised") in caption
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)))  # drawn again from its csv file
    figure = plot_page(read)
    shown = [
        label.get_text()
        for label in figure.axes[{"mean_abs": 1}.get(statistic, 0)].get_yticklabels()]
    assert shown == [name.removesuffix(".conv2") for name in names]
    if statistic == "mean_abs":
        lines, maps = figure.axes[0].get_lines(), figure.axes[1]
        assert [line.get_label() for line in lines] == names
        assert [label.get_color() for label in maps.get_yticklabels()] == [
            line.get_color() for line in lines]
        assert maps.get_title(loc="left") == "*.conv2"
    plt.close(figure)
