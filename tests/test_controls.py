"""What docs/results.md says of the controls and of changed only is what its records hold."""

import json

import pytest
from recorded import OUTCOME, Study

from rftkit.metrics import mean
from rftkit.refiner import REFINERS
from rftkit.study.analysis import runs
from rftkit.study.command import RECORDS
from rftkit.study.methods import LAMBDAS, LRS
from rftkit.study.plan import PROTOCOL


def test_what_isolates_the_idea(study: Study, page: str) -> None:
    (same, bad), (none, _) = study.outcome("game", "identity"), study.outcome("game", "none")
    assert same == pytest.approx(none, abs=0.01)
    assert f"is no constraint on the game: {same:.2f}, and {bad:.0%} degenerate." in page
    (random, bad), (own, _) = study.outcome("game", "random-edit"), study.outcome("game", "dynamic")
    assert random == pytest.approx(own, abs=0.01)
    assert f"game **as good as the refiner**: {random:.2f}, and {bad:.1%} degenerate." in page
    changed = runs(study.records, "game/dynamic-changed/result")
    assert {row["config"]["coef"] for row in changed.values()} == {LAMBDAS[0]}
    ended = study.ended("game", "dynamic-changed")
    assert f"game: {ended:.2f} with λ = {LAMBDAS[0]:g}, the smallest of its grid." in page
    assert ended < own
    tuning = [
        row["final"]
        for row in study.tuning("game", "dynamic-changed")
        if row["config"]["coef"] >= 2
    ]
    assert f"({max(row['gold_reward'] for row in tuning):.2f} at most)" in page
    assert max(row["degenerate"] for row in tuning) < 0.06  # "keeps its form"
    rows = json.loads((RECORDS / "refiners.json").read_text(encoding="utf-8"))["rows"]
    found = {(row["task"], row["refiner"]): row for row in rows if row["refiner"] in REFINERS}
    game, dialogue, code = (
        found[task, "random-edit"]["fixed_neighbours"] for task in ("game", "dialogue", "code")
    )
    assert (
        f"form, {game:.0%} are. On dialogue it is {dialogue:.1%} of them, on code {code:.0%}."
        in page
    )
    assert (found["game", "identity"]["kept_clean"], found["game", "identity"]["broken"]) == (1, 0)
    repaired, kept = (found["game", "fresh"][key] for key in ("fixed_neighbours", "kept_clean"))
    assert (
        f"for {repaired:.0%} of the game's flaws, and keeps {kept:.0%} of the good walks." in page
    )


def test_identity_slows_dialogue_down(study: Study, page: str) -> None:
    largest = max(LAMBDAS)
    rows = study.rows("dialogue", "identity")
    assert {(r["config"]["coef"], r["config"]["lr"]) for r in rows} == {(largest, min(LRS))}
    gold, bad = study.outcome("dialogue", "identity")
    start, flawed = (mean([r["curve"][key][0] for r in rows]) for key in OUTCOME)
    assert f"{largest:g}, at the smaller learning rate: {gold:.2f}, and {bad:.0%} degen" in page
    assert gold == pytest.approx(start, abs=0.1)
    assert bad > flawed
    worst = sorted(study.each("dialogue", "identity", key="degenerate"))
    assert worst[-2:] == pytest.approx([0.5, 0.5], abs=0.05)  # "two seeds with half"
    others = [
        row["final"]["degenerate"]
        for row in study.tuning("dialogue", "identity")
        if (row["config"]["coef"], row["config"]["lr"]) != (largest, min(LRS))
    ]
    assert min(others) > 0.9  # "every other setting"


def test_identity_on_code_is_on_its_way(study: Study, page: str) -> None:
    kl = study.best_kl("code")
    rows, rivals = study.rows("code", "identity"), study.rows("code", kl)
    (setting,) = {(r["config"]["coef"], r["config"]["lr"]) for r in rows}
    assert setting == (4, min(LRS))
    assert "On code tuning takes λ = 4 at the smaller learning rate:" in page
    (gold, bad), (best, bad_kl) = study.outcome("code", "identity"), study.outcome("code", kl)
    assert (
        f"rate: {gold:.2f}, and {bad:.0%} degenerate, as much as the best KL ({best:.2f}, " in page
    )
    assert f"({best:.2f}, {bad_kl:.0%})." in page
    assert gold == pytest.approx(best, abs=0.05)

    def at(step: int, key: str, runs: list = rows) -> float:
        return mean(
            [dict(zip(r["curve"]["step"], r["curve"][key], strict=True))[step] for r in runs]
        )

    then, flawed = (at(90, key) for key in OUTCOME)
    assert f"at step 90 it had {then:.2f} and {flawed:.0%}, and on every seed the end is" in page
    for row in rows:
        golds = row["curve"]["gold_reward"]
        assert max(golds) > golds[-1]
    longer = study.rows("code", "twice-as-long-identity", "limits")
    assert {r["final"]["degenerate"] for r in longer} == {1.0}
    assert max(r["final"]["gold_reward"] for r in longer) < 0.005
    assert "Twice as long it ends at 0.00, with 100% degenerate, on all three seeds" in page
    still = [at(step, "degenerate", rivals) for step in (60, 90, 120)]
    assert max(still) - min(still) < 0.06  # "KL stands there"


