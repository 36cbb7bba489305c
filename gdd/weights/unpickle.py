"""Pickles read as data: a small stack machine that builds values, and can call nothing but its
caller's own functions.

Python's unpickler imports and calls whatever a file names. This one takes the opcodes from
`pickletools`, keeps each name as inert text, and looks up what to do for it: an unknown name is
refused, and so is every opcode that only mischief needs. What a file declares is held against what
the file has, and charged to one budget, before memory is asked for. Values share their parts, so a
short file can hold what takes for ever to write out, compare or walk through: nothing here does.
"""

import io
import os
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from gdd.reading import Budget, quoted, shown

MAX_OPCODES = 1_000_000  # public EDM files have some 100,000, with those inside their storages
MAX_NAME = 1_000
_LONG_TEXT = 1 << 20
_UNTOUCHED = "refused, nothing of the file was run"
_KEYS = (str, int, float, bool, bytes, type(None))  # hashing deep tuples can overflow the C stack


@dataclass(frozen=True)
class Name:
    """A name the file asked for, such as `collections.OrderedDict`: text, and never the thing
    itself."""

    full: str


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object of some class, as data: what it was called with, and the state the file sets
    afterwards."""

    kind: str
    args: tuple = ()
    state: Any = None
    items: dict = field(default_factory=dict)


class Names:
    """What a name in a file of `size` bytes stands for: plain containers, and numpy's arrays as
    `Record`s. `budget` bounds what all of the file may make of itself: one entry an opcode."""
    def __init__(self, size: int):
        # a storage is read once and its tensors once; what protocol 2 writes as text is characters
        self.budget = Budget(2 * size + 4096, MAX_OPCODES, size + (1 << 20))
        self.functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": lambda: {},
            "_codecs.encode": self.encode,
            "numpy.dtype": lambda *args: Record("numpy.dtype", args),
            "numpy.ndarray": lambda *args: Record("numpy.ndarray", args), }
        for builtins, copyreg in (("builtins", "copyreg"), ("__builtin__", "copy_reg")):
            self.functions[f"{builtins}.set"] = self.to_set
            self.functions[f"{builtins}.object"] = lambda: Record("object")
            self.functions[f"{copyreg}._reconstructor"] = self.reconstruct
        for core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
            self.functions[f"{core}.multiarray._reconstruct"] = lambda *_: Record("numpy.ndarray")
            self.functions[f"{core}.multiarray.scalar"] = _scalar
            self.functions[f"{core}.numeric._frombuffer"] = self.functions["numpy.ndarray"]

    def resolve(self, name: str) -> Callable[..., Any] | None:
        """The function that stands for a name, or None to refuse it."""
        return self.functions.get(name)

    def charge(self, **amounts: int) -> None:
        try:
            self.budget.charge(**amounts)
        except ValueError as error:
            raise RefusedError(
                f"unpacks to more than the file holds: {error}; {_UNTOUCHED}") from None

    def to_set(self, items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
        self.charge(entries=len(items))
        if not all(type(item) in (str, int) for item in items):
            raise ValueError("a set of other things than names")
        return set(items)

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        self.charge(characters=len(text))
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes in encoding {shown(encoding)}")
        return text.encode("latin-1")

    def reconstruct(self, kind: Name, base: Name, state: Any) -> Any:
        function = self.resolve(kind.full)
        if function is None or state is not None:
            raise ValueError(f"{kind.full} over {base.full}")
        return function()


def array(record: Any) -> np.ndarray:
    """The array in a numpy record: shape, type, order and bytes, from either of numpy's two ways to
    pickle."""
    if not isinstance(record, Record) or record.kind != "numpy.ndarray":
        raise ValueError("a value that is not an array")
    if record.state is not None:
        _, shape, dtype, fortran, content = record.state
    else:
        content, dtype, shape, order = record.args
        fortran = order == "F"
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise ValueError("an array whose shape is no tuple of counts")  # numpy would write it out
    content = content.encode("latin-1") if type(content) is str else content  # as Python 2 wrote it
    return np.frombuffer(content, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: Record, content: bytes) -> int | float | bool:
    return np.frombuffer(content, _dtype(dtype), count=1)[0].item()


def _dtype(record: Record) -> np.dtype:
    code = record.args[0] if record.kind == "numpy.dtype" and record.args else None
    if type(code) is not str or not re.fullmatch(r"[biuf][1248]", code):
        raise ValueError(f"numpy data of type {shown(code)}")
    big = isinstance(record.state, tuple) and len(record.state) > 1 and record.state[1] == ">"
    return np.dtype(f"{'>' if big else '<'}{code}")


def read(file: BinaryIO, names: Names) -> Any:
    """The first pickle in `file`, protocols 2 to 5, as dicts, lists, tuples, sets, plain values and
    `Record`s. Raises ValueError saying what is wrong and where."""
    machine = _Machine(names)
    position: int | None = 0
    opcode = None
    try:
        for found in opcodes(file):
            opcode, arg, position = found
            names.charge(entries=1)
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, arg)
    except RefusedError as error:
        raise ValueError(str(error)) from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
            MemoryError) as error:
        where = "" if opcode is None else f" after byte {position} ({opcode.name})"
        raise ValueError(f"is damaged{where}: {quoted(error)}") from None
    raise ValueError("is damaged: it has no end")


def opcodes(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """The opcodes of the pickle that starts here, with their arguments and positions. Raises
    ValueError where it is damaged."""
    yield from pickletools.genops(_Bounded(file))  # type: ignore[arg-type]


class RefusedError(ValueError):
    """What the file asks for is well-formed and not allowed."""


class _Bounded(io.RawIOBase):
    """A file that refuses to hand out more than it has, before any memory is asked for."""
    def __init__(self, file: BinaryIO):
        self.file, self.start = file, file.tell()
        self.opcode, self.end = b"", file.seek(0, os.SEEK_END)
        file.seek(self.start)

    def read(self, size: int = -1) -> bytes:
        left = self.end - self.file.tell()
        if size > left > 0 or size > 1 > left:
            raise ValueError(f"{size:,} bytes declared, {left:,} left in the file")
        content = self.file.read(size)
        if size == 1:
            self.opcode = content
        # protocol 2 writes bytes as text, so it may be long; other letters take four bytes each
        elif (size > _LONG_TEXT and self.opcode in (b"X", b"\x8d")
              and np.frombuffer(content, np.uint8).max() > 0xC3):
            raise ValueError("a long text in letters that are no bytes")
        return content

    def readline(self, size: int | None = -1) -> bytes:
        line = self.file.readline(MAX_NAME)
        if b"\\" in line:  # pickletools would unescape it
            raise ValueError("a name with a backslash")
        return line

    def tell(self) -> int:
        return self.file.tell() - self.start


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING",
    "SHORT_BINSTRING", "INT", "LONG", "FLOAT", "STRING", "UNICODE",
}  # yapf: disable


class _Machine:
    def __init__(self, names: Names):
        self.names = names
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, arg: Any) -> None:
        """Carry out one opcode. Raises RefusedError, or whatever a damaged file leads to."""
        stack = self.stack
        match opcode:
            case "PROTO":
                if arg > 5:
                    raise RefusedError(f"is a pickle of protocol {arg}; 2 to 5 are read")
            case "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case _ if opcode in _VALUES:
                stack.append(arg)
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                kinds = {"LIST": list, "TUPLE": tuple, "DICT": dict, "SET": set}
                stack.append(kinds[opcode.removeprefix("EMPTY_")]())
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            # this and the other opcodes of protocols 0 and 1: hand-made files are refused for what
            # they ask
            case "LIST":
                stack.append(self.since_mark())
            case "DICT":
                items = self.since_mark()
                stack.append({})
                self.set_items(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.since_mark()
                self.top(list).extend(items)
            case "SETITEM":
                self.set_items([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "ADDITEMS":
                items = self.since_mark()
                self.top(set).update(map(_key, items))
            case "FROZENSET":
                stack.append(frozenset(map(_key, self.since_mark())))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "GLOBAL":
                stack.append(self.name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.name(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(self.call(function, args))
            case "INST":
                stack.append(self.call(self.name(*arg.split(" ", 1)), tuple(self.since_mark())))
            case "OBJ":
                function, *args = self.since_mark()
                stack.append(self.call(function, tuple(args)))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if not isinstance(target, Record) or target.state is not None:
                    raise RefusedError(f"sets the state of {_describe(target)}; {_UNTOUCHED}")
                target.state = state
            case _:
                raise RefusedError(
                    f"uses pickle opcode {opcode}, which no checkpoint needs; {_UNTOUCHED}")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise RefusedError(f"adds items to {_describe(self.stack[-1])}; {_UNTOUCHED}")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1].items if isinstance(self.stack[-1], Record) else self.top(dict)
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def name(self, module: Any, name: Any) -> Name:
        if type(module) is not str or type(name) is not str:
            raise RefusedError(f"asks for {shown(module)}.{shown(name)}, which are no names; "
                               f"{_UNTOUCHED}")
        full = f"{module}.{name}" if len(module) + len(name) < MAX_NAME else module[:MAX_NAME]
        if self.names.resolve(full) is None:
            raise RefusedError(f"asks for {quoted(full)}, which is not on the list of what a file "
                               "may name; refused, nothing of it was run")
        return Name(full)

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Name) or type(args) is not tuple:
            raise RefusedError(f"calls {_describe(function)}; {_UNTOUCHED}")
        self.names.charge(entries=len(args))  # which are copied, however often they were stored
        known = self.names.resolve(function.full)
        assert known is not None, function
        return known(*args)


def _key(value: Any) -> Any:
    if type(value) not in _KEYS:
        raise RefusedError(f"uses {_describe(value)} as a key; {_UNTOUCHED}")
    return value


def _describe(value: Any) -> str:
    if isinstance(value, Name):
        return f"the name {value.full}"
    return f"a {quoted(value.kind) if isinstance(value, Record) else type(value).__name__}"
