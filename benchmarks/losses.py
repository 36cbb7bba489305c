"""Speed and memory of a training step, for every loss on the desk profile, as a table: `python
benchmarks/losses.py`.

images/s is that of the median step; the memory is that of all tensors at the worst moment, counted,
not sampled.
"""

import statistics
import time
from dataclasses import replace

import torch

from gdd.backbones import load_digits_backbone
from gdd.config import TrainConfig
from gdd.data.images import load_digits
from gdd.profiles import DESK
from gdd.training.engine import Engine
from gdd.training.memory import Peak, estimate
from gdd.training.trainer import init_state, train
from gdd.weights import checkpoint, zoo

LOSSES = {
    "EDM (teacher)": DESK["teacher"],
    "GDD": DESK["gdd"],
    "GDD-I": DESK["gdd-i"],
    "GDD, 4 steps": DESK["k-step-4"],
    "CD": DESK["cd"],
    "CD-I": DESK["cd-i"],
    "PD": replace(DESK["cd"], objective="pd"),
    "CTM": replace(DESK["cd"], objective="ctm"),
    "GDD + CD": DESK["gdd+cd"],
}
STEPS = 32  # R1 is in every 16th


def steps(config: TrainConfig, count: int):
    """A fresh run of so many steps, and what it starts with in memory."""
    config = replace(config, total_images=count * config.batch_size)
    start, backbone = checkpoint.load(zoo.path("teacher")), load_digits_backbone(
        zoo.path("digits-backbone"))
    engine = Engine(config)
    state = init_state(config, start, [backbone], engine)
    modules = [
        start, backbone, state.generator, state.ema,
        *([state.discriminator] if state.discriminator else [])
    ]
    held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return train(config, load_digits(), start, [backbone], engine=engine, state=state), held


def measure(config: TrainConfig) -> tuple[float, int, int]:
    """Images/s, peak bytes, and the peak that `--dry-run` foretells."""
    seconds, (run, _) = [], steps(config, 2 + STEPS)
    for _ in range(2):
        next(run)
    while True:
        start = time.perf_counter()
        if next(run, None) is None:
            break
        seconds.append(time.perf_counter() - start)
    run, held = steps(config, 3)
    with Peak(held) as peak:
        for _ in run:
            pass
    backbone = load_digits_backbone(zoo.path("digits-backbone"))
    foretold = estimate(config,
                        checkpoint.load(zoo.path("teacher")).config, [backbone],
                        micro_batch_size=config.batch_size)
    return config.batch_size / statistics.median(seconds), peak.most, sum(foretold.values())


def main() -> None:
    print(f"batch {DESK['gdd'].batch_size}, {torch.get_num_threads()} threads, fp32\n")
    print("| loss | images/s | peak memory | foretold by `--dry-run` |\n|---|---|---|---|")
    for name, config in LOSSES.items():
        speed, peak, foretold = measure(config)
        print(f"| {name} | {speed:,.0f} | {peak / 1e6:.0f} MB | {foretold / 1e6:.0f} MB |",
              flush=True)


if __name__ == "__main__":
    main()
