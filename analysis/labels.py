"""Names beside the points of a scatter plot, where there is room: no name hides a point, a name or
the line that leads to one."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# places, in points from what is named, that need no line
NEXT_TO = ((5, 0), (-5, 0), (0, 5), (0, -5), (5, 6), (-5, 6), (5, -6), (-5, -6))


def label_published(table: pd.DataFrame, *, ax: Axes) -> None:
    """Each method's name beside its first point, where there is room; once the figure has its other
    parts, whose layout decides where that is."""
    ax.get_figure(root=True).canvas.draw()  # type: ignore[union-attr]
    places = ax.transData.transform(table[["train_images_millions", "fid"]].to_numpy())
    boxes = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    for method, rows in table.groupby("method", sort=False):
        first = rows.iloc[0]
        point = first["train_images_millions"], first["fid"]
        _label(ax, str(method), point, boxes, bold=bool(first["own"]))


def _label(ax: Axes, text: str, point: tuple[float, float], boxes: list[Bbox], *,
           bold: bool) -> None:
    """Write beside a point where least of `boxes` is, inside the frame, the nearer the better, and
    add the place to them; a line, which crosses none either, leads there from afar."""
    renderer = ax.get_figure(root=True).canvas.get_renderer()  # type: ignore
    frame, start = ax.get_window_extent(renderer), ax.transData.transform(point)
    best: tuple[float, list[Bbox], Any] = (math.inf, [], None)
    for place, (x, y) in enumerate(_around()):
        written = ax.annotate(text, point, (x, y), textcoords="offset points", ha=_side(
            x, "right", "left"), va=_side(y, "top", "bottom"), fontsize=6.5,
                              fontweight="bold" if bold else "normal", bbox=dict(
                                  facecolor="white", edgecolor="none", pad=0.4, alpha=0.8))
        written.set_in_layout(False)  # else the axes would move, away from where there is room
        box = written.get_window_extent(renderer)
        offset, taken = np.array([x, y]) * renderer.points_to_pixels(1), [box]
        if place >= len(NEXT_TO):
            ways = np.linspace(0.3, 0.9, 9)[:, None] * offset
            taken += [Bbox([at - 1, at + 1]) for at in start + ways]
        inside = frame.x0 < box.x0 and box.x1 < frame.x1 + 20 and box.y0 > frame.y0 + 4
        hidden = sum(any(one.overlaps(other) for one in taken) for other in boxes)
        cost = hidden + (0 if inside else len(boxes))
        worse = written if cost >= best[0] else best[2]
        if worse:
            worse.remove()
        if worse is not written:
            best = cost, taken, written
        if not cost:
            break
    _, taken, written = best
    boxes += taken
    if len(taken) > 1:
        leader = dict(arrowstyle="-", color="#999999", linewidth=0.5, shrinkA=0, shrinkB=2)
        line = ax.annotate("", point, written.get_position(), textcoords="offset points",
                           arrowprops=leader)
        line.set_in_layout(False)


def _around() -> Iterator[tuple[float, float]]:
    """Where a label may begin, in points from what it names: beside, above, below, at the corners,
    then farther and farther."""
    yield from NEXT_TO
    for radius in (16, 22, 28, 36, 44):
        for angle in np.deg2rad(np.arange(0, 360, 15)):
            yield radius * float(np.cos(angle)), radius * float(np.sin(angle))


def _side(offset: float, below: str, above: str) -> str:
    return "center" if abs(offset) < 1 else below if offset < 0 else above
