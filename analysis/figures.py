"""Regenerate the paper's figures: train what is missing, execute the notebooks with papermill,
write the gallery.

python -m analysis.figures [--profile desk|smoke] [--only fig03] [--retrain] [-p name=value]
"""

import ast
import html
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

ROOT = Path(__file__).resolve().parents[1]
# what each notebook draws on; in this order
NOTEBOOKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fig02": ("fig02_rel_fid", ("teacher", "gdd", "k-step", "two-step")),
    "fig03": ("fig03_activations", ("teacher", "gdd", "gdd-i")),
    "fig04": ("fig04_consistency", ("gdd", "gdd-i", "gdd+cd", "cd", "cd-i")),
}


@dataclass
class Figures:
    """Regenerate figures into figures/PROFILE: png, pdf, csv, the executed notebooks and a
    gallery."""

    profile: str = "desk"
    """desk: digits, honestly trained; smoke: the same path with hardly any training."""
    only: str = ""
    """Comma-separated notebooks, such as fig03; default: all."""
    retrain: bool = False
    """Train every run from nothing, whatever lies in runs/ or ships in gdd/weights/zoo/."""
    param: Annotated[tyro.conf.UseAppendAction[list[str]],
                     tyro.conf.arg(aliases=["-p"])] = field(default_factory=list)
    """Notebook parameters, name=value; every selected notebook must have them."""
    seeds: bool = False
    """Train GDD and GDD-I with further seeds and write figures/PROFILE/seeds.csv; no notebook is
    run."""
    ship: bool = False
    """Copy this profile's trained runs from runs/ into gdd/weights/zoo/; no notebook is run."""


def main(args: Figures) -> None:
    from gdd.profiles import profile

    runs = profile(args.profile)  # an unknown profile stops here
    chosen = _choose(args.only)
    parameters = _parameters(args.param, chosen) if args.param else {}
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

    from analysis import experiments

    if args.ship:
        return experiments.ship(args.profile)
    if args.seeds:
        return _write_seeds(args.profile)
    prefixes = tuple(prefix for name in chosen for prefix in NOTEBOOKS[name][1])
    needed = [
        run for run in runs
        if run in prefixes or (run.startswith(("k-step", "two-step")) and run.startswith(prefixes))
    ]
    if args.retrain and not args.only:
        needed = list(runs)  # also what no figure shows, such as the class-conditional generator
    experiments.train_missing(needed, args.profile, retrain=args.retrain)
    for name in chosen:
        start = time.monotonic()
        execute(NOTEBOOKS[name][0], args.profile, parameters)
        folder = os.path.relpath(ROOT / "notebooks" / str(parameters.get("output", "../figures")) /
                                 args.profile)
        print(f"{name}: {folder}/{NOTEBOOKS[name][0]}.png ({time.monotonic() - start:.0f} s)",
              flush=True)
    write_gallery(args.profile)


def _choose(only: str) -> list[str]:
    chosen = [name.strip() for name in only.split(",") if name.strip()] or list(NOTEBOOKS)
    if unknown := [name for name in chosen if name not in NOTEBOOKS]:
        raise ValueError(f"--only takes {', '.join(NOTEBOOKS)}; got {unknown[0]!r}")
    return chosen


def _parameters(pairs: list[str], chosen: list[str]) -> dict[str, object]:
    """`name=value` pairs as literals. Papermill only warns about an unknown parameter, so they are
    checked here."""
    import papermill

    parameters: dict[str, object] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--param takes name=value; got {pair!r}")
        for notebook in chosen:
            known = papermill.inspect_notebook(str(_notebook(NOTEBOOKS[notebook][0])))
            if name not in known:
                raise ValueError(f"{notebook} has no parameter {name!r}; it has {', '.join(known)}")
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    return parameters


def _notebook(name: str) -> Path:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent}; figures are made in a checkout of the project")
    return path


def execute(name: str, profile: str, parameters: dict[str, object]) -> None:
    """Run one notebook in a fresh kernel; its executed copy lands in figures/PROFILE/notebooks,
    failed or not."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    executed = ROOT / "figures" / profile / "notebooks" / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(_notebook(name)),
            str(executed),
            {"profile": profile} | parameters,
            kernel_name="python3",
            cwd=str(ROOT / "notebooks"),
            progress_bar=sys.stderr.isatty(),
            execution_timeout=1800,
            start_timeout=120,
            # not open to other users
            config=Config({"KernelManager": {
                "transport": "ipc"
            }} if os.name == "posix" else {}),
        )
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}; see {executed}"
        ) from None


def _write_seeds(profile: str) -> None:
    from analysis import experiments

    table = experiments.headline(profile)
    folder = ROOT / "figures" / profile
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "seeds.csv", index=False, float_format="%.4g", lineterminator="\n")
    print(table.to_string(index=False))


def write_gallery(profile: str) -> None:
    """figures/PROFILE/index.html: every figure with its table and executed notebook."""
    folder = ROOT / "figures" / profile
    items = []
    for picture in sorted(folder.glob("*.png")):
        stem = html.escape(picture.stem)
        links = [
            f'<a href="{stem}.pdf">pdf</a>',
            f'<a href="{stem}.csv">csv</a>',
            f'<a href="notebooks/{stem}.ipynb">notebook</a>',
        ]
        items.append(
            f'<figure><img src="{stem}.png" alt="{stem}"><figcaption>{stem}: {", ".join(links)}</figcaption></figure>'
        )
    style = "body{font-family:sans-serif;max-width:60rem;margin:2rem auto}img{max-width:100%}figure{margin:0 0 3rem}"
    page = (
        f"<!doctype html><meta charset=utf-8><title>Figures, {profile}</title><style>{style}</style><h1>Figures, {profile}</h1>"
    )
    (folder / "index.html").write_text(page + "".join(items))


if __name__ == "__main__":
    from gdd.cli import run_cli

    run_cli(Figures, main)
