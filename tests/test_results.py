"""What docs/results.md and README say of the study is what its records hold."""

import json

import pytest
from recorded import Study

from rftkit.constraints import TUNED
from rftkit.metrics import bootstrap_ci, mean
from rftkit.paths import DATA
from rftkit.refiner import REFINERS
from rftkit.report import fill
from rftkit.study.analysis import best_on_the_way, by_refiner, differences, results
from rftkit.study.command import RECORDS
from rftkit.study.exploits import BONUS, upsell
from rftkit.study.frontier import frontier
from rftkit.study.methods import DOSES, LRS, METHODS, VARIATIONS
from rftkit.study.plan import PROTOCOL
from rftkit.tasks import load_task

TASKS = PROTOCOL.tasks


def test_the_table_of_the_tasks_is_made_from_the_records(study: Study) -> None:
    filled = fill("<!-- study: all -->\nold\n<!-- end -->\n").splitlines()
    assert "old" not in filled
    for method in METHODS:
        for i, task in enumerate(TASKS):
            rows = results(task, method.name, study.records).values()
            if golds := [row["final"]["gold_reward"] for row in rows]:
                low, high = bootstrap_ci(golds)
                line = next(x for x in filled if x.startswith(f"| {method.label} |"))
                told = f"{mean(golds):.2f} ({low:.2f} to {high:.2f}), "
                assert line.split(" | ")[1 + i].startswith(told)


def test_the_frontier_moves(study: Study, page: str) -> None:
    readme = " ".join((DATA.parent / "README.md").read_text(encoding="utf-8").split())
    best = {}
    for task in TASKS:
        own = study.ended(task, "dynamic", key="degenerate")
        rivals = [m.name for m in METHODS if m.kind in ("none", "kl")]
        for name in (name for name in rivals if results(task, name, study.records)):
            assert study.ended(task, name, key="degenerate") > own
            pairs = zip(study.each(task, "dynamic"), study.each(task, name), strict=True)
            assert all(ours > theirs for ours, theirs in pairs)  # "on every seed"
        assert all(c.low > 0 for c in differences(PROTOCOL, task, study.records))
        moved = frontier(PROTOCOL, task, study.records)
        assert all(w.best is None or w.best.low > 0 for w in moved)
        best[task] = max(w.best.gold for w in moved if w.best)
        luckiest = max(w.luckiest or 0 for w in moved)
        assert luckiest < study.ended(task, "dynamic")
    assert f"evaluations on the game comes to {luckiest:.2f}.)" in readme
    assert f"come to {best['dialogue']:.2f} at best on dialogue, to {best['code']:.2f} on" in page
    assert f"on code and to {best['game']:.2f} on the game" in page


def test_fewer_responses_refined(study: Study, page: str) -> None:
    shares = [f"share-{share}" for share in (0.5, 0.25, 0.125)]
    own = study.ended("game", "dynamic")
    assert study.ended("game", shares[-1], "why") == pytest.approx(own, abs=0.04)
    tokens = study.ended("game", shares[-1], "why", "generated") / 1000
    all_of_them = mean(study.each("game", "dynamic", key="generated")[:3]) / 1000
    assert f"enough, with {tokens:.0f} thousand tokens instead of {all_of_them:.0f}." in page
    worst = 0.0
    for task in ("dialogue", "code"):
        golds = [study.ended(task, "dynamic"), *(study.ended(task, s, "why") for s in shares)]
        assert golds == sorted(golds, reverse=True)
        worst = max(worst, *(max(study.each(task, s, "why", "degenerate")) for s in shares))
    assert f"single seeds degenerate up to {worst:.0%}." in page


def test_noise_on_the_refiners_weights(study: Study, page: str) -> None:
    own = {task: study.ended(task, "dynamic") for task in TASKS}
    for task in TASKS:
        for noise in (0.1, 0.2):
            found = study.ended(task, f"damage-{noise}", "why")
            assert found == pytest.approx(own[task], abs=0.04)
    assert study.ended("game", "damage-0.4", "why") < own["game"] - 0.3
    bad = {task: sorted(study.each(task, "damage-0.4", "why", "degenerate")) for task in TASKS}
    assert bad["dialogue"][1] < 0.1
    worst = bad["dialogue"][2]
    assert f"one seed of three ({worst:.0%} degenerate), on code all three." in page
    assert min(bad["code"]) > 0.8


