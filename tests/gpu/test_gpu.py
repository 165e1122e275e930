"""What only a GPU shows: `make gpu`. Skipped where there is none; the other tests use the CPU."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.qwen_shape import save
from small import model_folder
from test_models import nudge

from rftkit import OnlineRefiner, RunConfig, Trainer, load_policy
from rftkit.batch import Gradients
from rftkit.estimate import estimate
from rftkit.memory import run_peak_gb, tensor_peak_gb
from rftkit.models import Policy
from rftkit.presets import best_settings
from rftkit.rollout import Sampler
from rftkit.runs import RunFolder
from rftkit.scoring import target_log_probs
from rftkit.tasks import load_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SETTINGS = {"device": "cuda", "steps": 4, "eval_every": 2, "eval_prompts": 8, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def policies() -> tuple[Policy, Policy]:
    """The embedded model in NF4, on CPU and GPU, with one adapter that does something."""
    cpu, cuda = load_policy(device="cpu"), load_policy(device="cuda")
    nudge(cpu)
    cuda.load_adapter(cpu.adapter())
    return cpu, cuda


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.cpu().float().flatten(), b.cpu().float().flatten(), 0))


def test_four_bits_are_the_same_bits(policies: tuple[Policy, Policy]) -> None:
    cpu, cuda = (dict(p.model.named_modules()) for p in policies)
    names = [name for name, m in cpu.items() if type(m).__name__ == "Linear4bit"]
    assert names
    for name in names:
        # As a plain tensor: bitsandbytes' own .cpu() moves the state of quantisation along.
        ours = cuda[name].weight.as_subclass(torch.Tensor)
        assert ours.device.type == "cuda"
        assert ours.dtype == torch.uint8
        assert torch.equal(ours.cpu().flatten(), cpu[name].weight.flatten()), name


def test_log_probs_and_their_gradient_are_those_of_the_cpu(policies: tuple[Policy, Policy]) -> None:
    prompts = load_task("dialogue").prompts("train")[:8]
    rollouts = Sampler(policies[0]).sample(prompts, group=2, max_new_tokens=24)
    values, gradients = [], []
    for policy in policies:
        logp, seen = target_log_probs(
            policy.model, rollouts.prompt_ids, rollouts.response_ids, temperature=1.0
        )
        loss = -(logp * seen).sum() / seen.sum()
        grads = torch.autograd.grad(loss, policy.parameters())
        values.append(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    assert values[1] == pytest.approx(values[0], abs=0.02)  # bf16 against fp32
    assert cosine(*gradients) > 0.99


def test_it_refines_as_the_cpu_does(policies: tuple[Policy, Policy]) -> None:
    prompts = load_task("dialogue").prompts("heldout")[:64]
    rollouts = Sampler(policies[0]).sample(prompts, group=1, max_new_tokens=48, temperature=1.3)
    messages = [p.messages for p in prompts]
    cpu, cuda = (OnlineRefiner(p).refine_ids(messages, rollouts.response_ids) for p in policies)
    assert sum(r.changed for r in cpu) > 8
    same = sum(a.refined_ids == b.refined_ids for a, b in zip(cpu, cuda, strict=True))
    assert same >= 58, f"{same} of 64"  # near-ties may break the other way in bf16


@pytest.mark.parametrize("constraint", ["none", "kl", "dynamic"])
@pytest.mark.parametrize("model", ["tiny", "qwen2"])
def test_a_run_trains_and_goes_on(tmp_path: Path, constraint: str, model: str) -> None:
    if model != "tiny":
        model = model_folder(model)
    config = RunConfig(model=model, constraint=constraint, coef=1.0, save_every=2, **SETTINGS)
    whole = Trainer(config, tmp_path / "whole").train()
    steps = Trainer(config, tmp_path / "cut").steps()
    for _ in range(3):
        next(steps)
    steps.close()
    Trainer(config, tmp_path / "cut", resume=True).train()
    resumed = RunFolder(tmp_path / "cut").metrics()
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    for row in whole[:-1]:
        assert row["mismatch"] < 0.05, "sampler and trainer in nats a token"
        assert not row.get("skipped")
    assert resumed[2]["task_reward"] == pytest.approx(whole[2]["task_reward"], abs=0.2)


def test_memory_that_runs_out_halves_the_micro_batch(caplog: pytest.LogCaptureFixture) -> None:
    config = RunConfig(model=model_folder("qwen2", 256), constraint="none", token_budget=2**16)
    config = replace(config, **SETTINGS | {"steps": 9, "group": 32, "max_new_tokens": 64})
    policy = load_policy(config.model, device="cuda")
    config.token_budget = 2**20
    needed = tensor_peak_gb(lambda: next(Trainer(config, policy=policy).steps()), policy.device)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 0.6 * needed * 1e9
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        with caplog.at_level(logging.WARNING, "rftkit"):
            steps = Trainer(config, policy=policy).steps()
            rows = [next(steps) for _ in range(3)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "micro-batches are halved" in caplog.text
    assert all(row["tokens"] for row in rows)


def test_checkpointing_keeps_the_gradient_in_less_memory() -> None:
    config = RunConfig(model=model_folder("qwen2", 256), constraint="none", token_budget=2**16)
    config = replace(config, **SETTINGS | {"group": 16, "lr": 0.0})
    policy, peaks, gradients = load_policy(config.model, device="cuda"), [], []
    nudge(policy)
    accumulate = Gradients.accumulate

    def kept(self, batch, measure=False):
        found = accumulate(self, batch, measure)
        gradients.append(torch.cat([p.grad.flatten() for p in self.policy.parameters()]).clone())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gradients, "accumulate", kept)
        for checkpointing in (False, True):
            settings = replace(config, checkpointing=checkpointing)
            steps = Trainer(settings, policy=policy).steps()
            peaks.append(tensor_peak_gb(lambda s=steps: next(s), policy.device))
    assert cosine(*gradients) > 0.999
    assert peaks[1] < peaks[0]


def test_the_estimate_is_what_a_run_takes(tmp_path: Path) -> None:
    save(tmp_path / "model", layers=4, hidden=512)  # in the shape of Qwen2.5, its vocabulary whole
    config = RunConfig(
        model=str(tmp_path / "model"),
        token_budget=4096,
        constraint="kl",
        coef=0.1,
        **SETTINGS | {"eval_prompts": 64, "eval_every": 1, "max_new_tokens": 64},
    )
    predicted = estimate(config, device="cuda")["peak_gb"]
    measured = run_peak_gb(config)["tensors"]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_auto_takes_the_largest_preset_for_this_gpu() -> None:
    settings = best_settings({"model": model_folder("qwen2", 256)})
    assert settings["prompts"] >= 8
    assert settings["token_budget"] >= 4096