def test_fresh_is_a_kl(study: Study, page: str) -> None:
    for task in PROTOCOL.tasks:
        (fresh, bad), (k3, bad_k3) = (study.outcome(task, n) for n in ("fresh", "kl-k3-loss"))
        found = f"on {'the ' * (task == 'game')}{task} {fresh:.2f}, with {bad:.0%}"
        assert f"{found}{' degenerate' * (task == 'game')} (k3: {k3:.2f}, {bad_k3:.0%})" in page
        assert fresh == pytest.approx(k3, abs=0.05)  # "near that one"
    rows = study.rows("dialogue", "fresh")
    (gold, bad), kl = study.outcome("dialogue", "fresh"), study.ended("dialogue", "fresh", key="kl")
    start, flawed = (mean([r["curve"][key][0] for r in rows]) for key in OUTCOME)
    assert f"keeps the policy where it began, at a KL of {kl:.1f}." in page
    assert (gold, bad) == (pytest.approx(start, abs=0.1), pytest.approx(flawed, abs=0.05))
    (coef,) = {r["config"]["coef"] for r in rows}
    tuning = study.tuning("dialogue", "fresh")
    quarter = [r["final"]["degenerate"] for r in tuning if r["config"]["coef"] == coef / 4]
    assert len(quarter) == len(LRS)
    assert f"With a quarter of that λ {min(quarter):.0%} are degenerate, or more" in page
    best = max(r["final"]["gold_reward"] for r in tuning)
    assert f"grid does it come above {best:.2f}." in page


def test_changed_only_is_behind_on_dialogue_and_code_too(study: Study, page: str) -> None:
    kl = study.best_kl("dialogue")
    gold, bad = study.outcome("dialogue", "dynamic-changed")
    above = gold - study.ended("dialogue", kl)
    below = study.ended("dialogue", "dynamic") - gold
    assert f"On dialogue: {gold:.2f}, with {bad:.1%} degenerate; that is {above:.2f} above" in page
    assert f"the best KL, and {below:.2f} below the dynamic constraint." in page
    golds = study.each("code", "dynamic-changed")
    gold, bad = study.outcome("code", "dynamic-changed")
    assert f"On code: {gold:.2f}, with {bad:.1%} degenerate, below the best KL as well" in page
    kl = study.best_kl("code")
    assert gold < study.ended("code", kl)
    assert f"the five fresh ones go from {min(golds):.2f} to {max(golds):.2f}." in page
    stages = ("first5/seed100", "second0/seed101")
    promised = [study.records[f"code/dynamic-changed/{at}"] for at in stages]
    (setting,) = {(r["config"]["coef"], r["config"]["lr"]) for r in promised}
    tuned = study.rows("code", "dynamic-changed")[0]["config"]
    assert setting == (tuned["coef"], tuned["lr"])
    first, second = (r["final"]["gold_reward"] for r in promised)
    assert f"its tuning seeds had promised {first:.2f} and {second:.2f}," in page


@pytest.mark.parametrize("task", ["dialogue", "code"])
def test_random_edits_are_no_constraint_on_dialogue_and_code(
    task: str, study: Study, page: str
) -> None:
    key = f"{task}/random-edit/"
    everything = [r["final"] for k, r in study.records.items() if k.startswith(key)]
    assert len(everything) == 2 * len(LAMBDAS) + 3 + 5
    assert {row["degenerate"] for row in everything} == {1.0}
    assert max(row["gold_reward"] for row in everything) < 0.005
    assert "0.00, and 100% degenerate, whatever λ and learning rate" in page


def test_random_edits_hasten_the_end_on_code(study: Study, page: str) -> None:
    def slow(task: str, name: str) -> dict[float, dict[int, float]]:
        """Gold reward at the smaller learning rate of tuning, by λ (0 without one) and step."""
        rows = [row for row in study.tuning(task, name) if row["config"]["lr"] == min(LRS)]
        curves = [(row["config"]["coef"], row["curve"]) for row in rows]
        return {
            coef or 0.0: dict(zip(curve["step"], curve["gold_reward"], strict=True))
            for coef, curve in curves
        }

    dialogue = slow("dialogue", "random-edit")
    assert sorted(dialogue) == sorted(LAMBDAS)
    for gold in [*dialogue.values(), *slow("dialogue", "none").values()]:
        assert gold[60] > 0.3
        assert gold[90] < 0.1
    assert "without a constraint does, on dialogue between steps 60 and 90." in page
    (free,) = slow("code", "none").values()
    code = slow("code", "random-edit")
    least, most = (code[at][60] for at in (min(LAMBDAS), max(LAMBDAS)))
    assert max(gold[60] for gold in code.values()) == least < free[60]
    assert f"at step 60 the gold reward is {free[60]:.2f} without a constraint," in page
    assert f"{least:.2f} with λ = {min(LAMBDAS):g}, and {most:.2f} with {max(LAMBDAS):g}." in page
