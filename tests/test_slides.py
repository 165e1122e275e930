"""The figures for slides: what they show and say is what was recorded or computed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rftkit import slides
from rftkit.errors import UserError
from rftkit.figures import canvas, colour
from rftkit.paths import DATA
from rftkit.plots import LABELS
from rftkit.toy import cafe, train

FOLDERS = sorted(path.parent for path in (DATA / "runs").glob("*/summary.json"))
each_task = pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)


@each_task
def test_a_result_shows_and_says_what_was_recorded(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    slide = slides.result(folder)
    (axis,) = slide.figure.axes
    for name in summary["methods"]:
        end = summary["methods"][name]["gold_reward"]["mean"]
        curves = [line for line in axis.lines if line.get_color() == colour(name)]
        assert [line.get_ydata()[-1] for line in curves] == [pytest.approx(end)]
        assert f"{LABELS[name]} {end:.2f}" in slide.caption
    seeds = len(summary["seeds"])
    assert (f"{seeds} seeds" if seeds > 1 else "One seed") in slide.caption


@each_task
def test_a_collapse_ends_at_the_recorded_rewards(folder: Path) -> None:
    ends = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["methods"]["none"]
    slide = slides.collapse(folder)
    shown = [line.get_ydata()[-1] for line in slide.figure.axes[0].lines]
    np.testing.assert_allclose(shown, [ends[k]["mean"] for k in ("task_reward", "gold_reward")])
    assert f"ends at {ends['task_reward']['mean']:.2f}" in slide.caption
    seeds = len(ends["gold_reward"]["per_seed"])
    assert (f"mean of {seeds} seeds" if seeds > 1 else "one seed") in slide.caption


@each_task
def test_a_refinement_is_a_recorded_one_in_full(folder: Path) -> None:
    slide = slides.refinement(folder)
    if slide is None:
        return
    rows = [json.loads(r) for p in folder.glob("none-*/samples.jsonl") for r in p.open("rb")]
    (row,) = {(r["response"], r["refined"]) for r in rows if (r["refined"] or "-") in slide.alt and
              r["response"] in slide.alt and r["response"] != r["refined"]}  # fmt: skip
    words = " ".join(text.get_text() for text in slide.figure.axes[0].texts)
    both = f"the policy wrote {row[0]} the refiner wrote {row[1]}"
    shown = re.sub(r"[\s⏎]", "", words)  # which stands for the end of a line
    assert shown == re.sub(r"\s", "", both)


def test_the_toys_figures_are_its_exact_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slides, "STEPS", 5)
    monkeypatch.setattr(slides, "COEFS", (0.1, 1.0, 3.0, 5.0))
    scene = cafe()
    gold = (train(scene, "dynamic", 3.0, 5).probs[-1] @ scene.gold_rewards).item()
    assert f"constraint {gold:.2f}" in slides.leash().caption
    dynamic = slides.coefficients().figure.axes[0].lines[1]
    assert dynamic.get_ydata()[2] == pytest.approx(gold)
    share, pull = (axis.lines[0].get_ydata() for axis in slides.tightening().figure.axes)
    assert len(pull) == 10
    assert share[5] > share[4] + 0.3  # spoiled there


def test_they_are_written_with_their_texts(tmp_path: Path) -> None:
    made = [slides.advantages(), slides.relaxing(FOLDERS[0])]
    slides.write(made, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for slide in made:
        assert f"![{slide.alt}]({slide.name}.png)" in text
        assert slide.caption in text
        assert (tmp_path / f"{slide.name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / f"{slide.name}.svg").read_text(encoding="utf-8")


def test_what_a_policy_wrote_stays_text(tmp_path: Path) -> None:
    figure, _ = canvas()
    hostile = "Hi ](x)<img src=x onerror=alert(1)>\n# `more`"
    slides.write([slides.Slide("one", figure, "caption", hostile)], tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "<img" not in page
    assert r"![Hi \](x)&lt;img src=x onerror=alert(1)&gt; # \`more\`](one.png)" in page


def test_without_records_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded comparison"):
        slides.story(tmp_path)
