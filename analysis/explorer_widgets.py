"""The explorer: pick a run or a checkpoint, move along its noise levels, click a block. In a
notebook, `Explorer("desk")` as a cell's last line.

Pictures are PNG files in widgets, redrawn by the one artist that changed: a hand does not wait.
"""

import io
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import experiments, plots
from analysis.explorer import Look, Probe
from analysis.figures import FIGURES
from gdd.data.images import to_uint8
from gdd.grid import grid_png
from gdd.profiles import profile
from gdd.sampling import to_device
from gdd.weights import checkpoint, zoo

LADDER = "heun:18"
WIDTH = 620  # screen pixels of a picture
MAPS = 256  # of a block, at most
STATISTICS = ("mean_abs", "rms", "std")


class Explorer(widgets.VBox):
    """Widgets over `analysis.explorer.Probe`. Public attributes are the controls, whose `value` may
    be set: run, file, path, statistic, step, block, image."""
    def __init__(self, profile_name: str = "desk", n: int = 16):
        self.profile_name, self.n = profile_name, n
        chosen = profile(profile_name)
        self.run = widgets.Dropdown(options=experiments.at_hand(profile_name) or [chosen.teacher],
                                    description="run")
        self.file = widgets.Text(placeholder="or the path of a checkpoint", description="file",
                                 continuous_update=False)
        self.path = widgets.Dropdown(description="sampler")
        self.statistic = widgets.Dropdown(options=STATISTICS, description="curve")
        self.step = widgets.SelectionSlider(options=[("", 0)], description="sigma",
                                            continuous_update=True)
        self.image = widgets.IntSlider(0, 0, n - 1, description="image")
        self.block = widgets.ToggleButtons(style={"button_width": "11em"})
        self.said, self.changed = widgets.HTML(), widgets.HTML()
        self.curve, self.channels, self.images = (widgets.Image(format="png") for _ in range(3))
        self.bands = widgets.HTML()
        self._quiet = False
        self._probes = lru_cache(maxsize=8)(self._load)
        self._open()
        for control in (self.run, self.file):
            control.observe(self._reopen, "value")
        self.path.observe(self._on(self._start), "value")
        for control in (self.statistic, self.block, self.step, self.image):
            control.observe(self._on(self._show), "value")
        super().__init__([
            widgets.HBox([self.run, self.file, self.path]),
            widgets.HBox([self.statistic, self.step, self.image]), self.block, self.said,
            self.curve,
            widgets.HBox([self.channels, self.bands]), self.images, self.changed])

    def _on(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """What a control calls; nothing while controls are being set by each other."""
        def act(_change: Any) -> None:
            if not self._quiet:
                action()

        return act

    def _reopen(self, change: Any) -> None:
        if self._quiet:
            return
        try:
            self._open()
        except (ValueError, OSError) as error:
            self.said.value = f"<b>{_escaped(str(error))}</b>"

    def _open(self) -> None:
        """Another network, and the samplers that go with it."""
        name = self.file.value.strip() or self.run.value
        denoiser, own = self._network(name)
        samplers = list(dict.fromkeys([LADDER, own]))
        self._set(self.path, options=samplers, value=own if own in samplers else LADDER)
        self._set(self.path, value=LADDER if own.startswith("heun") else own)
        self.denoiser, self.name = denoiser, name
        self._start()

    def _network(self, name: str) -> tuple[Any, str]:
        if name in experiments.at_hand(self.profile_name):
            path = experiments.obtain(name, self.profile_name).path
        else:
            path = zoo.locate(name)
        denoiser, metadata = checkpoint.load_with_metadata(Path(path))
        return to_device(denoiser, experiments.device()), checkpoint.sampler_of(denoiser, metadata)

    def _load(self, name: str, sampler: str) -> Probe:
        return Probe(self.denoiser, sampler, range(self.n))

    def _start(self) -> None:
        """Another way from noise to images."""
        self.probe = self._probes(self.name, self.path.value)
        levels = [(f"{visit.sigma:.3g}", k) for k, visit in enumerate(self.probe.visits)]
        kept = self.block.value if self.block.value in self.probe.blocks else self.probe.blocks[0]
        self._set(self.step, options=levels, value=min(self.step.value or 0, len(levels) - 1))
        self._set(self.block, options=self.probe.blocks, value=kept)
        self._lines = _Lines()
        self._show()

    def _set(self, control: Any, **values: Any) -> None:
        self._quiet = True
        try:
            for key, value in values.items():
                setattr(control, key, value)
        finally:
            self._quiet = False

    def _show(self) -> None:
        """Draw all four pictures anew."""
        probe, step = self.probe, self.step.value
        found = probe.look(self.block.value, step, self.image.value)
        table = probe.curves(self.statistic.value)
        self.curve.value = self._lines.png(table, self.block.value, step, self.statistic.value)
        self.channels.value = _channels(found)
        self.bands.value = _bars(found)
        minds = torch.stack([visit.x0_hat[self.image.value] for visit in probe.visits])
        zoom = max(1, WIDTH // (len(minds) * (minds.shape[-1] + 2)))
        self.images.value = grid_png(_marked(to_uint8(minds).cpu(), step), columns=len(minds),
                                     zoom=min(zoom, 8))
        visit, count = probe.visits[step], len(found.channels)
        shown = f"{count}" if count <= MAPS else f"first {MAPS} of {count}"
        self.said.value = (f"{_escaped(self.name)}, {probe.sampler}: call {step + 1} of "
                           f"{len(probe.visits)}, sigma {visit.sigma:.3g}, {self.block.value}; "
                           f"below the curve its {shown} channels for image "
                           f"{self.image.value}, then that image in mind at every call")
        self.changed.value = self._differences()

    def _differences(self) -> str:
        """In words what is not as in the committed Figure 3."""
        usual, chosen = FIGURES["fig03"].parameters, profile(self.profile_name)
        changes = [
            (self.name != chosen.teacher, f"{_escaped(self.name)} in place of {chosen.teacher}"),
            (self.n != chosen.n_activations, f"n = {self.n} in place of {chosen.n_activations}"),
            (self.path.value != f"heun:{usual['steps']}",
             f"sampler {self.path.value} in place of heun:{usual['steps']}"),
            (self.statistic.value != usual["statistic"],
             f"{self.statistic.value} in place of {usual['statistic']}")]  # yapf: disable
        said = [words for changed, words in changes if changed]
        return "As in Figure 3." if not said else f"Against Figure 3: {'; '.join(said)}."


class _Lines:
    """Every block's curve, made once; a change moves two artists."""
    def __init__(self) -> None:
        self.statistic = ""

    def _draw(self, table: Any, statistic: str) -> None:
        self.figure = Figure(figsize=(WIDTH / 100, 2.1), dpi=100, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        ax = self.figure.add_subplot()
        self.curves = {str(block): ax.plot(rows["step"] + 1, rows["value"], marker="o",
                                           markersize=3, linewidth=1)[0]
                       for block, rows in table.groupby("block", sort=False)}  # yapf: disable
        self.here = ax.axvline(1, color=plots.COLORS["rel"], linewidth=1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("call of the network, from noise to image", fontsize=8)
        ax.set_ylabel(statistic, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        self.canvas.draw()
        self.figure.set_layout_engine("none")  # where things stand is settled

    def png(self, table: Any, block: str, step: int, statistic: str) -> bytes:
        if self.statistic != statistic:
            self._draw(table, statistic)
            self.statistic = statistic
        for name, line in self.curves.items():
            chosen = name == block
            line.set(color=plots.COLORS["abs"] if chosen else "#cccccc", zorder=3 if chosen else 2)
        self.here.set_xdata([step + 1] * 2)
        content = io.BytesIO()
        # savefig would ask the style sheet for another size
        self.canvas.print_png(content, pil_kwargs={"compress_level": 1})
        return content.getvalue()


def _channels(look: Look) -> bytes:
    """Every channel's map, of the first MAPS, in grey, from its least to its largest value."""
    flat = look.channels.flatten(1)
    low, high = (x.view(-1, 1, 1) for x in (flat.min(dim=1).values, flat.max(dim=1).values))
    scaled = (look.channels - low) / (high - low).clamp(min=1e-12)
    maps = (scaled[:MAPS, None] * 255).to(torch.uint8)
    columns = min(16, math.ceil((2 * len(maps))**0.5))
    zoom = max(1, WIDTH * 2 // 3 // (columns * (maps.shape[-1] + 2)))
    return grid_png(maps, columns=columns, zoom=min(zoom, 8))


def _marked(images: torch.Tensor, chosen: int) -> torch.Tensor:
    """The images, a bar below the chosen one."""
    bar = torch.full_like(images[:, :, :1], 128)
    bar[chosen] = 255
    return torch.cat([images, bar], dim=2)


def _bars(look: Look) -> str:
    """Shares of power by frequency band, low to high, as bars of text width."""
    rows = []
    for name, shares in look.bands.items():
        bars = "".join(
            f'<td style="width:5em"><div style="background:{plots.COLORS["abs"]};height:.7em;'
            f'width:{100 * float(share):.0f}%"></div>{float(share):.2f}</td>' for share in shares)
        rows.append(f"<tr><td>{name}</td>{bars}</tr>")
    return ("<table><caption>share of power by frequency, low to high</caption>"
            f"{''.join(rows)}</table>")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
