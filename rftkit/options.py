"""From the command line to a RunConfig: each field of it is an option."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.config import CHOICES, CONSTRAINTS, PRESETS, RunConfig, field_docs
from rftkit.errors import UserError
from rftkit.runs import RunFolder


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names; data with a reward are a task of one's own."""
    given = {k: v for k, v in vars(arguments).items() if k in field_docs() and v is not None}
    own = given.get("data") and given.get("reward")
    return {"task": "own"} | given if own else given


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """The settings that the arguments ask for."""
    given = given_settings(arguments)
    preset = getattr(arguments, "preset", None) or "cpu_tiny"
    if preset == "auto":
        from rftkit.presets import best_settings

        return RunConfig.from_dict(best_settings(given) | given)
    return RunConfig.from_dict(PRESETS[preset] | given)


def resumed_config(arguments: argparse.Namespace, run: RunFolder) -> RunConfig:
    """The settings of the run in a folder, and those that the arguments name.

    Raises UserError where they name a preset, which is for a run that begins.
    """
    if arguments.preset:
        raise UserError(f"preset: {run.path} holds a run with settings of its own; leave it out")
    return RunConfig.from_dict(run.config().to_dict() | given_settings(arguments))


def add_settings(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """An option for every field but those left out, and --preset."""
    group = parser.add_argument_group("settings (RunConfig)")
    group.add_argument(
        "--preset",
        choices=(*PRESETS, "auto"),
        help="settings for a machine (default cpu_tiny); auto = the largest that fits this GPU",
    )
    for name in field_docs():
        if name not in leave_out:
            add_setting(group, name)


def add_setting(parser: Any, name: str) -> None:
    """An option for one field; unset it is None."""
    kind, sentence = field_docs()[name]
    option = f"--{name.replace('_', '-')}"
    default = getattr(RunConfig, name)
    if kind is bool:
        parser.add_argument(
            option,
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{sentence} (default {default})",
        )
        return
    allowed = CHOICES.get(name)
    convert = str if allowed else float if "float" in str(kind) else kind
    text = f"{sentence}: {', '.join(allowed)}" if allowed else sentence
    parser.add_argument(
        option,
        type=convert,
        choices=allowed,
        metavar=name.upper(),
        default=None,
        help=f"{text} (default {default})".replace("%", "%%"),
    )


def folder(text: str) -> Path:
    """A path; an empty one, as of an unset shell variable, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a folder, or . for the current one")
    return Path(text)


def words(text: str) -> tuple[str, ...]:
    """Any words, comma-separated."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def names(text: str) -> tuple[str, ...]:
    """Constraints, comma-separated."""
    found = words(text)
    unknown = [name for name in found if name not in CONSTRAINTS]
    if unknown or not found:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or text!r} is unknown; choose of {', '.join(CONSTRAINTS)}"
        )
    return found


def _tuple_of(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(map(kind, text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers, as in 1,2,3") from None

    return read


decimals, numbers = _tuple_of(float), _tuple_of(int)
