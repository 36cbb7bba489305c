"""Speed on a GPU, in at most 8 minutes: `python -m benchmarks.gpu` writes gpu.csv. To see that it
runs where there is none: `python -m benchmarks.gpu --device cpu --tiny`.

One-step sampling, Heun's 18 steps and the GDD step of a CIFAR-10-size DDPM++ (55.7M weights, all
random, since speed asks for no others) in float32, tf32 and bf16, channels first and last, as it
is, compiled, and as CUDA graphs; beside it the textbook's step on the same card.
"""

import argparse
import csv
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import textbook
from benchmarks.clock import operations
from gdd.config import Hardware, TrainConfig
from gdd.data.images import Images
from gdd.denoiser import Denoiser
from gdd.files import write_atomically
from gdd.profiles import profile
from gdd.profiles.paper import CIFAR, LITE, VP
from gdd.sampling import parse_sampler, to_device
from gdd.training import trainer
from gdd.training.engine import Engine
from gdd.training.start import RANDOM, new_timm_backbone

COMPILING = 90.0  # seconds that are left before a network is compiled, at least
GRAPHS = "CUDA graphs"
# precision, channels last, how it runs: the first is what ratios are to, the most telling first
WAYS = (
    ("fp32", False, "eager"),
    ("bf16", True, GRAPHS),
    ("bf16", True, "eager"),
    ("tf32", False, "eager"),
    ("bf16", False, "eager"),
    ("tf32", True, "eager"),
    ("fp32", True, "eager"),
    ("bf16", True, "compiled"),
)  # yapf: disable


@dataclass(frozen=True)
class Sizes:
    """What is measured, and for how long."""

    network: dict[str, Any]
    gdd: TrainConfig  # its backbones get random weights
    batch: int  # images in sampling
    matrix: int  # side of the matrices whose product is the peak
    channels: int  # of the large convolution
    pixels: int  # a side of its images
    seconds: float  # that a measurement takes, after a warm-up
    repeats: int = 3  # in warming up, for a graph is recorded by the second; and at least as many
    ways: tuple[tuple[str, bool, str], ...] = WAYS


def sizes(tiny: bool) -> Sizes:
    gdd = replace(profile("cifar10").runs["gdd"], batch_size=64, precision="fp32")
    if tiny:
        gdd = replace(gdd, backbones=(LITE, ), d_image_size=32, batch_size=2, d_channels=(8, ) * 4,
                      d_head_sizes=(8, 4), d_head_widths=(8, 8), d_batch_norm_images=2)
        network = VP | dict(img_resolution=8, img_channels=3, model_channels=8, channel_mult=[1, 2],
                            num_blocks=1, attn_resolutions=[4])
        return Sizes(network, gdd, batch=2, matrix=64, channels=8, pixels=8, seconds=0.0, repeats=1,
                     ways=WAYS[:2])
    return Sizes(VP | CIFAR, gdd, batch=256, matrix=8192, channels=256, pixels=32, seconds=2.0)


@dataclass(frozen=True)
class Measured:
    """A line of gpu.csv."""

    work: str
    precision: str
    layout: str
    how: str
    images_per_s: float = float("nan")
    times_eager: float = float("nan")  # as fast as the first way of this work
    times_textbook: float = float("nan")  # as fast as the textbook's step in this precision
    gflop_per_s: float = float("nan")
    share_of_peak: float = float("nan")  # of a matrix product in this precision
    peak_memory_gb: float = float("nan")  # as PyTorch allocates it; nothing on a CPU
    note: str = ""  # why it was not measured


class Card:
    """A device, its clock, and when its time is over."""
    def __init__(self, device: str, limit_s: float):
        self.device = torch.device(device)
        self.end = time.monotonic() + limit_s
        self.peaks: dict[str, float] = {}

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def left(self) -> float:
        return self.end - time.monotonic()

    def seconds(self, work: Callable[[], Any], size: Sizes, share: float = 1.0) -> float:
        """Median of a call, repeated for a share of the time that a measurement takes."""
        for _ in range(size.repeats):
            work()
        self.sync()
        times: list[float] = []
        end = time.monotonic() + share * size.seconds
        while len(times) < size.repeats or time.monotonic() < end:
            start = time.perf_counter()
            work()
            self.sync()
            times.append(time.perf_counter() - start)
        return median(times)

    def forget(self) -> None:
        """Nothing held by what was measured before."""
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_gb(self) -> float:
        cuda = self.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if cuda else float("nan")


