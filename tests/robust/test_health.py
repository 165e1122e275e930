"""Numbers gone bad: the step is skipped, counted and named; too many in a row stop the run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import model_folder

from rftkit import RunConfig, Trainer, UserError, load_policy, load_task
from rftkit.errors import BadStepError, DivergedError
from rftkit.runs import RunFolder
from rftkit.tasks import Score

CONFIG = RunConfig(
    model=model_folder(), precision="fp32", prompts=2, group=2, steps=6, max_new_tokens=4,
    eval_prompts=2, eval_every=3, save_every=1, samples=0, patience=3, coef=1.0, constraint="kl",
)  # fmt: skip


class Scorer:
    """The dialogue task with another score; `steps` says in which of its calls it goes bad."""

    def __init__(self, change, calls=range(10**9)):
        self.task, self.change, self.left, self.calls = load_task("dialogue"), change, 0, calls

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def score(self, prompts, responses, finished, gold=True):
        scores = self.task.score(prompts, responses, finished, gold=gold)
        self.left += not gold
        bad = not gold and self.left - 1 in self.calls
        # task rewards that differ, so that there is something to learn
        scores = [replace(s, task_reward=float(i)) for i, s in enumerate(scores)]
        return self.change(scores) if bad else scores


def reward(value: float):
    return lambda scores: [replace(scores[0], task_reward=value), *scores[1:]]


def trainer(out: Path | None = None, scorer=None, **settings) -> Trainer:
    scorer = scorer or Scorer(lambda scores: scores, ())
    return Trainer(replace(CONFIG, **settings), out, task=scorer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_reward_skips_its_step_and_no_other(tmp_path: Path, caplog, value: float) -> None:
    run = trainer(tmp_path / "run", Scorer(reward(value), {1, 2}))
    run.train(progress=False)
    rows = RunFolder(tmp_path / "run").metrics()
    skipped = [row["step"] for row in rows if row.get("skipped")]
    assert skipped == [1, 2]
    assert [row["step"] for row in rows if row["grad_norm"]] == [0, 3, 4, 5]
    assert "step 1 skipped (1 in a row): task_reward not finite: 1 of 4 responses" in caplog.text
    assert "2 steps: skipped, task_reward not finite" in caplog.text
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


def test_a_skipped_step_has_no_task_reward() -> None:
    """That of the held-out prompts is none of the step's batch."""
    row = next(trainer(scorer=Scorer(reward(math.nan), {0})).steps())
    assert row["skipped"]
    assert row["task_reward"] is None
    assert row["heldout_task_reward"] is not None


def test_a_skipped_step_leaves_the_policy_alone() -> None:
    run = trainer(scorer=Scorer(reward(math.nan), {0}))
    before = run.policy.adapter()
    next(run.steps())
    after = run.policy.adapter()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not run.optimiser.state


def test_too_many_in_a_row_stop_the_run_at_its_last_good_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", Scorer(reward(math.nan), range(2, 99)))
    message = r"stopped at step 4, 3 steps in a row .* task_reward not finite.*run is of step 2$"
    with pytest.raises(UserError, match=message):
        run.train(progress=False)
    honest = trainer(tmp_path / "other", steps=2)
    honest.train(progress=False)
    stopped = Trainer(
        CONFIG, tmp_path / "run", resume=True, task=Scorer(lambda s: s, ())
    ).policy.adapter()
    good = honest.policy.adapter()
    assert all(torch.equal(stopped[name], good[name]) for name in good)


def test_a_run_that_breaks_before_its_first_checkpoint_says_that_there_is_none(
    tmp_path: Path,
) -> None:
    run = trainer(tmp_path / "run", Scorer(reward(math.nan), range(1, 99)), save_every=20)
    with pytest.raises(DivergedError, match=r"stopped at step 3, .*; there is no checkpoint$"):
        run.train(progress=False)
    assert not (tmp_path / "run/checkpoint").exists()


