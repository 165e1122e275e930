"""`rftkit estimate`: predictions against measured peaks, and what is made of them."""

import json
import shutil

import pytest
import torch
from small import instruct_folder, model_folder, orders
from transformers import LlamaConfig, Qwen2Config

from rftkit import RunConfig, Trainer, UserError, load_policy
from rftkit.cli import main
from rftkit.estimate import NF4_CONSTANTS, UNKNOWN_PROMPT, estimate
from rftkit.memory import tensor_peak_gb
from rftkit.shape import read_shape

PARTS = {"base", "adapter", "optimiser", "activations", "kv_cache", "logits", "dense_copy"}


def config(**settings) -> RunConfig:
    base = {"device": "cpu", "prompts": 4, "group": 4, "max_new_tokens": 24, "token_budget": 400,
            "coef": 1.0, "eval_every": 100, "eval_prompts": 1, "steps": 4}  # fmt: skip
    return RunConfig.from_dict(base | settings)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> str:
    """Ten orders, two of them held out, so that the steps take more than their evaluation."""
    return orders(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("kind", "hidden", "settings"),
    [
        ("llama", 64, {"precision": "nf4", "constraint": "dynamic"}),
        ("llama", 256, {"precision": "fp32", "constraint": "none"}),
        ("qwen2", 64, {"precision": "nf4", "constraint": "kl", "token_budget": 800}),
        ("qwen2", 256, {"precision": "nf4", "constraint": "kl", "checkpointing": True}),
        ("llama", 64, {"precision": "nf4", "constraint": "none", "sampler": "direct"}),
        ("llama", 256, {"precision": "nf4", "constraint": "kl", "max_new_tokens": 4}),
    ],
)
def test_predictions_are_within_15_percent_of_measured_peaks(
    kind: str, hidden: int, settings: dict, few: str
) -> None:
    settings = config(model=model_folder(kind, hidden), data=few, **settings)
    policy = load_policy(settings.model, settings.precision, "cpu")

    def train() -> None:
        steps = Trainer(settings, policy=policy).steps()
        for _ in range(3):
            next(steps)

    measured = sum(policy.memory_gb().values()) + tensor_peak_gb(train, torch.device("cpu"))
    assert estimate(settings)["peak_gb"] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("sampler", ["dense", "direct"])
def test_an_evaluation_of_many_prompts_is_counted(sampler: str) -> None:
    settings = config(model=model_folder(), sampler=sampler, constraint="none", steps=1)
    policy = load_policy(settings.model, settings.precision, "cpu")

    def train() -> None:
        Trainer(settings, policy=policy).train(progress=False)

    measured = sum(policy.memory_gb().values()) + tensor_peak_gb(train, torch.device("cpu"))
    found = estimate(settings)
    assert found["peak_gb"] == found["phases_gb"]["sampling"] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("precision", ["nf4", "bf16", "fp32"])
def test_base_and_adapter_are_what_a_loaded_model_holds(precision: str) -> None:
    parts = estimate(RunConfig(precision=precision, device="cpu", lora_rank=4))["parts_gb"]
    policy = load_policy("tiny", precision, "cpu", lora_rank=4)
    held = policy.memory_gb()
    scales = 28 * NF4_CONSTANTS / 1e9 if precision == "nf4" else 0.0
    assert parts["base"] - scales == pytest.approx(held["base"], rel=0.03)
    assert parts["adapter"] == pytest.approx(held["adapter"])


def test_a_config_alone_is_enough(tmp_path) -> None:
    """Qwen2.5-0.5B, whose number of parameters is known; no weights, no tokenizer."""
    Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    found = estimate(RunConfig(model=str(tmp_path)))
    assert found["parameters"] == 494_032_768
    assert found["prompt_tokens"] == UNKNOWN_PROMPT
    assert found["device"] == "cuda"
    # 358M weights in 4 bits and their scales, 136M embeddings and others in bf16
    assert found["parts_gb"]["base"] == pytest.approx(0.358 * 0.516 + 0.136 * 2, rel=0.01)
    assert found["parts_gb"]["dense_copy"] == pytest.approx(0.358 * 2, rel=0.01)


