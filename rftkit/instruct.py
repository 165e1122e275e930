"""How an instruct model refines: the prompt it is given, and how its answer is read.

The prompt: rules, two worked examples, the draft in tags. The answer may bring a preamble or a
fence, which are stripped, and is refused where it is no minimal correction. It is read as the
tokens that the model wrote; only where a tag cuts through a token is text encoded again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rftkit.chat import encode_text
from rftkit.diff import diff
from rftkit.metrics import edit_ratio, rep_3
from rftkit.models import Policy

RULES = """\
You correct drafts with as few edits as possible. You see what a user asked and the draft of a \
reply. Write the draft again between <refined> and </refined>: copy word for word whatever is \
sound, and change only what is broken, such as repetition, padding, gibberish, broken syntax or a \
wrong word. If nothing is broken, copy the draft unchanged. Add no comment of your own."""

# (what the user asked, draft, refined): one that is broken, one that is to be copied.
EXAMPLES = (
    (
        "When does the library open on Sunday?",
        "The library opens opens at ten on Sunday. Thank you! Thank you! Thank you! Thank you!",
        "The library opens at ten on Sunday. Thank you!",
    ),
    (
        "Write half(x) in Python.",
        "def half(x):\n    return x / 2",
        "def half(x):\n    return x / 2",
    ),
)
OPEN, CLOSE = "<refined>", "</refined>"
PREAMBLE_TOKENS = 32  # that an answer may have beyond the refined response
FALLBACKS = ("cut off", "empty", "not minimal")

_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly|of course|okay)\b[^\n:]{0,20})?"
    r"(?:here(?: is|'s)|the (?:refined|corrected|revised))\b[^\n:]{0,80}:",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)


class Answer(NamedTuple):
    """What the refiner wrote, read: ids with EOS; why it is refused ("" = it is not); whether a
    preamble or a fence was stripped."""

    ids: list[int]
    fallback: str = ""
    stripped: bool = False


class InstructForm:
    """The refiner's prompt for a model with a chat template, and the reading of its answers."""

    shares_start = True  # all prompts begin alike, with the rules and the examples

    def __init__(self, policy: Policy, max_new_tokens: int, edit_limit: float, rules: str = RULES):
        """edit_limit: an edit ratio above it is refused; see `_refused`."""
        self.policy, self.max_new_tokens = policy, max_new_tokens
        self.edit_limit, self.rules = edit_limit, rules
        self._close = policy.encode(CLOSE)
        self.limit = max_new_tokens + len(self._close) + PREAMBLE_TOKENS  # tokens of an answer

    def context(self, messages: Sequence[Mapping[str, Any]], response: Sequence[int]) -> list[int]:
        """Ids up to where the refined response begins; its opening tag is already written.

        A system message, which told the policy what a good response is, joins the rules.
        """
        told = [m["content"] for m in messages if m["role"] == "system"]
        asked = [m for m in messages if m["role"] != "system"]
        rules = "\n\n".join(
            [self.rules, *(f"The reply was to follow these rules: {t}" for t in told)]
        )
        turns: list[dict[str, Any]] = [{"role": "system", "content": rules}]
        for prompt, draft, refined in EXAMPLES:
            turns.append({"role": "user", "content": self._request(prompt, self._encode(draft))})
            answer = self._encode(OPEN) + self._encode(refined) + self._close
            turns.append({"role": "assistant", "content": answer})
        request = self._request(_said(asked), self._body(response))
        turns.append({"role": "user", "content": request})
        return self.policy.encode_chat(turns) + self._encode(OPEN)

    def draft(self, response: Sequence[int]) -> list[int]:
        """The answer to expect: the response unchanged."""
        return [*self._body(response), *self._close, self._end(response)]

    def read(self, response: Sequence[int], written: Sequence[int]) -> Answer:
        """The refined response in what the model wrote; the response itself where it is refused."""
        ended = written[-1] in self.policy.eos_ids
        pieces = _pieces(self.policy.tokenizer, self._body(written))
        text, said = "".join(piece for piece, _ in pieces), self.policy.decode(response)
        start, end, closed, stripped = _find(text, said)
        body = self._body(response)
        refined = _keep(self.policy, body, self._cut(pieces, start, end))
        why = self._refused(body, refined, closed or ended)
        if why:
            return Answer(list(response), why, stripped)
        return Answer([*refined, self._end(response)], "", stripped)

    def _refused(self, response: list[int], refined: list[int], complete: bool) -> str:
        """Why a refinement is none, or "".

        What repeats itself may lose that much more than the limit: a flood has to be cut.
        """
        if not complete or len(refined) >= self.max_new_tokens:
            return "cut off"
        if response and not self.policy.decode(refined).strip():
            return "empty"
        limit = self.edit_limit + rep_3(response)
        return "not minimal" if response and edit_ratio(response, refined) > limit else ""

    def _request(self, prompt: str, draft: list[int]) -> list[int]:
        head, tail = f"<prompt>{prompt}</prompt>\n<draft>", "</draft>"
        return self._encode(head) + draft + self._encode(tail)

    def _cut(self, pieces: Sequence[tuple[str, list[int]]], start: int, end: int) -> list[int]:
        """The ids that spell [start, end) of the text; a piece that is cut is encoded again."""
        ids, place = [], 0
        for text, piece in pieces:
            inside = text[max(0, start - place) : max(0, end - place)]
            ids += piece if inside == text else self._encode(inside)
            place += len(text)
        return ids

    def _encode(self, text: str) -> list[int]:
        return encode_text(self.policy.tokenizer, text) if text else []

    def _body(self, ids: Sequence[int]) -> list[int]:
        body = list(ids)
        while body and body[-1] in self.policy.eos_ids:
            body.pop()
        return body

    def _end(self, response: Sequence[int]) -> int:
        """EOS: the one that the response has, if it has one."""
        last = response[-1] if response else None
        return last if last in self.policy.eos_ids else self.policy.tokenizer.eos_token_id


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _find(text: str, response: str) -> tuple[int, int, bool, bool]:
    """Where the refined response stands in an answer: start, end, closed by its tag, stripped."""
    start, end = 0, len(text)
    if OPEN in text and OPEN not in response:  # it began again, behind a preamble
        start = text.index(OPEN) + len(OPEN)
    if closed := CLOSE in text[start:]:
        end = text.index(CLOSE, start)
    stripped = start > 0
    for pattern, group in ((_PREAMBLE, None), (_FENCE, 1)):
        start, end = _trim(text, start, end, response)
        found = pattern.match(text, start, end)
        if not found or pattern.match(response):
            continue
        if group is None:
            start = found.end()
        elif found.end() == end:
            start, end = found.span(group)
        else:
            continue
        stripped = True
    return (*_trim(text, start, end, response), closed, stripped)


