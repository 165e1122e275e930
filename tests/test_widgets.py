"""The explorers without a browser: what they show, asserted through data, text and controls."""

import json
import re
import threading
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from small import model_folder

from rftkit import Policy, RunConfig, UserError, load_policy, load_task
from rftkit.config import CONSTRAINTS
from rftkit.plots import COLOURS
from rftkit.runs import RunFolder
from rftkit.toy import boltzmann, cafe, push_forward, train
from rftkit.trainer import Trainer
from rftkit.widgets import (
    ConstraintLab,
    LiveTrainer,
    RefinerPlayground,
    ToyExplorer,
    TrainingFilm,
    inspect_refinement,
    inspection_html,
    lab_figure,
    sample_html,
    toy_figure,
)
from rftkit.widgets.film import film_figure
from rftkit.widgets.live import MEASURES, live_figure, recorded_runs
from rftkit.widgets.samples import latest, worst

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> 🙂\x1b[31m\u202e"
SMALL = {"model": model_folder(), "prompts": 2, "group": 3, "max_new_tokens": 6, "eval_prompts": 4,
         "eval_every": 1, "save_every": 1, "samples": 2, "strength_every": 1}  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("tiny")


def text(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def harmless(html: str) -> bool:
    """Nothing but plain tags with quoted attributes, none of them a handler."""
    name = "a|b|br|code|del|div|img|ins|span|table|td|th|tr"
    tag = rf"</?(?:{name})(?: (?!on)[a-z]+=(?:\"[^\"<>]*\"|'[^'<>]*'))* ?/?>"
    return not set("<>") & set(re.sub(tag, "", html))


# Refiner playground


def test_each_token_has_its_loss_and_the_decision_on_it(policy: Policy) -> None:
    task = load_task("dialogue")
    prompt = task.prompts("heldout")[0]
    flooded = "Sure. One tea." + " Thank you!" * 8
    found = inspect_refinement(policy, task, prompt, flooded)
    assert "".join(p.text for p in found.pieces) == found.refinement.refined + "EOS"
    assert found.refinement.changed
    assert {p.accepted for p in found.pieces} == {True, False}
    assert all(p.loss >= 0 for p in found.pieces)
    assert found.scores[0].degenerate
    again = inspect_refinement(policy, task, prompt, found.refinement.refined)
    if not again.refinement.changed:  # what the refiner keeps, it accepted token by token
        assert all(p.accepted for p in again.pieces)
        assert again.sft_loss == pytest.approx(found.sft_loss, abs=1e-3)
    page = text(inspection_html(found))
    assert f"edit ratio {found.refinement.edit_ratio:.2f}" in page
    assert "✎" in page


def test_the_playground_follows_typing_buttons_and_prompts(policy: Policy) -> None:
    explorer = RefinerPlayground(policy)
    buttons = {b.description: b for b in explorer.children[2].children}
    for name in ("clean", "random edit", "flood", "overstep"):
        before = explorer.view.value
        buttons[name].click()
        assert explorer.response.value
        assert explorer.message.value == ""
        assert explorer.view.value != before
    explorer.prompt.index = 1
    explorer.response.value = HOSTILE
    assert explorer.message.value == ""
    assert harmless(explorer.view.value)
    assert "🙂" in text(explorer.view.value)
    explorer.response.value = ""
    assert explorer.message.value == ""


def test_a_response_beyond_the_limit_is_one_line_and_the_view_stays(policy: Policy) -> None:
    explorer = RefinerPlayground(policy)
    before = explorer.view.value
    explorer.response.value = "<b>" + "Thank you! " * 200
    assert re.search("response: .* at most; shorten it", explorer.message.value)
    assert explorer.view.value == before
    explorer.response.value = "One tea."
    assert explorer.message.value == ""


# Recorded runs


def record(folder: Path, constraint: str, coef: float, steps: tuple[int, ...], bias: float) -> None:
    run = RunFolder.create(folder, RunConfig(constraint=constraint, coef=coef))
    for step in steps:
        value = bias + step / 100
        run.log({"step": step, "coef": coef, "task_reward": value, "gold_reward": value,
                 "degenerate": 0.1, "kl": 0.0, "edit_ratio": 0.1, "strength": 0.5})  # fmt: skip
        for prompt in ("<i>first</i>", "second"):
            run.sample({"step": step, "prompt": prompt, "response": f"{HOSTILE} {coef:g} at {step}",
                        "refined": f"{coef:g} at {step}", "task_reward": value,
                        "gold_reward": value})  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (100, 101):
        for coef in (0.1, 1.0):
            record(tmp_path / "a" / f"kl-{coef}-{seed}", "kl", coef, (0, 10), (seed - 100) / 10)
        record(tmp_path / "b" / f"dynamic-3-{seed}", "dynamic", 3.0, (0, 10, 20), 0.5)
    RunFolder.create(tmp_path / "b" / "dynamic-9-only-begun", RunConfig())
    return tmp_path


def test_the_lab_shows_the_chosen_coefficients_and_the_samples_of_the_step(runs: Path) -> None:
    lab = ConstraintLab(runs)
    (kl, _), (dynamic, lam) = lab.chosen()
    assert (kl.constraint, dynamic.constraint) == ("kl", "dynamic")
    assert (list(kl.runs), lam) == ([0.1, 1.0], 3.0)
    lab.sides[0][1].value = 0.1
    assert "0.1 at 10" in text(lab.view.value), "its last sample, where the other run goes on"
    assert "3 at 20" in text(lab.view.value)
    lab.step.value = 0
    assert "0.1 at 0" in text(lab.view.value)
    assert lab.message.value == ""
    assert harmless(lab.view.value)
    figure = lab_figure(lab.chosen(), step=0)
    (line,) = [x for x in figure.axes[1].lines if x.get_label() == "KL, β = 0.1"]
    assert line.get_color() == COLOURS["kl"]
    np.testing.assert_allclose(line.get_ydata(), [0.05, 0.15], err_msg="mean of two seeds")


def test_the_lab_takes_a_single_run_too(runs: Path) -> None:
    lab = ConstraintLab(runs / "b" / "dynamic-3-100")
    assert [(sweep.name, coef) for sweep, coef in lab.chosen()] == [("dynamic-3-100", 3.0)]
    assert "3 at 20" in text(lab.view.value)


def test_the_lab_survives_any_order_of_moves(runs: Path) -> None:
    lab = ConstraintLab(runs)
    (left, beta), (right, lam) = lab.sides
    for control, index in ((left, 1), (right, 0), (lam, 1), (lab.step, 2), (left, 0), (beta, 0)):
        control.index = index
        assert lab.message.value == ""
    assert [sweep.constraint for sweep, _ in lab.chosen()] == ["kl", "kl"]
    beta.index = 1
    assert len(lab.chosen()) == 1, "the same on both sides is shown once"


def test_the_film_goes_through_the_steps_of_a_run(runs: Path) -> None:
    film = TrainingFilm(runs)
    film.run.value = "b/dynamic-3-100"
    assert film.step.options == (0, 10, 20)
    assert film.play.max == 2
    for step in film.step.options:
        film.step.value = step
        assert f"3 at {step}" in text(film.view.value)
    film.step.value = 20
    film.run.value = "a/kl-1.0-101"
    assert film.step.options == (0, 10)
    assert "1 at 10" in text(film.view.value)
    assert film.message.value == ""
    assert harmless(film.view.value)


def test_the_film_of_a_constraint_of_ones_own_has_its_colour_at_once(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(CONSTRAINTS, "film-own", "nowhere:Nothing")
    record(tmp_path / "run", "film-own", 1.0, (0, 10), 0.0)
    figure = film_figure(RunFolder(tmp_path / "run"), "second", 10)
    (line,) = [x for x in figure.axes[0].lines if x.get_label() == "this prompt"]
    assert line.get_color() == COLOURS["film-own"]


@pytest.mark.parametrize("explorer", [ConstraintLab, TrainingFilm])
def test_a_folder_without_runs_is_a_users_mistake(explorer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded"):
        explorer(tmp_path)


def test_the_worst_response_is_the_one_of_least_gold_then_most_edited() -> None:
    base = {"prompt": "", "task_reward": 9.0, "step": 0}
    kept = base | {"response": "a b", "refined": "a b", "gold_reward": 0.0}
    edited = base | {"response": "a b b b", "refined": "a b", "gold_reward": 0.0}
    good = base | {"response": "c", "refined": None, "gold_reward": 1.0}
    assert worst([good, kept, edited]) is edited
    assert "not refined" in text(sample_html(good))
    rows = [{"step": s} for s in (0, 10, 20)]
    assert [latest(rows, s)[0]["step"] for s in (-1, 0, 15, 99)] == [0, 0, 10, 20]


# Toy policy


def test_bars_q_and_optimum_are_the_exact_ones() -> None:
    scene, coefs = cafe(), {"kl": 0.5, "dynamic": 2.0}
    histories = {
        name: train(scene, name, coefs.get(name, 0.0), 20) for name in ("none", "kl", "dynamic")
    }
    figure = toy_figure(scene, histories, 20, coefs)
    for axis, name in zip(figure.axes, histories, strict=False):
        bars = [p.get_height() for p in axis.containers[1]]
        np.testing.assert_allclose(bars, histories[name].probs[20])
    probs = histories["dynamic"].probs[20]
    q = push_forward(scene.reference.with_probs(probs), scene.refiner)
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), q)
    optimum = boltzmann(scene.reference.probs().detach(), scene.task_rewards, 0.5)
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), optimum)


