"""Two sources side by side on one page: distances in several features, both sets of images, the
nearest neighbours, what of the distance is class statistics, and what to be careful about.

    report("out.html", "gdd-i", "data.zip", [extractor("inception"), of_function(f, "mine")])
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.features import Extractor
from analysis.fid import cautions, page
from analysis.fid.compare import measure, over_ranges, shared_backbones, with_seeds
from analysis.fid.looked import Floor, Looked, floor_of, matched_of, neighbours_of
from analysis.fid.matched import Matched
from analysis.fid.neighbours import PERCENTILE
from analysis.fid.own import as_source
from analysis.fid.sources import Source
from analysis.fid.summaries import Summaries
from analysis.gallery import html_page
from gdd.files import require_plain, write_atomically

BOOTSTRAP = 100  # draws of an interval, unless said
METRICS = ("fd", "kid", "pr")
_LARGE = 0.3  # of the distance that is class statistics, to be told


def report(path: Path | str, a: Any, b: Any, extractors: Sequence[Extractor], *,
           held_out: Any = None, cache: Path | None = None, **options: Any) -> pd.DataFrame:
    """Write the page that says how far `a` is from `b`, and return its distances. Sources and
    options are those of `measure`; `held_out` holds real images that the generator never saw, else
    the images of `b` are parted."""
    path, sources = Path(path), [as_source(source) for source in (a, b)]
    control = None if held_out is None else as_source(held_out)
    check_report(path, sources, control)
    options = {"metrics": METRICS, "bootstrap": BOOTSTRAP, **options}
    summaries = [Summaries(extractor, cache=cache) for extractor in extractors]
    table = pd.concat([measure(sources, s, **options) for s in summaries], ignore_index=True)
    seeded = with_seeds(sources, options.get("n"), options.get("first_seed", 0))
    write_report(path, seeded, summaries, table, control)
    return table


def check_report(path: Path, sources: Sequence[Any], held_out: Any = None) -> None:
    """Raise ValueError or OSError if there can be no page: said before hours are spent."""
    if path.suffix != ".html":
        raise ValueError(f"a report is written as .html; got {path}")
    require_plain(path)
    if len(sources) != 2:
        raise ValueError(f"a report is of two sources; got {len(sources)}")
    for source in (*sources, *([] if held_out is None else [held_out])):
        if not isinstance(source, Source):
            raise ValueError(f"a report needs images; {source.name} holds statistics")
    if held_out and (held_out.n < 2 or held_out.shape != sources[1].shape):
        raise ValueError(f"held-out images must be a data set of {list(sources[1].shape)} like "
                         f"{sources[1].name}; got {held_out.name}, n = {held_out.n}, "
                         f"{list(held_out.shape)}")


def write_report(path: Path, sources: Sequence[Any], summaries: Sequence[Summaries],
                 table: pd.DataFrame, held_out: Any = None) -> None:
    """The page of two sources with their seeds and the rows that `measure` gave of them."""
    one, two = (Looked.at(source, summaries) for source in sources)
    control = Looked.at(held_out, summaries) if held_out else None
    floors = {name: floor_of(one, two, name) for name in one.features}
    near, pairs = neighbours_of(one, two, control)
    matched, classes = matched_of(one, two, summaries)
    care = [
        *_cautions(one, two, summaries, floors), *_of_memory(near), *_of_classes(matched, floors)]
    a, b = (html.escape(looked.source.name) for looked in (one, two))
    parts = [
        page.STYLE, f"<h1>How far is {a} from {b}?</h1>", page.settings(one, two, summaries, table),
        "<h2>What to be careful about</h2>",
        page.listed(care) if care else "<p>Nothing that is known here.</p>",
        "<h2>Distances</h2>", page.distances(over_ranges(table), floors),
        "<h2>Images</h2>", page.grids(one, two),
        "<h2>Nearest neighbours</h2>", page.nearness(near, pairs, one, two, control),
        "<h2>How much of it is class statistics?</h2>", page.class_rows(matched, classes, two)
    ]  # yapf: disable
    title = f"{one.source.name} against {two.source.name}"
    write_atomically(path, html_page(title, parts).encode())


def _cautions(one: Looked, two: Looked, summaries: Sequence[Summaries],
              floors: Mapping[str, Floor]) -> Iterable[str]:
    a, b = one.source, two.source
    yield from cautions.of_different_n(a.name, a.n, b.name, b.n)
    for judge in summaries:
        name = judge.extractor.name
        fewer = min(a, b, key=lambda source: source.n)
        for line in cautions.of_size(fewer.name, fewer.n, one.features[name].shape[1]):
            yield f"{line} (features {name})"
        for source in (a, b):
            yield from shared_backbones(source.name, source.backbones, judge.extractor)
        yield from cautions.of_floor(a.name, b.name, name, *floors[name][1:])
        yield from cautions.of_resize(name, one.images)
    for looked in (one, two):
        yield from cautions.of_files(looked.source.name, looked.source.lossy)
        yield from cautions.of_pixels(looked.source.name, looked.images)
    yield from cautions.of_detail(a.name, one.images, b.name, two.images)


def _of_memory(near: pd.DataFrame) -> Iterable[str]:
    chance = PERCENTILE / 100
    for space, rows in near.groupby("space", sort=False):
        held, ours = (rows[rows["of"] == of].iloc[0] for of in ("held-out", "generated"))
        error = (chance * (1 / held["n"] + 1 / ours["n"]))**0.5
        if ours["share_below"] > chance + 3 * error:
            yield (f"in {space}, {ours['share_below']:.1%} of the generated images lie nearer to "
                   f"the data than {chance:.0%} of held-out images do: look at the pairs below")


def _of_classes(matched: Mapping[str, Matched], floors: Mapping[str, Floor]) -> Iterable[str]:
    for name, found in matched.items():
        # of a distance at its floor chance alone takes as much
        if found.drop > _LARGE and not cautions.is_floor(*floors[name][1:]):
            yield (f"by {name}, {found.drop:.0%} of the distance goes when the generated images "
                   "are weighted to the classes of the real ones: it is of how often, not of how "
                   "well")
