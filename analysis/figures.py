"""Regenerate the paper's figures: train and measure what is missing, execute the notebooks, write
the gallery.

python -m analysis.figures [--profile desk] [--only fig03] [--list] [--retrain] [-p name=value]
"""

import ast
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gdd.cli import on_interrupt, run_cli
from gdd.extras import require_installed
from gdd.files import ROOT, digest_of, write_atomically
from gdd.profiles import profile, profiles, require
from gdd.reading import quoted, typed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Picture

    from analysis.notebooks import Task
    from gdd.profiles import Profile

_MOST_TEXT, _MOST_NUMBER = 1000, 1_000_000  # characters and size of a parameter
FIGURES_FOLDER = Path(os.environ.get("GDD_FIGURES", ROOT / "figures"))


@dataclass(frozen=True)
class Figure:
    """A notebook, patterns of the runs it draws on, and the parameters of the committed figure."""

    notebook: str
    runs: tuple[str, ...]
    parameters: Mapping[str, Any]
    needs: str = ""  # the run without which there is nothing to draw
    after: tuple[str, ...] = ()  # figures whose tables it reads
    judged: bool = False  # whether it takes distances of its runs' images


# in the order in which they are made: those that measure longest first, since they share the cores
FIGURES = {
    "importance": Figure("importance", ("teacher", "gdd", "gdd-i"),
                         {"n_images": 0, "steps": 18, "bands": 6, "percent": 0, "distance": 0}),
    "fig03": Figure("fig03_activations", ("teacher", "gdd", "gdd-i"),
                    {"run": "", "n_images": 0, "steps": 18, "statistic": "mean_abs",
                     "part": "conv1"}),
    "spectrum": Figure("spectrum", ("teacher", "gdd", "gdd-i"), {"n_images": 0, "steps": 18}),
    "editing": Figure("editing", ("teacher", "gdd-i", "k-step-4", "cond-gdd-i"),
                      {"n_images": 0, "mask": "right", "steps": 50}, needs="gdd-i"),
    "fig05": Figure("fig05_19_samples", ("teacher", "gdd", "gdd-i", "cond-*"), {"n": 100},
                    judged=True),
    "fig01": Figure("fig01_overview", ("gdd", "gdd-i", "cd"), {"policy": "gdd-i"}, needs="gdd"),
    "fig02": Figure("fig02_rel_fid", ("teacher", "gdd", "k-step-*", "two-step-*"),
                    {"seed_ranges": 0, "solver_steps": [2, 3, 4, 6, 9, 18]}, needs="gdd",
                    judged=True),
    "fig04": Figure("fig04_consistency", ("gdd", "gdd-i", "gdd+cd", "cd", "cd-i"),
                    {"seed_ranges": 0}, needs="gdd", judged=True),
    "ablations": Figure("ablations", ("gdd", "gdd-i"), {}),
    "tables": Figure("tables", (), {}, after=("fig04", "fig05")),
}  # yapf: disable


@dataclass
class Figures:
    """Regenerate figures into figures/PROFILE: png, pdf, csv, the executed notebooks and a
    gallery."""

    profile: str = "desk"
    """desk; smoke, the same path with hardly any training; another of gdd/profiles; or a Python
    file of one's own that defines PROFILE."""
    only: str = ""
    """Comma-separated figures, such as fig03; default: all."""
    retrain: bool = False
    """Train every run from nothing, whatever lies in runs/ or is shipped, and measure it anew."""
    param: Annotated[tyro.conf.UseAppendAction[list[str]],
                     tyro.conf.arg(aliases=["-p"])] = field(default_factory=list)
    """Notebook parameters, name=value; every selected notebook must have them. What they make goes
    to figures/PROFILE/explore, beside the committed figures."""
    seeds: bool = False
    """Train the runs with further seeds and write figures/PROFILE/seeds.csv; no notebook is run."""
    runs: str = ""
    """With --seeds: comma-separated runs, such as gdd,gdd-i@1; default: all."""
    device: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    """What runs are trained and measured on; as many at once as there are cores, on one GPU too."""
    jobs: int = 0
    """Notebooks at once; default: one a core."""
    fresh: bool = False
    """Execute notebooks of which nothing has changed, too; distances that are measured within
    minutes are measured anew, else they and importance are what `make seeds` has measured."""
    redraw: bool = False
    """Draw again from the csv files that are there, in seconds; nothing is measured."""
    list: bool = False
    """Say what each figure is made from and whether it is stale, and make none."""
    ship: bool = False
    """Copy this profile's trained runs from runs/ to its shipped weights; no notebook is run."""


