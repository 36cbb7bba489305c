"""Every command and code block of the README and the docs is run, but for those that need a
download, a GPU, a browser or minutes of training; and every path they link to exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# commands on what is not here: public files, prepared data sets, other machines, trained runs
ELSEWHERE = re.compile(r"gdd download|checkpoints/|datasets/|torchrun|srun|cifar10-gdd-i --folder|"
                       r"jupyter|mine\.py|pip |pre-commit|fuzz_pickle|runs/cifar10|--ship")
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
        for line in re.findall(r"^ {4}(\.venv/bin/python .*|make .*)$", text_of(page), re.M):
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
    else:
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


def test_the_readme_opens_with_the_scorecard():
    """Row by row what `make figures` wrote."""
    claims = pd.read_csv(ROOT / "figures" / "desk" / "claims.csv", keep_default_na=False)
    shown = (ROOT / "README.md").read_text()
    measured = claims[claims["verdict"] != "not measured here"]
    assert len(measured) > 8
    for row in measured.itertuples():
        assert f"| {row.text} | {row.here} | {row.verdict} |" in shown