def test_the_toy_moves_with_its_sliders() -> None:
    toy = ToyExplorer()
    seen = {toy.view.value}
    for control, index in ((toy.step, 0), (toy.beta, 1), (toy.lam, 1)):
        control.index = index
        assert toy.message.value == ""
        seen.add(toy.view.value)
    # at step 0 the bars stand at the reference, yet the curves below follow β and λ
    assert len(seen) == 4


# Live trainer


def live(out: Path, **settings) -> LiveTrainer:
    return LiveTrainer(RunConfig.from_dict(SMALL | {"steps": 200} | settings), out)


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def test_a_task_of_ones_own_trains_and_is_shown(tmp_path: Path, monkeypatch) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}]} for i in range(10)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "paid_by_length.py").write_text(
        "def reward(completions, **rest):\n    return [len(c[0]['content']) for c in completions]"
    )
    monkeypatch.chdir(tmp_path)
    own = {"task": "own", "data": "mine.jsonl", "reward": "paid_by_length:reward", "steps": 1}
    trainer = live(tmp_path / "runs", constraint="none", **own)
    trainer.start()
    trainer.sessions[0].wait(60)
    assert trainer.sessions[0].state == "finished", trainer.sessions[0].error
    lab = ConstraintLab(tmp_path / "runs")
    assert lab.message.value == ""
    assert "<img" in lab.view.value


