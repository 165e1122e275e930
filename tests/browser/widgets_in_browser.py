"""Every widget and three lessons in a real browser, for a user with a keyboard and bad intentions.

Run by `make browser`, not by `make test`. Screenshots are kept in out/browser.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import OUT
from hostile import ATTACKS, record

LESSONS = Path(__file__).resolve().parents[2] / "notebooks"
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


@pytest.fixture(scope="module")
def notebook(page: Any, jupyter: Callable[[str], str], work: Path) -> Any:
    """The notebook with all its cells run."""
    shutil.copy(Path(__file__).with_name("widgets.ipynb"), work)
    record(work / "hostile" / "run", " ".join(ATTACKS.values()))
    run_all(page, jupyter("widgets.ipynb"))
    expect(page.locator(".jp-OutputArea-output", has_text="all cells ran")).to_be_visible()
    return page


def run_all(page: Any, url: str) -> None:
    """Open a notebook, and let the menu run its cells."""
    page.goto(url)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    expect(page.get_by_text("| Idle")).to_be_visible()  # a kernel that is not ready is asked for
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def complaints(page: Any) -> list[str]:
    """What stands in outputs of errors and warnings, or in place of a widget."""
    bad = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    bad = bad.or_(page.locator("[data-mime-type='application/vnd.jupyter.error']"))
    return list(bad.or_(page.get_by_text("Error displaying widget")).all_inner_texts())


WITHOUT_INSERTS = """diff => {
    const kept = diff.cloneNode(true)
    kept.querySelectorAll("ins").forEach(piece => piece.remove())
    return kept.textContent
}"""


def explorer(page: Any, name: str) -> Any:
    """The widget of that class, scrolled into sight."""
    found = page.locator(f".{name}")
    found.scroll_into_view_if_needed()
    return found


def picture(widget: Any) -> str:
    return widget.locator("img").first.get_attribute("src")


def move(widget: Any, description: str, key: str) -> str:
    """Press a key on a slider's handle; returns what the slider says then."""
    slider = widget.locator(".widget-hslider", has_text=description)
    handle, readout = slider.locator(".noUi-handle"), slider.locator(".widget-readout")
    before = readout.inner_text()
    handle.focus()
    handle.press(key)
    expect(readout).not_to_have_text(before)
    return readout.inner_text()


def shoot(widget: Any, name: str) -> None:
    widget.screenshot(path=OUT / f"{name}.png")


def test_all_cells_run_without_a_word_of_complaint(notebook: Any) -> None:
    assert complaints(notebook) == []
    expect(notebook.locator("[data-mime-type='text/html'] img[alt^='Toy policy']")).to_be_visible()


def test_the_playground_refines_what_is_typed_and_runs_none_of_it(notebook: Any) -> None:
    widget = explorer(notebook, "RefinerPlayground")
    shoot(widget, "playground")
    area = widget.locator("textarea")
    hostile = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> One tea 🙂"
    area.fill(hostile)
    area.press("Tab")
    expect(widget.locator("del").first).to_contain_text("<")
    assert widget.locator("span[style*='pre-wrap']").first.evaluate(WITHOUT_INSERTS) == hostile
    assert notebook.evaluate("window.hacked") is None
    assert widget.locator("script, img").count() == 0
    assert "\ufffd" not in widget.inner_text()
    shoot(widget, "playground-hostile")
    flood = widget.get_by_role("button", name="flood")
    before = area.input_value()
    flood.focus()
    flood.press("Enter")
    expect(area).not_to_have_value(before)
    area.fill("Thank you! " * 200)
    area.press("Tab")
    expect(widget.get_by_role("status")).to_contain_text("at most; shorten it")
    area.fill("Hi! One large tea, to go. Enjoy! Enjoy! Enjoy! Enjoy!")
    area.press("Tab")
    expect(widget.get_by_role("status")).to_have_count(0)
    shoot(widget, "playground-typed")


@pytest.mark.parametrize("name", ["HostileFilm", "HostileLab"])
def test_attacks_in_a_recorded_run_show_as_text(notebook: Any, name: str) -> None:
    widget = explorer(notebook, name)
    for attack in ("<script>window.hacked=1</script>", "$\\href{javascript:", "␛[2J", "\\u202e"):
        expect(widget.locator("span[style*='pre-wrap']").first).to_contain_text(attack)
    assert widget.locator("script, svg:not(.jp-icon3), a, mjx-container, iframe").count() == 0
    sources = widget.locator("img").evaluate_all("all => all.map(img => img.src)")
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    shoot(widget, name)


