"""Speed and memory of a training step, for every loss on the desk profile, as a table:
`python benchmarks/losses.py`.

images/s is that of the median step; the memory is that of all tensors at the worst moment, counted,
not sampled.
"""

import statistics
import time
from dataclasses import replace
from functools import partial

import torch

from gdd.config import TrainConfig
from gdd.data.images import open_images
from gdd.profiles import profile
from gdd.training.memory import Peak, estimate
from gdd.training.start import any_finished, load_start
from gdd.training.trainer import init_state, train

DESK = profile("desk")
RUNS = DESK.runs
LOSSES = {
    "EDM (teacher)": RUNS["teacher"],
    "GDD": RUNS["gdd"],
    "GDD, fakes drawn afresh": replace(RUNS["gdd"], reuse_fakes=False),
    "GDD-I": RUNS["gdd-i"],
    "GDD, 4 steps": RUNS["k-step-4"],
    "CD": RUNS["cd"],
    "CD-I": RUNS["cd-i"],
    "PD": replace(RUNS["cd"], objective="pd"),
    "CTM": replace(RUNS["cd"], objective="ctm"),
    "GDD + CD": RUNS["gdd+cd"], }
STEPS = 32  # two of them with R1


def steps(config: TrainConfig, count: int):
    """A fresh run of so many steps, and what it starts with in memory."""
    config = replace(config, total_images=count * config.batch_size)
    start = load_start(DESK, config, partial(any_finished, DESK), "teacher")
    state = init_state(config, start.network, start.backbones)
    modules = [start.network, *start.backbones, state.generator, state.ema]
    modules += [state.discriminator] if state.discriminator else []
    held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    dataset = open_images(config.data)
    return train(config, dataset, start.network, start.backbones, state=state), held


def measure(config: TrainConfig) -> tuple[float, int, int]:
    """Images/s, peak bytes, and the peak that `--dry-run` estimates."""
    seconds, (run, _) = [], steps(config, 2 + STEPS)
    for _ in range(2):
        next(run)
    while True:
        start = time.perf_counter()
        if next(run, None) is None:
            break
        seconds.append(time.perf_counter() - start)
    run, held = steps(config, config.r1_interval + 1)
    with Peak(held) as peak:
        for _ in run:
            pass
    backbones = load_start(DESK, config, partial(any_finished, DESK), "teacher").backbones
    estimated = estimate(config, DESK.network("teacher"), backbones,
                         micro_batch_size=config.batch_size)
    return config.batch_size / statistics.median(seconds), peak.most, sum(estimated.values())


def main() -> None:
    print(f"batch {RUNS['gdd'].batch_size}, {torch.get_num_threads()} threads, fp32\n")
    print("| loss | images/s | peak memory | estimated by `--dry-run` |\n|---|---|---|---|")
    for name, config in LOSSES.items():
        speed, peak, estimated = measure(config)
        print(f"| {name} | {speed:,.0f} | {peak / 1e6:.0f} MB | {estimated / 1e6:.0f} MB |",
              flush=True)


if __name__ == "__main__":
    main()
