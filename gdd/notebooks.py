"""The notebooks that come with the toolkit, and copies of them to change."""

import os
from pathlib import Path

from gdd.files import ROOT, write_atomically

_INSTALLED = Path(__file__).with_name("ipynb")
# a wheel has them in here, a checkout beside the packages
FOLDER = _INSTALLED if _INSTALLED.exists() else ROOT / "notebooks"


def copy(target: Path) -> list[Path]:
    """Copy every notebook into a folder, which is made if it is not there; returns the copies.

    Raises ValueError, and copies nothing, where one of another content is there already, or
    something that would be imported in place of the toolkit's packages.
    """
    copies = {target / source.name: source.read_bytes() for source in FOLDER.glob("*.ipynb")}
    if other := [str(p) for p, text in copies.items() if p.exists() and p.read_bytes() != text]:
        raise ValueError(f"{', '.join(sorted(other))} would be overwritten, with other content; "
                         "name another folder, or move what is there")
    for name in ("gdd", "analysis"):
        for path in (target / name, target / f"{name}.py"):
            if path.exists():
                raise ValueError(f"{path} would be imported by the notebooks in place of the "
                                 f"toolkit's {name}; name another folder, or rename it")
    for path, text in copies.items():
        if not path.exists():
            write_atomically(path, text)
    return sorted(copies)


def figures_folder(target: Path) -> Path:
    """Where notebooks in this folder write their figures."""
    home = target if FOLDER == _INSTALLED else ROOT
    return Path(os.environ.get("GDD_FIGURES", home / "figures"))
