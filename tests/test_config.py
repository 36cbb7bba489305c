"""Whatever a config is changed to, it runs a step or is refused with a sentence that names the
field."""

import dataclasses
import math
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import small_backbone, small_denoiser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_trainer import GDD

from gdd.config import _RANGES, Hardware, Keep, TrainConfig
from gdd.data.images import load_digits, open_images
from gdd.profiles import preset
from gdd.training.command import Train, parse
from gdd.training.engine import Engine
from gdd.training.trainer import init_state, train

DIGITS, START = load_digits(), small_denoiser()
NUMBERS = [
    -1, 0, 1, 2, 3, 7, 1e-30, 0.5, 1e30, math.inf, -math.inf, math.nan, True, False, 2**70, 1j]
JUNK = st.sampled_from([*NUMBERS, None, "", "x", (), (1, ), (8, 4), ("a", "b"), [8, 4], {}, b"1"])
TEXTS = {
    "sampler": [
        "one-step", "k-step:1", "k-step:2", "k-step:0", "k-step:1000", "two-step:0.8", "two-step:0",
        "two-step:80", "x:"],
    "freeze": [
        "none", "gdd-i", "gdd-i+qkv+skip", "norm-only", "*", "!*", "*,!*norm*", "*conv1*", "gdd",
        "[", ","],
    "data": ["digits", "nowhere", ""],
    "teacher": ["teacher", ""], }


def values(name, kind):
    """Mostly values that will do, some at and beyond the field's limits, and some of another
    kind."""
    if name in TEXTS:
        own = st.sampled_from(TEXTS[name])
    elif get_origin(kind) is Literal:
        own = st.sampled_from(get_args(kind))
    elif get_origin(kind) is tuple:
        own = st.lists(
            st.integers(0, 24) if get_args(kind)[0] is int else st.floats(-0.5, 1.5),
            max_size=5).map(tuple)
    elif kind is bool:
        own = st.booleans()
    else:
        low, high = _RANGES[name]
        near = [low - 1, low, high, high + 1] if name != "batch_size" else [0, 1, 3, 10**7]
        own = st.one_of(st.sampled_from([kind(max(low, value)) for value in (0.01, 1, 2, 8)]),
                        st.sampled_from([kind(v) for v in near]))
    return st.one_of(own, own, own, own, own, own, JUNK)


FIELDS = get_type_hints(TrainConfig)
CHANGES = st.dictionaries(st.sampled_from(
    sorted(FIELDS)), st.none(), min_size=1, max_size=3).flatmap(
        lambda names: st.fixed_dictionaries({name: values(name, FIELDS[name]) for name in names}))


@pytest.mark.slow
@settings(max_examples=1000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_a_thousand_mutated_configs(change):
    try:
        config = dataclasses.replace(GDD, **change)
        dataset = DIGITS if config.data == "digits" else open_images(config.data)
        backbones = [small_backbone()]
        state = init_state(config, START, backbones, Engine(config))
        steps = train(config, dataset, START, backbones, state=state)
    except (ValueError, OSError) as error:
        if not any(name in str(error) for name in change):
            raise AssertionError(f"{error!r} names none of {change}") from error
        return
    state = next(steps)
    assert state.images_seen == config.batch_size
    assert state.metrics
    assert all(map(math.isfinite, state.metrics.values()))


def parsed(*words):
    return parse(Train, list(words), "python -m gdd train")


def test_a_presets_config_is_what_is_not_said_otherwise():
    profile, run = preset("smoke-gdd-i")
    args = parsed("smoke-gdd-i")
    assert args.config == profile.config(run)
    assert args.preset == "smoke-gdd-i"
    assert args.keep.samples == 64


def test_flags_are_read_as_the_fields_own_type():
    words = [
        "--lr", "3e-4", "--total-images", "1000", "--d-channels", "1", "2", "3", "4",
        "--d-head-sizes", "8", "4", "2", "--d-head-widths", "16", "32", "64", "--backbones", "a",
        "b", "--betas", "0.5", "0.9", "--precision", "bf16", "--ticks", "3", "--devices", "2",
        "--no-reuse-fakes", "--folder", "runs/mine"]
    args = parsed("smoke-gdd-i", *words)
    config = args.config
    assert (config.lr, config.total_images, config.d_channels) == (3e-4, 1000, (1, 2, 3, 4))
    assert (config.d_head_sizes, config.d_head_widths) == ((8, 4, 2), (16, 32, 64))
    assert (config.backbones, config.betas) == (("a", "b"), (0.5, 0.9))
    assert (config.precision, config.reuse_fakes) == ("bf16", False)
    assert (args.keep.ticks, args.hardware.devices, str(args.folder)) == (3, 2, "runs/mine")
    assert config.freeze == "gdd-i"  # the preset's own
    assert parsed("smoke-gdd-i", "--reuse-fakes").config.reuse_fakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "fast"], "fast"),
        (["--batch-size", "2.5"], "2.5"),
        (["--betas", "0.1"], "betas"),
        (["--precision", "fp64"], "fp32"),
        (["--objective", "gan"], "gdd"),
        (["--learning-rate", "1"], "learning-rate"),
        (["--lrr", "1"], "--lr"), ],
)
def test_flags_of_another_type_and_unknown_ones_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed("smoke-gdd-i", *words)
    said = capsys.readouterr()
    assert message in said.out + said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0"], "lr must be a number from 1e-12 to 1; got 0"),
        (["--batch-size", "0"], r"batch_size must be an integer from 1 to 1e\+06; got 0"),
        (["--sampler", "k-step:0"], "sampler must be one-step, k-step:K"),
        (["--r1-gamma", "nan"], "r1_gamma must be a number from 0 to 1e\\+06; got nan"), ],
)
def test_flags_out_of_range_are_refused_as_the_config_says(words, message, capsys):
    """tyro may raise what the config does, or print it and exit."""
    try:
        parsed("smoke-gdd-i", *words)
    except ValueError as error:
        said = str(error)
    except SystemExit:
        found = capsys.readouterr()
        said = " ".join((found.out + found.err).replace("│", " ").split())
    else:
        said = ""
    assert re.search(message, said)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("desk-gdd-ii", "desk-gdd-i"), ("desk-gd", "desk-gdd"), ("ffqh-gdd", "ffhq-gdd"),
     ("imagenet-gdd", "imagenet64-gdd")],
)
def test_a_wrong_preset_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"got '{name}'; did you mean .*{nearest}\b"):
        parsed(name)


@pytest.mark.parametrize("words", [[], ["--lr", "1e-3"]])
def test_a_preset_comes_first(words):
    with pytest.raises(ValueError, match="a preset must be named first"):
        parsed(*words)


def test_every_field_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit):
        parsed("smoke-gdd-i", "--help")
    said = capsys.readouterr().out
    for kind in (TrainConfig, Keep, Hardware):
        for field in dataclasses.fields(kind):
            assert f"--{field.name.replace('_', '-')}" in said, field.name
    assert "Adam learning rate of the network in training" in " ".join(
        said.replace("│", " ").split())


@pytest.mark.parametrize(("kind", "change"), [(Keep, "ticks"), (Keep, "samples"),
                                              (Hardware, "micro_batch_size")])
def test_what_is_kept_and_used_has_limits_too(kind, change):
    with pytest.raises(ValueError, match=f"{change} must be at least"):
        kind(**{change: -1}).validate()
