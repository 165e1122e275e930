"""Programs as texts, for pre-training: common forms, rare forms, and the floods training may grow.

Every program here is written from a chain of parts, right or wrong; code_specs.py says which.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rftkit.tasks.code_form import MAX_COMMENTS
from rftkit.tasks.code_specs import ARGUMENTS, KINDS, Chain, Part

NAMES = ("n", "value", "data", "t", "z")
MAX_FLOOD = 240  # characters: more than the policy can write
HINTS = {"number": "int", "text": "str", "list": "list"}
COMMENT_STYLES = ("# {}.", "#{}", "# now {}", "# step: {}", "# {} here")
# Parts that a person may also write as a branch (condition, then) or as a loop (start, body).
_BRANCHES = {
    "absolute": ("{v} < 0", "-{v}"),
    "cap": ("{v} > {k}", "{k}"),
    "raise": ("{v} < {k}", "{k}"),
}
_LOOPS = {
    "sum": ("0", "r += i"),
    "length": ("0", "r += 1"),
    "shift": ("[]", "r.append(i + {k})"),
}


@dataclass
class Style:
    """How a program is laid out; the defaults are the common form."""

    argument: str = ""  # the prompt's when empty
    variable: str = ""  # where steps are kept; the argument when empty
    indent: str = "    "
    hints: bool = False
    docstring: bool = False
    augmented: bool = False  # x += 3 instead of x = x + 3
    branches: bool = False  # branches and loops where a part has such a form
    explained: Sequence[int] = ()  # parts that have a comment
    behind: bool = False  # comments stand behind the code, not above it
    comment: str = "# {}"


def common(name: str, chain: Chain, rng: random.Random) -> str:
    """The form that most programs have: a line a part, none to two of them explained."""
    count = min(len(chain), rng.choices((0, 1, 2), (0.45, 0.40, 0.15))[0])
    explained = rng.sample(range(len(chain)), count)
    behind = count == 1 and rng.random() < 0.3
    variable = "y" if rng.random() < 0.25 else ""
    return steps(name, chain, Style(variable=variable, explained=explained, behind=behind))


def rare(name: str, chain: Chain, rng: random.Random) -> str:
    """A form that few programs have: one expression, a lambda, hints, branches, other names..."""
    argument = rng.choice((ARGUMENTS[chain[0].kind.takes], *NAMES))
    whole = expression(chain, argument)
    match rng.choices(("steps", "nested", "one line", "lambda"), (0.7, 0.15, 0.1, 0.05))[0]:
        case "nested":
            return f"def {name}({argument}):\n    return {whole}"
        case "one line":
            return f"def {name}({argument}): return {whole}"
        case "lambda":
            return f"{name} = lambda {argument}: {whole}"
    style = Style(
        argument=argument,
        variable=rng.choice(("", "", "y", "r", "result")),
        indent=rng.choice(("    ", "    ", "  ", "\t")),
        hints=rng.random() < 0.2,
        docstring=rng.random() < 0.15,
        augmented=rng.random() < 0.3,
        branches=rng.random() < 0.6,
        explained=rng.sample(range(len(chain)), rng.choice((0, 0, 1, min(2, len(chain))))),
        behind=rng.random() < 0.4,
        comment=rng.choice(COMMENT_STYLES),
    )
    return steps(name, chain, style)


def steps(name: str, chain: Chain, style: Style) -> str:
    """A line a part; the last one returns."""
    value = style.argument or ARGUMENTS[chain[0].kind.takes]
    lines = [_head(name, value, chain, style.hints)]
    if style.docstring:
        words = ", then ".join(part.words for part in chain).replace('"', "")
        lines.append(f'{style.indent}"""{words}"""')
    for i, part in enumerate(chain):
        code = _step(part, value, style, last=i == len(chain) - 1)
        value = style.variable or value
        if i in style.explained:
            comment = style.comment.format(part.words)
            code = [f"{code[0]}  {comment}", *code[1:]] if style.behind else [comment, *code]
        lines += [style.indent + line.replace("\t", style.indent) for line in code]
    return "\n".join(lines)


def expression(chain: Chain, value: str) -> str:
    """The whole chain as one expression with no needless brackets."""
    for part in chain:
        value = f"({part.code(value)})"
    return ast.unparse(ast.parse(value))


def _head(name: str, argument: str, chain: Chain, hints: bool) -> str:
    if not hints:
        return f"def {name}({argument}):"
    takes, gives = HINTS[chain[0].kind.takes], HINTS[chain[-1].kind.gives]
    return f"def {name}({argument}: {takes}) -> {gives}:"


def _step(part: Part, value: str, style: Style, last: bool) -> list[str]:
    """One part as lines; a tab stands for one more level of indentation."""
    kind, kept = part.kind.name, style.variable or value
    if style.branches and last and kind in _BRANCHES:
        condition, then = (text.format(v=value, k=part.k) for text in _BRANCHES[kind])
        return [f"if {condition}:", f"\treturn {then}", f"return {value}"]
    if style.branches and last and kind in _LOOPS and value != "r":
        start, body = (text.format(k=part.k) for text in _LOOPS[kind])
        return [f"r = {start}", f"for i in {value}:", f"\t{body}", "return r"]
    if last:
        return [f"return {part.code(value)}"]
    if style.augmented and kept == value and part.kind.code.startswith(("{v} + ", "{v} - ")):
        return [f"{value} {part.kind.code[4]}= {part.code('')[3:]}"]
    return [f"{kept} = {part.code(value)}"]


# Floods. Each takes the lines of a program and returns them damaged.


def flood(text: str, rng: random.Random) -> str:
    """One or two kinds of padding grown on a program, from one comment too many to nothing else."""
    kinds = (_marks, _marks, _marks, _stack, _stack, _words, _statements, _indents, _blanks)
    for _ in range(rng.choice((1, 1, 1, 2))):
        text = rng.choice(kinds)(text, rng)
    if rng.random() < 0.1:
        text = text[: rng.randint(len(text) // 3, len(text))]
    return text[:MAX_FLOOD]


def overstep(
    name: str, chain: Chain, rng: random.Random, anywhere: bool = False
) -> tuple[str, str]:
    """(draft, refined): a program with comments up to their limit, or one to three too many.

    These follow the program's own comments, or stand `anywhere`, also before them. Of what is too
    much the refined program keeps the first: a rule that can be learned.
    """
    lines = _explained(name, chain, (1, 2, 2), rng).split("\n")
    own = [line[line.index("#") :] for line in lines if "#" in line]
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        more = rng.choice((*own, *own, _comment(rng), _comment(rng), "#"))
        last = max(i for i, line in enumerate(lines) if "#" in line)
        at = rng.randint(0 if anywhere else last, len(lines) - 1)
        if rng.random() < 0.5:
            lines[at] += f" {more}" if rng.random() < 0.5 else f"  {more}"
        else:
            lines.insert(at + 1, f"    {more}")
    return "\n".join(lines), "\n".join(_few_comments(lines))


def _explained(name: str, chain: Chain, counts: Sequence[int], rng: random.Random) -> str:
    """A program in its common layout with one of `counts` of its parts explained."""
    explained = rng.sample(range(len(chain)), min(len(chain), rng.choice(counts)))
    variable = "y" if rng.random() < 0.25 else ""
    return steps(
        name, chain, Style(variable=variable, explained=explained, behind=rng.random() < 0.3)
    )


def one_comment_more(name: str, chain: Chain, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(what and where, draft): a program with one comment more, each kind of it in each line.

    It is one too many where it repeats one, is empty, or comes on top of MAX_COMMENTS.
    """
    lines = _explained(name, chain, (0, 1, 2), rng).split("\n")
    own = [line[line.index("#") :] for line in lines if "#" in line]
    for what, comment in (*(("again", c) for c in own), ("more", _comment(rng)), ("empty", "#")):
        for i, line in enumerate(lines):
            before, after = lines[:i], lines[i + 1 :]
            yield f"{what}, behind line {i + 1}", "\n".join((*before, f"{line}  {comment}", *after))
            yield (
                f"{what}, below line {i + 1}",
                "\n".join((*before, line, f"    {comment}", *after)),
            )