def test_recorded_runs_stand_behind_ones_own() -> None:
    runs = recorded_runs(RunConfig(steps=60))
    assert [name for name, _ in runs] == ["none", "kl", "dynamic"]
    assert [rows[-1]["step"] for _, rows in runs] == [60, 60, 60]
    own = [{"step": 0, "coef": 3.0} | {key: 0.5 for key, _ in MEASURES}]
    figure = live_figure([("dynamic", own)], 1.5, runs)
    for axis, (key, _) in zip(figure.axes, MEASURES, strict=True):
        drawn = {line.get_label(): line for line in axis.lines}
        assert drawn["recorded: no constraint"].get_alpha() < drawn["dynamic, λ = 3"].get_alpha()
        there = [m[key] for m in runs[1][1] if m[key] is not None]
        assert list(drawn["recorded: KL, β = 0.8"].get_ydata()) == there
    assert not recorded_runs(RunConfig(model=model_folder())), "of another model"
    assert not recorded_runs(RunConfig(task="own"))


def test_start_pause_go_on_and_stop_keep_a_run_that_can_go_on(tmp_path: Path) -> None:
    trainer = live(tmp_path)
    trainer.start_button.click()
    session = trainer.sessions[0]
    until(lambda: len(session.rows) >= 2)
    assert trainer.start_button.disabled
    trainer.start()  # as by a click that was on its way: nothing happens
    assert len(trainer.sessions) == 1
    trainer.pause_button.click()
    until(lambda: session.state == "paused")
    done = len(session.rows)
    time.sleep(0.2)
    assert len(session.rows) == done
    until(lambda: "paused" in trainer.view.value)  # drawn by a thread of its own
    assert f"paused · step {done - 1} of 200" in text(trainer.view.value)
    assert "worst response" in text(trainer.view.value)
    trainer.pause_button.click()
    until(lambda: len(session.rows) > done)
    trainer.stop_button.click()
    session.wait(60)
    assert session.state == "stopped"
    until(lambda: "stopped" in trainer.view.value)
    assert "dynamic-1" in text(trainer.view.value)
    assert not trainer.start_button.disabled
    run = RunFolder(tmp_path / "dynamic-1")
    assert [m["step"] for m in run.metrics()] == list(range(len(session.rows)))
    resumed = Trainer(run.config(), run.path, resume=True)
    assert resumed.done == len(session.rows)
    assert harmless(trainer.view.value)


