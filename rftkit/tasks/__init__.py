"""The task registry, one line a domain. Their modules load when they are asked for."""

from __future__ import annotations

from importlib import import_module

from rftkit.errors import UserError
from rftkit.tasks.base import Prompt, Score, Task

REGISTRY = {
    "dialogue": "rftkit.tasks.dialogue:Dialogue",
    "code": "rftkit.tasks.code:Code",
    "code-plain": "rftkit.tasks.code:CodePlain",
    "game": "rftkit.tasks.game:Game",
    "game-plain": "rftkit.tasks.game:GamePlain",
}

__all__ = ["REGISTRY", "Prompt", "Score", "Task", "load_task"]


def load_task(name: str) -> Task:
    """The task registered under `name`. Raises UserError for a name that is not registered."""
    if name not in REGISTRY:
        raise UserError(f"task {name!r} is unknown; choose one of {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)()