def _few_comments(lines: Sequence[str]) -> list[str]:
    """The lines with their first comments alone: as many as may be, none empty, none twice."""
    known: list[str] = []
    kept = []
    for line in lines:
        code, *comments = line.split("#")
        for comment in map(str.strip, comments):
            if comment and comment not in known and len(known) < MAX_COMMENTS:
                known.append(comment)
                kept.append(f"{code}# {comment}")
                break
        else:
            if code.strip():
                kept.append(code.rstrip())
    return kept


def comment_more(text: str, rng: random.Random) -> str:
    """One comment more than there was, which may be one too many."""
    lines = text.split("\n")
    at = rng.randrange(1, len(lines) + 1)
    if rng.random() < 0.5:
        lines[at - 1] += "  " + _comment(rng)
    else:
        lines.insert(at, "    " + _comment(rng))
    return "\n".join(lines)


def _comment(rng: random.Random) -> str:
    kind = rng.choice(list(KINDS.values()))
    words = Part(kind, rng.choice(kind.constants)).words
    return rng.choice((f"# {words}", f"# {words}", "#"))


def _count(rng: random.Random) -> int:
    return min(1 + int(rng.expovariate(1 / 5)), 20)


def _marks(text: str, rng: random.Random) -> str:
    """A run of bare marks behind some line or within it; what follows may be lost."""
    run = rng.choice(("# ", "# ", "#", " #")) * _count(rng)
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    places = [i for i, c in enumerate(lines[at]) if c == " "] + [len(lines[at])] * 3
    cut = rng.choice(places)
    lines[at] = f"{lines[at][:cut]} {run}{lines[at][cut:]}".rstrip()
    return "\n".join(lines[: at + 1] if rng.random() < 0.35 else lines)


