"""Every command and code block of the README and the docs is run, but for those that need a
download, a GPU, a browser or minutes of training; and every path they link to exists."""

import ast
import importlib
import io
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from analysis import claims, figures, tables, verdicts
from gdd.profiles import profile

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# commands on what is not here: public files, data sets, other machines, trained runs; and examples,
# which have tests of their own
ELSEWHERE = re.compile(r"gdd download|checkpoints/|datasets/|torchrun|srun|cifar10-gdd-i --folder|"
                       r"jupyter|mine\.py|pip |pre-commit|fuzz_pickle|runs/cifar10|--ship|"
                       r"my_pictures|final\.safetensors|examples/")
QUICKLY = {  # what makes a training command quick
    ("gdd", "train"): ["--total-images", "256", "--ticks", "1", "--samples", "4"],
    ("analysis.train", ): ["--total-images", "256", "--ticks", "1", "--samples", "4", "--n", "64"],
    ("analysis.activations", ): ["--n", "4"],
    ("analysis.fid", ): ["--n", "300", "--ranges", "1", "--allow-different-n"],
}


def text_of(page):
    return page.read_text().replace("\\\n", " ")


def commands():
    for page in PAGES:
        for line in re.findall(r"^(?: {4}){1,2}(\.venv/bin/python .*|make .*)$", text_of(page),
                               re.M):
            yield page.name, line


def tried():
    return sorted({
        line for _, line in commands() if line.startswith(".venv") and not ELSEWHERE.search(line)})


def test_every_make_command_is_of_a_target_that_ci_runs():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    in_ci = set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.M))
    assert targets - in_ci <= {"clean", "audit"}  # what is known of holes changes by itself
    named = {
        word for _, line in commands() if line.startswith("make")
        for word in line.partition("#")[0].split()[1:] if "=" not in word}
    named |= {found for page in PAGES for found in re.findall(r"`make ([a-z-]+)", text_of(page))}
    assert named <= targets


@pytest.mark.slow
@pytest.mark.parametrize("line", tried())
def test_a_command_of_the_docs_runs(line, tmp_path):
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "-m":
        module = next((key for key in QUICKLY if tuple(words[1:1 + len(key)]) == key), None)
        given = {word for word in words if word.startswith("--")}
        if module and "--dry-run" not in words:
            options = QUICKLY[module]
            for name, value in zip(options, [*options[1:], ""], strict=True):
                if name.startswith("--") and name not in given:
                    words += [name] if value.startswith("--") or not value else [name, value]
        if words[1] == "analysis.figures":
            words += ["--profile", "smoke", "-p", "n_images=4", "-p", f"output={tmp_path}"]
    elif words[0] != "-c":
        words[0] = str(ROOT / words[0])
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, page.name, "exec"), {})


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_files_that_are_named_exist():
    pattern = r"`((?:gdd|analysis|tests|examples|docs|notebooks|benchmarks)/[\w./]+\.\w+)`"
    for page in PAGES:
        for name in re.findall(pattern, page.read_text()):
            assert "NN" in name or (ROOT / name).exists(), (page.name, name)


def said():
    """Every text in the source, `...` for what varies in it."""
    for package in ("gdd", "analysis"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "..."
                                  for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_troubleshooting_goes_by_messages_of_the_source():
    _, *sections = re.split(r"^### ", (ROOT / "docs" / "troubleshooting.md").read_text(),
                            flags=re.M)
    assert len(sections) > 30
    texts = [text.replace("`", "") for text in said()]
    for section in sections:
        message = re.match(r"`(.+)`\n", section)[1]
        assert any(message in text for text in texts), message
        assert re.search(r"^ {4}\S", section, re.M), f"no command for {message}"


@pytest.mark.parametrize("package", ["gdd", "analysis"])
def test_the_reference_holds_every_public_name(package):
    page = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    shown = set(re.findall(rf"^::: {package}\.(\w+)$", page, re.M))
    assert set(importlib.import_module(package).__all__) <= shown


class Loaded(HTMLParser):
    """What a browser asks for by itself when it shows a page."""
    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag != "a":
            self.addresses += [value for name, value in attributes if name in ("src", "href")]


@pytest.mark.slow
def test_the_site_is_whole_and_asks_no_other_machine(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # links that lead nowhere too
    pages = {f.relative_to(tmp_path).as_posix(): f.read_text() for f in tmp_path.rglob("*.html")}
    assert len(pages) == len(PAGES) - 2 + 1  # README and CONTRIBUTING are none; 404.html is
    for name, page in pages.items():
        loaded = Loaded(page).addresses
        assert len(loaded) > 3
        assert not [a for a in loaded if re.match(r"(\w+:)?//", a)], name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\W*(https?:)?//", sheet.read_text())
    assert (tmp_path / "figures" / "desk" / "fig03_activations.png").exists()
    source = (ROOT / "docs" / "method.md").read_text()
    equations = re.findall(r"<math.*?</math>", pages["method.html"], re.S)
    assert len(equations) == source.count("$`") + source.count("$$") // 2
    odd = [e for e in equations if "\\" in e or "mathvariant" in e]  # what no browser draws
    assert not odd


@pytest.mark.parametrize("name", ["desk", "cifar10-16"])
def test_verdicts_are_those_of_the_tables_beside_them(name):
    """What is committed was computed from what is committed."""
    found = tables.of_figures(name) | {"seeds": tables.read("seeds", name)}
    again = {"claims": claims.scorecard(found)}
    if profile(name).ablations:
        again["ablations"] = verdicts.ablations(name)
    for key, table in again.items():
        kept = pd.read_csv(ROOT / "figures" / name / f"{key}.csv")
        shared = [column for column in table if column in kept]
        assert len(shared) >= 9
        text = io.StringIO(figures.rounded(table)[shared].to_csv(index=False))
        pd.testing.assert_frame_equal(kept[shared], pd.read_csv(text), check_dtype=False)


def test_the_readme_opens_with_the_scorecard():
    """Row by row what `make figures` wrote."""
    claims = pd.read_csv(ROOT / "figures" / "desk" / "claims.csv", keep_default_na=False)
    shown = (ROOT / "README.md").read_text()
    measured = claims[claims["verdict"] != "not measured here"]
    assert len(measured) > 8
    for row in measured.itertuples():
        assert f"| {row.text} | {row.here} | {row.verdict} |" in shown