def set_precision(network: nn.Module, card: Card, precision: str) -> torch.dtype:
    """tf32's switches, which are the process's; the dtype that multiplications take."""
    to_device(network, str(card.device), precision)  # type: ignore[arg-type]
    return torch.bfloat16 if precision == "bf16" else torch.float32


def run_as(network: nn.Module, how: str, device: torch.device) -> Callable[..., Tensor]:
    """The network as it is, compiled, or recorded as graphs; where there is no CUDA, traced only,
    which takes no compiler."""
    if how == "eager":
        return network
    if device.type != "cuda":
        return torch.compile(network, backend="aot_eager")
    return torch.compile(network, mode="reduce-overhead" if how == GRAPHS else "default")


def peak(card: Card, size: Sizes, precision: str) -> float:
    """GFLOP/s of a product of square matrices; measured once."""
    if precision not in card.peaks:
        dtype = set_precision(nn.Linear(1, 1), card, precision)
        a, b = torch.randn(2, size.matrix, size.matrix, device=card.device, dtype=dtype)
        seconds = card.seconds(lambda: a @ b, size, 0.5)
        card.peaks[precision] = 2 * size.matrix**3 / seconds / 1e9
    return card.peaks[precision]


def convolutions(card: Card, size: Sizes) -> Iterator[Measured]:
    """The large convolutions of the network: 3x3, 256 channels at 32x32 pixels."""
    for precision in ("fp32", "tf32", "bf16"):
        for layout in (torch.contiguous_format, torch.channels_last):
            conv = nn.Conv2d(size.channels, size.channels, 3, padding=1)
            dtype = set_precision(conv, card, precision)
            conv.to(dtype).to(memory_format=layout)  # type: ignore[call-overload]
            x = torch.randn(size.batch, size.channels, size.pixels, size.pixels).to(
                card.device, dtype)
            x = x.to(memory_format=layout)
            card.forget()
            with torch.inference_mode():
                seconds = card.seconds(partial(conv, x), size, 0.25)
            rate = 2 * 9 * size.channels**2 * size.pixels**2 * size.batch / seconds / 1e9
            yield Measured(f"convolution 3x3 of {size.channels} channels", precision,
                           _layout(layout is torch.channels_last), "eager", size.batch / seconds,
                           gflop_per_s=rate, share_of_peak=rate / peak(card, size, precision),
                           peak_memory_gb=card.peak_memory_gb())


def sampling(card: Card, size: Sizes, spec: str) -> Iterator[Measured]:
    """Sampling by `one-step` or `heun:18`, in every way."""
    sample, first, flops = parse_sampler(spec), None, 0.0
    for precision, last, how in size.ways:
        if skipped := _skipped(spec, precision, last, how, card):
            yield skipped
            continue
        card.forget()
        torch.manual_seed(0)
        network = Denoiser.from_config(size.network).eval()
        set_precision(network, card, precision)
        if last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        denoise = run_as(network, how, card.device)
        latents = torch.randn(size.batch, network.channels, network.resolution, network.resolution,
                              device=card.device)

        def call(x: Tensor, sigma: Any, labels: Any = None, denoise=denoise) -> Tensor:
            # a tensor, for a number would be compiled anew at each level; cloned, for a graph
            # writes over what it returned before
            torch.compiler.cudagraph_mark_step_begin()
            level = torch.full((), float(sigma), dtype=torch.float32, device=x.device)
            return denoise(x.float(), level).clone()

        with torch.no_grad():
            if how == "eager":  # the first way is
                flops = operations(partial(sample, network, latents)) / 1e9
            seconds = card.seconds(partial(sample, call, latents), size)
        first = first or seconds
        yield _measured(card, size, spec, (precision, last, how), size.batch, seconds, flops,
                        times_eager=first / seconds)