def test_nothing_is_saved_while_steps_are_skipped(tmp_path: Path, caplog) -> None:
    bad = {1, 2, 4, 5}
    steps = trainer(tmp_path / "run", Scorer(reward(math.nan), bad), steps=6).steps()
    for _ in range(3):
        next(steps)
    steps.close()
    assert "stopped before step 3; the checkpoint in" in caplog.text
    assert "run is of step 1; --resume goes on" in caplog.text
    config = replace(CONFIG, steps=6)
    again = Trainer(config, tmp_path / "run", resume=True, task=Scorer(reward(math.nan), {0, 1, 3}))
    assert again.done == 1
    for metrics in again.steps():
        if metrics["step"] in (1, 2):
            assert again._saved == 1
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == list(range(7))
    assert again._saved == 6, "the last evaluation was sound"


def test_a_checkpoint_that_was_never_due_is_not_missed(tmp_path: Path) -> None:
    steps = trainer(tmp_path / "run", Scorer(reward(math.nan))).steps()
    next(steps)
    next(steps)
    steps.close()
    assert Trainer(CONFIG, tmp_path / "run", resume=True).done == 0


@pytest.mark.parametrize("last", [False, True])
def test_an_evaluation_that_breaks_down_is_a_diverged_run(
    tmp_path: Path, monkeypatch, last: bool
) -> None:
    """Not one to go on with: what is broken is not saved, and the advice is there."""
    steps = 3 if last else 6
    run = trainer(tmp_path / "run", steps=steps, save_every=2)
    honest = run.sampler.sample

    def sample(prompts, *, group, **settings):
        if group == 1 and run.done == 3:
            raise BadStepError("logits not finite", "the model broke down; take precision fp32")
        return honest(prompts, group=group, **settings)

    monkeypatch.setattr(run.sampler, "sample", sample)
    step = "stopped at the evaluation of step 3; logits not finite: .* take precision fp32"
    saved = 3 if last else 2  # the last step's checkpoint comes before its evaluation
    told = rf"{step}, or lower lr \(now 0.001\) and .*; the checkpoint in .*run is of step {saved}$"
    with pytest.raises(DivergedError, match=told):
        run.train(progress=False)
    assert (
        Trainer(replace(CONFIG, steps=steps, save_every=2), tmp_path / "run", resume=True).done
        == saved
    )


def test_a_kl_that_is_no_number_ends_an_evaluation(monkeypatch) -> None:
    monkeypatch.setattr("rftkit.trainer.kl_of", lambda *_: math.nan)
    with pytest.raises(
        DivergedError, match=r"evaluation of step 0; kl is not a number: .*fp32; there is"
    ):
        trainer().train(progress=False)


def test_the_count_in_a_row_survives_an_interruption(tmp_path: Path) -> None:
    first = trainer(tmp_path / "run", Scorer(reward(math.nan))).steps()
    next(first)
    next(first)
    first.close()
    again = Trainer(CONFIG, tmp_path / "run", resume=True, task=Scorer(reward(math.nan)))
    with pytest.raises(UserError, match="stopped at step 2, 3 steps in a row"):
        again.train(progress=False)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("policy", "policy_loss not finite: lower lr"),
        ("constraint", "constraint_loss not finite: KL overflowed, .* lower lr .* or change coef"),
        ("gradient", "grad_norm not finite: lower lr"),
    ],
)
def test_a_bad_loss_or_gradient_is_named_with_the_setting_to_change(
    monkeypatch, part: str, named: str
) -> None:
    import rftkit.batch as module

    honest = module.losses_of

    def losses_of(*arguments):
        piece = honest(*arguments)
        if part == "gradient":  # finite itself, its gradient is not
            return piece._replace(policy=piece.policy + (piece.policy * 0).abs().sqrt())
        return piece._replace(**{part: getattr(piece, part) * math.nan})

    monkeypatch.setattr(module, "losses_of", losses_of)
    with pytest.raises(UserError, match=f"stopped at step 2, .*{named}"):
        trainer().train(progress=False)


