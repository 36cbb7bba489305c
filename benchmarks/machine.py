"""The machine a measurement is of: its processor, what that can do, its measured ceilings; and
which peers are installed."""

import platform
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from benchmarks.clock import FULL, medians, operations


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, which only Linux has."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().partition("\n\n")[0].splitlines() if file.exists() else []
    pairs = [line.partition(":") for line in lines]
    return {name.strip(): value.strip() for name, _, value in pairs}


def flags() -> set[str]:
    """What the processor says that it can do, such as avx2 or amx_bf16."""
    return set(_cpuinfo().get("flags", "").split())


def computes_bf16() -> bool:
    """Whether bf16 is multiplied as such; else it is widened to float32 first."""
    return bool(flags() & {"avx512_bf16", "amx_bf16"})


def bf16_reason() -> str:
    lacks = [name for name in ("avx512_bf16", "amx_bf16") if name not in flags()]
    return f"this processor lacks {' and '.join(lacks)}" if lacks else \
        "normalisation, SiLU and sums of branches take as long as in float32"


def describe() -> dict[str, str | int]:
    """The columns that every row of results.csv has."""
    name = _cpuinfo().get("model name", platform.processor() or platform.machine())
    return {
        "torch": torch.__version__.partition("+")[0],
        "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(), }


def peer(distribution: str) -> str:
    """Name and version; raises `PackageNotFoundError` if it is not installed."""
    return f"{distribution} {metadata.version(distribution)}"


@cache
def convolution_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a 3x3 convolution of 256 channels at 16x16 pixels, channels last or first,
    whichever is faster: the middle of a CIFAR-10-size network."""
    channels, batch = (256, 16 if dtype == torch.float32 or computes_bf16() else 1)
    conv = nn.Conv2d(channels if FULL else 8, channels if FULL else 8, 3, padding=1).to(dtype)
    x = torch.randn(batch, conv.in_channels, 16, 16, dtype=dtype)
    last = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1).to(
        dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = medians(lambda: conv(x), lambda: last(x_last), repeats=9)
        return operations(lambda: conv(x)) / 1e9 / min(seconds)


@cache
def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a product of two square matrices."""
    a = torch.randn(2048 if FULL else 64, 2048 if FULL else 64, dtype=dtype)
    (seconds, ) = medians(lambda: a @ a, repeats=5)
    return operations(lambda: a @ a) / 1e9 / seconds


@cache
def bandwidth() -> float:
    """GB/s that adding two large vectors reads and writes."""
    a, b = torch.ones(2, (1 << 25) if FULL else 1 << 10).unbind()
    out = torch.empty_like(a)
    (seconds, ) = medians(lambda: torch.add(a, b, out=out), repeats=5)
    return 3 * a.nbytes / 1e9 / seconds
