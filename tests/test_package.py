"""What `pip install` brings: commands, light imports, notebooks, and one sentence for a package
that is not there. The wheel is built, installed, and run from other folders, with no more packages
in sight than an extra brings."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from test_structure import IMPORTS, within

from analysis import figures, tables
from gdd import extras, notebooks
from gdd.__main__ import Notebooks, main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
COMMANDS = {"gdd": "sample", "gdd-fid": "--metrics", "gdd-activations": "--ckpt",
            "gdd-figures": "--only"}  # yapf: disable
OWNERS = {name: {*map(canonicalize_name, owners)}
          for name, owners in packages_distributions().items()}  # yapf: disable


def listed(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements} - {PROJECT["name"]}


def brought(extra):
    """All that pip would install here for `gdd-toolkit[extra]`, or without one for "", by name."""
    found, waiting = set(), [Requirement(f"{PROJECT['name']}[{extra}]")]
    while waiting:
        wanted = waiting.pop()
        name, asked = canonicalize_name(wanted.name), {"", *wanted.extras}
        if {(name, each) for each in asked} <= found:
            continue
        found |= {(name, each) for each in asked}
        if name == PROJECT["name"]:
            texts = PROJECT["dependencies"] + [t for each in wanted.extras for t in OPTIONAL[each]]
        else:
            try:
                texts = requires(name) or []
            except PackageNotFoundError:  # of another system
                continue
        needed = map(Requirement, texts)
        waiting += [
            r for r in needed
            if not r.marker or any(r.marker.evaluate({"extra": e}) for e in asked)]
    return {name for name, _ in found}


def modules_of(code):
    """The modules that Python has imported once it has run this."""
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
                          capture_output=True, text=True, cwd=ROOT, check=True)
    return {*done.stdout.split()}


def test_importing_either_package_imports_nothing_of_others():
    found = modules_of("import gdd, analysis") - modules_of("")
    assert {"gdd", "analysis"} <= found
    names = {name.partition(".")[0] for name in found}
    assert names - {"gdd", "analysis"} <= sys.stdlib_module_names


def test_every_import_is_of_the_core_or_of_an_extra_that_is_named():
    """The method's are of the core or for training; and no extra brings what nothing imports."""
    core = listed(PROJECT["dependencies"])
    of_others = {"traitlets", "zmq", "IPython"}  # papermill and jupyterlab bring them
    for module, names in IMPORTS.items():
        found = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - of_others
        further = {name for name in found - {"gdd", "analysis"} if not OWNERS[name] & core}
        brings = ["train"] if within([module], "gdd") else [*extras.EXTRAS]
        assert further <= {name for extra in brings for name in extras.EXTRAS[extra]}, module
    for extra, packages in extras.EXTRAS.items():
        owners = {owner for name in packages for owner in OWNERS[name]}
        assert owners == listed(OPTIONAL[extra]) - {"tensorboard"}  # Fabric imports it


@pytest.mark.parametrize(("package", "extra"), [("timm", "train"), ("pandas", "metrics"),
                                                ("papermill", "notebooks")])
def test_a_missing_package_is_told_with_its_extra(package, extra, monkeypatch):
    """To who calls a function, too, and only of a package that is missing itself."""
    sentence = re.escape(f"{package} is not installed; pip install 'gdd-toolkit[{extra}]' brings")
    with pytest.raises(extras.MissingExtraError, match=sentence), extras.named():
        raise ModuleNotFoundError(name=package)
    with pytest.raises(ModuleNotFoundError, match=r"^no such module$"), extras.named():
        raise ModuleNotFoundError("no such module", name=f"{package}.nothing")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(extras, "import_module", lambda name: __import__(package))
    with pytest.raises(ImportError, match=sentence):
        extras.public("gdd", {"one": "elsewhere"})("one")
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else name)
    extras.require_installed("torch")
    with pytest.raises(extras.MissingExtraError, match=sentence):
        extras.require_installed("torch", package)


@pytest.mark.parametrize("made", ["analysis.py", "analysis/__init__.py", "analysis/notes.txt"])
def test_an_analysis_of_ones_own_in_the_way_is_named(made, tmp_path):
    path = tmp_path / made
    path.parent.mkdir(exist_ok=True)
    path.touch()
    named = path if path.parent == tmp_path else path.parent
    done = subprocess.run([sys.executable, "-c", "from gdd.launch import fid; fid()", "--help"],
                          capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"error: {named} is in the way of .* package analysis; rename it, .*\n",
                        done.stderr)


def test_notebooks_are_copied_and_never_overwritten(tmp_path, capsys):
    main(Notebooks(tmp_path / "mine"))
    said = capsys.readouterr().out
    copies = sorted((tmp_path / "mine").iterdir())
    assert [p.name for p in copies] == sorted(p.name for p in notebooks.FOLDER.glob("*.ipynb"))
    assert f"{len(copies)} notebooks" in said
    assert f"go to {ROOT / 'figures'} or" in said  # this is a checkout
    assert f"jupyter lab {tmp_path / 'mine'}" in said
    copies[0].unlink()
    copies[1].write_text("changed")
    with pytest.raises(ValueError, match=rf"^{copies[1]} would be overwritten"):
        main(Notebooks(tmp_path / "mine"))
    assert not copies[0].exists()
    assert copies[1].read_text() == "changed"
    copies[1].unlink()
    before = copies[2].stat().st_mtime_ns
    main(Notebooks(tmp_path / "mine"))
    assert copies[0].read_bytes() == (notebooks.FOLDER / copies[0].name).read_bytes()
    assert copies[2].stat().st_mtime_ns == before


