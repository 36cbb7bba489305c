"""One opener, one budget, one schema, one way to quote."""

import os
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdd.reading import (
    METADATA,
    Budget,
    Line,
    json_values,
    open_regular,
    quoted,
    read_json,
    read_regular,
    shown,
    typed,
)


class Record(TypedDict):
    name: str
    n: int
    loss: NotRequired[float]


@pytest.mark.parametrize(("value", "kind"), [(3, int), (3, float), (2.5, float), ("x", str),
                                             (True, bool), (None, int | None), (["a"], list[str]),
                                             ({"a": 1.5}, dict[str, float]),
                                             ("b", Literal["a", "b"]),
                                             ({"name": "x", "n": 2}, Record),
                                             ({"name": "x", "n": 2, "loss": 1, "new": []}, Record),
                                             ([{"name": "x", "n": 2}], list[Record]),
                                             ({"x": object}, Any)])
def test_what_is_right_comes_back(value, kind):
    assert typed(value, kind, "it") == value


@pytest.mark.parametrize(("value", "kind", "message"),
                         [(True, int, "it must be an integer; got True"),
                          (True, float, "a finite number"), (float("nan"), float, "finite"),
                          (1.0, int, "an integer"), (3, str, "text; got 3"),
                          ([1, "x"], list[int], r"it\[1\] must be an integer; got 'x'"),
                          ({"a": {"b": 1}}, dict[str, float], "it.a must be a finite number"),
                          ("c", Literal["a", "b"], "one of a, b; got 'c'"),
                          ([], Record, "a mapping of names"), ({"name": "x"}, Record, "it lacks n"),
                          ({"name": 1, "n": 1}, Record, "it.name must be text"),
                          ("x", int | None, "an integer or nothing"),
                          ({1: 2}, dict[str, int], "a mapping")])
def test_what_is_wrong_is_named(value, kind, message):
    with pytest.raises(ValueError, match=message):
        typed(value, kind, "it")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                 lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3)))
def test_anything_else_is_one_line(value):
    if value == []:
        return
    with pytest.raises(ValueError, match=r"^it") as raised:  # no such record is ever drawn
        typed(value, list[Record], "it")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_json_is_bounded_and_strict():
    assert read_json(b'{"name": "x", "n": 1}', Record, "it")["n"] == 1
    for content in (b"{", b"\xff", b'{"n": NaN}', b"[" * 100_000):
        with pytest.raises(ValueError, match="it is not JSON"):
            read_json(content, Any, "it")
    with pytest.raises(ValueError, match="bytes of JSON"):
        read_json(b" " * (METADATA + 1), Any, "it")


def test_json_is_charged_before_it_is_parsed():
    assert json_values(b'{"a": [1, 2], "b": {}}') == 7
    assert read_json(b"[1, 2]", list[int], "it", Budget(entries=2)) == [1, 2]
    with pytest.raises(ValueError, match="it is JSON too large: it asks for 2 entries more"):
        read_json(b"[1, 2]", list[int], "it", Budget(entries=1))
    with pytest.raises(ValueError, match="JSON too large"):
        read_json(b"[" + b"{}," * 3_000_000 + b"1]", Any, "it")


def test_lines_may_be_printed_and_integers_counted():
    assert typed("a b", Line, "it") == "a b"
    for wrong in ("a\nb", "\x1b[2J", "x" * 301, "\ud800", 5):
        with pytest.raises(ValueError, match="it must be a short line of text"):
            typed(wrong, Line, "it")
    for kind in (int, float):
        with pytest.raises(ValueError, match="it must be"):
            typed(10**400, kind, "it")


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_nested_values_are_shown_by_their_beginning(kind):
    value = kind()
    for _ in range(100):
        value = {"a": value, "b": value} if kind is dict else kind((value, value))
    assert len(shown(value)) <= 203
    assert len(quoted(value)) <= 203
    with pytest.raises(ValueError, match="it must be text"):
        typed(value, str, "it")
    assert shown(10**5000) == "a large int"


def test_no_more_is_read_than_was_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert read_regular(tmp_path / "a", 3) == b"123"
    with pytest.raises(ValueError, match="a has more than 2 bytes"):
        read_regular(tmp_path / "a", 2)
    assert quoted(Path("x" * 300 + "/end")).endswith("xxx/end")


def test_a_budget_is_charged_before_anything_is_built():
    budget = Budget(bytes=10, entries=2)
    budget.charge(bytes=10, entries=1)
    with pytest.raises(ValueError, match="1 bytes more"):
        budget.charge(bytes=1)
    with pytest.raises(ValueError, match="bytes"):
        budget.charge(bytes=-1)  # a count from a file may be negative
    budget.charge(entries=1)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert open_regular(tmp_path / "link").read() == b"x"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("pipe", "a device, pipe"), ("", "a folder"), ("loop", "cannot be open")):
        with pytest.raises(ValueError, match=message):
            open_regular(tmp_path / name)
    with pytest.raises(ValueError, match="a device"):
        open_regular("/dev/zero")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@given(st.text())
def test_what_is_quoted_is_one_printable_line(text):
    shown = quoted(text)
    assert shown.isprintable()
    assert len(shown) <= 203
    assert quoted("plain text") == "plain text"
