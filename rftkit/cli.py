"""The `rftkit` command. Heavy imports wait until a command needs them.

A user's mistake ends in one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from rftkit.config import CONSTRAINTS
from rftkit.errors import UserError
from rftkit.options import (
    add_setting,
    add_settings,
    decimals,
    folder,
    given_settings,
    names,
    numbers,
    resumed_config,
    words,
)
from rftkit.options import config_of as _config
from rftkit.output import Said, stdout_to_stderr
from rftkit.runs import RunFolder
from rftkit.visible import one_line

Arguments = argparse.Namespace
REFINER_SETTINGS = ("refiner", "refiner_model", "refiner_noise", "refiner_cuts", "edit_limit")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any text, on any terminal
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # any bytes
    arguments = _parser().parse_args(argv)
    as_json = getattr(arguments, "json", False)
    try:
        with stdout_to_stderr() if as_json else nullcontext():
            ended = arguments.run(arguments)
        if isinstance(ended, Said):
            print(json.dumps(ended.found) if as_json else ended.text)
            return ended.status
        return int(ended or 0)
    except UserError as error:
        print(f"rftkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        told = str(stop) or "stopped; what was written stays, the same command goes on"
        print(f"rftkit: {told}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, as `head`, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> _Parser:
    parser = _Parser("rftkit", description="Fine-tune under constraints, and see what they do.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    compare = _command(
        commands, "compare", _compare, "train one task under each constraint; table and figure",
        "rftkit compare --task dialogue --seeds 0,1 --out out/first",
    )  # fmt: skip
    compare.add_argument(
        "--constraints",
        type=names,
        default=("none", "kl", "dynamic"),
        help="comma-separated, of " + ", ".join(CONSTRAINTS),
    )
    compare.add_argument("--seeds", type=numbers, default=(0,), help="comma-separated numbers")
    compare.add_argument(
        "--workers",
        type=int,
        default=0,
        help="runs at a time; 0 = one a core on a CPU, one on a GPU",
    )
    compare.add_argument("--out", type=folder, help="folder for the results; default out/TASK")
    add_settings(compare, leave_out=("constraint", "seed"))
    _json(compare)

    train = _command(
        commands, "train", _train, "train one policy under one constraint",
        "rftkit train --task dialogue --constraint kl --coef 0.3 --out out/kl",
    )  # fmt: skip
    train.add_argument("--out", type=folder, required=True, help="the run folder")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, by its own settings; --steps may be more",
    )
    add_settings(train)

    sweep = _command(
        commands, "sweep", _sweep, "try coefficients on tuning seeds and name the best",
        "rftkit sweep --task dialogue --constraint kl --coefs 0.1,0.3,1 --out out/sweep",
    )  # fmt: skip
    sweep.add_argument("--coefs", type=decimals, default=(), help="comma-separated; a default set")
    sweep.add_argument("--seeds", type=numbers, default=(), help="default 100,101")
    sweep.add_argument("--workers", type=int, default=0, help="runs at a time; 0 = one a core")
    sweep.add_argument("--out", type=folder, required=True, help="folder for the results")
    add_settings(sweep, leave_out=("seed", "coef"))
    _json(sweep)

    refine = _command(
        commands, "refine", _refine, "refine one response and show the difference",
        'rftkit refine --task dialogue --prompt "For Ana: small tea, milk, to go." '
        '--response "Hello, Ana! A small small tea with milk, to go. Thanks! Thanks! Thanks!"',
    )  # fmt: skip
    refine.add_argument("--task", default="dialogue", help="sets the longest response")
    refine.add_argument("--prompt", required=True, help="what the user asked")
    refine.add_argument("--response", required=True, help="what to refine")
    for name in ("model", "precision", "device", *REFINER_SETTINGS):
        add_setting(refine, name)
    _json(refine)

    doctor = _command(
        commands, "doctor", _doctor, "say what works on this machine", "rftkit doctor"
    )
    _json(doctor)

    bench = _command(
        commands, "bench", _bench, "measure speed and memory, beside TRL's if asked",
        "rftkit bench --peer trl --json",
    )  # fmt: skip
    bench.add_argument("--peer", choices=("trl",), help="trainer to compare with")
    bench.add_argument("--rounds", type=int, default=7, help="repetitions; default 7")
    bench.add_argument("--profile", type=folder, metavar="DIR", help="also trace a step, into DIR")
    for name in ("model", "precision", "device", "prompts", "group", "token_budget"):
        add_setting(bench, name)
    bench.add_argument(
        "--max-new-tokens", type=int, default=32, help="longest response; default 32"
    )
    _json(bench)

    estimate = _command(
        commands, "estimate", _estimate, "predict the peak memory of a run, without weights",
        "rftkit estimate --model Qwen/Qwen2.5-0.5B-Instruct --vram-gb 8 --json",
    )  # fmt: skip
    estimate.add_argument("--vram-gb", type=float, help="GPU memory; default: this GPU's, else 8")
    estimate.add_argument(
        "--prompt-tokens", type=int, default=0, help="longest prompt; default: the task's"
    )
    add_settings(estimate, leave_out=("seed", "coef"))
    _json(estimate)

    pretrain = _command(
        commands, "pretrain", _pretrain, "rebuild the embedded model: tokenizer and weights",
        "rftkit pretrain --out out/tiny",
    )  # fmt: skip
    pretrain.add_argument(
        "--out", type=folder, required=True, help="folder; an unfinished one is resumed"
    )
    pretrain.add_argument("--seed", type=int, default=0, help="decides corpus and first weights")
    pretrain.add_argument("--steps", type=int, default=0, help="updates; 0 = the recipe's own")
    merge = _command(
        commands, "merge", _merge, "write a policy as a model that plain transformers loads",
        "rftkit merge --run out/dialogue/dynamic-seed0 --out out/merged",
    )  # fmt: skip
    merge.add_argument("--run", type=folder, dest="folder", help="a run folder")
    merge.add_argument(
        "--adapter", type=folder, help="or an adapter in PEFT's format, and its --model"
    )
    merge.add_argument("--out", type=folder, required=True, help="folder of the model")
    merge.add_argument("--four-bit", action="store_true", help="write NF4 instead of dense weights")
    for name in ("model", "precision"):
        add_setting(merge, name)

    chat = _command(
        commands, "chat", _chat, "compare policy, reference and refinement, side by side",
        "rftkit chat --run out/dialogue/dynamic-seed0",
    )  # fmt: skip
    chat.add_argument("--run", type=folder, dest="folder", required=True, help="a run folder")

    study = _command(
        commands, "study", _study, "run the recorded study, or go on with it; tables and figures",
        "rftkit study --out out/study --limit-minutes 120",
    )  # fmt: skip
    study.add_argument("--out", type=folder, default=Path("out/study"), help="folder of the runs")
    study.add_argument("--records", type=folder, help="compact records; default data/runs/study")
    study.add_argument(
        "--only", type=words, default=(), help="tasks, or task/method, comma-separated; default all"
    )
    study.add_argument(
        "--part", type=words, default=(), help="of tuning, result, why, limits, comma-separated"
    )
    study.add_argument("--workers", type=int, default=0, help="runs at a time; 0 = one a core")
    study.add_argument("--limit-minutes", type=float, default=0.0, help="stop and save by then")
    study.add_argument("--status", action="store_true", help="only say what is done and left")
    study.add_argument("--report", action="store_true", help="only rewrite tables and figures")

    _command(commands, "lab", _lab, "open JupyterLab at the first lesson", "rftkit lab")
    return parser


def _compare(arguments: Arguments) -> Said:
    from rftkit.comparison import compare, table

    config = _config(arguments)
    out = arguments.out or Path("out") / config.task
    summary = compare(
        config.task,
        arguments.constraints,
        arguments.seeds,
        out=out,
        config=config,
        workers=arguments.workers,
    )
    files = f"figure: {out / 'curves.png'}   numbers: {out / 'summary.json'}"
    return Said(summary, f"{table(summary)}\n{files}")


def _train(arguments: Arguments) -> None:
    from rftkit.allocator import keep_freed_memory
    from rftkit.constraints import unused_settings
    from rftkit.trainer import Trainer

    keep_freed_memory()
    run = RunFolder(arguments.out)
    goes_on = arguments.resume and run.begun
    config = resumed_config(arguments, run) if goes_on else _config(arguments)
    trainer = Trainer(config, arguments.out, resume=arguments.resume)
    if idle := unused_settings(given_settings(arguments), trainer.constraint):
        told = f"under constraint {trainer.config.constraint} {', '.join(idle)} changes nothing"
        print(f"rftkit: {told}", file=sys.stderr)
    if arguments.resume:
        told = "held no run yet; a new one begins"
        if goes_on:
            told = f"goes on at step {trainer.done} of {trainer.config.steps}"
        print(f"rftkit: {arguments.out}: {told}", file=sys.stderr)
    trainer.train()
    print(f"run folder: {arguments.out}")


def _sweep(arguments: Arguments) -> Said:
    from rftkit.sweep import sweep, table

    found = sweep(
        _config(arguments),
        arguments.coefs,
        arguments.seeds,
        out=arguments.out,
        workers=arguments.workers,
    )
    return Said(found, table(found))


def _refine(arguments: Arguments) -> Said:
    from rftkit.diff import to_ansi
    from rftkit.faults import make_refiner
    from rftkit.models import load_policy
    from rftkit.tasks import load_task

    config = _config(arguments)
    if config.task == "own":
        raise UserError("task: 'own' does not say how long a response may be; take dialogue")
    config.max_new_tokens = load_task(config.task).max_new_tokens
    policy = load_policy(config.model, config.precision, config.device)
    refiner = make_refiner(policy, config, "dynamic")
    result = refiner.refine([arguments.prompt], [arguments.response])[0]
    if result.fallback:
        print(f"refused: {result.fallback}; the response stays as it is", file=sys.stderr)
    told = f"changed: {result.changed}   edit ratio: {result.edit_ratio:.3f}"
    return Said(result.to_dict(), f"{to_ansi(result.diff)}\n{told}")


def _doctor(arguments: Arguments) -> Said:
    from rftkit.doctor import report, table

    found = report()
    return Said(found, table(found), status=0 if found["ok"] else 1)


def _bench(arguments: Arguments) -> Said:
    from rftkit import bench, profiling

    config = _config(arguments)
    folder = arguments.profile
    profile = {"profile": profiling.profile_step(config, folder)} if folder is not None else {}
    found = bench.bench(config, arguments.peer or "", arguments.rounds) | profile
    tables = [bench.table(found)] + ([profiling.table(profile["profile"])] if profile else [])
    return Said(found, "\n\n".join(tables))


def _estimate(arguments: Arguments) -> Said:
    from rftkit.estimate import estimate, table
    from rftkit.presets import DEFAULT_GB, gpu_gb

    memory = arguments.vram_gb
    if memory is None:
        memory = gpu_gb() or DEFAULT_GB
    found = estimate(
        _config(arguments), memory, arguments.prompt_tokens, given=given_settings(arguments)
    )
    return Said(found, table(found))


def _pretrain(arguments: Arguments) -> None:
    from rftkit.allocator import keep_freed_memory
    from rftkit.tiny.pretrain import PretrainConfig, pretrain, write_card

    keep_freed_memory()
    steps = {"steps": arguments.steps} if arguments.steps else {}
    config = PretrainConfig(seed=arguments.seed, **steps)
    folder = pretrain(config, arguments.out)
    write_card(folder, config.tasks)
    print((folder / "README.md").read_text(encoding="utf-8"))
    print(f"model: {folder}   use it: rftkit compare --model {folder}")


def _merge(arguments: Arguments) -> None:
    from rftkit.export import merge, merge_run

    if (arguments.folder is None) == (arguments.adapter is None):
        raise UserError("merge: give --run, or --adapter with its --model")
    given = given_settings(arguments)
    if arguments.folder is not None:
        if given:
            raise UserError(f"merge: --run says itself which {', '.join(given)}; leave it out")
        merge_run(arguments.folder, arguments.out, arguments.four_bit)
    else:
        config = _config(arguments)
        settings = config.precision, arguments.four_bit
        merge(config.model, arguments.adapter, arguments.out, *settings)
    print(f"model: {arguments.out}   use it: rftkit compare --model {arguments.out}")


def _chat(arguments: Arguments) -> None:
    from rftkit.side_by_side import chat

    if sys.stdin.isatty():
        print("Ask as a user of the task would; Ctrl-D ends.")
    for block in chat(arguments.folder, iter(sys.stdin.readline, "")):
        print(block, flush=True)


def _study(arguments: Arguments) -> None:
    from rftkit.study.command import study

    given = vars(arguments)
    chosen = ("out", "records", "only", "part", "workers", "limit_minutes", "status", "report")
    print(study(**{name: given[name] for name in chosen}))


def _lab(arguments: Arguments) -> int:
    import subprocess

    from rftkit.paths import DATA

    lessons = sorted((DATA.parent / "notebooks").glob("*.ipynb"))
    if not lessons:
        raise UserError("lab: no lessons found beside the package; clone the repository")
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(lessons[0])])


def _command(
    commands: Any, name: str, run: Any, what: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, nothing else"
    )


if __name__ == "__main__":
    sys.exit(main())
