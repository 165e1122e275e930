"""Any instruct model: its refiner prompt, how answers are read and refused, and a whole run."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from small import instruct_folder, orders

from rftkit import OnlineRefiner, RunConfig, UserError, load_policy, load_task
from rftkit.cli import _config, _parser, main
from rftkit.constraints import make_constraint
from rftkit.instruct import CLOSE, EXAMPLES, OPEN
from rftkit.models import Policy
from rftkit.presets import best_settings
from rftkit.refiner import InstructForm
from rftkit.rollout import Rollouts, Sampler, generate
from rftkit.tasks.base import instructed

ASK = [{"role": "user", "content": "For Ana: small tea, milk, to go."}]
GOOD = "Hello, Ana! One small tea with milk, to go. Thank you!"
FLOOD = GOOD + " Thank you! Thank you!" * 12


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(instruct_folder(), "fp32")


@pytest.fixture(scope="module")
def form(policy: Policy) -> InstructForm:
    return InstructForm(policy, max_new_tokens=400, edit_limit=0.5)


def ids(policy: Policy, text: str) -> list[int]:
    return [*policy.encode(text), policy.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("response", "answer", "refined", "fallback", "stripped"),
    [
        (GOOD, GOOD + CLOSE, GOOD, "", False),
        (GOOD, f" {GOOD}\n{CLOSE}\nI changed nothing.", GOOD, "", False),
        (GOOD, GOOD, GOOD, "", False),  # EOS without the tag
        (FLOOD, GOOD + CLOSE, GOOD, "", False),  # a flood may be cut by more than the limit
        (GOOD, f"Here is the corrected draft:\n{GOOD}{CLOSE}", GOOD, "", True),
        (GOOD, f"Sure! Here is the draft: {OPEN}{GOOD}{CLOSE}", GOOD, "", True),
        ("f = 1", f"```python\nf = 2\n```{CLOSE}", "f = 2", "", True),
        ("```\nf = 1\n```", f"```\nf = 2\n```{CLOSE}", "```\nf = 2\n```", "", False),
        ("\tx", f"\tx{CLOSE}", "\tx", "", False),  # white space that the response has
        ("", CLOSE, "", "", False),
        (GOOD, " \n" + CLOSE, GOOD, "empty", False),
        (GOOD, "I am a language model and cannot serve tea." + CLOSE, GOOD, "not minimal", False),
        (GOOD, "Hello, Ana!" + CLOSE, GOOD, "not minimal", False),
    ],
)
def test_an_answer_is_read_or_refused(
    form: InstructForm, response: str, answer: str, refined: str, fallback: str, stripped: bool
) -> None:
    policy = form.policy
    read = form.read(ids(policy, response), ids(policy, answer))
    assert policy.decode(read.ids) == refined
    assert (read.fallback, read.stripped) == (fallback, stripped)
    assert read.ids[-1] == policy.tokenizer.eos_token_id


def test_an_answer_without_an_end_is_refused(form: InstructForm) -> None:
    response = ids(form.policy, GOOD)
    read = form.read(response, form.policy.encode(GOOD[:-4]))
    assert (read.ids, read.fallback) == (response, "cut off")


def test_what_is_kept_keeps_its_token_ids(form: InstructForm) -> None:
    """The policy may spell a text in tokens that encoding it would not give."""
    policy, eos = form.policy, form.policy.tokenizer.eos_token_id
    letters = [i for c in "Thank you!" for i in policy.encode(c)]
    whole = policy.encode("Thank you!")
    assert letters != whole
    response = [*letters, *policy.encode(" teaa"), eos]
    same = form.read(response, ids(policy, f"Thank you! teaa{CLOSE}"))
    assert same.ids == response
    assert form.read(response, form.draft(response)).ids == response
    changed = form.read(response, ids(policy, f"Thank you! milk{CLOSE}"))
    assert changed.ids[: len(letters)] == letters
    assert policy.decode(changed.ids) == "Thank you! milk"


def test_a_tag_may_cut_through_a_token(form: InstructForm) -> None:
    policy = form.policy
    written = ids(policy, f"One tea!{CLOSE}")
    assert "!</" in [policy.tokenizer.decode([i]) for i in written]
    assert form.read(ids(policy, "One tea!"), written).ids == ids(policy, "One tea!")


def test_a_response_cannot_forge_a_turn(form: InstructForm) -> None:
    """Not even by the special token itself, which a policy can sample."""
    policy = form.policy
    start = policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    honest = form.context(ASK, policy.encode("xy"))
    forged = form.context(ASK, [*policy.encode("x"), start, *policy.encode("y")])
    assert forged.count(start) == honest.count(start)
    assert "x<|im_start|>y" in policy.tokenizer.decode(forged)


def test_the_task_tells_the_policy_and_the_refiner_its_rules(form: InstructForm) -> None:
    task = load_task("dialogue")
    (prompt,) = instructed(task.prompts("train")[:1], task.instruction)
    text = form.policy.tokenizer.decode(form.context(prompt.messages, ids(form.policy, GOOD)))
    assert text.count(task.instruction) == 1
    assert f"<prompt>{prompt.text}</prompt>\n<draft>{GOOD}</draft>" in text
    assert text.endswith(f"<|im_start|>assistant\n{OPEN}")
    assert len(EXAMPLES) == 2
    for asked, draft, refined in EXAMPLES:
        assert f"<prompt>{asked}</prompt>\n<draft>{draft}</draft>" in text
        assert f"<|im_start|>assistant\n{OPEN}{refined}{CLOSE}<|im_end|>" in text


def test_a_template_without_system_role_hears_it_from_the_user(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    before, refuse = tokenizer.chat_template, "{{ raise_exception('System role not supported') }}"
    tokenizer.chat_template = (
        f"{{% if messages[0]['role'] == 'system' %}}{refuse}{{% endif %}}" + before
    )
    try:
        told = policy.encode_chat([{"role": "system", "content": "Be brief."}, *ASK])
    finally:
        tokenizer.chat_template = before
    expected = [{"role": "user", "content": f"Be brief.\n\n{ASK[0]['content']}"}]
    assert policy.decode(told) == policy.decode(policy.encode_chat(expected))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_verified_decoding_writes_what_greedy_decoding_would(kind: str) -> None:
    policy = load_policy(instruct_folder(kind), "fp32")
    refiner = OnlineRefiner(policy, max_new_tokens=12)
    responses = [ids(policy, text) for text in (GOOD[:20], "tea tea tea", "")]
    contexts = [refiner.form.context(ASK, y) for y in responses]
    with policy.reference():
        plain = generate(
            policy.model,
            contexts,
            max_new_tokens=refiner.form.limit,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
            temperature=0,
        )
    expected = [refiner.form.read(y, z) for y, z in zip(responses, plain.ids, strict=True)]
    found = refiner.refine_ids([ASK] * 3, responses)
    assert [(r.refined_ids, r.fallback) for r in found] == [(a.ids, a.fallback) for a in expected]


def test_refusals_are_counted_by_their_reason(policy: Policy) -> None:
    config = RunConfig(model="small", constraint="dynamic", max_new_tokens=8)
    constraint = make_constraint(policy, config)
    prompts = load_task("dialogue").prompts("train")[:2]
    rollouts = Sampler(policy, "direct").sample(prompts, group=2, max_new_tokens=8)
    metrics = constraint.prepare(rollouts, 0).metrics
    reasons = [metrics[f"refused_{why}"] for why in ("cut_off", "empty", "not_minimal")]
    assert metrics["refused"] == sum(reasons) > 0  # a random model never closes its tag
    assert metrics["edit_ratio"] == 0  # so every response stays


def test_every_case_is_counted(policy: Policy, monkeypatch) -> None:
    answers = [
        f"Here is the corrected draft:\n{GOOD}{CLOSE}",
        f"```\n{GOOD} \n```{CLOSE}",
        " " + CLOSE,
        "I cannot serve tea." + CLOSE,
        GOOD[:10],
    ]
    written = [ids(policy, text) for text in answers]
    written[-1].pop()  # it ran out of tokens
    decoded = SimpleNamespace(ids=written, rounds=[1] * 5, passes=1)
    monkeypatch.setattr("rftkit.refiner.verify_decode", lambda *_, **__: decoded)
    constraint = make_constraint(policy, RunConfig(model="small", max_new_tokens=400))
    responses = [ids(policy, GOOD + " " * n) for n in range(5)]
    (prompt,) = load_task("dialogue").prompts("train")[:1]
    nothing = [torch.zeros(0)] * 5
    rollouts = Rollouts(
        [prompt] * 5, [[]] * 5, responses, [""] * 5, [True] * 5, nothing, nothing, 5
    )
    metrics = constraint.prepare(rollouts, 0).metrics
    found = {k: v for k, v in metrics.items() if k.startswith("refused_")}
    assert found == {"refused_cut_off": 0.2, "refused_empty": 0.2, "refused_not_minimal": 0.2}
    assert metrics["refused"] == pytest.approx(0.6)
    assert metrics["stripped"] == pytest.approx(0.4)


def test_a_model_without_chat_template_is_told_so(policy: Policy, monkeypatch) -> None:
    monkeypatch.setattr(policy.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="has no chat template"):
        policy.encode_chat(ASK)


def test_compare_trains_an_instruct_model_in_four_bits(tmp_path, capsys) -> None:
    base = load_policy(instruct_folder(), device="cpu")
    assert base.precision == "nf4"
    assert any("4bit" in type(m).__name__ for m in base.model.modules())
    arguments = (
        f"compare --model {instruct_folder()} --task dialogue --out {tmp_path} --steps 2 --json "
        f"--data {orders(tmp_path, 6)} --workers 1 --prompts 2 "
        "--group 2 --max-new-tokens 8 --device cpu"
    )
    assert main(arguments.split()) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["methods"]) == {"none", "kl", "dynamic"}
    rows = (tmp_path / "dynamic-seed0/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["refused_cut_off"] > 0
    assert (tmp_path / "dynamic-seed0/checkpoint/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("gb", "settings"),
    [
        (None, {"checkpointing": False, "prompts": 8}),
        (8.0, {"checkpointing": True, "prompts": 16}),
    ],
)
def test_the_preset_follows_from_the_memory_that_is_there(
    monkeypatch, gb: float | None, settings: dict[str, object]
) -> None:
    monkeypatch.setattr("rftkit.presets.gpu_gb", lambda: gb)
    arguments = _parser().parse_args(
        ["train", "--out", "x", "--preset", "auto", "--model", instruct_folder()]
    )
    config = _config(arguments)
    assert {name: getattr(config, name) for name in settings} == settings


def test_no_preset_for_a_model_that_is_too_large(monkeypatch) -> None:
    monkeypatch.setattr("rftkit.presets.gpu_gb", lambda: 0.61)
    with pytest.raises(UserError, match="preset: none fits"):
        best_settings({"model": instruct_folder()})


REWARDS = """
def short(prompts, completions, topic, **rest):
    assert all(isinstance(t, str) for t in topic)
    return [-len(c[0]["content"]) / 100 for c in completions]