def test_a_paused_run_can_be_stopped_and_the_next_one_has_a_folder_of_its_own(
    tmp_path: Path,
) -> None:
    trainer = live(tmp_path)
    trainer.start()
    trainer.pause()
    until(lambda: trainer.sessions[0].rows or trainer.sessions[0].state == "paused")
    trainer.stop()
    trainer.sessions[0].wait(60)
    trainer.steps.value = 1
    trainer.constraint.value = "none"
    trainer.start()
    trainer.sessions[1].wait(60)
    assert trainer.sessions[1].state == "finished"
    assert (tmp_path / "dynamic-1").is_dir()
    assert (tmp_path / "none-1" / "checkpoint").is_dir()


def test_controls_may_move_while_it_trains(tmp_path: Path) -> None:
    trainer = live(tmp_path)
    failures: list[object] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        trainer.start()
        until(lambda: trainer.sessions[0].rows)
        for steps in range(1, 4):
            trainer.steps.value = steps
            trainer.coef.value = str(steps)
            trainer.refresh()
        trainer.stop()
        trainer.sessions[0].wait(60)
    finally:
        threading.excepthook = hook
    assert not failures
    assert trainer.sessions[0].config.steps == 200
    assert trainer.message.value == ""


def test_errors_are_one_line(tmp_path: Path) -> None:
    trainer = live(tmp_path, model="no/such<b>model")
    trainer.start()
    trainer.sessions[0].wait(60)
    until(lambda: "failed" in trainer.view.value)
    assert "model: 'no/such<b>model' cannot be loaded" in text(trainer.view.value)
    assert harmless(trainer.view.value)
    trainer.coef.value = "<much>"
    trainer.start()
    assert "β or λ: '<much>' is no number" in text(trainer.message.value)
    assert len(trainer.sessions) == 1


def test_the_picture_needs_no_kernel() -> None:
    toy = ToyExplorer()
    assert toy.picture().data == toy.view.value
    assert toy._repr_mimebundle_()["text/html"] == toy.view.value
    assert re.search('<img alt="Toy policy at step [0-9]+', toy.view.value)
