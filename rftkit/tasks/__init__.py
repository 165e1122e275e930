"""The task registry, one line a domain. Their modules load when they are asked for."""

from __future__ import annotations

from pkgutil import resolve_name

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.tasks.base import Prompt, Score, Task

REGISTRY = {
    "dialogue": "rftkit.tasks.dialogue:Dialogue",
    "code": "rftkit.tasks.code:Code",
    "code-plain": "rftkit.tasks.code:CodePlain",
    "game": "rftkit.tasks.game:Game",
    "game-plain": "rftkit.tasks.game:GamePlain",
}

__all__ = ["REGISTRY", "Prompt", "Score", "Task", "load_task", "task_of"]


def load_task(name: str) -> Task:
    """The task registered under `name`. Raises UserError for a name that is not registered."""
    if name == "own":
        raise UserError("task 'own' needs --data FILE and --reward MODULE:FUNCTION")
    if name not in REGISTRY:
        raise UserError(f"task {name!r} is unknown; choose one of {', '.join(REGISTRY)}")
    task: Task = resolve_name(REGISTRY[name])()
    return task


def task_of(config: RunConfig) -> Task:
    """The task of a run, with the user's own data and rewards where it has them.

    Raises UserError where they do not go together.
    """
    if not (config.data or config.reward or config.gold):
        return load_task(config.task)
    from rftkit.tasks.own import OwnTask

    base = None if config.task == "own" else load_task(config.task)
    task = OwnTask(config.data, config.reward, base, config.gold)
    rows = len(task.prompts("train"))
    if rows < config.prompts:
        raise UserError(
            f"{config.data or config.task}: {rows} rows to train on, but a step takes "
            f"prompts = {config.prompts}; add rows or lower --prompts"
        )
    return task
