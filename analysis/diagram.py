"""Figure 1B: the method drawn by code. What is frozen is read from the freezing policy, so that the
drawing cannot drift from what is trained."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

TRAINED, FROZEN, PLAIN = "#f4c9a8", "#b9cfe3", "#ffffff"
# layers of a block with attention, in the order of the signal: column, row
_BLOCK = {"norm0": (0, 1), "conv0": (1, 1), "norm1": (2, 1), "conv1": (3, 1), "norm2": (4, 1),
          "qkv": (5, 1), "proj": (6, 1), "affine": (2, 0), "skip": (1, 2)}  # yapf: disable


def frozen_layers(network: Mapping[str, Any], policy: str) -> tuple[dict[str, bool], float]:
    """Of each kind of layer inside the blocks of a network whether `policy` freezes it, and the
    share of all weights that it freezes."""
    import torch

    from gdd.denoiser import Denoiser
    from gdd.freezing import freeze

    with torch.device("meta"):
        denoiser = Denoiser.from_config(network)
    report = freeze(denoiser, policy)
    frozen: dict[str, bool] = {}
    for name, _ in denoiser.named_parameters():
        parts = name.split(".")
        if len(parts) == 5 and parts[3] in _BLOCK:
            held = name in report.names
            assert frozen.setdefault(parts[3], held) == held, f"{policy} divides {parts[3]}"
    return frozen, report.share


def draw_method(frozen: Mapping[str, bool], share: float, *, ax: Axes | None = None) -> Axes:
    """The generator and its discriminator above, a block of the generator's UNet below."""
    ax = ax or plt.gca()
    top = [("noise z\n$80\\,z,\\ \\sigma = 80$", PLAIN), ("UNet, from\nthe teacher", "#f0e3da"),
           ("image", PLAIN), ("pretrained\nfeatures", FROZEN), ("random\nprojection", FROZEN),
           ("heads", TRAINED), ("GAN loss", PLAIN)]  # yapf: disable
    for place, (text, color) in enumerate(top):
        _box(ax, place, 4.2, text, color, height=0.9)
        if place:
            _arrow(ax, (place - 0.58, 4.2), (place - 0.42, 4.2))
    _box(ax, 2, 5.6, "real image", PLAIN, height=0.6)
    _arrow(ax, (2.3, 5.3), (2.75, 4.68))
    for name, (column, row) in _BLOCK.items():
        if name in frozen:
            _box(ax, column, 1 + 0.9 * (row - 1), name, FROZEN if frozen[name] else TRAINED)
    columns = [column for name, (column, row) in _BLOCK.items() if row == 1 and name in frozen]
    for column in columns[1:]:
        _arrow(ax, (column - 0.58, 1), (column - 0.42, 1))
    if "affine" in frozen:
        _arrow(ax, (2, 0.38), (2, 0.72))
        ax.text(1.4, 0.1, "noise level", ha="right", va="center", fontsize=6.5, color="#555555")
        _arrow(ax, (1.42, 0.1), (1.58, 0.1))
    if "skip" in frozen:  # from the block's input to the sum after conv1
        ax.plot([-0.5, -0.5, 0.59], [1, 1.9, 1.9], color="#444444", linewidth=0.8)
        ax.plot([1.41, 3.5, 3.5], [1.9, 1.9, 1.9], color="#444444", linewidth=0.8)
        _arrow(ax, (3.5, 1.9), (3.5, 1.03))
    ax.text(-0.5, 2.65, "one block of the UNet, its attention last", fontsize=7, color="#333333")
    ax.plot([0.7, -0.4], [3.7, 2.95], color="#bbbbbb", linewidth=0.7)
    ax.plot([1.3, 6.4], [3.7, 2.95], color="#bbbbbb", linewidth=0.7)
    _box(ax, 4.55, -0.75, "", FROZEN, width=0.3, height=0.35)
    ax.text(4.8, -0.75, f"frozen ({share:.2%} of the UNet)", fontsize=6.5, va="center")
    _box(ax, 2.55, -0.75, "", TRAINED, width=0.3, height=0.35)
    ax.text(2.8, -0.75, "trained", fontsize=6.5, va="center")
    ax.set(xlim=(-0.6, 6.6), ylim=(-1.1, 6.1))
    ax.set_axis_off()
    return ax


def _box(ax: Axes, x: float, y: float, text: str, color: str, *, width: float = 0.82,
         height: float = 0.54) -> None:
    ax.add_patch(FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, linewidth=0.7, edgecolor="#444444",
        facecolor=color, boxstyle="round,pad=0,rounding_size=0.08"))  # yapf: disable
    ax.text(x, y, text, ha="center", va="center", fontsize=6.5)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops=dict(
        arrowstyle="-|>", color="#444444", linewidth=0.8, shrinkA=0, shrinkB=0))  # yapf: disable
