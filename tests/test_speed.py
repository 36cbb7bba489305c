"""What README and docs/speed.md say of speed is what `make bench` wrote."""

import pytest

from benchmarks import table
from benchmarks.row import Row


def test_the_pages_show_what_was_measured():
    for page, made in table.pages().items():
        assert page.read_text() == made, page


def test_every_row_names_its_machine_and_why_it_falls_short():
    results = table.read()
    assert len(results) > 20
    assert not results[["work", "against", "torch", "processor", "threads", "date"
                        ]].isna().any(axis=None)
    short = results[(results["met"] == "no") | results["ratio"].isna()]
    assert (short["reason"] != "").all(), short["work"].tolist()
    assert (table.FIGURES / "scaling.pdf").exists()
    assert (table.FIGURES / "roofline.pdf").exists()


@pytest.mark.parametrize(("row", "ratio", "met", "passes"), [
    (Row("a", "b", 1.0, 3.0, target=2), 3.0, True, True),
    (Row("a", "b", 1.0, 3.0, target=4, bar=3.5), 3.0, False, False),
    (Row("a", "b", 8.0, 10.0, "GFLOP/s", target=0.85), 0.8, False, True),
    (Row("a", "b", 0.4, 0.2, at_most=0.5), 0.5, True, True),
    (Row("a", "b", 1.0, target=2, bar=2), None, None, True),
    (Row("a", "b", 1.0, 3.0), 3.0, None, True), ])
def test_a_row_knows_whether_more_or_less_is_better(row, ratio, met, passes):
    assert (row.ratio, row.met, row.passes) == (ratio, met, passes)


def test_the_table_names_what_falls_short():
    rows = [Row("fast", "peer 1.0", 1.0, 3.0, target=2, reason="unseen"),
            Row("slow", "peer 1.0", 1.0, 3.0, target=4, error=1e-7, reason="of a reason"),
            Row("gone", "peer", 1.0, target=4, reason="not installed"),
            Row("free", "peer 1.0", 1.0, 3.0)]  # yapf: disable
    shown = table.block(table.frame(rows), every=True)
    assert "1 of 2 targets are met" in shown
    assert "| fast | peer 1.0 | 3 | 2 | 1 s | 3 s |  |  |" in shown
    assert "| slow | peer 1.0 | 3 | 4: falls short | 1 s | 3 s | 1e-07 | of a reason |" in shown
    assert "| gone | peer | not measured |  | 1 s |  |  | not installed |" in shown
    short = table.block(table.frame(rows), every=False)
    assert "| slow | peer 1.0 | 3 | 4: falls short |" in short
    assert "free" not in short


def test_results_are_shown_as_they_were_measured(tmp_path):
    made = table.frame([Row("a", "b", 1.0, 3.0, target=2), Row("c", "d", 2.0, reason="gone")])
    table.write(made, tmp_path / "results.csv")
    read = table.read(tmp_path / "results.csv")
    assert table.block(read, every=True) == table.block(made, every=True)


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match=r"no marks of a\.csv"):
        table.with_block("text", "a.csv", "table")
