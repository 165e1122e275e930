"""From conversations to token ids, through the tokenizer's chat template.

Content never becomes a role or an end of turn: only the template's own text may hold special
tokens, whatever a prompt or a response spells out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from rftkit.errors import UserError

_MARK = re.compile("\ue0f0([0-9]+)\ue0f1")
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text; the spelling of a special token in it stays plain text.

    Half a surrogate pair, which is no text, becomes U+FFFD.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of a conversation, ending where the next turn begins.

    A message's content is text or, to skip a decode and re-encode, a list of token ids. Whatever
    else a message holds stays out, for the template would take it for text of its own. Where the
    template refuses a system role, a system message opens the user's turn. Raises UserError for a
    role that is not a plain name, and where the template drops or refuses a message.
    """
    for message in messages:
        if not _ROLE.fullmatch(message["role"]):
            raise UserError(f"role: {message['role']!r} must be a plain name, such as 'user'")
    template = _template(tokenizer)
    try:
        pieces = _skeleton(tokenizer, template, tuple(m["role"] for m in messages))
    except TemplateError as error:
        if messages[0]["role"] == "system" and len(messages) > 1:
            return encode_chat(tokenizer, _without_system(tokenizer, messages))
        name = tokenizer.name_or_path
        raise UserError(f"model: the chat template of {name!r} says: {error}") from None
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, tuple):
            ids += piece
        else:
            ids += _content_ids(tokenizer, messages[piece])
    return ids


def _content_ids(tokenizer: Any, message: Mapping[str, Any]) -> list[int]:
    content = message["content"]
    if isinstance(content, str):
        return encode_text(tokenizer, content)
    return _without_special(tokenizer, content)


def _without_system(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The first message's text in front of the second one's, behind a blank line."""
    first, second, *rest = messages
    content = [
        *encode_text(tokenizer, f"{first['content']}\n\n"),
        *_content_ids(tokenizer, second),
    ]
    return [{**second, "content": content}, *rest]


def _template(tokenizer: Any) -> str:
    """The tokenizer's chat template; of several, the one called default."""
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError:
        raise UserError("model: has no default chat template; choose an instruct model") from None
    return template


@lru_cache(maxsize=64)
def _skeleton(tokenizer: Any, template: str, roles: tuple[str, ...]) -> list[tuple[int, ...] | int]:
    """A conversation of these roles: ids of the template's own text, numbers where contents stand.

    `template` is the tokenizer's, and here only so that another one is not taken for it.
    """
    marked = [{"role": role, "content": f"\ue0f0{i}\ue0f1"} for i, role in enumerate(roles)]
    text = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    missing = set(range(len(roles))) - {int(i) for i in _MARK.findall(text)}
    if missing:
        role = roles[min(missing)]
        raise UserError(f"role: the model's chat template leaves out what {role!r} says")
    pieces: list[tuple[int, ...] | int] = []
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2:
            pieces.append(int(piece))
        elif piece:  # the template's own text, where special tokens count
            pieces.append(tuple(tokenizer(piece, add_special_tokens=False)["input_ids"]))
    return pieces


@lru_cache(maxsize=16)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Every id that may be a role or an end: Llama's headers, for one, have no name of their own
    in the tokenizer's settings, so that `all_special_ids` lacks them."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special).union(tokenizer.all_special_ids)


def _without_special(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """`ids` with each special token, which a policy may sample like any other, spelled out."""
    special = special_ids(tokenizer).intersection(ids)
    spelled = {i: encode_text(tokenizer, tokenizer.convert_ids_to_tokens(i)) for i in special}
    return [part for i in ids for part in spelled.get(i, (i,))]


def characters(tokenizer: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of `ids` that decode to whole characters: mostly one token, for an emoji up to four."""
    spans, first = [], 0
    for end in range(1, len(ids) + 1):
        broken = tokenizer.decode(ids[first:end]).endswith("\ufffd")
        if not broken or end - first == 4 or end == len(ids):  # UTF-8 takes four bytes at most
            spans.append((first, end))
            first = end
    return spans