def main(args: Figures) -> None:
    chosen = profile(args.profile)
    if args.runs and not args.seeds:
        raise ValueError("--runs goes with --seeds; figures are named with --only")
    asked = [key.strip() for key in args.only.split(",") if key.strip()]
    keys = asked or [key for key in FIGURES if key != "ablations" or chosen.ablations]
    figures = {key: require(key, FIGURES, "figure") for key in keys}
    parameters = _parameters(args.param, figures)
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ |= {"GDD_DEVICE": args.device, "JUPYTER_PREFER_ENV_PATH": "1"}

    if args.redraw:
        return _redraw(figures, args.profile)
    if not (args.seeds or args.ship):
        require_installed("papermill", "nbconvert")
    from analysis import experiments, surveys, verdicts
    from gdd.training.start import finished, missing_files

    if args.ship:
        from analysis.shipping import ship

        return ship(args.profile)
    needed = _runs(chosen, *figures.values())
    if args.retrain and not args.only:
        needed = list(chosen.runs)  # also what no figure shows, such as a conditional generator
    if not (chosen.live or args.retrain or args.seeds):
        needed = _measured(args.profile, needed)
        if "ablations" in figures and verdicts.ablations(args.profile).empty:
            print("ablations: none of them is measured yet, at equal images, and they are left out")
            del figures["ablations"]
    for key in [key for key, figure in figures.items() if {figure.needs} - {"", *needed}]:
        print(f"{key}: there is no {figures[key].needs} to draw, and it is left out")
        del figures[key]
    work = chosen.live or args.retrain or args.seeds or any(
        finished(chosen, run) is None for run in needed)
    if work and (lacking := missing_files(chosen)):
        raise FileNotFoundError(f"profile {chosen.name} lacks {len(lacking)} files: " +
                                "; ".join(lacking))
    if args.seeds:
        return surveys.survey(args.profile,
                              [run.strip() for run in args.runs.split(",") if run.strip()],
                              retrain=args.retrain)
    with on_interrupt(lambda: "stopped; finished runs and figures stay, and the same command makes "
                      "the others, each run from where it was"):
        if not args.list:
            anew = [*chosen.classifiers, *chosen.runs] if args.retrain else []
            experiments.train_missing(needed, args.profile, anew=anew)
            judged = _runs(chosen, *(figure for figure in figures.values() if figure.judged))
            if args.retrain or (chosen.live and judged):
                names = [*chosen.public, *(needed if args.retrain else judged)]
                surveys.measure(args.profile, names, anew=args.retrain or args.fresh)
        _execute(figures, args, parameters)


def _runs(chosen: "Profile", *figures: Figure) -> list[str]:
    patterns = [pattern for figure in figures for pattern in figure.runs]
    return [run for run in chosen.runs if any(fnmatch(run, pattern) for pattern in patterns)]


def _redraw(figures: Mapping[str, Figure], profile_name: str) -> None:
    from analysis.redraw import redraw

    folder = FIGURES_FOLDER / profile(profile_name).name
    for key, figure in figures.items():
        if any(folder.glob(f"{figure.notebook.partition('_')[0]}*.csv")):
            print(f"{key}: {', '.join(redraw(figure.notebook, profile_name, folder)) or 'nothing'}")


def _measured(profile_name: str, needed: list[str]) -> list[str]:
    """Of the needed runs of a profile whose measuring takes hours those that can be shown. Raises
    ValueError if that is none."""
    from analysis.experiments import at_hand

    shown, command = at_hand(profile_name), f"make seeds PROFILE={profile_name}"
    teacher = profile(profile_name).teacher
    if lacking := [run for run in needed if run not in shown]:
        print(
            f"not trained or not measured yet, and left out: {', '.join(lacking)}; `{command}` "
            "goes on with them", flush=True)
    if teacher not in shown:
        raise ValueError(f"profile {profile_name} has nothing to show before `{command}` has "
                         f"trained and measured {teacher}")
    return [run for run in needed if run in shown]


def _execute(figures: Mapping[str, Figure], args: Figures, parameters: dict[str, Any]) -> None:
    """Execute what is stale, side by side and in order; then the scorecard and the pages. Raises
    RuntimeError if a notebook failed, after the others."""
    from analysis import notebooks
    from analysis.experiments import as_ready

    chosen, tasks, failures = profile(args.profile), {}, []
    for later in (False, True):
        todo = []
        for key, figure in figures.items():
            if bool(figure.after) != later:
                continue
            own = {name: value for name, value in parameters.items() if name != "output"}
            folder = output_folder(key, args.profile, **{**figure.parameters, **parameters})
            if parameters.get("output"):
                own["output"] = str(folder.resolve())
            task = notebooks.Task(figure.notebook, args.profile, own, _runs(chosen, figure), folder,
                                  [FIGURES[other].notebook for other in figure.after])
            reason = "asked for" if args.retrain or args.fresh else notebooks.stale(task)
            print(f"{key}: {reason or 'as it was made before'}", flush=True)
            if reason and not args.list:
                tasks[key] = task
                todo.append((key, task))
        made = as_ready(_timed, todo, args.jobs, preload=["papermill", "nbconvert"])
        for key, seconds, error in made:
            shown = os.path.relpath(tasks[key].folder)
            print(f"{key}: {error or f'made in {shown} ({seconds:.0f} s)'}", flush=True)
            failures += [key] if error else []
    if args.list:
        return
    for folder in {task.folder for task in tasks.values()} | {FIGURES_FOLDER / chosen.name}:
        if folder.is_dir():
            write_pages(folder, args.profile)
    if failures:
        raise RuntimeError(f"{', '.join(failures)} failed; what they had made before is as it was")


