"""Verdicts come from tables alone: a number changed in one flips its verdict."""

import pandas as pd
import pytest

from analysis import claims
from analysis.claims import ABSENT, CLAIMS, FAILS, HOLDS, scorecard
from analysis.verdicts import OPEN


def finals(**runs):
    rows = [dict(run=run.replace("_", " "), training_seed=k, source="final", metric="FD",
                 distance=d)
            for run, distances in runs.items() for k, d in enumerate(distances)]  # yapf: disable
    return pd.DataFrame(rows).replace({"GDD I": "GDD-I", "CD I": "CD-I", "GDD plus CD": "GDD + CD"})


def points(panel, kind, **values):
    return [dict(panel=panel, run=f"{panel}-{x}", sampler="", against="data", kind=kind,
                 x=float(x[1:]), training_seed=k, metric="FD", n=9, distance=d)
            for x, distances in values.items() for k, d in enumerate(distances)]  # yapf: disable


def activations(peaks, extent=3.0, steps=9):
    """Blocks that peak at the given steps."""
    rows = [dict(model="teacher", process="sampling", side="decoder", block=f"b{k}", step=step,
                 value=extent if step == peak else 1.0)
            for k, peak in enumerate(peaks) for step in range(steps)]  # yapf: disable
    return pd.DataFrame(rows)


def tables():
    two = points("A1", "rel", x1=[0.2, 0.2], x2=[1.0, 1.1], x4=[2.0, 2.1])
    two += points("A1", "abs", x2=[1.0, 1.1], x4=[1.0, 1.2])
    two += points("B", "rel", x0=[1.0, 1.1], x3=[3.0, 3.1])
    two += points("B", "abs", x0=[1.0, 1.1], x3=[1.0, 1.1])
    return {
        "fig02_rel_fid": pd.DataFrame(two),
        "fig03_activations": activations([0, 4, 8]),
        "fig04_consistency": finals(GDD=[1.0, 1.1], GDD_I=[0.8, 0.9], CD=[3.0, 3.1],
                                    CD_I=[2.0, 2.1], GDD_plus_CD=[1.2, 1.3]),
        "fig05_19_samples": pd.DataFrame({"run": ["teacher", "gdd"], "distance": [1.5, 1.0],
                                          "nfe": [35, 1]}),
        "spectrum": pd.DataFrame({"table": "centres", "step": range(1, 5),
                                  "cycles": [1.0, 2.0, 3.0, 4.0]}),
    }  # yapf: disable


def verdicts(changed):
    return scorecard(changed).set_index("claim")["verdict"]


MEASURED = [claim.key for claim in CLAIMS if not claim.key.startswith("headline")]


def test_the_papers_own_world():
    found = scorecard(tables()).set_index("claim")
    assert (found["verdict"][MEASURED] == HOLDS).all(), found["here"]
    assert (found["verdict"].drop(MEASURED) == ABSENT).all()
    row = found.loc["3 freezing"]
    assert (row["low"], row["high"]) == (0.8 / 1.1, 0.9)
    assert row["effect"] == pytest.approx(0.85 / 1.05)
    assert row["training_seeds"] == 2


def judged(metric="Other", **runs):
    """What `make seeds` writes of a further judge, by run and training seed."""
    rows = [dict(run=run.replace("_", "-"), training_seed=k, sampler=sampler, kind="abs",
                 against="data", metric=metric, n=9, distance=d) for run, distances in runs.items()
            for sampler in ["heun:18" if run == "teacher" else "one-step"]
            for k, d in enumerate(distances)]  # yapf: disable
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("gdd", "frozen", "ahead"), [([5.0, 6.0], FAILS, HOLDS),
                                                      ([7.5, 9.0], OPEN, OPEN),
                                                      ([9.5, 9.6], HOLDS, FAILS)])
def test_further_judges_speak_beside_the_first_that_decides(gdd, frozen, ahead):
    seeds = judged(gdd=gdd, gdd_i=[7.0, 8.0], teacher=[9.0])
    coarse = judged(teacher=[99.0]).assign(sampler="heun:2")  # not the sampler of Figures 5 to 19
    other_set = judged(gdd=[99.0, 99.0], gdd_i=[1.0, 1.0]).assign(against="test")
    seeds = pd.concat([seeds, coarse, other_set])
    found = scorecard(tables() | {"seeds": seeds}).set_index("claim")
    pair = found.loc["3 freezing"]
    assert pair["verdict"] == HOLDS
    assert f"; {frozen} by Other: GDD-I 7.5 (7 to 8), GDD " in pair["here"]
    teacher = found.loc["2 teacher"]
    assert teacher["verdict"] == HOLDS
    assert f" at NFE 35; {ahead} by Other: GDD " in teacher["here"]
    assert teacher["here"].endswith("teacher 9 at NFE 35")
    assert "Other" not in found["here"]["4 CD-I"]  # which it has not judged


@pytest.mark.parametrize(("two", "four", "rel", "steady"), [([2.0, 2.1], [7.0, 8.0], HOLDS, FAILS),
                                                            ([7.0, 7.5], [7.4, 7.6], OPEN, HOLDS),
                                                            ([9.0, 9.9], [1.0, 1.1], FAILS, FAILS)])
def test_further_judges_speak_of_steps(two, four, rel, steady):
    """Of the points that Figure 2 shows, and of each kind by itself."""
    kinds = points("A1", "rel", x2=two, x4=four) + points("A1", "abs", x2=two, x4=four)
    unseen = points("A1", "rel", x8=[0.1, 0.1])  # no point of the figure
    other = points("A1", "rel, disjoint seeds", x2=[1.0, 1.0], x4=[1.0, 1.0])
    seeds = pd.DataFrame(kinds + unseen + other).drop(columns=["panel", "x"])
    found = scorecard(tables() | {"seeds": seeds.assign(metric="Other")}).set_index("claim")
    for key, said in (("1 steps, rel", rel), ("1 steps, abs", steady)):
        assert found["verdict"][key] == HOLDS  # the first judge's
        assert f"; {said} by Other: K = 4: " in found["here"][key]
    assert "Other" not in found["here"]["1 sigma, rel"]


