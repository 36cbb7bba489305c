"""The pages that show what was made: figures/PROFILE/index.html, findings first, and
figures/index.html over all profiles. Plain files, no network, light and dark, screen and paper.
"""

import html
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from gdd.files import write_atomically
from gdd.profiles import profiles

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#5a5a5a;--paper:#fff;--line:#d8d8d8;
--link:#0b57a4}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a8a8a8;--paper:#161616;
--line:#3a3a3a;--link:#8ab8f0}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;
margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}
a{color:var(--link)}figure{margin:0 0 1rem}figcaption,.soft{color:var(--soft);font-size:.9rem}
img{max-width:100%;height:auto;background:#fff;padding:.5rem;box-sizing:border-box}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td:first-child{min-width:4rem}.card td:first-child{min-width:9rem}
.said{white-space:nowrap;font-weight:600}.holds{color:#1a7f37}.fails{color:#c1440e}
.open{color:var(--soft)}
@media (prefers-color-scheme:dark){.holds{color:#57c275}.fails{color:#f08b5d}}
@media (max-width:40rem){.card tr:first-child{display:none}.card tr{display:block;padding:.5rem 0;
border-bottom:1px solid var(--line)}.card td{display:block;border:0;padding:.1rem 0}}
code{overflow-wrap:anywhere}summary{cursor:pointer;margin:.4rem 0}
@media print{body{max-width:none;font-size:11pt}figure,tr{break-inside:avoid}h2{break-after:avoid}
img{max-height:80vh}.wide{overflow:visible}table{width:100%;font-size:8pt}
details table{font-size:6.5pt}th,td{padding:.15rem .25rem}
details::details-content{content-visibility:visible}
a{color:inherit;text-decoration:none}}
"""
_KIND = {"holds": "holds", "does not hold": "fails"}
_MODELS = {"": "EDM", "gdd": "GDD", "gdd-i": "GDD-I"}


def write_page(folder: Path, title: str) -> None:
    """index.html of a folder: the scorecard, then each figure with its caption, the paper's first,
    then tables."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if (folder / "claims.csv").is_file():
        parts += ["<h2>Do the paper's claims hold here?</h2>", _scorecard(folder)]
    pictures = sorted(folder.glob("*.png"), key=lambda f: (not f.stem.startswith("fig"), f.stem))
    parts += [_figure(picture) for picture in pictures]
    parts += ["<h2>Figures 5 to 19 at the paper's scale</h2>", _samples(folder)]
    if tables := sorted(folder.glob("table*.csv")):
        parts += ["<h2>Tables</h2>", *map(_table, tables)]
    write_atomically(folder / "index.html", html_page(title, parts).encode())


def write_index(root: Path, titles: dict[str, str]) -> None:
    """index.html over the profiles that have a page, each with its verdicts."""
    parts = ["<h1>Figures of every profile</h1>"]
    for name, title in titles.items():
        if not (root / name / "index.html").is_file():
            continue
        parts.append(f'<h2><a href="{html.escape(name)}/index.html">{html.escape(title)}</a></h2>')
        if (root / name / "claims.csv").is_file():
            parts.append(_scorecard(root / name))
    write_atomically(root / "index.html", html_page("Figures of every profile", parts).encode())


def notebook_page(notebook: Path) -> Path:
    """The executed notebook as a page beside it."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="basic", exclude_input_prompt=True,
                           exclude_output_prompt=True).from_filename(str(notebook))
    style = ("<style>.highlight pre,.jp-InputArea pre{overflow-x:auto;font-size:.8rem;"
             "border-left:3px solid var(--line);padding-left:.6rem}</style>")
    page = notebook.with_suffix(".html")
    back = '<p><a href="../index.html">all figures</a></p>'
    write_atomically(page, html_page(notebook.stem, [style, back, body]).encode())
    return page


def _scorecard(folder: Path) -> str:
    table = pd.read_csv(folder / "claims.csv", keep_default_na=False)
    rows = []
    for row in table.itertuples():
        kind = _KIND.get(str(row.verdict), "open")
        cells = [str(row.text), str(row.paper), str(row.here)]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) +
                    f'<td class="said {kind}">{html.escape(str(row.verdict))}</td></tr>')
    heads = "".join(f"<th>{name}</th>" for name in ("the paper says", "its number", "here", ""))
    return f'<div class="wide"><table class="card"><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _figure(picture: Path) -> str:
    folder, stem = picture.parent, picture.stem
    caption = picture.with_suffix(".txt")
    text = caption.read_text().strip() if caption.is_file() else ""
    links = [(kind, f"{stem}.{kind}") for kind in ("pdf", "csv")]
    # explored figures lie in folders of their own, below that of the notebooks
    homes = [f / "notebooks" for f in (folder, *folder.parents) if (f / "notebooks").is_dir()]
    title = stem.replace("_", " ")
    notebooks = homes[0].glob("*.ipynb") if homes else ()
    for found in sorted(notebooks, key=lambda f: -len(f.stem)):  # fig05_x of fig05_x_more
        if stem.startswith(found.stem):
            more = stem.removeprefix(found.stem).strip("-_")
            title = _heading(found) + (f" ({more})" if more else "")
            links.append(("notebook", os.path.relpath(found, folder)))
            if (page := found.with_suffix(".html")).is_file():
                links.append(("as a page", os.path.relpath(page, folder)))
            break
    alt = html.escape(text.partition(". ")[0] or stem, quote=True)
    return (f'<h2 id="{html.escape(stem)}">{html.escape(title)}</h2><figure>'
            f'<img src="{html.escape(stem)}.png" alt="{alt}" loading="lazy"><figcaption>'
            f"{html.escape(text)} {_linked(links)}</figcaption></figure>")


def _samples(folder: Path) -> str:
    """Where each of the paper's pages of samples is, or how it is made: its weights and data are
    not ours to ship."""
    rows = ["<tr><th></th><th>data set</th><th>model</th><th></th></tr>"]
    for paper in sorted((p for p in profiles().values() if p.pages), key=lambda p: p.pages):
        page = folder.parent / paper.name / "fig05_19_samples.png"
        there = f'<a href="../{paper.name}/index.html#fig05_19_samples">made here</a>'
        for place, (run, model) in enumerate(_MODELS.items()):
            first = f"train {paper.name}-{run}" if run else f"download {paper.teacher}"
            how = there if page.is_file() else (
                f"not made here: <code>python -m gdd {first}</code>, then "
                f"<code>make figures PROFILE={paper.name} ONLY=fig05</code>")
            cells = f"Figure {paper.pages + place}", html.escape(paper.title), model, how
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table class="card">{"".join(rows)}</table></div>'


def _heading(notebook: Path) -> str:
    """The first line of a notebook, which is its question."""
    first = json.loads(notebook.read_text())["cells"][0]["source"]
    return "".join(first).splitlines()[0].lstrip("# ")


def _table(path: Path) -> str:
    table = pd.read_csv(path, keep_default_na=False)
    caption = path.with_suffix(".md")
    text = caption.read_text().strip().splitlines()[-1] if caption.is_file() else path.stem
    links = [(kind, f"{path.stem}.{kind}") for kind in ("csv", "md", "tex")
             if path.with_suffix(f".{kind}").is_file()]  # yapf: disable
    spoken = table.rename(columns=lambda name: name.replace("_", " "))
    body = spoken.to_html(index=False, border=0, escape=True)
    return (f'<details id="{html.escape(path.stem)}"><summary>{html.escape(text)} '
            f'{_linked(links)}</summary><div class="wide">{body}</div></details>')


def _linked(links: Iterable[tuple[str, str]]) -> str:
    return " ".join(f'<a href="{html.escape(to)}">{what}</a>' for what, to in links)


def html_page(title: str, parts: Iterable[str]) -> str:
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
            f'{html.escape(title)}</title><meta name="viewport" content="width=device-width, '
            f'initial-scale=1"><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>')
