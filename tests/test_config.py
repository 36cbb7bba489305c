"""Whatever a config is changed to, it runs a step or is refused with a sentence that names the
field."""

import dataclasses
import math
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import small_denoiser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_trainer import GDD

from gdd.backbones import DigitsBackbone
from gdd.config import _RANGES, Hardware, Keep, TrainConfig
from gdd.data.images import load_digits, open_images
from gdd.training.command import changed
from gdd.training.engine import Engine
from gdd.training.trainer import train

DIGITS, START = load_digits(), small_denoiser()
NUMBERS = [
    -1, 0, 1, 2, 3, 7, 1e-30, 0.5, 1e30, math.inf, -math.inf, math.nan, True, False, 2**70, 1j
]
JUNK = st.sampled_from([*NUMBERS, None, "", "x", (), (1, ), (8, 4), ("a", "b"), [8, 4], {}, b"1"])
TEXTS = {
    "sampler": [
        "one-step", "k-step:1", "k-step:2", "k-step:0", "k-step:1000", "two-step:0.8", "two-step:0",
        "two-step:80", "x:"
    ],
    "freeze": [
        "none", "gdd-i", "gdd-i+qkv+skip", "norm-only", "*", "!*", "*,!*norm*", "*conv1*", "gdd",
        "[", ","
    ],
    "data": ["digits", "nowhere", ""],
}


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
        lambda names: st.fixed_dictionaries({name: values(name, FIELDS[name])
                                             for name in names}))


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_a_thousand_mutated_configs(change):
    try:
        config = dataclasses.replace(GDD, **change)
        dataset = DIGITS if config.data == "digits" else open_images(config.data)
        steps = train(config, dataset, START, [DigitsBackbone().eval()], engine=Engine(config))
    except (ValueError, OSError) as error:
        if not any(name in str(error) for name in change):
            raise AssertionError(f"{error!r} names none of {change}") from error
        return
    state = next(steps)
    assert state.images_seen == config.batch_size
    assert state.metrics
    assert all(map(math.isfinite, state.metrics.values()))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["lr=1e-3", "lr=0"], "lr must be a number from 1e-12 to 1; got 0.0"),
        (["batch_size=1e2.5"], "batch_size must be int like 128; got '1e2.5'"),
        (["batch_size=2.5"], "batch_size must be int like 128; got '2.5'"),
        (["reuse_fakes=yes"], "reuse_fakes must be bool like True; got 'yes'"),
        (["betas=0.1"], r"betas must be two numbers; got \(0.1,\)"),
        (["precision=fp64"], "precision must be one of fp32, bf16, fp16; got 'fp64'"),
        (["sped=1"], "--set takes name=value with name one of objective"),
    ],
)
def test_changes_are_read_as_the_fields_own_type(texts, message):
    from gdd.profiles import DESK_GDD

    with pytest.raises(ValueError, match=message):
        changed(DESK_GDD, texts)
    config = changed(DESK_GDD,
                     ["total_images=1e3", "d_channels=1,2,3,4", "reuse_fakes=false", "lr=1e-3"])
    assert (config.total_images, config.d_channels, config.reuse_fakes) == (1000, (1, 2, 3, 4),
                                                                            False)


@pytest.mark.parametrize(("kind", "change"), [(Keep, "ticks"), (Keep, "samples"),
                                              (Hardware, "micro_batch_size")])
def test_what_is_kept_and_used_has_limits_too(kind, change):
    with pytest.raises(ValueError, match=f"{change} must be at least"):
        kind(**{change: -1}).check()
