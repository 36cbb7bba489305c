"""Record reduced activations of named submodules while a block of code runs.

Forward hooks are global state that outlives an experiment, so they exist only inside the context,
and they reduce at once: a UNet block may change its output in place right after the hook, and a
kept reference would show the later value.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

Tape = dict[str, list[Tensor]]


@contextmanager
def record(module: nn.Module, pattern: str, reduce: Callable[[Tensor], Tensor]) -> Iterator[Tape]:
    """Yield a tape: for each submodule whose name fits `pattern` (shell wildcards),
    `reduce(output)` of every call, in order.

    Raises ValueError if nothing fits or the module is compiled (torch.compile drops hooks in
    silence), and RuntimeError if a submodule that fits was never called. No hook is left behind,
    whatever happens.
    """
    _refuse_compiled(module)
    names = [name for name, _ in module.named_modules() if name]
    matched = fnmatch.filter(names, pattern)
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        nearest = ", ".join(near) or "none, it has no submodules"
        raise ValueError(f"pattern {pattern!r} matches no submodule; nearest: {nearest}")
    tape: Tape = {name: [] for name in matched}
    silent = set(matched)

    def note(name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        silent.discard(name)
        tape[name].append(reduce(output.detach()))

    handles = []
    try:
        for name in matched:
            hook = partial(note, name)
            handles.append(module.get_submodule(name).register_forward_hook(hook))
        yield tape
        if silent:
            raise RuntimeError(f"never called while recording: {', '.join(sorted(silent))}")
    finally:
        for handle in handles:
            handle.remove()


def _refuse_compiled(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if hasattr(child, "_orig_mod") or getattr(child, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{name or type(child).__name__} is compiled, which drops hooks in "
                             "silence; record the module before it")
