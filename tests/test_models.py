"""One base, three roles: what is trained, what stays, and that its gradient is the true one."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from small import model_folder

import rftkit.models as models
from rftkit import UserError, load_policy
from rftkit.paths import learned_tasks
from rftkit.rollout import DenseCopy
from rftkit.scoring import target_log_probs

CONTEXTS, TARGETS = [[8, 9, 10], [11, 12]], [[20, 21, 22, 1], [23, 1]]


def nudge(policy: models.Policy, size: float = 0.05) -> None:
    torch.manual_seed(1)
    policy.load_adapter({k: v + size * torch.randn_like(v) for k, v in policy.adapter().items()})


def log_probs(policy: models.Policy) -> torch.Tensor:
    return target_log_probs(policy.model, CONTEXTS, TARGETS)[0]


def test_the_base_is_held_in_four_bits_and_only_the_adapter_trains() -> None:
    policy = load_policy(model_folder())
    stored = {p.dtype for n, p in policy.model.named_parameters() if "base_layer" in n}
    assert policy.precision == "nf4"
    assert stored == {torch.uint8}
    assert all("lora_" in n for n, p in policy.model.named_parameters() if p.requires_grad)


def test_a_fresh_adapter_changes_nothing_and_the_reference_never_moves() -> None:
    policy = load_policy(model_folder())
    fresh = log_probs(policy).detach()
    with policy.reference():
        assert torch.equal(log_probs(policy), fresh)
    nudge(policy)
    assert not torch.allclose(log_probs(policy), fresh, atol=1e-3)
    with policy.reference():
        assert torch.equal(log_probs(policy), fresh)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_gradient_through_four_bits_is_that_of_the_dequantised_weights(kind: str) -> None:
    """bitsandbytes' inference kernels have no backward; a policy must never end up in them."""
    policy = load_policy(model_folder(kind))
    nudge(policy)
    with policy.reference():
        log_probs(policy)  # inference first: this is what used to repack the weights
    dense = DenseCopy(policy).net
    name = "model.layers.0.self_attn.q_proj"
    layer = policy.model.get_base_model().get_submodule(name)
    weight = dense.get_submodule(name).weight.requires_grad_()
    ours = log_probs(policy)
    theirs = target_log_probs(dense, CONTEXTS, TARGETS)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    ours.sum().backward()
    theirs.sum().backward()
    # W = W0 + s B A, so dL/dA = s Bᵀ dL/dW
    b = layer.lora_B["default"].weight.detach()
    expected = layer.scaling["default"] * b.T @ weight.grad
    torch.testing.assert_close(layer.lora_A["default"].weight.grad, expected, atol=1e-4, rtol=1e-3)


def test_a_base_stored_in_four_bits_is_read_as_it_is_and_as_nothing_else(recwarn) -> None:
    policy = load_policy("tiny-2612")
    assert policy.precision == "nf4"
    assert not [w for w in recwarn if "quantization_config" in str(w.message)]
    with pytest.raises(UserError, match="stored in 4 bits; use it with --precision nf4"):
        load_policy("tiny-2612", "fp32")


def test_without_four_bit_support_it_says_so_in_one_line(monkeypatch, caplog) -> None:
    monkeypatch.setattr(models, "supports_nf4", lambda device: False)
    with caplog.at_level(logging.WARNING, logger="rftkit"):
        policy = load_policy(model_folder(), device="cpu")
    assert policy.precision == "fp32"
    assert [r.message for r in caplog.records] == [
        "4-bit (NF4) does not work on cpu here: using fp32"
    ]


def test_a_missing_device_falls_back_to_the_cpu(caplog) -> None:
    if torch.cuda.is_available():
        assert models.pick_device("cuda").type == "cuda"
        return
    with caplog.at_level(logging.WARNING, logger="rftkit"):
        assert models.pick_device("cuda").type == "cpu"
    assert "not available" in caplog.text


def test_auto_leaves_the_embedded_model_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(models, "_present", lambda device: True)
    assert models.pick_device("auto", "tiny").type == "cpu"
    assert models.pick_device("auto", model_folder()).type == "cuda"
    assert models.pick_device("cuda", "tiny").type == "cuda"


def test_a_model_that_is_not_there_is_the_users_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match=r"model: .* cannot be loaded") as error:
        load_policy(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


def broken(folder: Path, what: str) -> Path:
    match what:
        case "weights cut off":
            os.truncate(folder / "model.safetensors", 100)
        case "no tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case "a wrong type" | "another shape":
            path = folder / "config.json"
            settings = json.loads(path.read_text())
            settings["hidden_size"] = "many" if what == "a wrong type" else 32
            path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "what", ["weights cut off", "no tokenizer", "a wrong type", "another shape"]
)
def test_a_broken_model_is_named_in_one_line(tmp_path: Path, what: str) -> None:
    folder = broken(shutil.copytree(model_folder(), tmp_path / "model"), what)
    with pytest.raises(UserError, match=r"again") as error:
        load_policy(str(folder), "fp32", "cpu")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError, torch.AcceleratorError, KeyboardInterrupt]
)
def test_a_fault_of_the_machine_is_no_broken_model(monkeypatch, fault: type[BaseException]) -> None:
    """Nor is Ctrl-C: who fetched the model again for either would have lost an hour."""

    def fail(*args: object, **settings: object) -> None:
        raise fault

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(fault):
        load_policy(model_folder(), "fp32", "cpu")


@pytest.mark.parametrize(("recipe", "cause"), [("{", "JSONDecodeError: "), ("{}", "KeyError: ")])
def test_a_broken_recipe_is_named(tmp_path: Path, recipe: str, cause: str) -> None:
    (tmp_path / "pretrain.json").write_text(recipe)
    told = rf"pretrain\.json: is broken \({cause}.+\); pretrain or copy"
    with pytest.raises(UserError, match=told):
        learned_tasks(str(tmp_path))


def test_a_name_too_long_for_a_path_is_no_model() -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_policy("m" * 400)


def test_an_unknown_precision_or_device_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"precision: 'nf5' is unknown; choose of nf4, bf16, fp32"):
        load_policy("tiny", "nf5")
    with pytest.raises(UserError, match=r"device: 'gpu' is unknown; choose of auto, cpu, cuda"):
        load_policy("tiny", device="gpu")


def test_another_policy_can_be_the_reference_for_a_while() -> None:
    policy = load_policy(model_folder())
    nudge(policy)
    earlier, then = policy.adapter(), log_probs(policy).detach()
    nudge(policy)
    now = log_probs(policy).detach()
    with policy.with_adapter(earlier):
        assert torch.equal(log_probs(policy), then)
    assert torch.equal(log_probs(policy), now)