def test_too_little_and_too_much_pull(study: Study, page: str) -> None:
    shares = [s for task in TASKS for s in study.each(task, "lambda-0.3", "why", "degenerate")]
    healthy, *bad = sorted(shares)
    assert healthy < 0.03
    assert f"eight policies of nine end with {min(bad):.0%} to {max(bad):.0%} of degen" in page
    for task in TASKS:
        reached = min(map(best_on_the_way, study.rows(task, "lambda-0.3", "why")))
        assert reached >= 0.87 * load_task(task).gold_max
    for task, kept in (("game", 1.0), ("code", 7 / 8), ("dialogue", 4 / 5)):
        share = study.ended(task, "lambda-3", "why") / study.ended(task, "dynamic")
        assert share == pytest.approx(kept, abs=0.03)
    for task in ("code", "dialogue"):
        best = study.ended(task, study.best_kl(task))
        assert study.ended(task, "lambda-10", "why") > best


def test_rank_of_the_adapter(study: Study, page: str) -> None:
    for task in ("code", "dialogue"):
        own = study.ended(task, "dynamic")
        assert study.ended(task, "rank-32", "why") == pytest.approx(own, abs=0.04)
    bad = sorted(study.each("game", "rank-32", "why", "degenerate"))
    assert bad[1] < 0.03
    assert f"on the game one seed of three degenerates with it ({bad[2]:.0%})." in page


def test_the_best_kl_of_the_game(study: Study, page: str) -> None:
    assert study.best_kl("game") == "kl-k1-reward"
    ours = study.ended("game", "dynamic")
    ahead, before = (ours - study.ended("game", kl) for kl in ("kl-k1-reward", "kl-k3-loss"))
    bad = study.ended("game", "kl-k1-reward", key="degenerate")
    assert f"{ahead:.2f} ahead, not {before:.2f}, with {bad:.0%} of its responses" in page
    others = [study.ended("game", f"kl-{form}") for form in ("k2-loss", "adaptive", "reset")]
    assert all(ours - before < gold < ours - ahead for gold in others)  # "lie between"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["k1-reward", "k2-loss", "k3-loss"])
def test_an_unset_beta_is_the_best_of_the_tuning_at_the_higher_rate(
    study: Study, form: str, task: str
) -> None:
    """The rate nearer to the default one. On code k3's β is 0.02 below the best, no more."""
    golds = {
        row["config"]["coef"]: row["final"]["gold_reward"]
        for row in study.tuning(task, f"kl-{form}")
        if row["config"]["lr"] == max(LRS)
    }
    chosen = TUNED.get(form, TUNED["kl"])[task]
    assert golds[chosen] >= max(golds.values()) - 0.03


def test_the_best_kl_of_code(study: Study, page: str) -> None:
    assert study.best_kl("code") == "kl-k1-reward"
    gold, bad = (study.ended("code", "kl-k1-reward", key=k) for k in ("gold_reward", "degenerate"))
    rows = study.rows("code", "none")
    start, flawed = (mean([r["curve"][k][0] for r in rows]) for k in ("gold_reward", "degenerate"))
    assert f"it comes to {gold:.2f}, with {bad:.0%} of its responses degenerate" in page
    assert f"(the start has {start:.2f}, and {flawed:.0%})" in page
    ours = study.ended("code", "dynamic")
    before = ours - study.ended("code", "kl-k3-loss")
    assert f"is {ours - gold:.2f} ahead, not {before:.2f} as over k3." in page
    others = ("kl-adaptive", "kl-reset")
    top = max(study.ended("code", name) for name in others)
    first, second = (study.ended("code", name, key="degenerate") for name in others)
    assert f"come to no more than {top:.2f}, with {first:.0%} and {second:.0%}." in page


def test_k3_as_a_loss_is_behind_and_stopping_early_too(study: Study) -> None:
    for task in TASKS:
        k1, k2, k3 = (
            study.ended(task, f"kl-{form}") for form in ("k1-reward", "k2-loss", "k3-loss")
        )
        assert k3 < min(k1, k2)
        assert study.ended(task, "none-early") < max(k1, k2)


