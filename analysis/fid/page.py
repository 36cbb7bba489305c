"""The parts of a report as HTML: each takes what was measured and returns its text, and all that is
not text is in it."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.fid.compare import certainty
from analysis.fid.looked import Floor, Looked, Pairs
from analysis.fid.matched import Matched
from analysis.fid.neighbours import PERCENTILE
from analysis.fid.summaries import Summaries
from gdd.grid import grid_png

STYLE = """<style>.side{display:flex;flex-wrap:wrap;gap:1rem}.side figure{margin:0}
img{image-rendering:pixelated;background:none;padding:0}td b,td span{white-space:nowrap}
td .soft{display:block}ul.care{padding-left:1.1rem}ul.care li{margin:.3rem 0}
dl{display:grid;gap:.2rem 1rem;grid-template-columns:max-content 1fr}
dd{margin:0;overflow-wrap:anywhere}</style>"""


def settings(one: Looked, two: Looked, summaries: Sequence[Summaries], table: pd.DataFrame) -> str:
    ranges = [text for text in table["seeds"].unique() if text]
    rows = {}
    for role, looked in (("A", one), ("B", two)):
        source, (channels, height, width) = looked.source, looked.source.shape
        kind = "grey" if channels == 1 else "RGB"
        rows[role] = f"{source.name}: {source.n:,} images, {width}x{height} {kind}" + (
            f", of seeds {source.seeds.start} to {source.seeds.stop - 1} where images are shown"
            if source.seeds else "")
    rows["seeds"] = f"{', '.join(ranges)} (distances are means over them)" if ranges else "none"
    rows["features"] = ", ".join(f"{s.extractor.name} ({s.extractor.precision})" for s in summaries)
    entries = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in rows.items())
    return f"<dl>{entries}</dl>"


def listed(lines: Iterable[str]) -> str:
    entries = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="care">{entries}</ul>'


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def distances(rows: pd.DataFrame, floors: Mapping[str, Floor]) -> str:
    """A row a metric, a column an extractor."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows.to_dict("records"):
        # of FID50k, FD1797[digits], FD[clip]-infinity what they have in common
        kind = re.sub(r"\d+k?(?=\[|$)|\[[^]]*\]", "", row["metric"]).replace("FID", "FD")
        of = "" if row["b"] else f" of {row['a']}"
        notes = [row["metric"], certainty(row)]
        if row["ranges"] > 1:
            notes.append(f"{row['min']:.4g} to {row['max']:.4g} over {row['ranges']} ranges")
        cells.setdefault(f"{kind}{of}", {})[row["features"]] = _cell(row["mean"], notes)
    for name, (m, distance, floor) in floors.items():
        cells.setdefault("FD of A and a half of B", {})[name] = _cell(distance, [f"n = {m:,}"])
        cells.setdefault("its floor, two halves of B", {})[name] = _cell(floor, [f"n = {m:,}"])
    names = list(floors)
    table = _rows(["", *names], [[html.escape(kind), *(found.get(name, "") for name in names)]
                                 for kind, found in cells.items()])  # yapf: disable
    return table + (
        '<p class="soft">95%: a bootstrap interval of the distance that samples of this n have on '
        "average, not of that of endless samples. The spread of a KID is over "
        "subsets that share images, of an IS over parts of one sample: neither is a standard "
        "error. The floor is what two samples of one distribution give at that n.</p>")


def _cell(value: float, notes: Iterable[str]) -> str:
    lines = "".join(f'<span class="soft">{html.escape(note)}</span>' for note in notes if note)
    return f"<b>{value:.4g}</b>{lines}"


def grids(one: Looked, two: Looked) -> str:
    side = max(*one.images.shape[2:], *two.images.shape[2:])
    columns = int(np.clip(512 // side, 2, 8))
    count, zoom = columns**2, _zoom(columns, side)
    shown = []
    for looked in (one, two):
        places = np.linspace(0, len(looked.images) - 1, min(count, len(looked.images))).round()
        png = grid_png(looked.images[places.astype(int).tolist()], columns=columns, zoom=zoom)
        shown.append(_figure(png, f"{len(places)} of {looked.source.name}"))
    return (f'<div class="side">{"".join(shown)}</div><p class="soft">Evenly from all images, '
            f"unsorted and unchosen, {zoom} screen pixels a pixel in both.</p>")


def _zoom(columns: int, side: int) -> int:
    """Screen pixels a pixel, so that two grids with frames stand side by side if they can."""
    return max(480 // (columns * (side + 2)), 1)


def _figure(png: bytes, text: str) -> str:
    uri = base64.b64encode(png).decode()
    said = html.escape(text, quote=True)
    return (f'<figure><img src="data:image/png;base64,{uri}" alt="{said}"><figcaption>{said}'
            "</figcaption></figure>")


def nearness(near: pd.DataFrame, pairs: Pairs, one: Looked, two: Looked,
             control: Looked | None) -> str:
    rows = [[html.escape(row["space"]), row["of"], f"{row['n']:,}", f"{row['median']:.4g}",
             f"{row['least']:.4g}", f"{row['share_below']:.2%}"]
            for row in near.to_dict("records")]  # yapf: disable
    head = ["in", "of", "n", "median distance", "least", f"share below {PERCENTILE:g}%"]
    a, b = one.source.name, two.source.name
    held = (f"those of {control.source.name}"
            if control else f"one random half of {b}, and the data the other half: --held-out "
            "names images that no training saw")
    note = (f"Distances of the images of {a} to their nearest in {b}. Held-out images are {held}. "
            f"The last column is the share nearer than the nearest {PERCENTILE:g}% of held-out "
            "images, which is what chance gives; a generator that repeats its data has more.")
    distances, ours, theirs = pairs
    side = max(*ours.shape[2:], *theirs.shape[2:])
    zoom, kind = _zoom(len(ours), side), near["space"].iloc[0]
    grids = [grid_png(images, columns=len(images), zoom=zoom) for images in (ours, theirs)]
    figures = [_figure(grids[0], f"{a}: the {len(ours)} that lie nearest in {kind}, at "
                       f"{float(distances[0]):.3g} to {float(distances[-1]):.3g}"),
               _figure(grids[1], f"the nearest to each in {b}")]  # yapf: disable
    return (f'{_rows(head, rows)}<p class="soft">{html.escape(note)}</p>{"".join(figures)}')


def class_rows(matched: Mapping[str, Matched], classes: str, two: Looked) -> str:
    if not matched:
        return ("<p>None of the features here classify: add inception, or the classifier of a "
                "profile.</p>")
    rows = [[html.escape(name), f"{found.before:.4g}", f"{found.after:.4g}", f"{found.drop:.0%}",
             f"{found.effective_n:,.0f}", f"{found.off[0]:.1%} to {found.off[1]:.1%}"]
            for name, found in matched.items()]  # yapf: disable
    head = ["features", "FD", "FD, classes matched", "goes", "effective n", "classes off"]
    note = (f"The generated images are weighted so that the {classes} are as frequent as in "
            f"{two.source.name}; no image changes (Kynkaanniemi et al. 2023, arXiv:2203.06026). "
            "What goes was class statistics. Effective n says how many images the weighted ones "
            "are worth; classes off is the total variation between the histograms before and "
            "after.")
    return f'{_rows(head, rows)}<p class="soft">{html.escape(note)}</p>'
