"""What the study says: tables, differences, verdicts and figures follow its records."""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from study_records import made_up

from rftkit.metrics import bootstrap_ci, mean
from rftkit.study.analysis import by_refiner, differences, grouped, results, verdict
from rftkit.study.dose_figures import doses, limits, refiners
from rftkit.study.figures import overview
from rftkit.study.frontier import frontier
from rftkit.study.methods import METHODS
from rftkit.study.plan import PROTOCOL
from rftkit.study.report import text, write
from rftkit.study.tables import (
    control_table,
    doses_table,
    frontier_table,
    limits_table,
    overview_table,
    result_table,
)

ONE = replace(PROTOCOL, steps={"dialogue": 200})


def test_tables_hold_the_means_and_intervals_of_the_records() -> None:
    records = made_up(ONE)
    table = result_table(ONE, "dialogue", records)
    for method in METHODS:
        golds = [row["final"]["gold_reward"]
                 for row in results("dialogue", method.name, records).values()]  # fmt: skip
        low, high = bootstrap_ci(golds)
        line = next(x for x in table.splitlines() if x.startswith(f"| {method.label} |"))
        assert f"| {mean(golds):.2f} ({low:.2f} to {high:.2f}) |" in line


def test_the_overview_holds_what_the_tasks_own_tables_hold() -> None:
    two = replace(PROTOCOL, steps={"dialogue": 200, "code": 200, "game": 200})
    records = made_up(two, lambda job: job.task == "game" or (job.task, job.wave) == ("code", 1))
    rows = [x.strip("| ").split(" | ") for x in overview_table(two, records).splitlines()]
    assert rows[0][1:] == ["dialogue (maximum 1.5)", "code (maximum 1.25)"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    assert cells["KL, k2 loss"][1] == "–"
    for i, task in enumerate(("dialogue", "code")):
        gold = [r["final"]["gold_reward"] for r in results(task, "dynamic", records).values()]
        assert cells["dynamic"][i].startswith(f"{mean(gold):.2f} (")
        for c in differences(two, task, records):
            label, _, form = c.label.rstrip(")").partition(" (")
            told = f"{c.mean:+.2f} ({c.low:+.2f} to {c.high:+.2f})"
            assert cells[label][i] == told + (f" over {form}" if form else "")


def test_methods_of_a_kind_stand_together_with_every_seed() -> None:
    records = made_up(ONE, lambda job: job.name == "fresh")
    labels = [m.label for m in grouped(ONE) if m.name != "fresh"]
    assert labels[:2] == ["no constraint", "no constraint, stopped early"]
    rows = [x.split(" | ")[0].strip("| ") for x in overview_table(ONE, records).splitlines()]
    assert rows[2 : 2 + len(labels)] == labels
    figure = overview(ONE, records)
    for axis, key in zip(figure.axes, ("gold_reward", "degenerate"), strict=True):
        assert [tick.get_text() for tick in axis.get_yticklabels()] == labels
        seeds = [(x, y) for dots in axis.collections if len(at := dots.get_offsets()) == 5
                 for x, y in at]  # fmt: skip
        for place, name in enumerate(m.name for m in grouped(ONE) if m.name != "fresh"):
            rows_of = results("dialogue", name, records).values()
            assert sorted(x for x, y in seeds if y == place) == pytest.approx(
                sorted(row["final"][key] for row in rows_of)
            )
    plt.close(figure)


def test_controls_are_compared_with_the_dynamic_constraint_seed_by_seed() -> None:
    records = made_up(ONE, lambda job: job.name == "fresh")
    ours, theirs = (results("dialogue", name, records) for name in ("dynamic", "random-edit"))
    pairs = [ours[s]["final"]["gold_reward"] - theirs[s]["final"]["gold_reward"] for s in ours]
    low, high = bootstrap_ci(pairs)
    table = control_table(ONE, "dialogue", records)
    told = f"{mean(pairs):+.2f} ({low:+.2f} to {high:+.2f})"
    assert f"| dynamic − control: random edit | {told} | 5 |" in table
    assert "identity" in table
    assert "changed only" in table
    assert "fresh" not in table
    assert table in text(ONE, records)


def test_differences_are_paired_and_take_the_kl_that_tuning_preferred() -> None:
    records = made_up(ONE)
    best = ONE.best_kl("dialogue", records)
    assert best is not None
    found = differences(ONE, "dialogue", records)
    ours, theirs = (results("dialogue", name, records) for name in ("dynamic", best))
    pairs = [ours[s]["final"]["gold_reward"] - theirs[s]["final"]["gold_reward"] for s in ours]
    assert found[0].mean == pytest.approx(mean(pairs))
    assert [found[0].low, found[0].high] == pytest.approx(bootstrap_ci(pairs))
    assert found[0].seeds == 5
    assert len(found) == 4


def test_the_frontier_takes_the_best_that_rivals_reach_at_the_same_cost() -> None:
    records = made_up(ONE)
    rivals = [m for m in METHODS if m.kind in ("none", "kl")]
    dynamic = results("dialogue", "dynamic", records)
    for row in dynamic.values():
        row["curve"]["kl"] = [kl / 2 for kl in row["curve"]["kl"]]
    budget = 10.0  # nats at its end; the rivals end at 20
    reached = {}
    for method in rivals:
        rows = results("dialogue", method.name, records).values()
        curves = [row["curve"] for row in rows]
        for i, step in enumerate(curves[0]["step"]):
            if mean(c["kl"][i] for c in curves) <= budget:
                reached[method.label, step] = mean(c["gold_reward"][i] for c in curves)
    first, *others = frontier(ONE, "dialogue", records)
    assert first.best is not None
    assert first.best.gold == pytest.approx(max(reached.values()))
    assert reached[first.best.label, first.best.step] == pytest.approx(first.best.gold)
    golds = mean(row["final"]["gold_reward"] for row in dynamic.values())
    assert first.best.difference == pytest.approx(golds - first.best.gold)
    assert first.best.low > 0
    assert first.luckiest is not None
    assert first.luckiest >= first.best.gold
    assert [w.budget for w in others] == ["degenerate share", "tokens generated"]
    assert frontier_table(ONE, "dialogue", records).splitlines()[2].count("moves it") == 1


def test_a_lucky_run_is_told_and_a_better_rival_ends_the_claim() -> None:
    records = made_up(ONE)
    lucky = "dialogue/kl-k3-loss/first0/seed100"
    records[lucky]["curve"]["gold_reward"] = [1.5] * 21
    first = frontier(ONE, "dialogue", records)[0]
    assert first.best is not None
    assert (first.luckiest, first.best.low > 0) == (1.5, True)
    for row in results("dialogue", "kl-k3-loss", records).values():
        row["curve"]["gold_reward"] = [1.5] * 21
    assert "| 1.50 (KL, k3 loss, step 0) |" in frontier_table(ONE, "dialogue", records)
    assert "stays below it" in frontier_table(ONE, "dialogue", records)
    for row in results("dialogue", "dynamic", records).values():
        row["curve"]["degenerate"] = [-1.0] * 21
    assert "none comes so low | – | moves it | – |" in frontier_table(ONE, "dialogue", records)


def test_the_verdict_needs_its_runs_and_follows_them() -> None:
    records = made_up(ONE)
    assert verdict(ONE, "dialogue", records).startswith("dialogue: the goal is reached")
    controls = {k: r for k, r in records.items() if "/identity/" not in k}
    assert verdict(ONE, "dialogue", controls) == verdict(ONE, "dialogue", records)
    key = next(k for k in records if k.startswith("dialogue/none-early/result"))
    assert "not decided" in verdict(ONE, "dialogue", {k: r for k, r in records.items() if k != key})
    core = made_up(ONE, lambda job: job.wave > 0)
    assert "so far, not all forms of KL being tuned, the goal is reached" in verdict(
        ONE, "dialogue", core
    )
    flooded = dict(records)
    for key in (k for k in records if k.startswith("dialogue/dynamic/result")):
        flooded[key] = records[key] | {"final": records[key]["final"] | {"degenerate": 0.1}}
    assert "missed (degenerate share 10.0%" in verdict(ONE, "dialogue", flooded)
    equal = {
        k: r | {"final": r["final"] | {"gold_reward": 0.5}} if "/result/" in k else r
        for k, r in records.items()
    }
    assert "missed (dynamic − best KL" in verdict(ONE, "dialogue", equal)


@pytest.mark.parametrize("part", ["nothing", "tuning", "core", "all"])
def test_the_report_works_on_whatever_is_there(part: str, tmp_path: Path) -> None:
    stop = {
        "nothing": lambda job: True,
        "tuning": lambda job: job.part != "tuning",
        "core": lambda job: job.wave > 0 or job.seed == 14,
        "all": lambda job: False,
    }[part]
    records = made_up(ONE, stop)
    write(ONE, records, tmp_path)
    report = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert report == text(ONE, records)
    assert f"{len(records)} of {len(ONE.jobs())} runs" in report
    assert ("Still missing" in report) == (part != "all")
    assert ("KL, adaptive β (0 of 5)" in report) == (part != "all")
    assert ("dynamic (4 of 5)" in report) == (part == "core")
    assert ("### Where it fails" in report) == (part == "all")
    assert (tmp_path / "frontiers-dialogue.png").exists() == (part != "nothing")
    for name in ("why-dialogue.png", "methods.png"):
        assert (tmp_path / name).exists() == (name in report) == (part in ("core", "all"))
    assert ("### What isolates the idea" in report) == (part == "all")
    for name in ("doses.png", "limits.png"):
        assert (tmp_path / name).exists() == (name in report) == (part == "all")


def test_the_report_shows_what_the_refiner_changed(tmp_path: Path) -> None:
    records = made_up(ONE, lambda job: job.wave > 0)
    for seed, step, response in (
        (10, 0, "one tea tea <script>"), (11, 5, "one tea"), (10, 199, "a\n\n**b** c"),
    ):  # fmt: skip
        records[f"dialogue/dynamic/result/seed{seed}"]["samples"].append(
            {"step": step, "response": response, "refined": response.removesuffix(" c")}
        )
    assert "What the refiner changed" not in text(
        ONE,
        records
        | {
            f"dialogue/dynamic/result/seed{s}": records[f"dialogue/dynamic/result/seed{s}"]
            | {"samples": []}
            for s in range(10, 15)
        },
    )
    records["dialogue/dynamic/result/seed10"]["samples"][0]["refined"] = "one tea <script>"
    report = text(ONE, records)
    (shown,) = report.partition("### What the refiner changed")[2:]
    assert re.findall(r"<pre>step (\d+)", shown) == ["0", "199"], "5 changed nothing"
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert 'line-through"> c</del>' in shown


def test_the_report_shows_what_runs_that_should_fail_came_to() -> None:
    records = made_up(ONE)
    told = [(0, "early", 0.0), (140, "good", 1.5), (150, "<b>bad</b>", 0.1), (200, "end", 1.4)]
    key = "dialogue/fluent-exploit-{}/limits/seed10"
    for of in ("dynamic", "none"):
        records[key.format(of)]["samples"] = [
            {"step": step, "prompt": f"{of}?", "response": r, "refined": r, "gold_reward": gold}
            for step, r, gold in told
        ]
    shown = text(ONE, records).partition("What these runs had come to")[2].partition("\n## ")[0]
    assert "fluent exploit, step 150" in shown
    assert "dynamic?</span>" in shown
    assert "&lt;b&gt;bad&lt;/b&gt;" in shown
    assert not any(word in shown for word in ("early", "good", "end<", "none?"))


def test_the_figure_of_limits_has_each_setting_beside_the_tuned_methods() -> None:
    two = replace(PROTOCOL, steps={"dialogue": 160, "code": 120})
    figure = limits(two, made_up(two))
    above = [axis for axis in figure.axes if axis.get_title(loc="left")]
    ticks = {
        a.get_title(loc="left"): [t.get_text().replace("\n", " ") for t in a.get_xticklabels()]
        for a in above
    }
    assert ticks["dialogue"] == ["as tuned", "fluent exploit", "biased refiner", "twice as long"]
    assert ticks["code"] == ["as tuned", "no flaw", "biased refiner", "twice as long"]
    # as tuned, no flaw: all three constraints; a biased refiner: one; twice as long: two; on code
    # identity as tuned and twice as long
    assert len(above[1].containers) == 3 + 3 + 1 + 2 + 2
    plt.close(figure)


def test_the_table_of_limits_holds_means_and_intervals_of_the_records() -> None:
    records = made_up(PROTOCOL, lambda job: job.task == "game" and job.part == "limits")
    rows = [x.strip("| ").split(" | ") for x in limits_table(PROTOCOL, records).splitlines()]
    cells = {row[0]: row[1:] for row in rows[2:]}
    all_three = [": dynamic", ": KL", ": no constraint"]
    assert cells.pop("as tuned: identity")[0] == cells.pop("twice as long: identity")[0] == "–"
    assert list(cells) == [
        *(
            group + name
            for group in ("as tuned", "no flaw", "fluent exploit")
            for name in all_three
        ),
        "biased refiner: dynamic",
        "twice as long: dynamic",
        "twice as long: KL",
    ]
    assert [row[2] for row in list(cells.values())[3:]] == ["–"] * 9
    assert cells["no flaw: dynamic"][0] == cells["fluent exploit: KL"][1] == "–"
    rows = [r for k, r in records.items() if k.startswith("code/biased-refiner-dynamic/")]
    golds = [r["final"]["gold_reward"] for r in rows]
    low, high = bootstrap_ci(golds)
    bad = mean([r["final"]["degenerate"] for r in rows])
    told = f"{mean(golds):.2f} ({low:.2f} to {high:.2f}), {bad:.1%}"
    assert (len(rows), cells["biased refiner: dynamic"][1]) == (3, told)


def test_doses_stand_beside_the_tuned_method_task_by_task() -> None:
    two = replace(PROTOCOL, steps={"dialogue": 160, "code": 120})
    records = made_up(two, lambda job: job.task == "code" and job.name.startswith(("rank", "lam")))
    low = [key for key in records if key.startswith("dialogue/share-0.125/")]
    for key in low:
        records[key]["final"] |= {"gold_reward": 0.25, "degenerate": 0.5}
    rows = [x.strip("| ").split(" | ") for x in doses_table(two, records).splitlines()]
    cells = {row[0]: row[1:] for row in rows[2:]}
    assert len(cells) == 1 + 15
    assert cells["share of responses refined: 0.125"][0] == "0.25 (0.25 to 0.25), 50.0%"
    assert [cells["rank of the adapter: 2"][1], cells["λ, in units of the tuned one: 10"][1]] == [
        "–",
        "–",
    ]
    golds = [r["final"]["gold_reward"] for r in results("code", "dynamic", records).values()]
    assert cells["as tuned"][1].startswith(f"{mean(golds):.2f} (")
    figure = doses(two, records)
    drawn = [axis for axis in figure.axes if axis.containers]
    assert len(drawn) == 5 + 3
    ticks = [tick.get_text() for tick in drawn[0].get_xticklabels()]
    assert ticks == ["0.125", "0.25", "0.5", "1\ntuned"]
    first = drawn[0].containers[0].lines[0]
    assert (first.get_ydata()[0], first.get_markerfacecolor()) == (0.25, "white")
    plt.close(figure)


def test_a_measured_refiner_stands_beside_the_runs_that_learned_from_it(tmp_path: Path) -> None:
    records = made_up(ONE)
    worst = "dialogue/damage-0.4/why/seed11"
    records[worst]["final"] |= {"gold_reward": 0.3, "degenerate": 0.5}
    whole = {"task": "dialogue", "refiner": "as tuned", "seed": None, "kept_clean": 1.0}
    early = whole | {"refiner": "training 2612", "kept_clean": 0.8}
    noisy = whole | {"refiner": "damage 0.4", "seed": 11, "kept_clean": 0.4}
    control = whole | {"refiner": "identity"}
    measured = [row | {"fixed_neighbours": 0.9} for row in (whole, control, early, noisy)]
    found = [(row["refiner"], run["job"]) for row, run in by_refiner(ONE, records, measured)]
    assert [name for name, _ in found].count("as tuned") == 5
    assert [job for name, job in found if name == "identity"] == [
        f"dialogue/identity/result/seed{seed}" for seed in (10, 11, 12, 13, 14)
    ]
    assert [job for name, job in found if name == "training 2612"] == [
        f"dialogue/training-2612/why/seed{seed}" for seed in (10, 11, 12)
    ]
    assert [job for name, job in found if name == "damage 0.4"] == [worst]
    figure = refiners(ONE, records, measured)
    *_, last = (line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert (last.get_xdata()[0], last.get_ydata()[0]) == (0.4, pytest.approx(0.2))
    assert last.get_markerfacecolor() == "white"
    (legend,) = [axis.get_legend() for axis in figure.axes[1:]]
    assert [t.get_text() for t in legend.get_texts()] == ["dynamic", "control: identity"]
    plt.close(figure)
    (tmp_path / "refiners.json").write_text(json.dumps({"rows": measured}), encoding="utf-8")
    write(ONE, records, tmp_path)
    assert (tmp_path / "refiners.png").exists()
    assert "(refiners.png)" in (tmp_path / "REPORT.md").read_text(encoding="utf-8")