def training(card: Card, size: Sizes) -> Iterator[Measured]:
    """The GDD step, R1 at its share, by the textbook and in every way of ours."""
    plain: dict[str, float] = {}
    first, flops = None, 0.0
    precisions = dict.fromkeys(way[0] for way in size.ways)
    for precision, last, how in (*((name, False, "textbook") for name in precisions), *size.ways):
        if skipped := _skipped("GDD step", precision, last, how, card):
            yield skipped
            continue
        card.forget()
        step, r1_step, batch = _steps(card, size, precision, last, how)
        if how in ("eager", "textbook"):  # what is compiled has as many as what is not
            flops = operations(partial(step, batch)) / 1e9
        seconds = card.seconds(partial(step, batch), size)
        rate = flops / seconds  # of the step without R1, whose second derivatives are not counted
        seconds += card.seconds(partial(r1_step, batch), size, 0.5) / size.gdd.r1_interval
        if how == "textbook":
            plain[precision] = seconds
        elif first is None:
            first = seconds
        yield _measured(card, size, "GDD step", (precision, last, how), size.gdd.batch_size,
                        seconds, rate * seconds, times_eager=(first or float("nan")) / seconds,
                        times_textbook=plain.get(precision, float("nan")) / seconds)


def _steps(card: Card, size: Sizes, precision: str, last: bool, how: str):
    """A step of a batch, one by R1, and a batch."""
    reuse = how != "textbook"
    config = replace(size.gdd, reuse_fakes=reuse)
    torch.manual_seed(0)
    teacher = Denoiser.from_config(size.network).eval()
    folded, plain = [], []
    for name in config.backbones:
        torch.manual_seed(0)
        folded.append(new_timm_backbone(RANDOM + name, config))
        torch.manual_seed(0)
        plain.append(textbook.PlainBackbone(folded[-1]).to(card.device))
    kind: Any = card.device.type
    engine = Engine(config, Hardware(accelerator=kind, devices=1, nodes=1))
    state = trainer.init_state(config, teacher, folded, engine)
    set_precision(state.generator, card, precision)
    if last:
        state.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = (2 * config.batch_size, teacher.channels, teacher.resolution, teacher.resolution)
    batch = trainer.draw(state, Images("random", torch.randint(256, shape, dtype=torch.uint8)))
    if how == "textbook":
        book = textbook.Textbook(state, plain)
        return book.step, book.r1_step, batch
    generator = run_as(state.generator, how, card.device)
    models = trainer.Models(generator, parse_sampler(config.sampler), None)
    step, r1_step = textbook.ours(state, models)

    def marked(batch: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return step(batch)

    return marked, r1_step, batch


def _layout(last: bool) -> str:
    return "channels last" if last else "channels first"


def _skipped(work: str, precision: str, last: bool, how: str, card: Card) -> Measured | None:
    needed = COMPILING if how in (GRAPHS, "compiled") and card.device.type == "cuda" else 0
    if card.left() > needed:
        return None
    return Measured(work, precision, _layout(last), how, note="no time left")


def _measured(card: Card, size: Sizes, work: str, way: tuple[str, bool, str], images: int,
              seconds: float, gflop: float, **ratios: Any) -> Measured:
    precision, last, how = way
    memory = card.peak_memory_gb()
    rate = gflop / seconds
    return Measured(work, precision, _layout(last), how, images / seconds, gflop_per_s=rate,
                    share_of_peak=rate / peak(card, size, precision), peak_memory_gb=memory,
                    **ratios)


def measure(device: str, tiny: bool, limit_s: float) -> Iterator[Measured]:
    """Every line, as it comes."""
    size, card = sizes(tiny), Card(device, limit_s)
    yield from convolutions(card, size)
    yield from training(card, size)
    yield from sampling(card, size, "one-step")
    yield from sampling(card, size, "heun:18")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"), help="file to write")
    parser.add_argument("--limit", type=float, default=450.0, help="seconds, after which nothing "
                        "more is begun")
    asked = parser.parse_args(arguments)
    cuda = asked.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        parser.error(f"device {asked.device} is not here; --device cpu --tiny tries the command")
    machine = {"device": torch.cuda.get_device_name(asked.device) if cuda else asked.device,
               "torch": torch.__version__, "tiny": asked.tiny}  # yapf: disable
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Measured)] + list(machine),
                            lineterminator="\n")
    writer.writeheader()
    for line in measure(asked.device, asked.tiny, asked.limit):
        shown = {key: f"{x:.4g}" if isinstance(x, float) else x for key, x in asdict(line).items()}
        writer.writerow(shown | machine)
        print(" | ".join(map(str, shown.values())), flush=True)
        write_atomically(asked.csv, text.getvalue().encode())  # what there is, if it is stopped


if __name__ == "__main__":
    main()
