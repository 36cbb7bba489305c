"""Small classifiers that a profile trains: a discriminator's backbone, and features that judge."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gdd.data.images import to_float


def train_classifier(network: Any, images: Tensor, labels: Tensor, *, epochs: int, seed: int,
                     batch_size: int = 128, lr: float = 2e-3, holdout: int = 5,
                     mirror: bool = False) -> float:
    """Train `network.classify` in place, leave it frozen in eval mode, return its accuracy on every
    `holdout`-th image.

    Images uint8 (N,C,H,W), as augmentation shifted by up to a pixel and, if `mirror`, every second
    batch mirrored; lr decayed to zero by a cosine.
    """
    generator = torch.Generator().manual_seed(seed)
    x, held = to_float(images), torch.arange(len(images)) % holdout == 0
    train_x, train_y = x[~held], labels[~held]
    steps = epochs * (len(train_x) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.requires_grad_(True).train()
    for step in range(steps):
        picked = torch.randint(len(train_x), (batch_size, ), generator=generator)
        shift = torch.randint(-1, 2, (2, ), generator=generator).tolist()
        batch = F.pad(train_x[picked], (1, 1, 1, 1), value=-1.0)
        batch = batch.roll(shift, dims=(2, 3))[:, :, 1:-1, 1:-1]
        batch = batch.flip(3) if mirror and step % 2 else batch
        loss = F.cross_entropy(network.classify(batch), train_y[picked], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    with torch.no_grad():
        classes = torch.cat([network.classify(part).argmax(1) for part in x[held].split(1000)])
        return float((classes == labels[held]).float().mean())
