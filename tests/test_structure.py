"""The house rules a reader relies on: borders between modules, environments in step, notebooks
stripped and parameterised."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("gdd", "analysis") for path in sorted((ROOT / package).rglob("*.py"))}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NETWORK = ("gdd.denoiser", "gdd.unet", "gdd.layers")


def imports(module):
    """Dotted names that a file imports, wherever it does, but for type checkers alone."""
    found, trees = set(), [ast.parse(FILES[module].read_text())]
    while trees:
        tree = trees.pop()
        if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
            continue
        if isinstance(tree, ast.Import):
            found |= {alias.name for alias in tree.names}
        elif isinstance(tree, ast.ImportFrom):
            assert tree.level == 0, f"{module} imports relatively"
            names = {f"{tree.module}.{alias.name}" for alias in tree.names}
            # `from gdd.weights import zoo` is of a module, `from gdd.files import digest` of a name
            found |= {name if name in FILES else tree.module for name in names}
        trees += ast.iter_child_nodes(tree)
    return found


IMPORTS = {module: imports(module) for module in FILES}
OF_PROJECT = {
    module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}


def within(names, *packages):
    return {
        name for name in names for package in packages
        if name == package or name.startswith(f"{package}.")}


def reached(module):
    """All of the project that importing `module` may import, packages on the way too."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in FILES and name not in found:
            found.add(name)
            waiting += [*OF_PROJECT[name], name.rpartition(".")[0]]
    return found


def test_the_method_knows_no_measurement():
    assert {
        m: found for m in within(FILES, "gdd") if (found := within(IMPORTS[m], "analysis"))} == {}


def test_the_core_knows_no_wing_and_no_profile():
    core = [
        m for m in FILES
        if re.fullmatch(r"gdd\.\w+", m) and FILES[m].name not in ("__init__.py", "__main__.py")]
    assert len(core) > 10
    wings = ("gdd.data", "gdd.weights", "gdd.training", "gdd.profiles")
    assert {m: found for m in core if (found := within(reached(m), *wings))} == {}


def test_pixels_know_no_network_and_weights_no_training():
    assert {
        m: found for m in within(FILES, "gdd.data")
        if (found := within(reached(m), *NETWORK, "gdd.training", "gdd.profiles"))} == {}
    assert {
        m: found for m in within(FILES, "gdd.weights")
        if (found := within(reached(m), "gdd.training", "gdd.data"))} == {}
    assert {
        m: found for m in within(FILES, "gdd.profiles")
        if (found := within(reached(m), "gdd.data", "gdd.weights", "gdd.training"))} == {}


def test_the_leaves_of_the_measurements_know_nothing_of_the_project():
    leaves = within(FILES, "analysis.hooks", "analysis.spectrum", "analysis.features",
                    "analysis.plots", "analysis.fid.frechet", "analysis.fid.samples")
    assert len(leaves) > 8
    for module in leaves:
        own = ("analysis.features", ) if module.startswith("analysis.features") else ()
        assert OF_PROJECT[module] == within(OF_PROJECT[module], *own), module
    assert within(IMPORTS["analysis.plots"], "torch") == set()


@pytest.mark.parametrize("module", FILES)
def test_no_file_runs_a_pickle_or_grows_long(module):
    text = FILES[module].read_text()
    assert not within(IMPORTS[module], *UNSAFE)
    # two files of tensors, and one of TorchScript that must be asked for: each of a known digest
    known = ("gdd.weights.packaged", "analysis.features.inception")
    assert text.count("torch.load(") == text.count("weights_only=True)") == (module in known)
    assert text.count("jit.load(") == (module == known[1])
    assert len(text.splitlines()) <= 350
    assert [line for line in text.splitlines() if len(line) > 100] == []


def words(module):
    """A file's code, without comments and without its docstrings and bare strings."""
    text = FILES[module].read_text()
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)):
            for line in range(node.lineno - 1, node.end_lineno):
                lines[line] = "\n" if line > node.lineno - 1 else '""\n'.rjust(node.col_offset + 3)
    tokens = tokenize.generate_tokens(io.StringIO("".join(lines)).readline)
    return " ".join(t.string for t in tokens if t.type != tokenize.COMMENT)


@pytest.mark.parametrize("module",
                         [m for m in FILES if not within([m], "gdd.profiles", "gdd.data.images")])
def test_nothing_but_profiles_names_a_data_set(module):
    """Help and errors may give examples: what is looked for is a string of its own, and a shape."""
    named = re.findall(
        r"""["'](?:digits|cifar\w*|ffhq\w*|afhqv2\w*|imagenet\w*)["']"""
        r"""|\( ?1 ?, ?8 ?, ?8 ?\)""", words(module))
    # TrainConfig.data's default, and an address book
    allowed = {"gdd.config": 1, "gdd.weights.download": 1}
    assert len(named) == allowed.get(module, 0), named


@pytest.mark.parametrize("module", [
    "gdd", "analysis", "gdd.profiles", "gdd.training.command", "analysis.fid",
    "analysis.activations", "analysis.figures"])
def test_what_help_imports_is_light(module):
    code = f"import sys, {module}; print({{'torch', 'pandas', 'matplotlib'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert done.stdout.strip() == "set()"


def test_pictures_are_decoded_without_the_network():
    code = "import sys, gdd.data.prepare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert not set(NETWORK) & set(done.stdout.split())


@pytest.mark.parametrize("package", ["gdd", "analysis"])
def test_public_names_are_there(package):
    module = __import__(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert list(module.__all__) == sorted(module.__all__)
    shown = set()
    for node in ast.parse(FILES[package].read_text()).body:
        if isinstance(node, ast.If):
            shown |= {alias.name for line in node.body for alias in line.names}
    assert shown == set(module.__all__)  # what type checkers see is what there is
    with pytest.raises(AttributeError, match="has no attribute nothing"):
        _ = module.nothing


def requirement(text):
    name, limits = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[.*\])?\s*(.*)", text).groups()
    return {"pytorch": "torch"}.get(name.lower(), name.lower()), frozenset(limits.split(","))


def test_environments_are_in_step():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        name, limits = requirement(text)
        wanted[name] = wanted.get(name, frozenset()) | limits
    del wanted[project["name"]]  # extras that bring others
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    found = dict(map(requirement, [entry for entry in conda if isinstance(entry, str)] + pip))
    assert found.pop("python") == {project["requires-python"]}
    assert {found.pop(extra) for extra in ("make", "pip")} == {frozenset([""])}
    assert found == wanted

    lock = dict(line.lower().split("==")
                for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    assert not {
        name
        for name in wanted if name.replace("_", "-") not in {key.replace("_", "-") for key in lock}}
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
        assert isinstance(statement, ast.AnnAssign)  # papermill --help-notebook tells the type
        # literals only: a derived value would not follow an injected parameter
        ast.literal_eval(statement.value)
    shows = path.stem == "explore"  # by widgets
    assert shows or any("save_figure" in cell.source or "save_table" in cell.source
                        for cell in code[-3:])
    assert [line for cell in code for line in cell.source.splitlines() if len(line) > 100] == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
