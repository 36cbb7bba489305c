"""Weights of the desk runs, shipped with the package: fp16 safetensors with their config, its digest and their training log.

They are made by `make figures RETRAIN=1` followed by `python -m analysis.figures --ship`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """The shipped file of a run, such as `teacher` or `gdd-i`. Raises FileNotFoundError listing what there is."""
    file = FOLDER / f"{name}.safetensors"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no shipped weights are called {name!r}; there are: {known}")
    return file