def test_the_command_prints_one_json_object(capsys) -> None:
    assert main(["estimate", "--model", model_folder(), "--vram-gb", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["parts_gb"]) == PARTS
    assert all(gb >= 0 for gb in found["parts_gb"].values())
    assert found["peak_gb"] == max(found["phases_gb"].values())
    assert found["largest_preset"] == "gpu_24gb"
    assert main(["estimate", "--model", model_folder()]) == 0
    text = capsys.readouterr().out
    assert "largest preset that fits: gpu_24gb" in text
    assert all(part.replace("_", " ") in text for part in PARTS)


def test_settings_change_the_prediction_the_way_they_should(few: str) -> None:
    def peak(part: str = "", **settings) -> float:
        found = estimate(config(**({"model": model_folder(), "data": few} | settings)))
        return found["parts_gb"][part] if part else found["peak_gb"]

    assert peak("dense_copy", sampler="direct") == 0
    assert peak("activations", checkpointing=True) < peak("activations")
    assert peak("optimiser", lora_rank=16) == pytest.approx(2 * peak("optimiser"))
    assert peak(token_budget=200) < peak(token_budget=800)
    assert peak("kv_cache", constraint="none") < peak("kv_cache", constraint="dynamic")
    assert peak("refiner", refiner_noise=0.1) > peak("refiner", refiner_model=model_folder())
    assert peak("refiner", refiner_model=model_folder()) == peak("base")
    assert peak() < peak(refiner_model=model_folder())
    # Embeddings stay in 32 bits beside a 4-bit base, so the layers must outweigh them.
    wide = model_folder(hidden=256)
    assert peak("base", model=wide, precision="nf4") < peak("base", model=wide, precision="bf16")


def test_the_largest_preset_grows_with_the_memory(tmp_path) -> None:
    """An 8B model: no preset fits a small card, and a dense copy only a large one.

    Of the middle one its refiner takes much: rules and examples stand in the cache for every row.
    """
    LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=32000,
    ).save_pretrained(tmp_path)
    model = RunConfig(model=str(tmp_path), max_new_tokens=64)
    assert estimate(model, vram_gb=4)["largest_preset"] is None
    middle = estimate(model, vram_gb=24)
    assert middle["presets"]["gpu_8gb"] == {
        "peak_gb": middle["presets"]["gpu_8gb"]["peak_gb"], "sampler": "direct", "fits": True
    }  # fmt: skip
    assert not middle["presets"]["gpu_24gb"]["fits"]
    large = estimate(model, vram_gb=80)
    assert large["largest_preset"] == "gpu_24gb"
    assert large["presets"]["gpu_24gb"]["sampler"] == "dense"


def test_a_template_without_a_system_role_is_counted_too(tmp_path) -> None:
    """Gemma's, for one, raises an error for it."""
    policy = load_policy(instruct_folder(), "fp32", "cpu")
    before = policy.tokenizer.chat_template
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    policy.tokenizer.chat_template = refuse + before
    policy.tokenizer.save_pretrained(tmp_path)
    policy.model.get_base_model().config.save_pretrained(tmp_path)
    found = estimate(config(model=str(tmp_path)))
    assert 0 < found["prompt_tokens"] != UNKNOWN_PROMPT


def test_longer_prompts_take_more() -> None:
    settings = config(model=model_folder(), constraint="none")
    short, long = (estimate(settings, prompt_tokens=n) for n in (16, 256))
    assert long["parts_gb"]["kv_cache"] > 2 * short["parts_gb"]["kv_cache"]
    assert (short["prompt_tokens"], long["prompt_tokens"]) == (16, 256)


def test_widths_come_from_the_config() -> None:
    shape = read_shape(model_folder("llama", 64))
    assert (shape.hidden, shape.layers, shape.inner) == (64, 2, 128)
    assert (shape.heads, shape.kv_heads) == (64, 32)
    assert len(shape.matrices) == 14  # q, k, v, o, gate, up, down of two layers


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "no/such/model"], "no/such/model"),
        (["--vram-gb", "0"], "vram-gb"),
        (["--vram-gb", "nan"], "vram-gb"),
        (["--prompt-tokens", "-3"], "prompt-tokens"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments: list[str], named: str, capsys) -> None:
    assert main(["estimate", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert named in captured.err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "many"}'),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_broken_model_is_named_in_one_line(tmp_path, file: str, text: str) -> None:
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=r"fetch or save it again, or choose another") as error:
        estimate(RunConfig(model=str(folder)))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_is_no_decoder_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"no usable config\.json"):
        estimate(RunConfig(model=str(tmp_path)))
