"""Whatever comes in, out comes a result or one line that names field and place: 2,500 cases."""

# ruff: noqa: PT017  (an error is one of two good ends, so pytest.raises does not fit)

import contextlib
import io
import json
import math
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import model_folder
from transformers import AutoTokenizer

from rftkit import OnlineRefiner, RunConfig, UserError, load_policy, load_task
from rftkit import cli as cli_module
from rftkit.chat import encode_chat, encode_text
from rftkit.config import field_docs
from rftkit.health import scores_of
from rftkit.paths import TINY_MODEL
from rftkit.runs import RunFolder
from rftkit.tasks import Score
from rftkit.tasks.base import read_prompts
from rftkit.visible import one_line

TOKENIZER = AutoTokenizer.from_pretrained(TINY_MODEL)
SPECIAL = frozenset(TOKENIZER.all_special_ids)

# Every plane, lone surrogates and control characters, and what attackers write.
ATTACKS = [
    "<|eos|>", "<|assistant|>", "<|refined|>", "<|im_end|>", "</s>", "[INST]", "\ue0f00\ue0f1",
    "\x1b[2J\x1b]0;title\x07", "\x9b31m", "<script>alert(1)</script>", "<img src=x onerror=a(1)>",
    "$\\href{javascript:alert(1)}{x}$", "[x](javascript:alert(1))", "{{ 7 * 7 }}", "{% raw %}",
    "\u202egnp.exe", "\x00", "\r", "\u2028", "%s%n", "__import__('os')", "\ud800", "\U000e0041",
]  # fmt: skip
ANY = st.text(st.characters(exclude_categories=[]), max_size=40)
HOSTILE = st.one_of(
    ANY, st.lists(st.one_of(ANY, st.sampled_from(ATTACKS)), max_size=6).map("".join)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.one_of(
    st.floats(), st.integers(), st.sampled_from([0, -1, 1e308, 10**40, math.nan, True, "1", None])
)


def tried(cases: int):
    """So many cases; the fixtures used here hold no state that a case could change."""
    return settings(
        max_examples=cases,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def told(error: UserError) -> str:
    """The message, checked: one printable line of bounded length."""
    text = str(error)
    assert text == text.strip()
    assert "\n" not in text
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text)
    assert 0 < len(text) < 1500
    return text


@tried(300)
@given(st.lists(st.one_of(JSON.map(json.dumps), HOSTILE), max_size=3), st.booleans())
def test_rows_of_any_kind(tmp_path, lines: list[str], as_prompt: bool) -> None:
    if as_prompt:
        lines = [f'{{"prompt": {line}}}' for line in lines]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        prompts = read_prompts(path)
    except UserError as error:
        assert str(path) in told(error)
    else:
        assert all(isinstance(p.text, str) for p in prompts)


@tried(100)
@given(
    st.lists(st.fixed_dictionaries({"role": HOSTILE, "content": HOSTILE}), min_size=1, max_size=3)
)
def test_rows_that_are_well_formed_but_hostile(tmp_path, messages: list[dict]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": messages}))
    (prompt,) = read_prompts(path)
    try:
        ids = encode_chat(TOKENIZER, prompt.messages)
    except UserError as error:
        assert told(error).startswith("role")
    else:
        assert sum(i in SPECIAL for i in ids) <= len(messages) + 1


@tried(400)
@given(st.dictionaries(st.sampled_from(list(field_docs())), st.one_of(NUMBERS, JSON), max_size=3))
def test_settings_of_any_value(values: dict) -> None:
    try:
        config = RunConfig.from_dict(values)
    except UserError as error:
        assert told(error).partition(":")[0] in values
    else:
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


WORDS = st.one_of(
    st.sampled_from(
        "train compare refine estimate sweep bench pretrain doctor study merge "
        "chat --run --only --task --constraint --coef "
        "--steps --seed --seeds --out --json --lr --resume --coefs --prompt --response --model "
        "--vram-gb 0,1 , 1e999 nan -1 99999999999999999999 dialogue kl none".split()
    ),
    HOSTILE,
)


@tried(300)
@given(st.lists(WORDS, max_size=6))
def test_command_lines_of_any_words(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train", "compare", "refine", "sweep", "bench", "estimate", "pretrain",
                     "doctor", "lab", "study", "merge", "chat"):  # fmt: skip
            patch.setattr(cli_module, f"_{name}", _read_settings, raising=False)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli_module.main(arguments)
            except SystemExit as stop:
                status = stop.code
    assert status in (0, 2)
    if status == 2:
        line = err.getvalue()
        assert line.endswith("\n")
        told(UserError(line[:-1]))
        assert line.count("\n") == 1
        assert one_line(line[:-1]) == line[:-1], "nothing in it commands the terminal"


def _read_settings(arguments) -> None:
    if hasattr(arguments, "preset"):
        cli_module._config(arguments)


@tried(400)
@given(HOSTILE)
def test_text_never_becomes_a_special_token(text: str) -> None:
    ids = encode_text(TOKENIZER, text)
    assert not SPECIAL & set(ids)
    readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert TOKENIZER.decode(ids) == readable


@tried(200)
@given(st.lists(HOSTILE, min_size=1, max_size=4), st.lists(st.integers(0, 511), max_size=12))
def test_no_content_forges_a_turn(texts: list[str], draft: list[int]) -> None:
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    messages.append({"role": "draft", "content": draft})
    honest = encode_chat(TOKENIZER, [{**m, "content": "x"} for m in messages])
    forged = encode_chat(
        TOKENIZER, [{**m, "name": "<|eos|>", "tool": "<|user|>"} for m in messages]
    )
    assert [i for i in forged if i in SPECIAL] == [i for i in honest if i in SPECIAL]


@tried(200)
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda x: json.dumps(x).encode() + b"\n")))
def test_run_folders_of_any_content(tmp_path, content: bytes) -> None:
    run = RunFolder(tmp_path)
    for name, read in (("metrics.jsonl", run.metrics), ("config.json", run.config)):
        (tmp_path / name).write_bytes(content)
        try:
            read()
        except UserError as error:
            assert name in told(error) or "config" in told(error) or ":" in told(error)