def test_a_copied_notebook_names_the_figures_that_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    assert tables.of_figures("desk") == {}
    (tmp_path / "desk").mkdir()
    for name in ("fig01", "fig04"):
        (tmp_path / "desk" / f"{name}.csv").write_text("run\ngdd\n")
    with pytest.raises(ValueError, match=r"desk has no fig02\.csv and no fig05\.csv yet; "):
        tables.of_figures("desk", "fig01", "fig02", "fig05")
    assert tables.of_figures("desk", "fig04").keys() == {"fig01", "fig04"}


@pytest.mark.parametrize("name", ["analysis", "gdd.py"])
def test_notebooks_do_not_go_where_they_would_import_another_package(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} would be imported by the notebooks in place"):
        main(Notebooks(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_citation_has_what_its_schema_requires_and_says_what_the_package_says():
    """https://github.com/citation-file-format/citation-file-format, schema 1.2.0."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert (citation["cff-version"], citation["type"], paper["type"]) == ("1.2.0", "software",
                                                                          "article")
    assert all(author.keys() & {"name", "family-names"}
               for author in citation["authors"] + paper["authors"])
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert set(citation["keywords"]) == set(PROJECT["keywords"])
    assert paper["url"] == PROJECT["urls"]["Paper"]

    readme = (ROOT / "README.md").read_text()
    entries = {
        key: dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\},\n", body, re.S))
        for key, body in re.findall(r"^@\w+\{(\w+),(.*?)^\}", readme, re.M | re.S)}
    theirs, ours = entries["zheng2024diffusion"], entries["gdd_toolkit"]
    assert theirs["title"] == paper["title"]
    assert theirs["author"] == " and ".join(
        f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert (int(theirs["year"]), theirs["eprint"]) == (paper["year"], "2405.20750")
    assert " ".join(re.sub("[{}]", "", ours["title"]).split()) == citation["title"]
    assert ours["version"] == PROJECT["version"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel, made from a copy: setuptools would leave its build
    here, and take from it the next time."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("gdd", "analysis", "notebooks", "tests"):
        shutil.copytree(ROOT / name, folder / "source" / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / "source")
    code = ("from setuptools.build_meta import build_sdist, build_wheel\n"
            "build_sdist('../dist'), build_wheel('../dist')")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True,
                          text=True, cwd=folder / "source", check=False)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder of nothing but the wheel, and its commands."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel, ) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", folder, wheel], check=True)
    return folder


def start(installed, extra, folder, command, *arguments):
    """A console command, from another folder, of a Python that finds the wheel and what pip brings
    with it and with an extra, "" for none."""
    there = brought(extra)
    absent = {name for name, owners in OWNERS.items() if not owners & there}
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(f"""import sys
from importlib.machinery import PathFinder

ABSENT = {absent}


class Here(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Here
""")
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{installed}"}
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return subprocess.run([installed / "bin" / command, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, cwd=work, check=False)


@pytest.mark.slow
def test_wheel_and_source_hold_what_is_run_and_nothing_else(built):
    (wheel, ), (source, ) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"gdd", "analysis"}
    expected = {
        str(path.relative_to(ROOT)) for package in ("gdd", "analysis")
        for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {
        "gdd/py.typed", "analysis/py.typed", "analysis/published.csv",
        "gdd/weights/zoo/desk/gdd-i.safetensors"} <= expected
    expected |= {f"gdd/ipynb/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names == expected
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.replace("gdd/ipynb/", "notebooks/") for name in names} <= held
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml"} <= held
    assert not [name for name in held if name.startswith(("tests", "figures", "runs"))]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_console_command_knows_its_name(command, installed, tmp_path):
    done = start(installed, "", tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command} [-h]")
    assert COMMANDS[command] in done.stdout


@pytest.mark.slow
def test_the_core_loads_samples_and_copies_the_notebooks(installed, tmp_path):
    done = start(installed, "", tmp_path, "gdd", "sample", "--ckpt", "gdd-i", "--n", 4)
    assert done.stdout == "samples.png: 4 images, seeds 0 to 3, one-step\n", done.stderr
    with Image.open(tmp_path / "work" / "samples.png") as grid:
        assert grid.size == (2 * 10 * 4, 2 * 10 * 4)  # 8x8 in frames, four times enlarged
    done = start(installed, "", tmp_path, "gdd", "notebooks", "mine")
    assert "whose figures go to mine/figures or $GDD_FIGURES" in done.stdout, done.stderr
    for path in (installed / "gdd" / "ipynb").iterdir():
        assert (tmp_path / "work" / "mine" / path.name).read_bytes() == path.read_bytes()


NEEDS = {
    "train": ("gdd", "train", "desk-gdd-i", "--folder", "mine", "--total-images", 128, "--ticks",
              1, "--samples", 4, "--accelerator", "cpu"),
    "metrics": ("gdd-fid", "gdd-i", "digits", "--n", 16, "--ranges", 1, "--allow-different-n",
                "--no-cache"),
    "notebooks": ("gdd-figures", ),
}  # yapf: disable


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["metrics", "notebooks"])
def test_an_extra_that_is_missing_is_asked_for_before_anything_is_made(extra, installed, tmp_path):
    done = start(installed, "", tmp_path, *NEEDS[extra])
    assert done.returncode == 2
    pattern = rf"error: \w+ is not installed; pip install 'gdd-toolkit\[{extra}\]' brings it\n"
    assert re.fullmatch(pattern, done.stderr)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["train", "metrics"])
def test_an_extra_brings_all_that_its_commands_import(extra, installed, tmp_path):
    done = start(installed, extra, tmp_path, *NEEDS[extra])
    assert done.returncode == 0, done.stderr