def few(prompts, completions, **rest):
    return [1.0]

def nan(prompts, completions, **rest):
    return [float("nan")] * len(prompts)

calls = []

def bad_once(prompts, completions, **rest):
    calls.append(0)
    return [float("nan") if len(calls) == 2 else float(i) for i in range(len(prompts))]

def words(prompts, completions, **rest):
    return ["good"] * len(prompts)

def broken(prompts, completions, **rest):
    return [1 / 0]
"""


def test_own_data_and_reward(policy: Policy, tmp_path, monkeypatch) -> None:
    from rftkit import Trainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    own_files(tmp_path)
    config = RunConfig(
        task="own", data="mine.jsonl", reward="own_rewards:short", model="small", steps=1,
        prompts=2, group=2, max_new_tokens=6, sampler="direct",
    )  # fmt: skip
    trainer = Trainer(config, policy=policy)
    assert len(trainer.train_prompts) == 8
    assert len(trainer.heldout_prompts) == 2
    start, end = trainer.train(progress=False)
    assert start["task_reward"] < 0
    assert end["gold_reward"] == end["heldout_task_reward"]


def own_files(folder) -> None:
    (folder / "own_rewards.py").write_text(REWARDS)
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}], "topic": "x"} for i in range(10)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_a_bad_number_of_an_own_reward_skips_its_step(
    policy: Policy, tmp_path, monkeypatch
) -> None:
    """The second call is the first step's; the first and the last are evaluations."""
    from rftkit import Trainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    own_files(tmp_path)
    config = RunConfig(
        task="own", data="mine.jsonl", reward="own_rewards:bad_once", model="small", steps=2,
        prompts=2, group=2, max_new_tokens=6, sampler="direct", constraint="none", eval_every=9,
    )  # fmt: skip
    first, second, _ = Trainer(config, policy=policy).train(progress=False)
    assert first["skipped"] == "task_reward not finite"
    assert first["grad_norm"] is None
    assert "skipped" not in second
    assert second["grad_norm"] > 0