def _stack(text: str, rng: random.Random) -> str:
    """Comment lines on top of each other: one line again and again, or several in turn."""
    lines = text.split("\n")
    own = [line.strip() for line in lines if line.strip().startswith("#")]
    pool = [rng.choice(own or [_comment(rng)])] if rng.random() < 0.5 else []
    pool = pool or [_comment(rng) for _ in range(rng.randint(1, 4))]
    at = rng.randint(0, len(lines))
    indent = "    " if at or rng.random() < 0.3 else ""
    stack = [indent + pool[i % len(pool)] for i in range(_count(rng))]
    return "\n".join(lines[:at] + stack + (lines[at:] if rng.random() < 0.65 else []))


def _words(text: str, rng: random.Random) -> str:
    """Comments behind comments: "# add 3 # add 3 # 3"."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    more = [_comment(rng) for _ in range(min(_count(rng), 6))]
    if rng.random() < 0.5:
        more = more[:1] * len(more)
    lines[at] += "  " + " ".join(more)
    return "\n".join(lines if rng.random() < 0.65 else lines[: at + 1])


def _statements(text: str, rng: random.Random) -> str:
    """A line or the whole program again and again."""
    lines = text.split("\n")
    if rng.random() < 0.2:
        return "\n".join(lines * 2)
    at = rng.randrange(len(lines))
    return "\n".join(lines[:at] + [lines[at]] * (1 + min(_count(rng), 8)) + lines[at + 1 :])


def _indents(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    lines[at] = lines[at].strip() if rng.random() < 0.6 else rng.choice((" ", "    ")) + lines[at]
    return "\n".join(lines)


def _blanks(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randint(0, len(lines))
    return "\n".join(lines[:at] + [""] * (2 + _count(rng)) + lines[at:])
