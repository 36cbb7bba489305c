"""The house rules a reader relies on: borders between modules, environments in step, notebooks
stripped and parameterised."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted([*(ROOT / "gdd").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_project(names):
    return {name for name in names if name.split(".")[0] in ("gdd", "analysis")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_borders(path):
    names, package = imports(path), path.relative_to(ROOT).parts[0]
    if package == "gdd":
        assert not {name for name in names if name.startswith("analysis")}
    pure = ("hooks.py", "features.py", "plots.py", "fid/frechet.py", "fid/samples.py")
    if package == "analysis" and path.relative_to(ROOT / "analysis").as_posix() in pure:
        assert not of_project(names)
    if path.stem == "plots":
        assert not {name for name in names if name.startswith("torch")}
    assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    if path.stem != "edm_pickle":
        assert "torch.load(" not in path.read_text()
    assert path.read_text().count("torch.load(") <= path.read_text().count("weights_only=True)")
    assert len(path.read_text().splitlines()) <= 350


def requirement(text):
    name, specifier = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", text).groups()
    return {"pytorch": "torch"}.get(name.lower(), name.lower()), specifier


def test_environments_are_in_step():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(
        map(requirement, project["dependencies"] + project["optional-dependencies"]["dev"]))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    found = dict(map(requirement, [entry for entry in conda if isinstance(entry, str)] + pip))
    assert found.pop("python") == project["requires-python"]
    assert {found.pop(extra) for extra in ("make", "pip")} == {""}
    assert found == wanted

    lock = dict(line.lower().split("==")
                for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    assert not {
        name
        for name in wanted if name.replace("_", "-") not in {key.replace("_", "-")
                                                             for key in lock}
    }
    # a pair: change both or neither
    assert (lock["torch"], lock["torchvision"]) == ("2.15.0", "0.29.2")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stripped_and_parameterised(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith("# ")
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (parameters, ) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.Assign)
        # literals only: a derived value would not follow an injected parameter
        ast.literal_eval(statement.value)
    assert "save_figure" in code[-1].source
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