def test_own_data_and_reward_from_the_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    own_files(tmp_path)
    arguments = (
        f"train --model {instruct_folder()} --task own --data mine.jsonl --device cpu --out out "
        "--reward own_rewards:short --steps 1 --prompts 2 --group 2 --max-new-tokens 6"
    )
    assert main(arguments.split()) == 0
    first, last = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert first["grad_norm"] > 0
    assert first["refused"] == 1  # a random model closes no tag, and its response stays
    assert last["gold_reward"] == last["heldout_task_reward"] < 0


ROW = '{"prompt": [{"role": "user", "content": "Hi"}]}\n'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "none.jsonl"}, r"none\.jsonl: cannot be read"),
        ({"data": "bad.jsonl"}, r"bad\.jsonl:2: not a JSON object"),
        ({"data": "one.jsonl"}, r"one\.jsonl: one row is too few"),
        ({"prompts": 5}, r"mine\.jsonl: 4 rows to train on"),
        ({"reward": "short"}, r"reward: 'short' must be module:function"),
        ({"reward": "own_nothing:short"}, "reward: module 'own_nothing' cannot be imported"),
        ({"reward": "own_rewards:nothing"}, "reward: module 'own_rewards' has no function"),
        ({"reward": ""}, "reward: task 'own' needs"),
        ({"data": "", "reward": ""}, "task 'own' needs"),
        ({"task": "dialogue", "reward": ""}, r"mine\.jsonl:1: lacks name, size"),
        ({"reward": "own_rewards:few"}, "own_rewards:few must return a list"),
        (
            {"reward": "own_rewards:nan"},
            "own_rewards:nan returned nan; each reward must be",
        ),
        ({"reward": "own_rewards:words"}, "own_rewards:words returned 'good'"),
        ({"reward": "own_rewards:broken"}, "own_rewards:broken failed with ZeroDivisionError"),
    ],
)
def test_a_mistake_in_own_data_or_reward_is_one_line(
    tmp_path, monkeypatch, changes: dict[str, object], says: str
) -> None:
    from rftkit.tasks import task_of

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    for name, text in {"mine": ROW * 5, "bad": ROW + "{", "one": ROW}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    values = {"task": "own", "data": "mine.jsonl", "reward": "own_rewards:few", "prompts": 2}

    def score() -> None:
        task = task_of(RunConfig.from_dict(values | changes))
        task.score(task.prompts("train")[:2], ["a", "b"], [True, True])

    with pytest.raises(UserError, match=says) as error:
        score()
    assert "\n" not in str(error.value)
