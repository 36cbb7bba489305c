"""Tables of the paper: as csv, Markdown and LaTeX (booktabs), and the one of hyper-parameters."""

from pathlib import Path

import pandas as pd

from analysis.figures import rounded
from gdd.files import write_atomically
from gdd.profiles import Profile, profile, profiles


def save_table(table: pd.DataFrame, folder: Path, name: str, caption: str) -> None:
    """Write `name`.csv, .md and .tex; numbers to four significant digits, an empty cell where
    nothing is known."""
    table = rounded(table)
    shown = table.astype(object).where(table.notna(), "")
    shown = shown.map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x))
    latex = shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}")
    write_atomically(folder / f"{name}.csv",
                     table.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(folder / f"{name}.md", (_markdown(shown) + f"\n{caption}\n").encode())
    write_atomically(folder / f"{name}.tex", latex.encode())


def _markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def hyperparameters(profile_name: str) -> pd.DataFrame:
    """GDD's config in the paper's profiles and in this one, a row each."""
    chosen = profile(profile_name)
    listed = {p.name: p for p in profiles().values() if p.reference or p.name == chosen.name}
    every = (listed | {chosen.name: chosen}).values()
    return pd.DataFrame([_row(p) for p in every if "gdd" in p.runs])


def _row(chosen: Profile) -> dict[str, object]:
    config, frozen = chosen.runs["gdd"], chosen.runs.get("gdd-i")
    return {
        "profile": chosen.name, "teacher": config.teacher, "batch": config.batch_size, "images":
        config.total_images, "lr": config.lr, "lr, GDD-I": frozen.lr if frozen else None, "d_lr":
        config.d_lr, "betas": f"{config.betas[0]:g}, {config.betas[1]:g}", "R1": config.r1_gamma,
        "R1 every": config.r1_interval, "EMA half-life, images": config.ema_halflife_images,
        "backbones": ", ".join(config.backbones), "pixels": config.d_image_size, "precision":
        config.precision, "fakes": "reused" if config.reuse_fakes else "fresh", "losses":
        config.reduction, "seed": config.seed}
