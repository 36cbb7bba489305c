"""Seconds, bytes and operations of a piece of work."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gdd.cli import KEPT, mallopt
from gdd.training.memory import Peak

FULL = "CI" not in os.environ  # in CI small and without bars: it shows that the command runs
Work = Callable[[], Any]

# multiplications and additions that PyTorch's counter leaves out (Golub & Van Loan, 4th ed., 4.2
# and 8.3)
FACTORISATIONS = {
    torch.ops.aten.linalg_cholesky_ex: lambda a, *_, **__: a[-1]**3 // 3,
    torch.ops.aten._linalg_eigh: lambda a, *_, **__: 4 * a[-1]**3 // 3, }


def timed(work: Work) -> tuple[float, Any]:
    """Wall time of one call, and what it returns."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def medians(*works: Work, repeats: int = 3) -> list[float]:
    """Median wall time of each after a warm-up, in turn, so that all meet the same machine."""
    for work in works:
        work()
    rounds = [[timed(work)[0] for work in works] for _ in range(repeats if FULL else 1)]
    return [median(times) for times in zip(*rounds, strict=True)]


def as_command(work: Callable[..., Any]) -> Callable[..., Any]:
    """With freed memory kept, as in all commands of the toolkit. What is timed beside it meets
    malloc as glibc has it after some large results: they come from the kernel from 32 MB on, and
    the top of the heap goes back to it from 64 MB on."""
    def run(*arguments: Any) -> Any:
        for number, size in KEPT.values():
            mallopt(number, size)
        try:
            return work(*arguments)
        finally:
            for (number, _), size in zip(KEPT.values(), (1 << 25, 1 << 26), strict=True):
                mallopt(number, size)

    return run


def peak_bytes(work: Work, known: Iterable[Tensor] = ()) -> int:
    """Bytes of all tensors that operations make, at the worst moment; `known` were there before."""
    peak = Peak(known)
    before = peak.now
    with peak:
        work()
    return peak.most - before


def operations(work: Work) -> int:
    """Floating-point operations of convolutions, matrix products and factorisations."""
    with FlopCounterMode(display=False, custom_mapping=FACTORISATIONS) as counter:
        work()
    return counter.get_total_flops()


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if nothing stayed in a cache between
    two of them."""
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for leaf in tree_leaves((args, kwargs, out)):
                self.bytes += leaf.nbytes if isinstance(leaf, Tensor) else 0
        return out


def traffic(work: Work) -> int:
    with ExitStack() as stack:
        counter = stack.enter_context(Traffic())
        work()
    return counter.bytes