def test_attacks_in_outputs_without_a_widget_show_as_text(notebook: Any) -> None:
    html = notebook.locator("[data-mime-type='text/html']", has_text="window.hacked")
    expect(html).to_contain_text("<script>window.hacked=1</script>")
    expect(html).to_contain_text("$\\href{javascript:")
    assert html.locator("script, svg, a, mjx-container").count() == 0
    for kind in ("text/plain", "application/vnd.jupyter.stdout"):
        plain = notebook.locator(f"[data-mime-type='{kind}']", has_text="window.hacked")
        expect(plain.first).to_contain_text("<script>window.hacked=1</script>")
        assert plain.locator("script, svg, img, mjx-container").count() == 0
    assert notebook.evaluate("window.hacked") is None
    links = notebook.locator("a[href^='javascript']").count()
    assert links == 0


@pytest.mark.parametrize(
    ("name", "sliders"),
    [
        ("ToyExplorer", ("step", "β of KL", "λ of dynamic")),
        ("ConstraintLab", ("step",)),
        ("TrainingFilm", ("step",)),
    ],
)
def test_sliders_obey_the_keyboard(notebook: Any, name: str, sliders: tuple[str, ...]) -> None:
    widget = explorer(notebook, name)
    for description in sliders:
        before = picture(widget)
        key = "ArrowLeft" if name == "ConstraintLab" else "ArrowRight"
        said = move(widget, description, key)
        expect(widget.locator("img").first).not_to_have_attribute("src", before)
        if description == "step":
            expect(widget.locator(f"img[alt*='step {said}']").first).to_be_visible()
    shoot(widget, name)


def test_start_pause_and_stop_of_the_live_trainer(notebook: Any, work: Path) -> None:
    widget = explorer(notebook, "LiveTrainer")
    start, pause, stop = (
        widget.get_by_role("button", name=name) for name in ("start", "pause", "stop")
    )
    expect(pause).to_be_disabled()
    start.focus()
    start.press("Enter")
    expect(widget).to_contain_text(re.compile("training · step [1-9]"))
    expect(widget).to_contain_text("worst response")
    expect(start).to_be_disabled()
    shoot(widget, "live-training")
    explorer(notebook, "ToyExplorer")  # the page stays usable while it trains
    move(notebook.locator(".ToyExplorer"), "step", "ArrowRight")
    pause.click()
    expect(widget).to_contain_text("paused · step")
    at = re.search("step [0-9]+", widget.inner_text())
    notebook.wait_for_timeout(1500)
    assert at
    expect(widget).to_contain_text(f"paused · {at[0]} ")
    shoot(widget, "live-paused")
    widget.get_by_role("button", name="go on").click()
    expect(widget).not_to_contain_text("paused")
    stop.click()
    expect(widget).to_contain_text("stopped")
    expect(widget).to_contain_text("kept in out/live/dynamic-1")
    expect(start).to_be_enabled()
    shoot(widget, "live-stopped")
    folder = work / "out" / "live" / "dynamic-1"
    assert (folder / "checkpoint").is_dir()
    assert (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n") >= 2
    widget.get_by_label("β or λ").fill("much")
    widget.get_by_label("β or λ").press("Tab")
    start.click()
    expect(widget.get_by_role("status")).to_contain_text("β or λ: 'much' is no number")


@pytest.mark.parametrize(
    ("stem", "widgets"),
    [
        ("00_start_here", ()),
        ("04_online_refiner", ("RefinerPlayground",)),
        ("05_dynamic_constraints", ("ToyExplorer", "LiveTrainer", "TrainingFilm")),
    ],
)
def test_a_lesson_runs_from_top_to_bottom(
    page: Any, jupyter: Callable[[str], str], work: Path, stem: str, widgets: tuple[str, ...]
) -> None:
    lesson: Any = nbformat.read(LESSONS / f"{stem}.ipynb", as_version=4)
    for cell in lesson.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(lesson, work / f"{stem}.ipynb")
    run_all(page, jupyter(f"{stem}.ipynb"))
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=120_000)
    assert complaints(page) == []
    pictures = page.locator("[data-mime-type='image/png'] img")
    assert pictures.count() == sum("show(" in c.source for c in lesson.cells), "one a figure"
    for name in widgets:
        shoot(explorer(page, name), f"{stem[:2]}-{name}")
    page.locator("h2", has_text="Recap").scroll_into_view_if_needed()
    page.screenshot(path=OUT / f"{stem}.png")
