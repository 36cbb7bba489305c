"""Record reduced activations of named submodules while a block of code runs.

Forward hooks are global state that outlives an experiment, so they exist only inside the context,
and they reduce at once: a UNet block may change its output in place right after the hook, and a
kept reference would show the later value.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
UNSEEN = "what a module computes by functions, such as torch.nn.functional's, is no submodule"


@contextmanager
def record(module: nn.Module, pattern: str | Sequence[str],
           reduce: Callable[[Tensor], T]) -> Iterator[dict[str, list[T]]]:
    """Yield a tape: for each submodule whose name fits `pattern` (shell wildcards, a `*` spans
    dots) or one of several, `reduce(output)` of every call, in order.

    Names appear in order of execution: when a submodule first returns. Of an output that is a
    tuple, list, mapping or dataclass the first tensor counts. Raises ValueError if a pattern fits
    nothing, if what fits lies in a compiled, scripted or traced module, where no hook is called, or
    returns no tensor, and RuntimeError if nothing that fits a pattern was called. No hook is left
    behind, whatever happens.
    """
    modules = dict(module.named_modules())
    _refuse_unseen(modules, "")
    names = [name for name in modules if name]
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    matched = {wanted: fnmatch.filter(names, wanted) for wanted in patterns}
    for wanted, found in matched.items():
        if not found:
            near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
            nearest = ", ".join(near) or "none, it has no submodules"
            raise ValueError(
                f"pattern {wanted!r} matches no submodule; nearest: {nearest}; {UNSEEN}")
    every = list(dict.fromkeys(name for found in matched.values() for name in found))
    for name in every:
        _refuse_unseen(modules, name)
    tape: dict[str, list[T]] = {}
    called: set[str] = set()

    def note(name: str, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        found = first_tensor(output)
        if found is None:
            raise ValueError(f"{name} returns no tensor but {type(output).__name__}: leave it out")
        called.add(name)
        try:
            tape.setdefault(name, []).append(reduce(found.detach()))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    handles = []
    try:
        for name in every:
            handles.append(modules[name].register_forward_hook(partial(note, name)))
        yield tape
        silent = [
            name for found in matched.values() if not called.intersection(found) for name in found]
        if silent:
            raise RuntimeError(f"never called while recording: {', '.join(silent)}; {UNSEEN}")
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout and no running statistics inside; afterwards every submodule is in the mode that
    it was in."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of nested tuples, lists, mappings and dataclasses, or None."""
    if isinstance(output, Tensor):
        return output
    values: Any = ()
    if is_dataclass(output):
        values = [getattr(output, field.name) for field in fields(output)]
    elif isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, tuple | list):
        values = output
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def _refuse_unseen(modules: dict[str, nn.Module], name: str) -> None:
    """Hooks inside of a compiled or scripted module are dropped in silence."""
    for path in ("", *accumulate(name.split("."), "{}.{}".format)):
        outer = modules[path]
        kind = ""
        if hasattr(outer, "_orig_mod") or getattr(outer, "_compiled_call_impl", None) is not None:
            kind = "compiled"
        elif isinstance(outer, torch.jit.ScriptModule):
            kind = "scripted or traced"
        if kind:
            raise ValueError(f"{path or type(outer).__name__} is {kind}, which drops hooks in "
                             "silence; record the module before it")
