"""Reading files that nobody has vouched for: one opener, one budget, one schema, one way to quote.

A reader opens regular files only, charges what it takes to a `Budget` before it builds anything,
gives every piece of metadata to `typed`, and puts text from a file into a message by `quoted`.
"""

import json
import math
import os
import reprlib
import stat
import types
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

METADATA = 1 << 26  # bytes of JSON that a file may bring; ImageNet's labels take two thirds
Line = NewType("Line", str)  # a kind for `typed`: text that may be printed as it is
_LINE = 300
_SHORT = reprlib.Repr()  # nested objects can be of any length when they are written out
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 2, 8, 8, 8
_SHORT.maxstring = _SHORT.maxother = 200


@dataclass
class Budget:
    """What one file may make of itself. A charge that goes beyond it is a ValueError."""

    bytes: int = 1 << 34
    entries: int = 1 << 22  # ImageNet's labels are 3.9 million pairs, names and classes
    characters: int = METADATA

    def charge(self, *, bytes: int = 0, entries: int = 0, characters: int = 0) -> None:
        if not (0 <= bytes <= self.bytes and 0 <= entries <= self.entries
                and 0 <= characters <= self.characters):
            asked = {"bytes": bytes, "entries": entries, "characters": characters}
            name = next(n for n, x in asked.items() if not 0 <= x <= getattr(self, n))
            raise ValueError(f"it asks for {asked[name]:,} {name} more than a file of its kind may")
        self.bytes -= bytes
        self.entries -= entries
        self.characters -= characters


def open_regular(path: Path | str) -> BinaryIO:
    """A regular file for reading, through links. Raises FileNotFoundError, or ValueError for a
    folder, a device, a pipe or a socket."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{quoted(path)} does not exist") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long or with a zero
        raise ValueError(f"{quoted(path)} cannot be opened: {quoted(error)}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise ValueError(f"{quoted(path)} is {kind}, not a file")
    return Path(path).open("rb")


def read_regular(path: Path | str, most: int) -> bytes:
    """All of a regular file; raises as `open_regular`, and ValueError where it has more than `most`
    bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{quoted(path)} has more than {most:,} bytes")
    return content


def json_values(content: bytes) -> int:
    """At least as many names and values as JSON text holds, but for the outermost: each takes up to
    70 bytes of memory, however short it is written."""
    return sum(content.count(mark) for mark in (b",", b":", b"[", b"{"))


def read_json(content: bytes, kind: Any, what: str, budget: Budget | None = None) -> Any:
    """JSON of the given kind, as `typed` has it, charged to `budget` before it is parsed. Raises
    ValueError beginning with `what`."""
    if len(content) > METADATA:
        raise ValueError(f"{what} has {len(content):,} bytes of JSON; {METADATA:,} are the most")
    try:
        (budget or Budget()).charge(entries=json_values(content))
    except ValueError as error:
        raise ValueError(f"{what} is JSON too large: {error}") from None
    try:
        value = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {quoted(error)}") from None
    return typed(value, kind, what)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def typed(value: Any, kind: Any, what: str) -> Any:
    """`value`, if it is of the annotated kind: plain types, X | None, Literal, list[X],
    dict[str, X], tuple[X, ...] of a list, TypedDict, and `Line`. Ints count as floats, which must
    be finite. Raises ValueError naming the place, the value and what is allowed."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            if _matches(value, option):
                return typed(value, option, what)
    elif origin is Literal:
        if any(type(value) is type(allowed) and value == allowed for allowed in arguments):
            return value
    elif is_typeddict(kind):
        if isinstance(value, dict):
            return _typed_fields(value, kind, what)
    elif origin in (list, tuple):
        if isinstance(value, (list, tuple)):
            if arguments[0] is Any:
                return origin(value)
            items = [typed(item, arguments[0], f"{what}[{i}]") for i, item in enumerate(value)]
            return items if origin is list else tuple(items)
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: typed(item, arguments[1], f"{what}.{quoted(key)}")
                    for key, item in value.items()}  # yapf: disable
    elif _matches(value, kind):
        return value
    raise ValueError(f"{what} must be {_described(kind)}; got {shown(value)}")


def _typed_fields(value: dict[str, Any], kind: Any, what: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    if missing := sorted(kind.__required_keys__ - value.keys()):
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    known = {name: typed(value[name], hint, f"{what}.{name}") for name, hint in hints.items()
             if name in value}  # yapf: disable
    return value | known  # fields of a younger version are left as they are


def _matches(value: Any, kind: Any) -> bool:
    """Whether a value has the outer shape of a kind."""
    if kind is None or kind is type(None):
        return value is None
    if type(value) is int and not -1 << 63 <= value < 1 << 63:
        return False  # JSON and pickles have integers of any length
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is Line:
        return type(value) is str and len(value) <= _LINE and value.isprintable()
    if kind in (int, str, bool):
        return type(value) is kind
    origin = get_origin(kind)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple))
    if origin is Literal:
        return type(value) in (str, int) and value in get_args(kind)
    return isinstance(value, dict)


def _described(kind: Any) -> str:
    words = {int: "an integer", float: "a finite number", str: "text", bool: "true or false",
             type(None): "nothing", Line: "a short line of text"}  # yapf: disable
    if kind in words:
        return words[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(option) for option in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return "a list" if origin in (list, tuple) else "a mapping of names"


def shown(value: Any) -> str:
    """A value from a file as it may be printed: its beginning, however deep it is nested."""
    try:
        return quoted(_SHORT.repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a large {type(value).__name__}"


def quoted(text: Any, most: int = 200) -> str:
    """Text from a file as it may be printed: one line, no control characters, not long; of a path
    the end."""
    if not isinstance(text, (str, os.PathLike, BaseException)):
        return shown(text)
    plain = str(text)
    if isinstance(text, os.PathLike) and len(plain) > most:
        plain = f"...{plain[3 - most:]}"
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode()
                    for c in plain[:most + 1])  # yapf: disable
    return plain if len(plain) <= most else f"{plain[:most]}..."
