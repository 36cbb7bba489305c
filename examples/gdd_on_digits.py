"""The whole method on scikit-learn's digits: train a diffusion teacher, turn it into a one-step
generator by a GAN loss alone with most weights frozen (GDD-I), and measure both.

    python examples/gdd_on_digits.py --images 20000 --folder gdd_on_digits
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from analysis.extractors import extractor
from analysis.fid.compare import measure
from analysis.fid.sources import of_denoiser, open_source
from analysis.fid.summaries import Summaries
from gdd.backbones import ClassifierBackbone
from gdd.config import TrainConfig
from gdd.data.images import open_images, to_uint8
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.grid import grid_png
from gdd.sampling import generate
from gdd.training.classifier import train_classifier
from gdd.training.trainer import train

parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("--images", type=int, default=20_000,
                    help="the generator trains on; the teacher: 3x")
parser.add_argument("--n", type=int, default=1_797, help="generated images that are measured")
parser.add_argument("--folder", type=Path, default=Path("gdd_on_digits"), help="of the pictures")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)


def trained(config, start, backbones=()):
    """The weight average of the last state that `train` yields, one after every step."""
    steps = train(config, digits, start, backbones)
    *_, state = tqdm(steps, config.objective, -(-config.total_images // config.batch_size))
    return state.ema


digits = open_images("digits")  # uint8 (1797,1,8,8), with labels
torch.manual_seed(0)

# 1. a teacher: EDM's denoiser D(x; sigma), a small DDPM++ of three resolutions
network = dict(
    model_type="SongUNet", img_resolution=8, img_channels=1, model_channels=16, num_blocks=1,
    channel_mult=[1, 2, 1.5], channel_mult_emb=2, attn_resolutions=[4], dropout=0.0,
)  # yapf: disable
teacher = trained(
    TrainConfig(objective="edm", total_images=3 * args.images, batch_size=64, lr=3e-3,
                lr_decay_images=2 * args.images, betas=(0.9, 0.999), ema_halflife_images=5_000),
    Denoiser.from_config(network))

# 2. what the discriminator looks through: a classifier's features, frozen from here on
backbone = ClassifierBackbone("classifier", channels=1, resolution=8, classes=10)
accuracy = train_classifier(backbone, digits.images, digits.labels, epochs=15, seed=1)
print(f"classifier: {accuracy:.1%} of held-out digits")

# 3. GDD-I: the teacher's weights, convolutions frozen, G(z) = D(80 z; 80), and no other loss
config = TrainConfig(objective="gdd", freeze="gdd-i", total_images=args.images, batch_size=64,
                     lr=1e-3, d_lr=1e-3, d_channels=(32, 32, 64, 64), d_head_sizes=(8, 4),
                     d_head_widths=(64, 128), r1_gamma=1e-2, ema_halflife_images=5_000)
print(f"GDD-I: {freeze(teacher.copy(), config.freeze)}")
generator = trained(config, teacher, [backbone])

# 4. image k is a function of the weights and of seed k: the same seeds, 35 calls against one
samples = {"teacher": (teacher, "heun:18"), "gdd-i": (generator, "one-step")}
for name, (denoiser, sampler) in samples.items():
    images = torch.cat(list(generate(denoiser, range(64), sampler=sampler)))
    (args.folder / f"{name}.png").write_bytes(grid_png(to_uint8(images), zoom=4))

# 5. every pair's Frechet distance, in the features of a shipped classifier that no training sees
sources = [of_denoiser(*pair, name)(range(args.n)) for name, pair in samples.items()]
table = measure([*sources, open_source("digits")], Summaries(extractor("digits")), n=args.n,
                ranges=1, allow_different_n=True)
table.to_csv(args.folder / "distances.csv", index=False)
print(table[["a", "b", "metric", "value"]].to_string(index=False))
print(f"{args.folder}: {', '.join(sorted(path.name for path in args.folder.iterdir()))}")
