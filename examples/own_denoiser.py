"""A denoiser of one's own, here a residual MLP: train it, sample it, look into its layers at every
noise level, measure it.

The samplers take any callable denoise(x, sigma, labels=None) -> x0_hat, images in [-1,1] and sigma
in their units. `analysis.fid` also asks for three attributes: channels, resolution, label_dim.

    python examples/own_denoiser.py --images 200000 --folder own_denoiser
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from analysis.extractors import extractor
from analysis.fid.compare import measure
from analysis.fid.sources import of_denoiser, open_source
from analysis.fid.summaries import Summaries
from analysis.hooks import record
from gdd.data.images import open_images, to_float, to_uint8
from gdd.denoiser import scalings
from gdd.grid import grid_png
from gdd.losses import draw_sigma, edm_loss
from gdd.sampling import draw_latents, heun, solve

parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("--images", type=int, default=200_000, help="training images")
parser.add_argument("--n", type=int, default=1_797, help="generated images that are measured")
parser.add_argument("--folder", type=Path, default=Path("own_denoiser"), help="of what it writes")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)


class Mine(nn.Module):
    channels, resolution, label_dim = 1, 8, 0

    def __init__(self, width=256, depth=4):
        super().__init__()
        self.first = nn.Linear(64 + 1, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 64)

    def forward(self, x, sigma, labels=None):
        x, sigma = x.float(), torch.as_tensor(sigma).float().expand(len(x))
        # EDM's preconditioning, so that the network sees and makes numbers of order one
        c_skip, c_out, c_in, c_noise = (c[:, None] for c in scalings(sigma, 0.5, epsilon=0.0))
        flat = x.flatten(1)  # (N,64)
        h = self.first(torch.cat([c_in * flat, c_noise], dim=1))
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return (c_skip * flat + c_out * self.last(nn.functional.silu(h))).view_as(x)


# train it
images, stream = to_float(open_images("digits").images), torch.Generator().manual_seed(0)
torch.manual_seed(0)
denoiser, steps = Mine(), -(-args.images // 128)
optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
for _ in range(steps):
    x = images[torch.randint(len(images), (128, ), generator=stream)]
    noise = torch.randn(x.shape, generator=stream)
    loss = edm_loss(denoiser, x, draw_sigma(len(x), stream), noise).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
denoiser.eval().requires_grad_(False)
print(f"{args.images:,} training images, last loss {loss:.1f}")

# sample it with EDM's solver, image k from seed k
latents, _ = draw_latents(range(64), (1, 8, 8))
samples = heun(denoiser, latents, steps=18)
(args.folder / "samples.png").write_bytes(grid_png(to_uint8(samples), zoom=4))

# record its layers while it samples: one row per layer and noise level
rows = []
with record(denoiser, "layers.*", lambda a: a.abs().mean()) as tape:
    for step in solve(denoiser, latents, steps=18):  # its state right after a step's first call
        if step.sigma > 0:
            rows += [
                (name, step.index, step.sigma, float(values[-1])) for name, values in tape.items()]
table = pd.DataFrame(rows, columns=["layer", "step", "sigma", "mean_abs"])
table.to_csv(args.folder / "activations.csv", index=False)
strongest = table.loc[table.groupby("layer")["mean_abs"].idxmax(), ["layer", "sigma", "mean_abs"]]
print(f"where each layer is strongest:\n{strongest.to_string(index=False)}")

# measure it: the distance to the digits, in the features of a shipped classifier
mine = of_denoiser(denoiser, "heun:18", "mine")(range(args.n))
distance = measure([mine, open_source("digits")], Summaries(extractor("digits")), n=args.n,
                   ranges=1, allow_different_n=True)
print(distance[["a", "b", "metric", "value"]].to_string(index=False))
print(f"{args.folder}: {', '.join(sorted(path.name for path in args.folder.iterdir()))}")
