"""The form of a Python program, right or wrong: what makes a code response degenerate.

Wide on purpose: any program that a person may write passes. What fails does not parse, defines
something else than was asked for, or loops and pads. Nothing here runs a program.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby

MAX_COMMENTS = 2  # or one in three lines of code, whichever is more
MAX_BLANK_LINES = 2  # in a row
MAX_COPIES = 3  # of a short span in a row
MAX_ITEMS = 12  # equal ones between commas, as in [0, 0, 0, 0]
MAX_CHARACTERS = 20_000
MAX_DEPTH = 100  # of the syntax tree: what walks it recursively stays far from Python's limit
MAX_BITS = 10_000  # of an integer; Python writes none of over 4300 decimal digits
_SPAN = 4  # tokens; longer loops show as repeated statements
_WORD = re.compile(r"\w+")
_FENCE = re.compile(r"```(?:python|py)?\n(.*?)\n?```\s*", re.DOTALL)
_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def program_of(response: str) -> str:
    """The program in a response: all of it, or what stands in a Markdown fence around all of it."""
    fenced = _FENCE.fullmatch(response)
    return fenced[1] if fenced else response


def parse(program: str) -> ast.Module | None:
    """The syntax tree; None where the program does not parse, or is too long, deep or large to."""
    if len(program) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape in a string
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if _depth(tree) <= MAX_DEPTH and not any(map(_is_huge, ast.walk(tree))) else None


def _is_huge(node: ast.AST) -> bool:
    """Whether it is an integer that Python refuses to write in decimal, as `ast.dump` does."""
    match node:
        case ast.Constant(value=int(number)):
            return number.bit_length() > MAX_BITS
    return False


def fault(program: str, name: str | None) -> str | None:
    """What makes the program degenerate, in words, or None where its form is sound.

    `name` is the function that was asked for; None asks for a program without one.
    """
    tree = parse(program)
    if tree is None:
        return "does not parse"
    try:
        tokens = _tokens(program)
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):  # Python 3.12: of a bare \r
        return "does not parse"
    return (
        _other_shape(tree, name)
        or _padded_code(tree)
        or _looping_tokens(tokens)
        or _padded_comments(program, tokens)
        or _padded_lines(program)
    )


def _tokens(program: str) -> list[tokenize.TokenInfo]:
    """The program's tokens, an f-string as one, which Python 3.12 and later take apart."""
    lines = program.split("\n")
    tokens: list[tokenize.TokenInfo] = []
    begun: list[tokenize.TokenInfo] = []  # f-strings that have not ended, the outermost first
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            begun.append(token)
        elif kind == "FSTRING_END":
            first = begun.pop()
            text = _between(lines, first.start, token.end)
            token = token._replace(type=tokenize.STRING, string=text, start=first.start)
        if not begun:
            tokens.append(token)
    return tokens


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two places (line from 1, column from 0)."""
    parts = list(lines[start[0] - 1 : end[0]])
    parts[-1] = parts[-1][: end[1]]
    parts[0] = parts[0][start[1] :]
    return "\n".join(parts)


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _other_shape(tree: ast.Module, name: str | None) -> str | None:
    """Besides the function there may be imports, a docstring, and helpers that are used."""
    if name is None:
        return None if tree.body else "is empty"
    statements = [s for s in tree.body if not isinstance(s, ast.Import | ast.ImportFrom)]
    if statements and _is_text(statements[0]):
        statements = statements[1:]
    names = [_defined(statement) for statement in statements]
    if names.count(name) != 1 or not _is_function(statements[names.index(name)]):
        return f"does not define one function {name}"
    if None in names:
        return "does more than define a function"
    loaded = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    used = {name, *(node.id for node in loaded)}
    if len(set(names)) < len(names) or not used.issuperset(names):
        return "defines more than it uses"
    return None


def _defined(statement: ast.stmt) -> str | None:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return name
    return None


def _is_function(statement: ast.stmt) -> bool:
    match statement:
        case ast.FunctionDef():
            return True
        case ast.Assign(value=ast.Lambda()) | ast.AnnAssign(value=ast.Lambda()):
            return True
    return False


def _is_text(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _padded_code(tree: ast.Module) -> str | None:
    for block in _blocks(tree):
        # Calls may well stand twice (`next(rows)`), so no two of them count as the same.
        lines = [f"call {i}" if _is_call(s) else ast.dump(s) for i, s in enumerate(block)]
        if longest_loop(lines, 2 * _SPAN) > 1:
            return "repeats statements"
        if any(isinstance(statement, _ENDS) for statement in block[:-1]):
            return "goes on after its end"
        if any(map(_is_idle, block[1:] if _is_text(block[0]) else block)):
            return "has statements that do nothing"
    return None


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                yield block


def _is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


def _is_idle(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=value)):
            return value is not ...
        case ast.Expr(value=ast.Name() | ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.Tuple()):
            return True
    return False


def _looping_tokens(tokens: Sequence[tokenize.TokenInfo]) -> str | None:
    code = [t.string for t in tokens if t.type not in _LAYOUT and t.string not in "()[]{}"]
    texts = [t.string for t in tokens if t.type in (tokenize.STRING, tokenize.COMMENT)]
    words = _WORD.findall(" ".join(texts))
    if longest_loop(words, _SPAN) > MAX_COPIES or longest_loop(code, _SPAN) > MAX_ITEMS:
        return "repeats itself"
    items = [list(group) for comma, group in groupby(code, ",".__eq__) if not comma]
    if any(longest_loop(item, _SPAN) > MAX_COPIES for item in items):
        return "repeats itself"
    return None


def longest_loop(units: Sequence[str], span: int) -> int:
    """How many times in a row a sequence of at most `span` units stands, at its worst."""
    worst = min(len(units), 1)
    for length in range(1, span + 1):
        run = 0  # units that equal the one a span before
        for i in range(length, len(units)):
            run = run + 1 if units[i] == units[i - length] else 0
            worst = max(worst, run // length + 1)
    return worst


def _padded_comments(program: str, tokens: Sequence[tokenize.TokenInfo]) -> str | None:
    comments = [t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT]
    words = [_WORD.findall(comment) for comment in comments]
    if program.count("#") > max(MAX_COMMENTS, code_lines(program) // 3):
        return "piles up comments"
    if any("#" in comment for comment in comments) or not all(words):
        return "has an empty comment"
    if len(set(comments)) < len(comments):
        return "repeats a comment"
    if any(longest_loop(comment, 1) > 1 for comment in words):
        return "repeats a word in a comment"
    return None


def _padded_lines(program: str) -> str | None:
    blank = [not line.strip() for line in program.removesuffix("\n").split("\n")]
    runs = [sum(run) for is_blank, run in groupby(blank) if is_blank]
    if max(runs, default=0) > MAX_BLANK_LINES:
        return "piles up blank lines"
    return None


def code_lines(program: str) -> int:
    """Lines that hold more than a comment."""
    lines = [line.strip() for line in program.split("\n")]
    return sum(bool(line) and not line.startswith("#") for line in lines)