def _timed(key: str, task: "Task") -> tuple[str, float, str]:
    """In a process of its own: execute a notebook; how long it took, and what went wrong."""
    from analysis import gallery, notebooks

    start = time.monotonic()
    try:
        notebooks.execute(task)
        gallery.notebook_page(task.executed)
    except (RuntimeError, OSError) as error:
        return key, time.monotonic() - start, str(error)
    return key, time.monotonic() - start, ""


def write_pages(folder: Path, profile_name: str) -> None:
    """The scorecard and the page of a folder of figures, and the page over all profiles. Raises
    ValueError if there are pictures that no notebook makes any more."""
    from analysis import claims, gallery, tables

    chosen = profile(profile_name)
    own = folder == FIGURES_FOLDER / chosen.name
    stems = [figure.notebook.partition("_")[0].rstrip("s") for figure in FIGURES.values()]
    orphans = [f.name for f in sorted(folder.glob("*.png")) if not f.name.startswith(tuple(stems))]
    if own and orphans:
        raise ValueError(
            f"no notebook makes {', '.join(orphans)} in {folder} any more; delete them")
    if own:
        found = tables.of_figures(profile_name) | {"seeds": tables.read("seeds", profile_name)}
        tables.write(claims.scorecard(found), "claims", profile_name)
    gallery.write_page(folder, f"Figures, {chosen.title} ({chosen.name})")
    titles = {p.name: f"{p.title} ({p.name})" for p in (*profiles().values(), chosen)}
    gallery.write_index(FIGURES_FOLDER, titles)


def _parameters(pairs: list[str], figures: Mapping[str, Figure]) -> dict[str, Any]:
    """`name=value` pairs as literals of the committed parameters' kinds. Papermill only warns about
    an unknown parameter, so they are checked here."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--param takes name=value; got {quoted(repr(pair))}")
        for key, figure in figures.items():
            require(name, [*figure.parameters, "output"], f"parameter of {key}")
            parameters[name] = _parameter(name, value, figure.parameters.get(name, ""))
    return parameters


def _parameter(name: str, value: str, usual: Any) -> Any:
    """A parameter of the same kind as the usual one. Raises ValueError naming it."""
    if len(value) > _MOST_TEXT:
        raise ValueError(f"{name} must have at most {_MOST_TEXT:,} characters; got {len(value):,}")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = value
    if isinstance(usual, str):  # a name may look like a number
        return found if isinstance(found, str) else value
    found = typed(found, list[int] if isinstance(usual, list) else int, name)
    # 0 is the profile's own, where that is usual
    least, numbers = int(usual != 0), found if isinstance(usual, list) else [found]
    if not numbers or not all(least <= number <= _MOST_NUMBER for number in numbers):
        raise ValueError(f"{name} must be from {least} to {_MOST_NUMBER:,}; got {quoted(value)}")
    return found


def output_folder(key: str, profile_name: str, output: str = "", **parameters: Any) -> Path:
    """Where a notebook's figure goes: `output`, if it is named; figures/PROFILE with the parameters
    of the committed figure; else, so that exploring overwrites nothing, a folder of its own."""
    folder, usual = FIGURES_FOLDER / profile(profile_name).name, FIGURES[key].parameters
    changed = {name: value for name, value in parameters.items() if value != usual[name]}
    if output:
        return Path(output)
    if not changed:
        return folder
    words = "_".join(f"{name}-{value}" for name, value in changed.items())
    plain = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in words)
    if len(plain.encode()) > 150:  # longer than some file systems' names
        plain = f"{plain[:30]}-{digest_of(words)}"
    return folder / "explore" / f"{key}_{plain}"


def save_figure(figure: "Picture", table: "pd.DataFrame", folder: Path, name: str,
                caption: str = "") -> None:
    """Write `name`.png, .pdf, .csv and, with what the picture shows in words, .txt; with no date
    inside, so that an unchanged figure is an unchanged file."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    nothing = {"CreationDate": None, "Producer": None, "Creator": None}
    figure.savefig(pdf, format="pdf", metadata=nothing | {"Title": name})
    csv = _counted(rounded(table)).to_csv(index=False, lineterminator="\n").encode()
    files = {"csv": csv, "png": png.getvalue(), "pdf": pdf.getvalue()}
    if caption:
        files["txt"] = f"{caption}\n".encode()
    for kind, content in files.items():
        write_atomically(folder / f"{name}.{kind}", content)


def _counted(table: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of whole numbers as such where there are gaps in them, too: 1, not 1.0."""
    floats = table.select_dtypes("float")
    whole = [name for name in floats if floats[name].dropna().map(float.is_integer).all()]
    return table.astype(dict.fromkeys(whole, "Int64"))


def rounded(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with numbers, but whole ones, to four significant digits: what is drawn and what is
    written, so that another processor's rounding changes neither."""
    def short(x: float) -> float:
        return x if x.is_integer() else float(f"{x:.4g}")

    return table.assign(**{name: table[name].map(short) for name in table.select_dtypes("float")})


def console() -> None:
    run_cli(Figures, main)


if __name__ == "__main__":
    console()
