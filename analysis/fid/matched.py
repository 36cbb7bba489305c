"""Does a distance reward class statistics? The FD once the generated images are weighted so that
their classes are as frequent as the real ones' (Kynkaanniemi et al. 2023, arXiv:2203.06026).

No image is changed. What of the distance goes was of how often each class is there, and none of how
it looks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.fid.frechet import FeatureStats, frechet_distance


@dataclass(frozen=True)
class Matched:
    """FD before and after, and how many images the weighted ones are worth; `off` is the total
    variation between the histograms of classes, before and after."""

    before: float
    after: float
    effective_n: float
    off: tuple[float, float]

    @property
    def drop(self) -> float:
        """The share of the FD that goes."""
        return 1 - self.after / self.before if self.before else 0.0


def top_classes(probabilities: Tensor, top: int) -> Tensor:
    """Of class probabilities (N,C) the `top` likeliest as 1, others as 0: (N,C) float64."""
    if not 1 <= top < probabilities.shape[1]:
        raise ValueError(f"top must be 1 to {probabilities.shape[1] - 1}, fewer than there are "
                         f"classes; got {top}")
    chosen = probabilities.topk(top, dim=1).indices
    return torch.zeros(probabilities.shape, dtype=torch.float64).scatter_(1, chosen, 1.0)


def matching_weights(fake: Tensor, target: Tensor) -> Tensor:
    """Weights (N,) of sum 1 under which rows `fake` (N,C) have the mean `target` (C,), or come as
    near as they can: of all such weights those nearest to equal ones.

    They are exp(row . theta); theta minimises a convex dual (Hainmueller 2012, entropy balancing).
    With one class a row a weight is the real share of its class over the generated one.
    """
    # misses the target by theta/N, less than chance does, and stays finite where none can reach it
    ridge = 1 / len(fake)
    theta = torch.zeros(len(target), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-9,
                                  tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (fake @ theta).logsumexp(0) - target @ theta + ridge / 2 * theta.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return (fake @ theta.detach()).softmax(0)


def matched_fd(fake: Tensor, real: Tensor, fake_classes: Tensor, real_classes: Tensor, *,
               top: int = 1) -> Matched:
    """FD of features (N,d) and (M,d) before and after the generated images are weighted to the real
    histogram of `top` classes each; class probabilities (N,C) and (M,C).

    The weights stand for endless resampling: nothing is drawn. A sample of `effective_n` (Kish
    1965) has more of the bias of small samples, so a drop is understated rather than overstated.
    """
    ours, theirs = top_classes(fake_classes, top), top_classes(real_classes, top).mean(dim=0)
    weights = matching_weights(ours, theirs)
    effective = float(1 / weights.square().sum())
    reference = FeatureStats.of(real)
    off = [float((share - theirs).abs().sum()) / (2 * top)
           for share in (ours.mean(dim=0), weights @ ours)]  # yapf: disable
    after = FeatureStats.weighted(fake, weights, max(round(effective), 2))
    return Matched(frechet_distance(FeatureStats.of(fake), reference),
                   frechet_distance(after, reference), effective, (off[0], off[1]))
