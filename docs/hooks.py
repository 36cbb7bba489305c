"""What GitHub does by itself for the pages in here, done while the site is built: equations become
MathML, which browsers draw without a script, and links to files beside docs/ lead to copies."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
EQUATION = re.compile(r"\$\$(?P<block>.+?)\$\$|\$`(?P<inline>.+?)`\$", re.S)
LINK = re.compile(r"(\]\()([^)#:\s]+)")
PLACE = "EQUATION-{}-OF-THIS-PAGE"  # survives Markdown, which would read MathML's letters

# what browsers need otherwise than latex2mathml has it: fences and letters; then operators
BEFORE = ((r"\\\n", r"\\ "), (r"\\[Bb]ig(?=\(|\\lVert)|(?<!ig)(?=\\lVert)", r"\\left"),
          (r"\\[Bb]ig(?=\)|\\rVert)|(?<!ig)(?=\\rVert)", r"\\right"),
          (r"\\[lr]Vert", r"\\Vert"),
          (r"\\mathcal N", "𝒩"), (r"\\mathbb E", "𝔼"))  # yapf: disable
AFTER = ((r"<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"),
         (r"<mo[^>]*>(max|min)</mo>", r"<mi>\1</mi>"),
         (r"((?:\[|&#x00028;|&#x0002C;)</mo>)<mo>(?=&#x02212;)", r'\1<mo form="prefix">'),
         (r"(<mi>(?:ln|log)</mi>)(?=<mi>)", r'\1<mspace width="0.17em"/>'))  # yapf: disable

_equations: dict[str, list[str]] = {}


def outside(link: str, page: str) -> str:
    """The path from the repository's root of a file that a page (from docs/) links to, "" for one
    in docs/."""
    found = normpath(PurePosixPath("docs", page).parent / link)
    return "" if found.startswith("docs/") else found


def mathml(tex: str, display: str) -> str:
    """TeX as a math element, `inline` or `block`."""
    for pattern, new in BEFORE:
        tex = re.sub(pattern, new, tex)
    found = convert(tex, display=display)
    for pattern, new in AFTER:
        found = re.sub(pattern, new, found)
    return f'<span class="equation">{found}</span>' if display == "block" else found


def on_files(files, config):
    for page in list(files.documentation_pages()):
        for _, link in LINK.findall(page.content_string):
            target = outside(link, page.src_uri)
            if target and (ROOT / target).is_file() and not files.get_file_from_path(target):
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri

    def copied(found):
        target = outside(found[2], uri)
        return found[1] + (relpath(target, PurePosixPath(uri).parent) if target else found[2])

    parts, fences = FENCED.split(markdown), FENCED.findall(markdown)
    found = _equations[uri] = []

    def placed(equation):
        found.append(mathml(equation["inline"] or equation["block"], equation.lastgroup))
        return PLACE.format(len(found) - 1)

    parts = [EQUATION.sub(placed, LINK.sub(copied, part)) for part in parts]
    return "".join(part + fence for part, fence in zip(parts, [*fences, ""], strict=True))


def on_page_content(html, page, config, files):
    for number, equation in enumerate(_equations[page.file.src_uri]):
        html = html.replace(PLACE.format(number), equation)
    return html
