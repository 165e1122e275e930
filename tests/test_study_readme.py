"""What README says of the study is what its records hold."""

import json

import pytest

from rftkit.metrics import bootstrap_ci, mean
from rftkit.report import fill
from rftkit.study.analysis import best_on_the_way, results, runs
from rftkit.study.command import RECORDS
from rftkit.study.exploits import BONUS, upsell
from rftkit.study.methods import DOSES, METHODS, VARIATIONS
from rftkit.study.plan import PROTOCOL
from rftkit.study.records import RecordFiles, sha256
from rftkit.tasks import load_task


def test_the_readmes_block_is_made_from_the_records() -> None:
    block = "<!-- study: dialogue -->\nold\n<!-- end -->\n"
    filled = fill(block)
    assert "\nold\n" not in filled
    model = sha256("tiny")
    records = RecordFiles(RECORDS, PROTOCOL.jobs(), model).read()
    for method in METHODS:
        golds = [row["final"]["gold_reward"]
                 for row in results("dialogue", method.name, records).values()]  # fmt: skip
        if golds:
            low, high = bootstrap_ci(golds)
            line = next(x for x in filled.splitlines() if x.startswith(f"| {method.label} |"))
            assert f"{mean(golds):.2f} ({low:.2f} to {high:.2f})" in line
    done = sum(len(results("dialogue", m.name, records)) >= 5 for m in METHODS)
    assert (f"missing: {12 - done} of 12 methods" in filled) == (done < 12)


def test_the_doses_are_what_the_readme_says() -> None:
    records = RecordFiles(RECORDS, PROTOCOL.jobs(), sha256("tiny")).read()

    def dosed(task: str, name: str, key: str = "gold_reward") -> list[float]:
        rows = [records[f"{task}/{name}/why/seed{seed}"] for seed in (10, 11, 12)]
        return [row["final"][key] if key in row["final"] else row[key] for row in rows]

    def ended(task: str, method: str, key: str = "gold_reward") -> float:
        return mean([row["final"][key] for row in results(task, method, records).values()])

    readme = " ".join((RECORDS.parents[2] / "README.md").read_text(encoding="utf-8").split())
    own = {task: ended(task, "dynamic") for task in PROTOCOL.tasks}
    near = {task: pytest.approx(gold, abs=0.04) for task, gold in own.items()}
    shares = [f"share-{share}" for share in (0.5, 0.25, 0.125)]
    assert mean(dosed("game", shares[-1])) == near["game"]
    tokens = mean(dosed("game", shares[-1], "generated")) / 1000
    tuned = results("game", "dynamic", records)
    all_of_them = mean([tuned[seed]["generated"] for seed in (10, 11, 12)]) / 1000
    assert f"enough, with {tokens:.0f} thousand tokens instead of {all_of_them:.0f}." in readme
    worst = 0.0
    for task in ("dialogue", "code"):
        golds = [own[task], *(mean(dosed(task, share)) for share in shares)]
        assert golds == sorted(golds, reverse=True)
        worst = max(worst, *(max(dosed(task, share, "degenerate")) for share in shares))
    assert f"single seeds degenerate up to {worst:.0%}." in readme
    for task in own:
        for noise in (0.1, 0.2):
            assert mean(dosed(task, f"damage-{noise}")) == near[task]
    assert mean(dosed("game", "damage-0.4")) < own["game"] - 0.3
    assert max(dosed("game", "damage-0.4", "degenerate")) < 0.1
    bad = sorted(dosed("dialogue", "damage-0.4", "degenerate"))
    assert bad[1] < 0.1
    assert f"one seed of three ({bad[2]:.0%} degenerate), on code all three." in readme
    assert min(dosed("code", "damage-0.4", "degenerate")) > 0.8
    bad = [share for task in own for share in dosed(task, "lambda-0.3", "degenerate")]
    assert sum(share > 0.03 for share in bad) == 8
    for task in own:
        rows = [records[f"{task}/lambda-0.3/why/seed{seed}"] for seed in (10, 11, 12)]
        assert min(map(best_on_the_way, rows)) >= 0.87 * load_task(task).gold_max
    assert mean(dosed("game", "lambda-3")) == near["game"]
    for task, kept in (("code", 7 / 8), ("dialogue", 4 / 5)):
        share = mean(dosed(task, "lambda-3")) / own[task]
        assert share == pytest.approx(kept, abs=0.03)
        best = PROTOCOL.best_kl(task, records, complete=False)
        assert mean(dosed(task, "lambda-10")) > ended(task, str(best))
        assert mean(dosed(task, "rank-32")) == near[task]
    bad = sorted(dosed("game", "rank-32", "degenerate"))
    assert bad[1] < 0.03
    assert f"on the game one seed of three degenerates with it ({bad[2]:.0%})." in readme


