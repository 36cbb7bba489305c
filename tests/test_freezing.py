import pytest
from conftest import TINY

from gdd.denoiser import Denoiser
from gdd.freezing import POLICIES, freeze


def layers(names):
    return {name.split(".")[3] for name in names}


def test_gdd_i_freezes_what_the_paper_says(tiny):
    report = freeze(tiny, "gdd-i")
    assert layers(report.names) == {"conv0", "conv1", "proj"}
    trained = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tiny.named_parameters()} - set(report.names)
    for kept in ("model.enc.8x8_conv.weight", "model.dec.8x8_aux_conv.weight",
                 "model.map_layer0.weight"):
        assert kept in trained
    assert any(".qkv." in name for name in trained)
    assert any(".skip." in name for name in trained)
    assert report.frozen == sum(p.numel() for p in tiny.parameters() if not p.requires_grad)
    assert str(report).endswith(f"({report.share:.1%})")


def test_levels_nest(tiny):
    shares = [
        freeze(tiny, policy).share for policy in ("none", "gdd-i", "gdd-i+qkv", "gdd-i+qkv+skip")]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert layers(freeze(tiny, "gdd-i+qkv+skip").names) == {"conv0", "conv1", "proj", "qkv", "skip"}


def test_auxiliary_convolutions_are_no_blocks():
    network = Denoiser.from_config(TINY | {"encoder_type": "residual", "decoder_type": "skip"})
    for policy in set(POLICIES) - {"norm-only", "inverse-gdd-i"}:
        assert not any("aux" in name for name in freeze(network, policy).names)


def test_norm_only_trains_the_norms(tiny):
    freeze(tiny, "norm-only")
    trained = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tiny.named_parameters() if "norm" in name}


def test_the_inverse_trains_what_gdd_i_freezes(tiny):
    names = {name for name, _ in tiny.named_parameters()}
    assert set(freeze(tiny, "inverse-gdd-i").names) == names - set(freeze(tiny, "gdd-i").names)


def test_the_official_loss_rule_leaves_out_up_and_down(tiny):
    wide, narrow = set(freeze(tiny, "gdd-i").names), set(freeze(tiny, "official-loss-rule").names)
    assert narrow < wide
    assert {name.split(".")[2].split("_")[1] for name in wide - narrow} == {"up", "down"}


def test_the_report_counts_every_block(tiny):
    report = freeze(tiny, "gdd-i")
    assert sum(frozen for frozen, _ in report.blocks.values()) == report.frozen
    assert sum(total for _, total in report.blocks.values()) == report.total
    block = report.blocks["enc.8x8_block0"]
    assert block[0] == sum(p.numel() for n, p in tiny.named_parameters()
                           if "enc.8x8_block0.conv" in n or "enc.8x8_block0.proj" in n)
    assert report.blocks["map_layer0"][0] == 0


def test_patterns_of_ones_own(tiny):
    assert freeze(tiny, "*, !*.map_*").names == tuple(
        sorted(n for n, _ in tiny.named_parameters() if ".map_" not in n))
    report = freeze(tiny, "*.enc.*, *.map_*")
    assert all(".enc." in name or ".map_" in name for name in report.names)
    with pytest.raises(ValueError, match=r"'\*.encoder.*' matches none; nearest: "):
        freeze(tiny, "*.enc.*,*.encoder.*")
