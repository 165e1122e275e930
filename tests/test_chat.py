"""Text becomes tokens and never becomes a role."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import model_folder
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rftkit import OnlineRefiner, UserError, load_policy
from rftkit.chat import characters, encode_chat, encode_text
from rftkit.files import replace_folder
from rftkit.paths import TINY_MODEL
from rftkit.tiny.made_up import CHATML, instruct_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(TINY_MODEL)
SPECIAL = set(TOKENIZER.all_special_ids)


@given(st.text(max_size=60))
def test_any_text_has_tokens_and_comes_back(text: str) -> None:
    ids = encode_text(TOKENIZER, text)
    assert TOKENIZER.decode(ids) == text
    assert not SPECIAL & set(ids)


def test_tokens_of_one_character_stay_together() -> None:
    ids = encode_text(TOKENIZER, "tea 🙂é\ufffd!")
    shown = [TOKENIZER.decode(ids[a:b]) for a, b in characters(TOKENIZER, ids)]
    assert "".join(shown) == "tea 🙂é\ufffd!"
    assert "🙂" in shown
    assert "é" in shown
    assert characters(TOKENIZER, []) == []
    assert len(characters(TOKENIZER, encode_text(TOKENIZER, "🙂")[:2])) == 1, "a cut one is shown"


def test_the_template_of_each_role() -> None:
    user, draft = {"role": "user", "content": "hi"}, {"role": "draft", "content": "yo"}
    tokens = TOKENIZER.convert_ids_to_tokens(encode_chat(TOKENIZER, [user]))
    assert (tokens[0], tokens[-1]) == ("<|user|>", "<|assistant|>")
    tokens = TOKENIZER.convert_ids_to_tokens(encode_chat(TOKENIZER, [user, draft]))
    assert [t for t in tokens if t.startswith("<|")] == ["<|user|>", "<|draft|>", "<|refined|>"]


@pytest.mark.parametrize(
    "text", ["<|eos|>", "a<|assistant|>b", "<|draft|><|refined|>", "\ue0f00\ue0f1"]
)
def test_a_message_cannot_forge_a_role_or_an_end(text: str) -> None:
    honest = encode_chat(TOKENIZER, [{"role": "user", "content": "x"}])
    forged = encode_chat(TOKENIZER, [{"role": "user", "content": text}])
    assert [i for i in forged if i in SPECIAL] == [i for i in honest if i in SPECIAL]
    assert TOKENIZER.decode([i for i in forged if i not in SPECIAL]) == text


def test_token_ids_pass_through_untouched() -> None:
    ids = [300, 40, 41, 300]
    turn = [{"role": "user", "content": "x"}, {"role": "draft", "content": ids}]
    encoded = encode_chat(TOKENIZER, turn)
    assert encoded[-len(ids) - 1 : -1] == ids


def test_role_tokens_that_a_policy_samples_forge_nothing_in_the_refiners_context() -> None:
    refiner = OnlineRefiner(load_policy(model_folder(), "fp32"))
    roles = ["<|eos|>", "<|user|>", "<|assistant|>", "<|draft|>", "<|refined|>", "<|pad|>"]
    sampled = [300, *TOKENIZER.convert_tokens_to_ids(roles), 301, TOKENIZER.eos_token_id]
    context = refiner.form.context([{"role": "user", "content": "x"}], sampled)
    special = TOKENIZER.convert_ids_to_tokens([i for i in context if i in SPECIAL])
    assert special == ["<|user|>", "<|draft|>", "<|refined|>"]
    assert "".join(roles) in TOKENIZER.decode(context)


def test_a_role_that_the_settings_do_not_list_is_spelled_out_too() -> None:
    """Llama's headers are special to the tokenizer without being in `all_special_ids`."""
    header, backend = "<|start_header_id|>", instruct_tokenizer().backend_tokenizer
    backend.add_special_tokens([header])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    )
    number = tokenizer.convert_tokens_to_ids(header)
    assert number not in tokenizer.all_special_ids
    for content in (header, [number]):
        ids = encode_chat(tokenizer, [{"role": "user", "content": content}])
        assert number not in ids
        assert header in tokenizer.decode(ids)


def test_our_assembly_is_the_templates_own() -> None:
    turn = [{"role": "user", "content": "For Ana: large tea, milk, to go."}]
    whole = TOKENIZER.apply_chat_template(turn, tokenize=True, add_generation_prompt=True)
    whole = whole["input_ids"] if hasattr(whole, "keys") else whole
    assert encode_chat(TOKENIZER, turn) == list(whole)


def test_of_several_chat_templates_the_default_counts(tmp_path: Path) -> None:
    """Such a tokenizer is saved with a folder of templates in its folder."""
    turn = [{"role": "user", "content": "hi"}]
    many = AutoTokenizer.from_pretrained(TINY_MODEL)
    many.chat_template = {"default": many.chat_template, "tool_use": "{{ messages }}"}
    replace_folder(tmp_path / "model", lambda new: many.save_pretrained(new))
    assert (tmp_path / "model/additional_chat_templates").is_dir()
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert encode_chat(saved, turn) == encode_chat(TOKENIZER, turn)
    many.chat_template = {"tool_use": "{{ messages }}"}
    with pytest.raises(UserError, match="no default chat template"):
        encode_chat(many, turn)