def test_no_kl_comes_far_on_dialogue(study: Study, page: str) -> None:
    rows = study.rows("dialogue", "none")
    gold, bad = (mean([r["curve"][key][0] for r in rows]) for key in ("gold_reward", "degenerate"))
    assert f"near the start ({gold:.2f}, {bad:.0%} degenerate)" in page
    holding = [f"kl-{form}" for form in ("k3-loss", "k1-reward", "k2-loss", "adaptive")]
    ends = [study.ended("dialogue", name) for name in holding]
    assert f"they end at {min(ends):.2f} to {max(ends):.2f}, and with as many" in page
    assert all(study.ended("dialogue", name, key="degenerate") > bad for name in holding)
    reset = study.each("dialogue", "kl-reset", key="degenerate")
    assert reset == pytest.approx([0.5] * 5, abs=0.07)  # "half of its responses"


def test_a_refiner_that_learned_less(study: Study, page: str) -> None:
    own = {task: study.ended(task, "dynamic") for task in TASKS}
    early = {task: study.ended(task, "training-2612", "why") for task in TASKS}
    assert early["game"] == pytest.approx(own["game"], abs=0.02)
    assert early["dialogue"] / own["dialogue"] == pytest.approx(5 / 6, abs=0.02)
    assert early["dialogue"] < study.ended("dialogue", "training-5800", "why")
    assert f"ends at {early['code']:.2f}, below its start and below training without" in page
    start = mean([row["curve"]["gold_reward"][0] for row in study.rows("code", "none")])
    assert early["code"] < min(start, study.ended("code", "none"))
    assert f"After {11_000 / DOSES['training'][1]:.0%} of its pre-training it does as" in page
    for task in TASKS:
        late = study.ended(task, "training-11000", "why")
        assert late == pytest.approx(own[task], abs=0.02)


def test_what_makes_a_refiner_good_enough(study: Study, page: str) -> None:
    rows = json.loads((RECORDS / "refiners.json").read_text(encoding="utf-8"))["rows"]
    pairs = [
        (row, run["final"]["gold_reward"] / load_task(row["task"]).gold_max)
        for row, run in by_refiner(PROTOCOL, study.records, rows)
        if row["refiner"] not in REFINERS  # the controls have a test of their own
    ]
    good = [(row, share) for row, share in pairs if row["kept_clean"] >= 0.96]
    others = [(row, share) for row, share in pairs if row["kept_clean"] < 0.96]
    least = min(share for _, share in good)
    assert f"keeps at least 96% has led to at least {least:.0%} of the gold maximum." in page
    assert max(share for row, share in others if row["task"] in ("code", "game")) < least
    laziest = min(row["fixed_neighbours"] for row, _ in good)
    assert f"All of them repair at least {laziest:.0%}." in page
    noisy = [pair for pair in pairs if pair[0]["refiner"] == "damage 0.4"]
    noisy = sorted((pair for pair in noisy if pair[0]["task"] == "game"), key=lambda p: p[1])
    fixed, kept = ([row[key] for row, _ in noisy] for key in ("fixed_neighbours", "kept_clean"))
    assert f"still repair at least {min(fixed):.0%} of the flaws" in page
    assert f"({max(row['broken'] for row, _ in noisy):.0%} at most)" in page
    assert "keep {:.0%}, {:.0%} and {:.0%} of the good walks".format(*kept) in page
    assert "end at {:.2f}, {:.2f} and {:.2f}.".format(*(share for _, share in noisy)) in page

    def one(task: str, name: str) -> dict[str, float]:
        return next(r for r in rows if (r["task"], r["refiner"]) == (task, name))

    code, end = one("code", "training 5800"), study.ended("code", "training-5800", "why")
    repaired, kept = code["fixed_neighbours"], code["kept_clean"]
    told = f"repairs {repaired:.0%}, and keeps {kept:.0%}: {end:.2f}."
    assert f"after {5800 / DOSES['training'][1]:.0%} of its pre-training {told}" in page
    early = {task: one(task, "training 2612") for task in TASKS}
    assert early["dialogue"]["kept_clean"] == pytest.approx(7 / 8, abs=0.01)
    assert early["game"]["kept_clean"] == pytest.approx(0.99, abs=0.005)
    unusual = {task: 1 - row["kept_unusual"] for task, row in early.items()}
    assert f"which the figure leaves out, {unusual['dialogue']:.0%})" in page
    assert f"(of the unusual ones {unusual['game']:.0%})" in page


