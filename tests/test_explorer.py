"""The explorer: what it computes against the measurements it stands beside, its widgets by their
values, and in a real browser."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import gdd
from analysis import activations, frequencies, plots
from analysis.explorer import Probe, visits
from analysis.explorer_widgets import Explorer
from gdd.sampling import draw_latents, heun, k_step, sigma_ladder

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def teacher():
    return gdd.load("teacher")


@pytest.fixture(scope="module")
def probe(teacher):
    return Probe(teacher, "heun:18", range(4))


def test_curves_are_those_of_figure_3(teacher, probe):
    table = activations.measure(teacher, model="teacher", seeds=range(4), steps=18)
    found = probe.curves("mean_abs")
    sides = table["side"].map({"encoder": "enc", "decoder": "dec"})
    known = table.assign(block=sides + "." + table["block"]).set_index(["block", "step"])["value"]
    ours = found.set_index(["block", "step"])["value"]
    assert len(ours) == len(known) == 15 * 18
    assert (ours - known.loc[ours.index]).abs().max() < 1e-5
    with pytest.raises(ValueError,
                       match="statistic must be one of mean_abs, rms, std; got 'bands'"):
        probe.curves("bands")


def test_visits_end_at_the_samplers_image(teacher):
    latents, _ = draw_latents(range(2), (1, 8, 8))
    with torch.inference_mode():
        by_teacher = visits(teacher, "heun:6", latents)
        assert [v.sigma for v in by_teacher] == pytest.approx(sigma_ladder(6)[:-1].tolist())
        # the solver's last step goes to its last image in mind
        assert torch.allclose(by_teacher[-1].x0_hat.float(), heun(teacher, latents, steps=6))
        student = gdd.load("k-step-4")
        four = visits(student, "k-step:4", latents)
        assert len(four) == 4
        assert torch.equal(four[-1].x0_hat, k_step(student, latents, steps=4))


def test_a_look_is_the_blocks_output_and_the_parts_of_its_input(teacher, probe):
    step, block = 7, probe.blocks[-1]
    found = probe.look(block, step, image=2)
    outputs = []
    module = teacher.get_submodule(f"model.{block}.conv1")
    handle = module.register_forward_hook(lambda m, i, out: outputs.append(out.clone()))
    with torch.inference_mode():
        teacher(probe.visits[step].x, probe.visits[step].sigma)
    handle.remove()
    assert torch.equal(found.channels, outputs[0][2])
    images = probe.visits[step].x.float() * 0
    table = frequencies.measure_blocks(teacher, images, [float(probe.visits[step].sigma)],
                                       model="teacher")
    assert set(found.bands) == {"output", "white noise", "backbone", "skip"}
    white = table[(table["block"] == block.partition(".")[2]) & (table["part"] == "skip")]
    assert found.bands["white noise"].tolist() == pytest.approx(white["white"].tolist())
    for shares in found.bands.values():
        assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    # an encoder's block takes no skip
    assert set(probe.look(probe.blocks[0], step).bands) == {"output", "white noise"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


@pytest.fixture
def explorer():
    plots.paper_style()  # as a notebook of figures leaves it
    return Explorer("desk", 4)


def pixels(widget):
    return Image.open(io.BytesIO(widget.value)).convert("L")


def test_a_control_changes_what_depends_on_it(explorer):
    explorer.step.value = 3
    before = {name: bytes(getattr(explorer, name).value)
              for name in ("curve", "channels", "images")}  # yapf: disable
    explorer.step.value = 12
    assert all(bytes(getattr(explorer, name).value) != old for name, old in before.items())
    assert "call 13 of 18" in explorer.said.value
    channels, bars = bytes(explorer.channels.value), explorer.bands.value
    explorer.block.value = "dec.8x8_block1"
    assert bytes(explorer.channels.value) != channels
    assert explorer.bands.value != bars
    assert "skip" in explorer.bands.value
    assert pixels(explorer.curve).width == 620


def test_it_says_what_is_not_as_in_figure_3(explorer):
    explorer.run.value = "k-step-4"
    assert explorer.path.value == "k-step:4"
    assert len(explorer.step.options) == 4
    assert "k-step-4 in place of teacher" in explorer.changed.value
    assert "sampler k-step:4 in place of heun:18" in explorer.changed.value
    explorer.path.value = "heun:18"
    assert "sampler" not in explorer.changed.value
    explorer.run.value = "teacher"
    explorer.statistic.value = "mean_abs"
    assert explorer.changed.value == "Against Figure 3: n = 4 in place of 256."


def test_a_checkpoint_of_ones_own_and_a_wrong_one(explorer, tmp_path):
    gdd.save_denoiser(tmp_path / "mine.safetensors", gdd.load("gdd-i"))
    explorer.file.value = str(tmp_path / "mine.safetensors")
    assert "mine.safetensors" in explorer.said.value
    curve = bytes(explorer.curve.value)
    explorer.file.value = str(tmp_path / "none.pkl")
    assert "none.pkl does not exist" in explorer.said.value
    assert bytes(explorer.curve.value) == curve
    explorer.file.value = ""
    explorer.run.value = "teacher"
    assert "teacher, heun:18" in explorer.said.value


def test_a_hand_does_not_wait(explorer):
    """A move of the slider, in time of this thread, which other work does not lengthen."""
    explorer.run.value, explorer.path.value = "teacher", "heun:18"
    seconds = []
    for step in range(1, 12):
        start = time.thread_time()
        explorer.step.value = step
        seconds.append(time.thread_time() - start)
    assert sorted(seconds)[5] < 0.3


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the PATH")
def test_in_a_browser_the_slider_moves_the_picture(tmp_path):
    """JupyterLab as a reader opens it: run all cells, move sigma, click a block."""
    sync_api = pytest.importorskip("playwright.sync_api")
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", tmp_path)
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["lab", "--no-browser", f"--port={port}", "--IdentityProvider.token=t",
                 f"--ServerApp.root_dir={tmp_path}", "--allow-root"]  # yapf: disable
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1]),
        "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    server = subprocess.Popen([sys.executable, "-m", "jupyter", *arguments], env=environment,
                              cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1200})
            page.goto(f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=t")
            page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
            page.get_by_text("| Idle").wait_for(timeout=120_000)  # the kernel is there
            page.get_by_text("Run", exact=True).first.click()
            page.get_by_text("Run All Cells", exact=True).click()
            pictures = page.locator("img.widget-image")
            pictures.first.wait_for(timeout=120_000)
            sources = [pictures.nth(k).get_attribute("src") for k in range(3)]
            handle = page.locator(".widget-slider .noUi-handle").first
            handle.focus()
            for _ in range(9):
                page.keyboard.press("ArrowRight")
            page.get_by_text(re.compile("call 10 of 18")).wait_for(timeout=20_000)
            moved = [pictures.nth(k).get_attribute("src") for k in range(3)]
            assert all(a != b for a, b in zip(sources, moved, strict=True))
            page.get_by_role("button", name="dec.8x8_block1").click()
            page.get_by_text(re.compile("1.92, dec.8x8_block1")).wait_for(timeout=20_000)
            assert pictures.nth(1).get_attribute("src") != moved[1]
            if folder := os.environ.get("GDD_SCREENSHOTS"):
                page.locator(".jp-NotebookPanel").first.screenshot(path=f"{folder}/explore.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(port, server):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, "JupyterLab did not start"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise AssertionError("JupyterLab did not listen")
