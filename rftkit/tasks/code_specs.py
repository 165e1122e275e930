"""Specifications in words for the code domain: what they ask, and the tests that tell.

A specification chains one to three known parts ("add 3, then square"). A third of the chains is
held out: pre-training never asks for them (a program with a slip may happen to be one), and the
data in data/code asks for nothing else.
How programs are written is the business of code_texts.py.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rftkit.errors import UserError
from rftkit.tasks.base import Prompt


@dataclass(frozen=True)
class Kind:
    """A known operation: its words and code, with `{k}` for a constant and `{v}` for a value."""

    name: str
    takes: str
    gives: str
    words: str
    code: str
    constants: tuple[int, ...] = (0,)


_DIGITS = tuple(range(1, 10))
_KINDS = (
    Kind("add", "number", "number", "add {k}", "{v} + {k}", _DIGITS),
    Kind("subtract", "number", "number", "subtract {k}", "{v} - {k}", _DIGITS),
    Kind("multiply", "number", "number", "multiply by {k}", "{v} * {k}", (2, 3, 4, 5)),
    Kind("square", "number", "number", "square", "{v} ** 2"),
    Kind("negate", "number", "number", "negate", "-{v}"),
    Kind("absolute", "number", "number", "drop the sign", "abs({v})"),
    Kind("remainder", "number", "number", "take the remainder by {k}", "{v} % {k}", (2, 3, 4, 5)),
    Kind("cap", "number", "number", "cap at {k}", "min({v}, {k})", _DIGITS),
    Kind("raise", "number", "number", "raise to at least {k}", "max({v}, {k})", _DIGITS),
    Kind("upper", "text", "text", "turn to upper case", "{v}.upper()"),
    Kind("lower", "text", "text", "turn to lower case", "{v}.lower()"),
    Kind("mark", "text", "text", 'add "!"', '{v} + "!"'),
    Kind("sort", "list", "list", "sort", "sorted({v})"),
    Kind("append", "list", "list", "append {k}", "{v} + [{k}]", _DIGITS),
    Kind("shift", "list", "list", "add {k} to each", "[i + {k} for i in {v}]", _DIGITS),
    Kind("above", "list", "list", "keep those above {k}", "[i for i in {v} if i > {k}]", _DIGITS),
    Kind("sum", "list", "number", "sum up", "sum({v})"),
)
_SLICES = (
    ("reverse", "reverse", "{v}[::-1]", (0,)),
    ("rest", "drop the first", "{v}[1:]", (0,)),
    ("most", "drop the last", "{v}[:-1]", (0,)),
    ("head", "keep the first {k}", "{v}[:{k}]", (2, 3, 4)),
    ("repeat", "repeat {k} times", "{v} * {k}", (2, 3)),
)
KINDS = {
    (kind.takes, kind.name): kind
    for kind in (
        *_KINDS,
        *(Kind(n, t, t, w, c, ks) for t in ("text", "list") for n, w, c, ks in _SLICES),
        *(Kind("length", t, "number", "take the length", "len({v})") for t in ("text", "list")),
    )
}
ARGUMENTS = {"number": "x", "text": "s", "list": "a"}
FRAMES = (
    "Write {f}: {steps}.",
    "Define {f} to {steps}.",
    "{f} should {steps}.",
    "Write {f} for a {type} {a}: {steps}.",
)

# Inputs of the visible tests are few and easy, so that some wrong programs pass them.
EASY: dict[str, list[Any]] = {
    "number": [0, 1, 2, 3],
    "text": ["a", "no", "ok", "abc"],
    "list": [[], [1], [2, 1], [1, 2, 3]],
}
HARD: dict[str, list[Any]] = {
    "number": [-12, -7, -2, -1, 0, 5, 8, 13],
    "text": ["", "Z", "Ab", "noon", "Hello", "xYz go", "Python 3", " tea "],
    "list": [[], [7], [3, 1, 2], [5, 5, -1], [-2, 4, 9], [8, 2, 9, 4], [0, 6, 1, 7, 3], [10, -3]],
}


@dataclass(frozen=True)
class Part:
    """One step of a specification or of a program: an operation and its constant."""

    kind: Kind
    k: int

    @property
    def words(self) -> str:
        return self.kind.words.format(k=self.k)

    def code(self, value: str) -> str:
        """The step as an expression on `value`."""
        return self.kind.code.format(v=value, k=self.k)


Chain = tuple[Part, ...]


def draw_chain(rng: random.Random) -> Chain:
    """One to three parts, each of another kind, whose types fit together."""
    type_ = rng.choice(("number", "text", "list"))
    parts: list[Part] = []
    for _ in range(rng.choice((1, 1, 2, 2, 2, 2, 2, 3))):
        used = {part.kind.name for part in parts}
        kinds = [kind for kind in KINDS.values() if kind.takes == type_ and kind.name not in used]
        kind = rng.choice(kinds)
        parts.append(Part(kind, rng.choice(kind.constants)))
        type_ = kind.gives
    return tuple(parts)


def held_out(chain: Chain) -> bool:
    """Whether pre-training never asks for this chain of kinds, whatever its constants."""
    kinds = ">".join(part.kind.name for part in chain)
    return len(chain) > 1 and zlib.crc32(f"{chain[0].kind.takes}:{kinds}".encode()) % 3 == 0


def write_prompt(chain: Chain, rng: random.Random) -> Prompt:
    """The chain in words, with the columns that scoring and pre-training need."""
    name = rng.choice("fgh")
    argument = ARGUMENTS[chain[0].kind.takes]
    steps = rng.choice((", then ", " and then ")).join(part.words for part in chain)
    text = rng.choice(FRAMES).format(
        f=f"{name}({argument})", steps=steps, type=chain[0].kind.takes, a=argument
    )
    easy = rng.sample(EASY[chain[0].kind.takes], 2)
    hard = [value for value in HARD[chain[0].kind.takes] if value not in easy]
    columns = {
        "name": name,
        "takes": chain[0].kind.takes,
        "parts": [[part.kind.name, part.k] for part in chain],
        "tests": _tests(name, chain, easy),
        "hidden_tests": _tests(name, chain, hard),
    }
    return Prompt(({"role": "user", "content": text},), columns)


def chain_of(prompt: Prompt) -> Chain:
    """The chain that a prompt of `write_prompt` asks for.

    Raises UserError where its columns name none: they may come from a user's file.
    """
    parts: list[Part] = []
    try:
        type_: str = prompt.columns["takes"]
        for name, k in prompt.columns["parts"]:
            parts.append(Part(KINDS[type_, name], int(k)))  # a number, for it becomes code
            type_ = parts[-1].kind.gives
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"takes, parts: no chain of this task's operations ({error!r})") from None
    return tuple(parts)


def apply(chain: Chain, value: Any) -> Any:
    """What a right program returns for the argument `value`."""
    for part in chain:
        value = _function(part)(value)
    return value


@cache
def _function(part: Part) -> Callable[[Any], Any]:
    # The text evaluated is the table's own, never a response.
    return eval(f"lambda value: {part.code('value')}")


def wrong(chain: Chain, rng: random.Random) -> Chain:
    """A slip: another constant, another operation, another order, or a part left out.

    The chain as it is where no part can be mistaken for another.
    """
    slips = [slip for at in range(len(chain)) for slip in _slips(chain, at, rng)]
    return rng.choice(slips) if slips else chain


def _slips(chain: Chain, at: int, rng: random.Random) -> Iterator[Chain]:
    kind, names = chain[at].kind, {part.kind.name for part in chain}
    others = [o for o in KINDS.values() if _fits(o, kind) and o.name not in names]
    if len(kind.constants) > 1:
        k = rng.choice([k for k in kind.constants if k != chain[at].k])
        yield _replaced(chain, at, Part(kind, k))
    if others:
        other = rng.choice(others)
        yield _replaced(chain, at, Part(other, rng.choice(other.constants)))
    if len(chain) > 1 and kind.takes == kind.gives:
        yield chain[:at] + chain[at + 1 :]
    if at and _fits(kind, chain[at - 1].kind):
        yield (*chain[: at - 1], chain[at], chain[at - 1], *chain[at + 1 :])


def _fits(one: Kind, other: Kind) -> bool:
    return (one.takes, one.gives) == (other.takes, other.gives)


def _replaced(chain: Chain, at: int, part: Part) -> Chain:
    return (*chain[:at], part, *chain[at + 1 :])


def _tests(name: str, chain: Chain, inputs: Sequence[Any]) -> list[dict[str, str]]:
    return [{"call": f"{name}({value!r})", "expect": repr(apply(chain, value))} for value in inputs]