def test_an_overflow_of_the_kl_loss_is_caught_where_it_arises() -> None:
    run = trainer(coef=1e39)  # beyond what a 32-bit number holds
    with pytest.raises(UserError, match="constraint_loss not finite: KL overflowed"):
        run.train(progress=False)
    assert all(torch.isfinite(p).all() for p in run.policy.parameters())


def test_weights_out_of_range_stop_the_run_and_are_not_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    steps = run.steps()
    next(steps)

    def overflow(*_):
        for p in run.policy.parameters():
            p.data.mul_(math.inf)

    run.optimiser.register_step_post_hook(overflow)
    with pytest.raises(UserError, match="weights overflowed: lower lr"):
        next(steps)
    saved = Trainer(CONFIG, tmp_path / "run", resume=True)
    assert saved.done == 1
    assert all(torch.isfinite(p).all() for p in saved.policy.parameters())


def test_a_model_that_breaks_down_is_told_in_one_line() -> None:
    policy = load_policy(CONFIG.model, "fp32")
    policy.load_adapter({n: p * math.nan for n, p in policy.adapter().items()})
    with pytest.raises(UserError, match="logits not finite"):
        Trainer(CONFIG, policy=policy).train(progress=False)


def test_a_refiner_that_returns_nothing_teaches_nothing(monkeypatch) -> None:
    run = trainer(constraint="dynamic")
    honest = run.constraint.refiner.refine_ids

    def silent(*arguments):
        return [replace(r, refined="", refined_ids=r.refined_ids[-1:]) for r in honest(*arguments)]

    monkeypatch.setattr(run.constraint.refiner, "refine_ids", silent)
    with pytest.raises(UserError, match="every refined response is empty"):
        run.train(progress=False)


def test_steps_that_teach_little_are_counted_and_the_run_goes_on(tmp_path: Path, caplog) -> None:
    equal = Scorer(lambda scores: [replace(s, task_reward=1.0) for s in scores])
    rows = trainer(tmp_path / "run", equal, max_new_tokens=1).train(progress=False)
    assert [row["step"] for row in rows] == list(range(7))
    told = caplog.text
    assert told.count("every response ran out of tokens; raise max_new_tokens (now 1)") == 2
    assert "6 steps: every response ran out of tokens" in told


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda scores: scores[:-1], "returned 3 scores for 4 responses"),
        (lambda scores: [*scores, scores[0]], "returned 5 scores for 4 responses"),
        (lambda scores: 1 / 0, r"score raised ZeroDivisionError at test_health\.py:\d+"),
        (lambda scores: [replace(scores[0], task_reward="1")] * 4, "task_reward of response 0"),
        (
            lambda scores: [replace(s, task_reward=None) for s in scores],
            "task_reward of response 0",
        ),
        (lambda scores: [1.0] * 4, "task_reward of response 0 is None"),
        (lambda scores: None, "score raised TypeError"),
        (lambda scores: [Score(0.0, "a\n\x1b[2J", False)] * 4, "gold_reward of response 0"),
    ],
)
def test_a_broken_scorer_is_named_in_one_line(change, named: str) -> None:
    with pytest.raises(UserError, match=rf"^task 'dialogue': .*{named}") as error:
        trainer(scorer=Scorer(change)).train(progress=False)
    assert str(error.value).isprintable()


def test_a_reward_function_of_ones_own_may_go_bad_for_a_step(tmp_path: Path, monkeypatch) -> None:
    code = """
calls = 0
def reward(completions, **columns):
    global calls
    calls += len(completions) == 4  # a step's, not an evaluation's
    bad = calls == 2 and len(completions) == 4
    return [float("nan") if bad else float(i) for i in range(len(completions))]
"""
    (tmp_path / "goes_bad.py").write_text(code)
    rows = [{"prompt": [{"role": "user", "content": f"tea {i}"}]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    own = {"task": "own", "data": "rows.jsonl", "reward": "goes_bad:reward"}
    config = replace(CONFIG, steps=3, eval_every=3, **own)
    made = Trainer(config).train(progress=False)
    assert [row.get("skipped") for row in made] == [None, "task_reward not finite", None, None]
