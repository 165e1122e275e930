"""The study: its protocol is fair and deterministic, it resumes, it says what its records say."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from small import model_folder
from study_records import made_up, record

from rftkit import RunConfig, UserError
from rftkit.cli import main
from rftkit.metrics import mean
from rftkit.paths import DATA
from rftkit.runs import RunFolder
from rftkit.study.command import RECORDS, study
from rftkit.study.methods import METHODS, VARIATIONS, Method
from rftkit.study.plan import PROTOCOL, Job, Protocol, describe, hours
from rftkit.study.records import RecordFiles, condense, sha256
from rftkit.study.run import Study
from rftkit.trainer import KEYS

ONE = replace(PROTOCOL, steps={"dialogue": 200})
TINY = {"model": model_folder(), "prompts": 2, "group": 2, "max_new_tokens": 4, "eval_prompts": 4,
        "eval_every": 1, "save_every": 1}  # fmt: skip


def small(model: str = "") -> Protocol:
    """Two runs: one tuning point, one result seed, of no constraint."""
    method = Method("none", "no constraint", "none", 0, "lr", (1e-3,), {"constraint": "none"})
    return Protocol(
        steps={"dialogue": 2}, methods=(method,), variations=(), tuning_seeds=(100,),
        result_seeds=(10,), kept=1,
        common=TINY | ({"model": model} if model else {}),
    )  # fmt: skip


# The protocol


def test_the_written_protocol_is_the_one_in_the_code() -> None:
    written = (DATA / "runs" / "PROTOCOL.md").read_text(encoding="utf-8")
    assert f"<!-- protocol -->\n{describe()}<!-- end -->" in written


def test_the_list_of_jobs_is_always_the_same() -> None:
    jobs = PROTOCOL.jobs()
    assert jobs == Protocol().jobs()
    assert len({job.key for job in jobs}) == len(jobs)
    assert [job.wave for job in jobs] == sorted(job.wave for job in jobs)
    first = [job for job in jobs if job.wave == 0]
    assert {job.task for job in first} == {"dialogue", "code", "game"}
    assert {job.name for job in first} == {"none", "none-early", "kl-k3-loss", "dynamic"}


def test_seeds_are_disjoint_and_enough() -> None:
    assert not set(PROTOCOL.tuning_seeds) & set(PROTOCOL.result_seeds)
    assert len(PROTOCOL.result_seeds) >= 5
    assert not set(PROTOCOL.result_seeds) & set(range(6)), "looked at before"
    assert all(set(v.seeds) <= set(PROTOCOL.result_seeds) for v in VARIATIONS)
    for job in PROTOCOL.jobs():
        assert (job.seed in PROTOCOL.tuning_seeds) == (job.part == "tuning")


def test_every_method_has_the_same_budget_on_every_task() -> None:
    steps: Counter[tuple[str, str]] = Counter()
    for job in PROTOCOL.jobs(parts=("tuning",)):
        steps[job.task, job.name] += job.steps
        if job.stage == "first" and job.name == "none":
            steps[job.task, "none-early"] += job.steps  # the same runs
    assert len(steps) == len(PROTOCOL.steps) * len(METHODS)
    for task in PROTOCOL.steps:
        assert len({steps[task, method.name] for method in METHODS}) == 1
    for method in METHODS:
        points = method.points()
        assert len(points) == len({tuple(p.items()) for p in points}) == 12
        if method.axis != "lr":
            assert len(set(method.values)) >= 6
            assert len(method.lrs) == 2


def test_every_job_has_settings_once_the_jobs_before_it_are_done() -> None:
    records = made_up(PROTOCOL)
    assert set(records) == {job.key for job in PROTOCOL.jobs()}
    for job in PROTOCOL.jobs():
        config = PROTOCOL.config(job, records)
        assert config is not None
        assert config.seed == job.seed
        assert config.task.removesuffix("-plain") == job.task


def test_nothing_is_chosen_before_its_tuning_is_complete() -> None:
    records = made_up(ONE)
    job = next(j for j in ONE.jobs() if j.name == "dynamic" and j.part == "result")
    assert ONE.config(job, records) is not None
    for stage in ("first0", "second2"):
        key = next(k for k in records if k.startswith(f"dialogue/dynamic/{stage}/"))
        fewer = {k: r for k, r in records.items() if k != key}
        assert ONE.config(job, fewer) is None
    assert ONE.best_kl("dialogue", fewer) == ONE.best_kl("dialogue", records)


def test_tuning_takes_the_best_points_and_no_result_decides() -> None:
    records = made_up(ONE)
    dynamic = ONE.method("dynamic")
    golds = [records[f"dialogue/dynamic/first{i}/seed100"]["final"]["gold_reward"]
             for i in range(12)]  # fmt: skip
    ranking = ONE.ranking("dialogue", dynamic, records)
    assert ranking is not None
    assert [golds[i] for i in ranking] == sorted(golds, reverse=True)[:3]
    means = [
        mean([golds[ranking[r]],
              records[f"dialogue/dynamic/second{r}/seed101"]["final"]["gold_reward"]])
        for r in range(3)
    ]  # fmt: skip
    best = dynamic.points()[ranking[means.index(max(means))]]
    choice = ONE.choice("dialogue", "dynamic", records)
    assert choice == dynamic.settings | best
    tuning_alone = {k: r for k, r in records.items() if "/result/" not in k}
    assert ONE.choice("dialogue", "dynamic", tuning_alone) == choice
    broken = {f"dialogue/dynamic/first{ranking[0]}/seed100": {"failed": "overflowed"}}
    worse = {k: r | broken.get(k, {}) for k, r in records.items()}
    assert ranking[0] not in (ONE.ranking("dialogue", dynamic, worse) or [])


def test_early_stopping_takes_the_best_step() -> None:
    records = made_up(ONE)
    for key, row in records.items():
        if key.startswith("dialogue/none-early/second1"):
            row["curve"]["gold_reward"][4] = 1.4
    choice = ONE.choice("dialogue", "none-early", records)
    ranking = ONE.ranking("dialogue", ONE.method("none-early"), records)
    assert choice is not None
    assert ranking is not None
    assert choice["steps"] == 40
    assert choice["lr"] == METHODS[0].values[ranking[1]]
    job = next(j for j in ONE.jobs() if j.name == "none-early" and j.part == "result")
    config = ONE.config(job, records)
    assert config is not None
    assert config.steps == 40


def test_a_variation_changes_one_thing() -> None:
    records = made_up(ONE)
    tuned = ONE.choice("dialogue", "dynamic", records)
    assert tuned is not None
    for job in ONE.jobs(parts=("why",)):
        config = ONE.config(job, records)
        assert config is not None
        plain = RunConfig.from_dict(
            ONE.common | tuned | {"task": "dialogue", "seed": job.seed, "steps": 200}
        )
        changed = {k for k, v in config.to_dict().items() if v != plain.to_dict()[k]}
        assert len(changed) == 1, job


# Records


def test_records_round_trip_in_the_order_of_the_protocol(tmp_path: Path) -> None:
    made = made_up(ONE)
    files = RecordFiles(tmp_path, ONE.jobs(), "m")
    some = [made[key] for key in list(made)[:40]]
    for row in reversed(some):
        files.add(row)
    assert files.read() == {row["job"]: row for row in some}
    lines = (tmp_path / "dialogue-tuning.jsonl").read_text().splitlines()
    order = [job.key for job in ONE.jobs()]
    places = [order.index(json.loads(line)["job"]) for line in lines]
    assert places == sorted(places)


def test_a_models_text_may_hold_any_character(tmp_path: Path) -> None:
    rows = list(made_up(ONE, lambda job: job.stage != "first").values())[:2]
    rows[0]["samples"] = [{"response": "a\u2028b\u2029c\x85d\x1ce\r\nf"}]
    files = RecordFiles(tmp_path, ONE.jobs(), "m")
    for row in rows:
        files.add(row)
    assert files.read() == {row["job"]: row for row in rows}


def test_records_that_cannot_be_are_told_in_one_line(tmp_path: Path) -> None:
    made = made_up(ONE, lambda job: job.stage != "first")
    row = next(iter(made.values()))
    files = RecordFiles(tmp_path, ONE.jobs(), "other")
    files.add(row)
    with pytest.raises(UserError, match=r"dialogue-tuning.jsonl:1: of another model"):
        files.read()
    place = tmp_path / "dialogue-tuning.jsonl"
    place.write_text(json.dumps(row | {"job": "dialogue/none/first99/seed100"}) + "\n")
    with pytest.raises(UserError, match="no job of the protocol"):
        files.read()
    place.write_text('{"job": \n')
    with pytest.raises(UserError, match="not a record"):
        files.read()


def test_a_record_is_compact_and_holds_what_the_run_says(tmp_path: Path) -> None:
    (job,) = small().jobs(parts=("result",))
    run = RunFolder.create(tmp_path / "run", RunConfig(constraint="dynamic", steps=40))
    for step in range(41):
        last = step == 40
        row: dict[str, float | None] = dict.fromkeys(KEYS) | {"step": step, "coef": 5.0}
        if not last:
            row |= {"tokens": 100, "length": 10.0, "seconds": 0.5, "entropy": float(step)}
            row |= {"refiner_passes": 3, "refined_length": 20.0}
        if step % 10 == 0:
            row |= {"gold_reward": step / 3, "degenerate": 0.25, "kl": 1.0}
            for i in range(3):
                refined = "a b c d" if i == 1 and step != 20 else "a b"
                run.sample({"step": step, "prompt": "p", "response": "a b", "refined": refined})
        run.log(row)
    found = condense(job, run, "m")
    assert found["curve"]["step"] == [0, 10, 20, 30, 40]
    assert found["curve"]["gold_reward"] == [0, 3.3333, 6.6667, 10.0, 13.333]
    assert found["final"]["gold_reward"] == 13.333
    assert found["final"]["entropy"] == mean([float(s) for s in range(30, 40)])
    assert found["tokens"] == 4000
    assert found["generated"] == 4000 + 40 * 10 * 20, "ten responses a step, refined to 20 tokens"
    assert found["curve"]["generated"] == [0, 3000, 6000, 9000, 12000]
    assert found["seconds"] == 20
    assert RunConfig.from_dict(found["config"]) == run.config()
    assert {"torch", "python"} <= set(found["versions"])
    assert [s["step"] for s in found["samples"]] == [0, 10, 20, 30, 40]
    assert [s["refined"] for s in found["samples"]].count("a b c d") == 4
    assert condense(small().jobs()[0], run, "m")["samples"] == [], "of tuning"


def test_all_records_together_stay_small() -> None:
    """A real record for each job, its curve as long as the job, beside what else is recorded."""
    runs = DATA / "runs"
    run = RunFolder(sorted((runs / "dialogue").glob("dynamic-seed*"))[0])
    parts = {job.part: condense(job, run, "m" * 64) for job in PROTOCOL.jobs()}

    def size(job: Job) -> int:
        row, length = parts[job.part], job.steps // 10 + 1
        curve = {key: values[:length] for key, values in row["curve"].items()}
        return len(json.dumps(row | {"curve": curve}, separators=(",", ":")))

    compact = set(RECORDS.glob("*.jsonl"))
    files = (p for p in runs.rglob("*") if p.is_file() and p not in compact)
    assert sum(map(size, PROTOCOL.jobs())) + sum(p.stat().st_size for p in files) <= 15e6


def test_an_unfinished_run_is_no_record(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", RunConfig(steps=4))
    run.log({"step": 0, "gold_reward": 1.0, "seconds": 1.0, "tokens": 1})
    with pytest.raises(UserError, match="not at its end"):
        condense(small().jobs()[0], run, "m")


# Doing it


def test_a_small_study_runs_resumes_and_reports(tmp_path: Path, capsys) -> None:
    protocol, out, kept = small(), tmp_path / "out", tmp_path / "records"
    Study(protocol, out, kept).work(parts=("tuning",), workers=1, progress=False)
    done = Study(protocol, out, kept)
    assert [job.part for job in done.left()] == ["result"]
    assert "gold" in capsys.readouterr().err
    before = (kept / "dialogue-tuning.jsonl").read_bytes()
    # On another machine: the records alone, and a run that was finished but not recorded.
    told = study(tmp_path / "elsewhere", kept, workers=1, protocol=protocol, progress=False)
    assert (kept / "dialogue-tuning.jsonl").read_bytes() == before
    assert not (tmp_path / "elsewhere" / "dialogue" / "none" / "first0").exists()
    assert "result       1     0" in told
    (kept / "dialogue-result.jsonl").unlink()
    stamp = tmp_path / "elsewhere" / "dialogue" / "none" / "result" / "seed10" / "metrics.jsonl"
    written = stamp.stat().st_mtime_ns
    again = Study(protocol, tmp_path / "elsewhere", kept)
    again.work(workers=1, progress=False)
    assert not again.left()
    assert stamp.stat().st_mtime_ns == written
    row = again.records["dialogue/none/result/seed10"]
    assert row["model"] == sha256(model_folder())
    assert row["final"]["gold_reward"] == pytest.approx(
        RunFolder(stamp.parent).metrics()[-1]["gold_reward"], rel=1e-4
    )
    assert "REPORT.md" in study(out, kept, report=True, protocol=protocol)
    assert "1 of 1" not in (kept / "REPORT.md").read_text()


def test_a_task_that_the_model_has_not_learned_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "pretrain.json").write_text('{"tasks": ["dialogue", "game"]}')
    protocol = replace(PROTOCOL, common={"model": str(tmp_path)})
    found = Study(protocol, tmp_path / "out", tmp_path / "records")
    with pytest.raises(UserError, match="not learned code; give --only dialogue,game"):
        found.work(progress=False)
    assert not (tmp_path / "out").exists()


def test_when_the_time_is_up_it_says_so(tmp_path: Path) -> None:
    told = study(tmp_path, tmp_path / "r", limit_minutes=1e-9, protocol=small(), progress=False)
    assert "time is up" in told
    assert not list((tmp_path / "r").glob("*"))


def test_jobs_whose_tuning_is_left_out_are_told(tmp_path: Path) -> None:
    told = study(tmp_path, tmp_path / "r", part=["result"], protocol=small(), progress=False)
    assert told.endswith("\nwaiting for tuning that --only or --part leaves out: 1")
    assert not list((tmp_path / "r").glob("*"))


def test_a_record_of_other_settings_is_refused(tmp_path: Path) -> None:
    protocol = small()
    job = protocol.jobs()[0]
    config = protocol.config(job, {})
    assert config is not None
    files = RecordFiles(tmp_path / "records", protocol.jobs(), sha256(model_folder()))
    files.add(record(job, replace(config, lr=0.5), 1.0, files.model))
    with pytest.raises(UserError, match="another lr"):
        Study(protocol, tmp_path, tmp_path / "records")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "chess"], "chess"),
        (["--only", "code,game/k4"], "game/k4 is"),
        (["--part", "all"], "--part"),
        (["--workers", "-1"], "below"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], named: str, capsys, tmp_path: Path) -> None:
    assert main(["study", "--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_one_method_of_a_task_can_be_asked_for(tmp_path: Path, capsys) -> None:
    jobs = PROTOCOL.jobs(["game", "dialogue/fresh"], ["tuning", "result"])
    assert {job.task for job in jobs} == {"game", "dialogue"}
    fresh = [job for job in jobs if job.task == "dialogue"]
    assert {job.name for job in fresh} == {"fresh"}
    assert len(fresh) == 12 + 3 + 5
    places = ["--out", str(tmp_path), "--records", str(tmp_path)]
    assert main(["study", "--status", "--only", "dialogue/fresh", *places]) == 0
    assert "all          0    20 " in capsys.readouterr().out


def test_status_counts_and_estimates(tmp_path: Path, capsys) -> None:
    assert main(["study", "--status", "--out", str(tmp_path), "--records", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    jobs = PROTOCOL.jobs()
    assert f"all          0{len(jobs):>6}{hours(jobs):>17.1f}" in told


def test_a_record_prefers_samples_that_the_refiner_changes(tmp_path: Path) -> None:
    (job,) = small().jobs(parts=("result",))
    run = RunFolder.create(tmp_path / "run", RunConfig(constraint="dynamic", steps=40))
    for step in range(41):
        run.log(dict.fromkeys(KEYS) | {"step": step, "gold_reward": 1.0})
        refined = "a b c" if 10 <= step < 22 else "a b"
        run.sample({"step": step, "prompt": "p", "response": "a b", "refined": refined})
    steps = [s["step"] for s in condense(job, run, "m")["samples"]]
    assert len(steps) == 10
    assert (steps[0], steps[-1]) == (10, 21)
    assert steps == sorted(steps)
