"""Collapse and rescue with TRL's trainer: the embedded model without constraint and with.

    python examples/trl_collapse.py

Trains on café orders with λ = 0, then with the tuned λ; what was interrupted goes on where it was
saved. Writes one object a step and a figure, and with `--out data/runs/trl` the table of
docs/scaling.md as well.
"""

import argparse
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint
from trl_dynamic import Script, train

from rftkit import RunConfig, load_task
from rftkit.constraints import TUNED
from rftkit.figures import canvas, lines
from rftkit.files import write_text
from rftkit.integrations.trl import DynamicConstraintConfig
from rftkit.paths import DATA
from rftkit.plots import LABELS, save

RECORD = DATA / "runs" / "trl"
PAGE = DATA.parent / "docs" / "scaling.md"
STEPS = 100
COEFS = {"none": 0.0, "dynamic": TUNED["dynamic"]["dialogue"]}
# TRL's names, ours. All of them describe a step's rollouts, 64 responses to training prompts.
KEYS = {
    "reward": "task_reward",
    "gold_reward": "gold_reward",
    "degenerate": "degenerate",
    "edit_ratio": "edit_ratio",
    "changed": "changed",
    "sft_loss": "sft_loss",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
}
LAST = 10  # steps that the table's end is a mean of


def settings(out: Path, coef: float, steps: int) -> DynamicConstraintConfig:
    """TRL's settings, equal to those of our own default run."""
    ours = RunConfig()
    return DynamicConstraintConfig(
        output_dir=str(out),
        coef=coef,
        loss_type="dapo",
        beta=0.0,
        epsilon=ours.clip_low,
        epsilon_high=ours.clip_high,
        per_device_train_batch_size=ours.prompts * ours.group,
        num_generations=ours.group,
        max_completion_length=load_task("dialogue").max_new_tokens,
        temperature=ours.temperature,
        learning_rate=ours.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=ours.warmup,
        max_grad_norm=ours.max_grad_norm,
        max_steps=steps,
        seed=ours.seed,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_steps=20,
        save_total_limit=1,
        report_to="none",
        resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None,
    )


def rows(log: list[dict[str, Any]], coef: float) -> list[dict[str, Any]]:
    """One object a step, with our names; step n describes the policy before its update n."""
    return [
        {"step": row["step"] - 1, "coef": coef}
        | {ours: row[key] for key, ours in KEYS.items() if key in row}
        for row in log
        if "reward" in row  # the last row sums up
    ]


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The recorded runs by name; those that are not there are left out."""
    files = {name: folder / f"{name}.jsonl" for name in COEFS}
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in files.items()
        if path.is_file()
    }


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: the gold reward at the start, at its best and at the end, and the rest there."""
    if set(runs) != set(COEFS):
        return "Not recorded yet.\n"
    text = [
        "| | gold reward: start | best step | end | degenerate, end | task reward, end |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        gold, end = [row["gold_reward"] for row in run], run[-LAST:]
        ends = [fmean(row[k] for row in end) for k in ("gold_reward", "degenerate", "task_reward")]
        label = LABELS[name] + (f", λ = {run[0]['coef']:g}" if run[0]["coef"] else "")
        text.append(
            f"| {label} | {gold[0]:.2f} | {max(gold):.2f} | {ends[0]:.2f} | {ends[1]:.0%} "
            f"| {ends[2]:.2f} |"
        )
    top, steps = load_task("dialogue").gold_max, len(next(iter(runs.values())))
    note = (
        f"Gold maximum {top:g}; {steps} steps of 64 rollouts, one seed; measured on the rollouts, "
        f"the end as the mean of the last {LAST} steps."
    )
    return "\n".join([*text, "", note]) + "\n"


def fill(page: str, text: str) -> str:
    """The page with its block of results rewritten."""
    block = re.compile(r"(<!-- trl -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: found[1] + text + found[2], page)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Task reward, gold reward and degenerate share against the step."""
    panels = ("task_reward", "gold_reward", "degenerate")
    figure, axes = canvas(len(panels), width=11.0)
    for axis, key in zip(axes, panels, strict=True):
        curves = {LABELS[name]: ([row[key] for row in run], name) for name, run in runs.items()}
        steps = [row["step"] for row in next(iter(runs.values()))]
        lines(axis, steps, curves, "step", key.replace("_", " "))
    save(path, figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--steps", type=int, default=STEPS, help=f"of each run; default {STEPS}")
    options.add_argument(
        "--out", type=Path, default=Path("out/trl-collapse"), help="where the records go"
    )
    options.add_argument("--work", type=Path, default=Path("out/trl"), help="for checkpoints")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a model gains nothing by more, and waits on a busy machine
    for name, coef in COEFS.items():
        if name not in read(given.out):
            log = train(
                Script(lora_rank=RunConfig().lora_rank),
                settings(given.work / name, coef, given.steps),
            )
            text = "".join(json.dumps(row) + "\n" for row in rows(log, coef))
            write_text(given.out / f"{name}.jsonl", text)
    runs = read(given.out)
    draw(runs, given.out / "curves.png")
    print(table(runs), end="")
    if given.out == RECORD:
        write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), table(runs)))


if __name__ == "__main__":
    main()
