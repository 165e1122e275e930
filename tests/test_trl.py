"""Our subclass of TRL's trainer computes our loss, whatever the settings and processes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import model_folder
from test_models import nudge

from rftkit import RunConfig, UserError
from rftkit.batch import Batch, Gradients
from rftkit.constraints import DynamicConstraint, Pull
from rftkit.models import Policy
from rftkit.objectives import aggregate_tokens, kl_k3, policy_gradient_loss, sft_loss
from rftkit.refiner import Refinement
from rftkit.rollout import Rollouts, left_pad
from rftkit.scoring import pad_rows, target_log_probs

pytest.importorskip("trl")

CONTEXTS = [[8, 9, 10], [8, 9, 10], [11, 12], [11, 12]]
RESPONSES = [[20, 21, 1], [20, 22, 23, 1], [24, 25, 26, 27], [28, 1]]
REFINED = [[20, 21, 1], [20, 22, 1], [24, 25, 1], [28, 29, 1]]
ADVANTAGES = torch.tensor([1.0, -0.5, 2.0, -1.5])
COEF, LONGEST = 0.7, 8
# TRL's loss_type: our aggregate, and what its sum is divided by.
KINDS = {"dapo": "token", "bnpo": "token", "grpo": "sequence", "dr_grpo": "constant"}


def make_trainer(output: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rftkit.integrations.trl import DynamicConstraintConfig, DynamicConstraintGRPOTrainer

    folder = model_folder()
    made = DynamicConstraintGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=DynamicConstraintConfig(
            output_dir=str(output),
            coef=COEF,
            beta=0.2,
            use_bias_correction_kl=False,  # else TRL weights k3 by the ratio, which we do not
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=LONGEST,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    nudge(policy_of(made))
    return made


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Any:
    return make_trainer(tmp_path_factory.mktemp("trl"))


def shouted(prompts: list, responses: list[str]) -> list[str]:
    return [text.upper() for text in responses]


def policy_of(trainer: Any) -> Policy:
    return Policy(trainer.model, trainer.processing_class, "small", "fp32")


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = pad_rows([torch.tensor(row) for row in rows]).long()
    return ids, pad_rows([torch.ones(len(row)) for row in rows])


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def assert_same(trainer: Any, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    pair = gradient(trainer, theirs), gradient(trainer, ours)
    assert pair[1].norm() > 1e-3
    torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)


def hand_made(mask_row: int | None) -> dict[str, torch.Tensor]:
    prompt_ids, prompt_mask = left_pad(CONTEXTS, 0, torch.device("cpu"))
    ids, mask = padded(RESPONSES)
    if mask_row is not None:
        mask[mask_row] = 0
    refined, refined_mask = padded(REFINED)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": ADVANTAGES,
        "num_items_in_batch": mask.sum(),
        "refined_ids": refined,
        "refined_mask": refined_mask.long(),
        "refined_total": refined_mask.sum(),
    }


@pytest.mark.parametrize("mask_row", [None, 2])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("epsilon_high", [0.2, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("loss_type", KINDS)
def test_loss_and_gradient_are_ours(
    trainer: Any, loss_type: str, beta: float, epsilon_high: float, old: bool, mask_row: int | None
) -> None:
    inputs = hand_made(mask_row)
    mask = inputs["completion_mask"].float()
    logp, _ = target_log_probs(trainer.model, CONTEXTS, RESPONSES)
    refined_logp, refined_mask = target_log_probs(trainer.model, CONTEXTS, REFINED)
    shift = 0.3 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(3))
    before, ref = logp.detach() + shift, logp.detach() - shift
    trainer.loss_type, trainer.beta, trainer.epsilon_high = loss_type, beta, epsilon_high
    if old:
        inputs["old_per_token_logps"] = before
    if beta:
        inputs["ref_per_token_logps"] = ref
    rows = len(RESPONSES)
    # TRL's grpo also counts wholly masked rows; ours leaves them out unless told the total.
    total = {"grpo": rows, "dr_grpo": rows * LONGEST}.get(loss_type, float(mask.sum()))
    aggregate: Any = KINDS[loss_type]
    policy = policy_gradient_loss(
        logp, before if old else logp, ADVANTAGES, mask, 0.2, epsilon_high, aggregate, total=total
    )
    kl = aggregate_tokens(kl_k3(logp, ref, mask), mask, aggregate, total)
    ours = policy.loss + beta * kl + COEF * sft_loss(refined_logp, refined_mask)
    assert_same(trainer, trainer._compute_loss(trainer.model, inputs), ours)


def test_it_is_the_loss_of_our_own_training_loop(trainer: Any) -> None:
    policy = policy_of(trainer)
    config = RunConfig(model="small", coef=COEF, group=2, max_new_tokens=LONGEST)
    with torch.no_grad():
        logp, _ = target_log_probs(trainer.model, CONTEXTS, RESPONSES)
    sampled = [row[: len(ids)] for row, ids in zip(logp, RESPONSES, strict=True)]
    rollouts = Rollouts([], CONTEXTS, RESPONSES, [""] * 4, [True] * 4, sampled, sampled, 2)
    pairs = zip(RESPONSES, REFINED, strict=True)
    refined = {i: Refinement(y, z, "", "", []) for i, (y, z) in enumerate(pairs)}
    pull = Pull(refinements=refined, sft_rows=[0, 1, 2, 3])
    batch = Batch(rollouts, ADVANTAGES, torch.ones(4), pull)
    trainer.loss_type, trainer.beta, trainer.epsilon_high = "dapo", 0.0, 0.28
    theirs = trainer._compute_loss(trainer.model, hand_made(None))
    gradient_of_theirs = gradient(trainer, theirs)
    trainer.model.zero_grad()
    sums, _ = Gradients(policy, DynamicConstraint(policy, config), config).accumulate(batch)
    ours = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    loss = sums["policy_loss"] + sums["constraint_loss"]
    assert float(theirs.detach()) == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(gradient_of_theirs, ours, atol=1e-5, rtol=1e-4)


def test_without_an_adapter_it_says_what_is_missing() -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rftkit.integrations.trl import DynamicConstraintConfig, DynamicConstraintGRPOTrainer

    folder = model_folder()
    with pytest.raises(UserError, match="give a LoRA adapter"):
        DynamicConstraintGRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=DynamicConstraintConfig(use_cpu=True, bf16=False, report_to="none"),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}]),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )


def test_a_refiner_of_ones_own_takes_no_forward_pass(tmp_path: Path, monkeypatch) -> None:
    made = make_trainer(tmp_path, refiner="test_trl:shouted")
    monkeypatch.setattr("rftkit.integrations.trl.unwrap_model_for_generation", None)
    written = made._tokenizer("hello", add_special_tokens=False)["input_ids"]
    (found,) = made._refine([[{"role": "user", "content": "a"}]], [written])
    assert made._tokenizer.decode(found.refined_ids[:-1]) == found.refined == "HELLO"
    with pytest.raises(UserError, match="refiner: module 'test_trl' has no function 'nothing'"):
        make_trainer(tmp_path, refiner="test_trl:nothing")


def test_two_processes_or_two_micro_batches_give_the_gradient_of_one(tmp_path: Path) -> None:
    import trl_step

    one, accumulated, two = (tmp_path / f"{name}.safetensors" for name in ("one", "more", "two"))
    trl_step.main(str(one))
    trl_step.main(str(accumulated), accumulate=2)
    command = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1"
    command += f" --mixed_precision no --dynamo_backend no {trl_step.__file__} {two}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-m", *command.split()]
    done = subprocess.run(launched, capture_output=True, text=True, env=environment)
    assert two.is_file(), done.stderr[-2000:]
    expected = load_file(one)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for path in (accumulated, two):
        found = load_file(path)
        assert found.keys() == expected.keys()
        for name, gradient_of_one in expected.items():
            torch.testing.assert_close(found[name], gradient_of_one, atol=1e-6, rtol=1e-4)


PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
EXAMPLES = PAGE.parents[1] / "examples"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
LAUNCHES = [
    shlex.split(line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("accelerate launch")
]


def test_the_pages_cost_table_is_what_the_model_counts() -> None:
    from rftkit.cost import table

    assert f"<!-- cost -->\n{table()}<!-- end -->" in TEXT


def test_the_page_shows_every_size() -> None:
    assert len(LAUNCHES) == 4


@pytest.mark.parametrize("words", LAUNCHES, ids=lambda words: " ".join(words[2:5]))
def test_accelerate_and_trl_understand_a_launch_line(monkeypatch, words: list[str]) -> None:
    """We have no cluster, but an option that is none, or half a group on a GPU, shows here too."""
    from accelerate.commands.launch import launch_command_parser

    from rftkit.cost import Step

    monkeypatch.syspath_prepend(EXAMPLES)
    from trl_dynamic import parser

    script = words.index("examples/trl_dynamic.py")
    words = [{"$RANK_OF_NODE": "1", "$FIRST_NODE": "node0"}.get(word, word) for word in words]
    machines = launch_command_parser().parse_args(words[2 : script + 1])
    options = parser().parse_args(words[script + 1 :])
    each = options.per_device_train_batch_size * options.gradient_accumulation_steps
    assert machines.num_processes * each % options.num_generations == 0
    if machines.num_processes >= 8:  # what the table of costs counts
        found = machines.num_processes * each, options.num_generations
        assert (*found, options.max_completion_length) == (Step.rollouts, Step.group, Step.response)


def test_the_pages_first_example_runs_word_for_word(tmp_path: Path) -> None:
    block = next(block for block in BLOCKS if "--model tiny" in block)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("sft_loss", "edit_ratio", "gold_reward", "degenerate"):
        assert f"'{name}'" in done.stdout
    assert (tmp_path / "out/trl-merged/model.safetensors").is_file()


@pytest.fixture
def collapse(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__("trl_collapse")


def test_the_page_holds_what_was_recorded(collapse: Any) -> None:
    assert "<!-- trl -->" in TEXT
    assert collapse.fill(TEXT, collapse.table(collapse.read(collapse.RECORD))) == TEXT


def test_the_collapse_example_trains_as_we_do_by_default(collapse: Any, tmp_path: Path) -> None:
    ours = RunConfig()
    made = collapse.settings(tmp_path / "none", 0.0, 3)
    assert made.per_device_train_batch_size == ours.prompts * ours.group
    assert made.num_iterations == ours.updates
    assert (made.top_k, made.top_p, made.weight_decay) == (0, 1.0, 0.0)
    assert made.scale_rewards in (True, "group")  # as our "grpo" advantages
    assert not made.mask_truncated_completions  # overlong = "keep"
    assert (ours.advantage, ours.aggregate, ours.overlong) == ("grpo", "token", "keep")


def test_the_recorded_runs_show_collapse_and_rescue(collapse: Any) -> None:
    runs = collapse.read(collapse.RECORD)
    if not runs:
        pytest.skip("not recorded yet: python examples/trl_collapse.py")
    none, dynamic = runs["none"], runs["dynamic"]
    top = collapse.load_task("dialogue").gold_max

    def end(run: list[dict[str, Any]], key: str) -> float:
        return fmean(row[key] for row in run[-collapse.LAST :])

    assert end(none, "degenerate") > 0.8
    assert end(none, "gold_reward") < 0.2 * top
    assert end(none, "task_reward") > none[0]["task_reward"]  # what training saw went well
    assert end(dynamic, "degenerate") < 0.1
    assert end(dynamic, "gold_reward") > dynamic[0]["gold_reward"] + 0.3 * top
    assert end(dynamic, "edit_ratio") < dynamic[0]["edit_ratio"] / 2