def test_where_it_should_fail(study: Study, page: str) -> None:
    tuned = {task: study.ended(task, "dynamic") for task in TASKS}
    fluent = study.ended("dialogue", "fluent-exploit-dynamic", "limits")
    assert f"ends at {fluent:.2f} instead of {tuned['dialogue']:.2f}." in page
    assert study.ended("dialogue", "fluent-exploit-none", "limits", "degenerate") > 0.9
    biased = {task: study.ended(task, "biased-refiner-dynamic", "limits") for task in TASKS}
    assert f"without any, at {biased['dialogue']:.2f}," in page
    assert f"programs without, at {biased['code']:.2f}." in page
    assert biased["game"] == pytest.approx(tuned["game"], abs=0.02)
    for task in TASKS:
        assert study.ended(task, "biased-refiner-dynamic", "limits", "edit_ratio") < 0.01


def test_the_best_kl_ends_lower_where_the_dynamic_constraint_should_fail(
    study: Study, page: str
) -> None:
    def end(task: str, name: str, key: str = "gold_reward") -> float:
        return study.ended(task, name, "limits", key)

    kls = [key.split("/") for key in study.records if "-best-KL/limits/" in key]
    settings = {(task, name.removesuffix("-best-KL")) for task, name, *_ in kls}
    assert len(settings) == 6
    for task, setting in settings:
        assert end(task, f"{setting}-best-KL") < end(task, f"{setting}-dynamic") - 0.04
    fluent = end("dialogue", "fluent-exploit-best-KL")
    kl = study.best_kl("dialogue")
    assert f"KL ends at {fluent:.2f}, near where it ends without that flaw." in page
    assert fluent == pytest.approx(study.ended("dialogue", kl), abs=0.05)
    plain = end("code", "no-flaw-best-KL")
    assert f"KL holds back where nothing needs holding: {plain:.2f}." in page
    assert plain < end("code", "no-flaw-none")
    for task in ("dialogue", "code"):
        longer, stood = end(task, "twice-as-long-best-KL"), study.ended(task, study.best_kl(task))
        assert longer == pytest.approx(stood, abs=0.03)
    name = "twice-as-long-best-KL"
    each = study.each("game", name, "limits", "degenerate")
    assert min(each) > 0.5  # "on all three seeds"
    assert f"{end('game', name):.2f}, and {mean(each):.0%} degenerate." in page
    rows = study.tuning("game", "kl-k1-reward")
    tuned = study.rows("game", name, "limits")[0]["config"]
    lower = [
        r["final"]["degenerate"]
        for r in rows
        if r["config"]["lr"] == tuned["lr"] and r["config"]["coef"] < tuned["coef"]
    ]
    assert max(lower) > 0.7  # its β was just large enough


def test_twice_as_long(study: Study, page: str) -> None:
    for task in ("dialogue", "code"):
        longer = study.ended(task, "twice-as-long-dynamic", "limits")
        assert longer == pytest.approx(study.ended(task, "dynamic"), abs=0.02)
    rows = study.rows("game", "twice-as-long-dynamic", "limits")
    failed, *others = sorted(rows, key=lambda row: -row["final"]["degenerate"])
    assert all(row["final"]["degenerate"] < 0.03 for row in others)
    bad, changed = failed["final"]["degenerate"], failed["final"]["changed"]
    assert f"in the end {bad:.0%} of its responses are degenerate." in page
    assert f"changes {changed:.0%} of all responses, but λ = {failed['config']['coef']}" in page
    stronger = "twice-as-long-at-3-lambda-dynamic"
    assert max(study.each("game", stronger, "limits", "degenerate")) < 0.01
    held = study.ended("game", stronger, "limits")
    assert f"all three seeds hold, at {held:.2f}." in page


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