@pytest.mark.parametrize(("teacher", "said"), [([1.2, 1.8], HOLDS), ([1.05, 1.95], OPEN),
                                               ([0.5, 0.9], FAILS)])
def test_a_teacher_counts_by_its_ranges(teacher, said):
    """GDD's training seeds are at 1 and 1.1."""
    seeds = judged("FD", teacher=teacher, gdd=[1.0, 1.1]).assign(training_seed=0)
    found = scorecard(tables() | {"seeds": seeds}).set_index("claim").loc["2 teacher"]
    assert found["verdict"] == said
    assert f"teacher {sum(teacher) / 2:g} ({teacher[0]:g} to {teacher[1]:g}) at" in found["here"]


@pytest.mark.parametrize(("claim", "table", "where", "value", "said"), [
    ("1 steps, rel", "fig02_rel_fid", dict(panel="A1", kind="rel", x=4.0), 0.1, FAILS),
    ("1 steps, rel", "fig02_rel_fid", dict(panel="A1", kind="rel", x=4.0), 1.05, OPEN),
    ("1 steps, abs", "fig02_rel_fid", dict(panel="A1", kind="abs", x=4.0), 9.0, FAILS),
    ("1 steps, abs", "fig02_rel_fid", dict(panel="A1", kind="abs", x=4.0), 1.3, OPEN),
    ("1 sigma, rel", "fig02_rel_fid", dict(panel="B", kind="rel", x=3.0), 0.5, FAILS),
    ("1 sigma, abs", "fig02_rel_fid", dict(panel="B", kind="abs", x=3.0), 0.1, FAILS),
    ("2 instance", "fig04_consistency", dict(run="CD"), 0.5, FAILS),
    ("2 teacher", "fig05_19_samples", dict(run="teacher"), 0.9, FAILS),
    ("2 teacher", "fig05_19_samples", dict(run="teacher"), 1.05, OPEN),
    ("3 activity", "fig03_activations", dict(step=1), 9.0, FAILS),
    ("5 frequencies", "spectrum", dict(step=1), 5.0, OPEN),
    ("3 freezing", "fig04_consistency", dict(run="GDD-I"), 2.0, FAILS),
    ("3 freezing", "fig04_consistency", dict(run="GDD-I"), 1.05, OPEN),
    ("4 with CD", "fig04_consistency", dict(run="GDD + CD"), 0.5, FAILS),
    ("4 CD-I", "fig04_consistency", dict(run="CD-I"), 5.0, FAILS)])
def test_a_number_flips_its_verdict_and_no_other(claim, table, where, value, said):
    changed = tables()
    column = next(c for c in ("value", "cycles", "distance") if c in changed[table])
    chosen = (changed[table][list(where)] == pd.Series(where)).all(axis=1)
    assert chosen.any()
    changed[table].loc[chosen, column] = value
    before, after = verdicts(tables()), verdicts(changed)
    assert after[claim] == said
    touched = {claim, "4 CD-I"} if where == {"run": "CD"} else {claim}  # CD stands in two
    assert (before.drop(touched) == after.drop(touched)).all()


def test_one_training_seed_decides_nothing():
    alone = tables()
    for name in ("fig02_rel_fid", "fig04_consistency"):
        alone[name] = alone[name][alone[name]["training_seed"] == 0]
    assert set(verdicts(alone)[[
        k for k in MEASURED if k not in ("3 activity", "5 frequencies")]]) == {OPEN}


def test_peaks_in_one_third_are_not_at_different_steps():
    for peaks, said in (([0] * 11 + [8], FAILS), ([0] * 3 + [8], HOLDS)):
        assert verdicts(tables() | {"fig03_activations": activations(peaks)})["3 activity"] == said


def test_flat_blocks_peak_nowhere():
    assert verdicts(tables()
                    | {"fig03_activations": activations([0, 8], 1.2)})["3 activity"] == FAILS


def test_without_tables_nothing_is_measured():
    assert set(verdicts({})) == {ABSENT}


def test_blocks_of_one_name_on_two_sides_and_other_models_are_kept_apart():
    table = activations([0, 8])
    both = pd.concat([table, table.assign(side="encoder"), table.assign(model="gdd", value=1.0)])
    found = scorecard(tables() | {"fig03_activations": both}).set_index("claim")["here"]
    assert found["3 activity"].startswith("of 4 blocks 4 vary by 1.5 or more")


def test_a_damaged_table_decides_nothing():
    damaged = tables() | {"fig04_consistency": pd.DataFrame({"run": ["GDD"], "source": ["final"]})}
    found = scorecard(damaged).set_index("claim")
    assert found["verdict"]["3 freezing"] == ABSENT
    assert found["verdict"]["1 steps, rel"] == HOLDS


@pytest.mark.parametrize(("seeds", "said"), [
    (1, "GDD 1.02, one training seed"), (3, "GDD 1.02 (0.9 to 1.1)")])  # yapf: disable
def test_one_training_seed_is_told_without_an_interval(seeds, said):
    row = pd.Series({"mean": 1.0213, "low": 0.9, "high": 1.1, "training_seeds": seeds})
    assert claims._said("GDD", row) == said


def test_a_distance_of_thousands_is_written_out():
    assert [claims._number(x) for x in (0.0294, 152.41, 1965.4)] == ["0.0294", "152", "1,965"]