def test_the_best_kl_of_the_game_is_as_near_as_the_readme_says() -> None:
    records = RecordFiles(RECORDS, PROTOCOL.jobs(), sha256("tiny")).read()
    readme = " ".join((RECORDS.parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert PROTOCOL.best_kl("game", records) == "kl-k1-reward"

    def ended(method: str, key: str = "gold_reward") -> float:
        return mean([r["final"][key] for r in results("game", method, records).values()])

    ahead, before = (ended("dynamic") - ended(kl) for kl in ("kl-k1-reward", "kl-k3-loss"))
    bad = ended("kl-k1-reward", "degenerate")
    assert f"{ahead:.2f} ahead, not {before:.2f}, with {bad:.0%} of its responses" in readme


def test_a_refiner_that_learned_less_does_what_the_readme_says() -> None:
    records = RecordFiles(RECORDS, PROTOCOL.jobs(), sha256("tiny")).read()
    readme = " ".join((RECORDS.parents[2] / "README.md").read_text(encoding="utf-8").split())

    def quality(model: str, task: str) -> dict[str, float]:
        text = (RECORDS.parents[1] / "models" / model / "quality.json").read_text(encoding="utf-8")
        return json.loads(text)[task]

    def ended(task: str, name: str) -> float:
        rows = runs(records, f"{task}/{name}").values()
        return mean([row["final"]["gold_reward"] for row in rows])

    own = {task: ended(task, "dynamic/result") for task in PROTOCOL.tasks}
    kept = {task: quality("tiny-2612", task)["kept_clean"] for task in own}
    early = {task: ended(task, "training-2612/why") for task in own}
    assert f"After {2612 / DOSES['training'][1]:.0%} of its pre-training" in readme
    assert f"returns {kept['game']:.0%} of the game's good drafts verbatim" in readme
    assert f"{kept['dialogue']:.0%} of dialogue's, which costs a sixth; " in readme
    assert f"{kept['code']:.0%} of code's, and the policy ends at {early['code']:.2f}" in readme
    assert early["game"] == pytest.approx(own["game"], abs=0.02)
    assert early["dialogue"] / own["dialogue"] == pytest.approx(5 / 6, abs=0.02)
    starts = [r["curve"]["gold_reward"][0] for r in runs(records, "code/none/result").values()]
    assert early["code"] < min(mean(starts), ended("code", "none/result"))
    assert f"After {11_000 / DOSES['training'][1]:.0%} it keeps all of them" in readme
    for task in own:
        assert quality("tiny-11000", task)["kept_clean"] > 0.995
        assert ended(task, "training-11000/why") == pytest.approx(own[task], abs=0.02)
    repaired = quality("tiny-11000", "dialogue")["fixed_neighbours"]
    assert repaired == pytest.approx(0.8, abs=0.005)  # four in five


def test_where_it_fails_is_what_the_readme_says() -> None:
    records = RecordFiles(RECORDS, PROTOCOL.jobs(), sha256("tiny")).read()

    def ended(task: str, name: str, key: str = "gold_reward") -> float:
        found = runs(records, f"{task}/{name}/limits")
        assert sorted(found) == [10, 11, 12]
        return mean([row["final"][key] for row in found.values()])

    readme = " ".join((RECORDS.parents[2] / "README.md").read_text(encoding="utf-8").split())
    tuned = {}
    for task in PROTOCOL.tasks:
        rows = results(task, "dynamic", records).values()
        tuned[task] = mean([row["final"]["gold_reward"] for row in rows])
    fluent = ended("dialogue", "fluent-exploit-dynamic")
    assert f"ends at {fluent:.2f} instead of {tuned['dialogue']:.2f}." in readme
    assert ended("dialogue", "fluent-exploit-none", "degenerate") > 0.9
    assert f"without any, at {ended('dialogue', 'biased-refiner-dynamic'):.2f}," in readme
    assert f"programs without, at {ended('code', 'biased-refiner-dynamic'):.2f}." in readme
    assert ended("game", "biased-refiner-dynamic") == pytest.approx(tuned["game"], abs=0.02)
    for task in PROTOCOL.tasks:
        assert ended(task, "biased-refiner-dynamic", "edit_ratio") < 0.01
    for task in ("dialogue", "code"):
        assert ended(task, "twice-as-long-dynamic") == pytest.approx(tuned[task], abs=0.02)
    longer = runs(records, "game/twice-as-long-dynamic/limits")
    failed, *others = sorted(longer.values(), key=lambda row: -row["final"]["degenerate"])
    assert all(row["final"]["degenerate"] < 0.03 for row in others)
    bad, corrected = failed["final"]["degenerate"], failed["final"]["changed"]
    assert f"in the end {bad:.0%} of its responses are degenerate." in readme
    assert f"corrects {corrected:.0%} of them, but λ = {failed['config']['coef']}" in readme
    stronger = runs(records, "game/twice-as-long-at-3-lambda-dynamic/limits")
    assert all(row["final"]["degenerate"] < 0.01 for row in stronger.values())
    held = ended("game", "twice-as-long-at-3-lambda-dynamic")
    assert f"all three seeds hold, at {held:.2f}." in readme


def test_every_held_out_lake_can_be_crossed_without_going_up() -> None:
    for prompt in load_task("game").prompts("heldout"):
        rows, reached = prompt.columns["map"], [(0, 0)]
        for r, c in reached:
            for place in ((r + 1, c), (r, c - 1), (r, c + 1)):
                on_it = 0 <= place[0] < len(rows) and 0 <= place[1] < len(rows)
                if on_it and rows[place[0]][place[1]] != "H" and place not in reached:
                    reached.append(place)
        assert any(rows[r][c] == "G" for r, c in reached)


def test_the_fluent_exploit_pays_for_large_only() -> None:
    task = load_task("dialogue")
    prompt = task.prompts("heldout")[0]
    replies = ["Hello! One small tea.", "Hello! One large tea."]
    columns = {name: [value, value] for name, value in prompt.columns.items()}
    found = upsell(
        [list(prompt.messages)] * 2, [[{"role": "assistant", "content": r}] for r in replies],
        **columns,
    )  # fmt: skip
    plain = [s.task_reward for s in task.score([prompt] * 2, replies, [True] * 2, gold=False)]
    assert found == [plain[0], pytest.approx(plain[1] + BONUS)]


def test_every_dose_has_an_axis() -> None:
    """A group without one would be missing from the figure."""
    assert {v.group for v in VARIATIONS if v.part == "why"} == set(DOSES)