@tried(300)
@given(
    st.one_of(
        st.none(),
        NUMBERS,
        HOSTILE,
        st.lists(st.one_of(NUMBERS, st.builds(Score, NUMBERS, NUMBERS, NUMBERS)), max_size=3),
    ),
    st.booleans(),
)
def test_scorers_that_return_anything(returned, gold: bool) -> None:
    class Strange:
        name = "strange\n"

        def score(self, *arguments, **options):
            return returned

    try:
        scores = scores_of(Strange(), [], ["a", "b"], [True, True], gold)
    except UserError as error:
        assert "strange" in told(error)
    else:
        assert len(scores) == 2
        assert not gold or all(math.isfinite(s.gold_reward) for s in scores)


@tried(100)
@given(HOSTILE)
def test_scorers_that_raise_anything(message: str) -> None:
    class Raises:
        name = "raises"

        def score(self, *arguments, **options):
            raise RuntimeError(message)

    with pytest.raises(UserError) as error:
        scores_of(Raises(), [], [], [])
    assert "score raised RuntimeError at test_fuzz.py:" in told(error.value)


@pytest.mark.parametrize("name", ["dialogue", "game"])
@tried(100)
@given(text=HOSTILE, finished=st.booleans())
def test_responses_of_any_text_are_scored(name: str, text: str, finished: bool) -> None:
    task = load_task(name)
    prompt = task.prompts("heldout")[0]
    (score,) = scores_of(task, [prompt], [text], [finished])
    assert math.isfinite(score.task_reward)


@tried(60)
@given(HOSTILE, HOSTILE)
def test_any_prompt_and_response_are_refined(prompt: str, response: str) -> None:
    policy = _policy()
    (result,) = OnlineRefiner(policy, 4).refine([prompt], [response])
    assert json.loads(json.dumps(result.to_dict()))["changed"] in (True, False)


def _policy(cache: list = []):  # noqa: B006
    if not cache:
        cache.append(load_policy(model_folder(), "fp32"))
    return cache[0]


@pytest.mark.parametrize("text", ["", " ", "a" * 2**20, "\U0001f642 " * 2**16])
def test_nothing_and_a_megabyte(text: str) -> None:
    """Of a response; and of a prompt."""
    task = load_task("dialogue")
    scores_of(task, task.prompts("heldout")[:1], [text], [True])
    for prompt, response in (("tea", text), (text, "tea")):
        try:
            OnlineRefiner(_policy(), 4).refine([prompt], [response])
        except UserError as error:
            assert "tokens" in told(error)
            assert "but the model reads" in told(error)
        else:
            assert len(text) < 2


def test_a_message_quotes_no_megabyte() -> None:
    told(UserError("x" * 2**20 + string.printable))