def _trim(text: str, start: int, end: int, response: str) -> tuple[int, int]:
    """Without white space at an end where the response has none."""
    while start < end and text[start].isspace() and not response[:1].isspace():
        start += 1
    while start < end and text[end - 1].isspace() and not response[-1:].isspace():
        end -= 1
    return start, end


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Text cut where tokens meet: (text, ids) each, a character of several tokens in one piece.

    One piece in all where the tokenizer writes its tokens differently one by one.
    """
    pieces: list[tuple[str, list[int]]] = []
    held: list[int] = []
    for i in ids:
        held.append(i)
        text = tokenizer.decode(held)
        if "\ufffd" not in text:
            pieces.append((text, held))
            held = []
    if held:
        pieces.append((tokenizer.decode(held), held))
    whole = tokenizer.decode(list(ids))
    return pieces if "".join(text for text, _ in pieces) == whole else [(whole, list(ids))]


def _keep(policy: Policy, response: list[int], refined: list[int]) -> list[int]:
    """`refined` with the response's own tokens wherever both spell the same text."""
    kept: list[int] = []
    dropped: list[int] = []
    for op, ids in [*diff(response, refined), ("equal", [])]:
        if op == "delete":
            dropped = ids
            continue
        same = op == "insert" and dropped and policy.decode(ids) == policy.decode(dropped)
        kept += dropped if same else ids
        dropped = []
    return kept
