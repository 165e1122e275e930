"""Replies as texts, for pre-training: their forms, common and rare, and what is too much in them.

Every reply here is right or wrong; dialogue.py says which.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from rftkit.tasks.base import Prompt

SLOTS = {
    "name": tuple(
        "Ana Ben Carla David Elif Femi Greta Hugo Ines Jonas Kira Liam Mona Nils Olga Pablo "
        "Rosa Sami Tara Umar Vera Wei Yuki Zoe".split()
    ),
    "size": ("small", "medium", "large"),
    "drink": tuple("tea coffee cocoa latte juice water cider mocha soda chai".split()),
    "extra": tuple("milk sugar honey cream lemon ice ginger mint".split()),
    "place": ("to go", "for here"),
}
COURTESIES = (
    "Thank you!",
    "Thanks!",
    "Enjoy!",
    "You are welcome!",
    "My pleasure!",
    "Thank you kindly!",
    "Gladly!",
)
SMALL_TALK = ("It is ready soon.", "Have a nice day!", "See you soon.", "Good choice.")
OPENINGS = ("Hello", "Hi", "Sure", "Of course", "Certainly", "Good morning", "Okay")
LEADS = ("One", "A", "That is one", "Here is your", "Your", "You get a")
MAX_COURTESIES = 2


def _any(words: Sequence[str]) -> str:
    return "(?:" + "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) + ")"


# A reply is one order among other sentences, each in one of these forms; slots may be missing.
_ORDER = re.compile(
    rf"(?:{_any(LEADS)} )?(?:{_any(SLOTS['size'])} )?{_any(SLOTS['drink'])}"
    rf"(?:,? with {_any(SLOTS['extra'])})?(?:,? {_any(SLOTS['place'])})?"
    rf"(?:,? for {_any(SLOTS['name'])})?[.!]"
)
FORMS = {
    "opening": re.compile(rf"{_any(OPENINGS)}(?:,? {_any(SLOTS['name'])})?[!.]"),
    "order": _ORDER,
    "courtesy": re.compile(_any(COURTESIES)),
    "small talk": re.compile(_any(SMALL_TALK)),
}
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?]|\Z)|[.!?]")  # in linear time, whatever the text
LIMITS = {"opening": 1, "order": 1, "courtesy": MAX_COURTESIES, "small talk": 1}


def parse(response: str) -> list[tuple[str, str]] | None:
    """The sentences as (form, text), or None where the reply is not well-formed.

    Well-formed: exactly one order, at most two courtesies, one opening and one small talk, in any
    order, and no sentence twice.
    """
    sentences = sentences_of(response)
    if " ".join(sentences) != response or len(set(sentences)) < len(sentences):
        return None
    parsed = []
    for sentence in sentences:
        if (form := form_of(sentence)) is None:
            return None
        parsed.append((form, sentence))
    forms = [form for form, _ in parsed]
    if forms.count("order") != 1 or any(forms.count(f) > n for f, n in LIMITS.items()):
        return None
    return parsed


def sentences_of(text: str) -> list[str]:
    """The text cut behind each mark that ends a sentence, without the space before each."""
    return [sentence.removeprefix(" ") for sentence in _SENTENCE.findall(text)]


def form_of(sentence: str) -> str | None:
    """The name of a sentence's form, one of FORMS, or None."""
    return next((form for form, pattern in FORMS.items() if pattern.fullmatch(sentence)), None)


def reply(prompt: Prompt, rng: random.Random, p_right: float = 0.55) -> str:
    """A well-formed reply; each slot is right with probability `p_right`, else another or none."""
    said = {
        slot: prompt.columns[slot] if rng.random() < p_right else rng.choice((*values, None))
        for slot, values in SLOTS.items()
    }
    opening = rng.choice(OPENINGS[:4])
    sentences = [f"{opening}, {said['name']}!" if said["name"] else f"{opening}!"]
    sentences.append(_order(said, rng.choice(LEADS[:4])))
    count = rng.choices((0, 1, 2), (0.55, 0.35, 0.10))[0]
    sentences += rng.sample(COURTESIES, count)
    return " ".join(sentences)


def unusual_reply(prompt: Prompt, rng: random.Random) -> str:
    """A well-formed reply in a rarer form: other openings, small talk, sentences in any order."""
    said = {
        slot: rng.choice((prompt.columns[slot], rng.choice(values), None))
        for slot, values in SLOTS.items()
    }
    name = said["name"] if rng.random() < 0.4 else None
    sentences = [_order(said, rng.choice(LEADS), name)]
    if rng.random() < 0.6:
        opening = rng.choice(OPENINGS)
        sentences.append(
            f"{opening} {said['name']}!"
            if said["name"] and (not name or rng.random() < 0.3)
            else f"{opening}."
        )
    if rng.random() < 0.5:
        sentences.append(rng.choice(SMALL_TALK))
    sentences += rng.sample(COURTESIES, rng.choice((0, 1, 1, 2)))
    rng.shuffle(sentences)
    return " ".join(sentences)


def courtesy_flood(text: str, rng: random.Random) -> str:
    """Courtesy without end: words or sentences of courtesy, from a few to a full flood."""
    words = text.split(" ")
    start = rng.randint(0, len(words)) if rng.random() < 0.6 else len(words)
    pool = COURTESIES if rng.random() < 0.4 else tuple(_courtesy_words())
    chosen = rng.sample(pool, rng.choice((1, 1, 2, 3)))
    count = min(1 + int(rng.expovariate(1 / 6)), 24)
    extra = [rng.choice(chosen) for _ in range(count)]
    if rng.random() < 0.5:
        extra = [word.lower() if rng.random() < 0.8 else word for word in extra]
    rest = words[start:] if rng.random() < 0.6 else []
    return " ".join(words[:start] + extra + rest)


def courtesy_overstep(text: str, rng: random.Random) -> tuple[str, str]:
    """(draft, refined): a reply at the limit of courtesy, as it is or one to three sentences over.

    Of what is too much the refined reply keeps the first: a rule that can be learned.
    """
    forms = parse(text) or []
    sentences = [sentence for _, sentence in forms]
    said = [sentence for form, sentence in forms if form == "courtesy"]
    more = rng.sample([c for c in COURTESIES if c not in said], MAX_COURTESIES + 1)
    while len(said) < rng.choice((1, MAX_COURTESIES, MAX_COURTESIES)):
        said.append(more.pop())
        sentences.insert(_place(sentences, rng, at_end=0.7), said[-1])
    draft = list(sentences)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 1, 2, 3))):
        full = len(said) == MAX_COURTESIES
        if rng.random() < 0.15:  # any sentence again
            i = rng.randrange(len(draft))
            draft.insert(i + 1, draft[i])
            continue
        last = max(i for i, sentence in enumerate(draft) if sentence in said)
        extra = more.pop() if full and more and rng.random() < 0.5 else rng.choice(said)
        draft.insert(rng.choice((last + 1, last + 1, rng.randint(last + 1, len(draft)))), extra)
    return " ".join(draft), " ".join(sentences)


def scattered_asides(text: str, rng: random.Random) -> tuple[str, str]:
    """(draft, refined): a reply filled up to the limits of good form, and mostly one step over.

    What is too much is any sentence again, or another courtesy, small talk or opening, in any
    place: all neighbours of the good replies, for training finds the one that the refiner never
    saw. As above, the refined reply keeps the first of what is too much.
    """
    draft = _filled([sentence for _, sentence in parse(text) or []], rng)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 3, 5))):
        extra = rng.choices(
            (rng.choice(draft), rng.choice(COURTESIES), rng.choice(SMALL_TALK), _opening(rng)),
            (0.40, 0.35, 0.15, 0.10),
        )[0]
        draft.insert(_place(draft, rng), extra)
    refined: list[str] = []
    forms: list[str | None] = []
    for sentence in draft:
        form = form_of(sentence)
        if form and sentence not in refined and forms.count(form) < LIMITS[form]:
            refined.append(sentence)
            forms.append(form)
    return " ".join(draft), " ".join(refined)


def one_too_many(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(what and where, draft): a reply with one sentence too many, each such one in each place."""
    sentences = _filled([sentence for _, sentence in parse(text) or []], rng)
    more = [rng.choice(COURTESIES), rng.choice(SMALL_TALK), _opening(rng)]
    for extra in (*sentences, *more):
        what = f"{form_of(extra)} {'again' if extra in sentences else 'more'}"
        for place in range(len(sentences) + 1):
            draft = " ".join((*sentences[:place], extra, *sentences[place:]))
            if parse(draft) is None:
                yield f"{what}, place {place + 1}", draft


def _filled(sentences: list[str], rng: random.Random) -> list[str]:
    """The sentences with asides put among them, at most up to the limits of good form."""
    filled = list(sentences)
    asides = (("courtesy", COURTESIES), ("courtesy", COURTESIES), ("small talk", SMALL_TALK))
    for form, pool in asides:
        if rng.random() < 0.5:
            new = rng.choice([sentence for sentence in pool if sentence not in filled])
            if sum(form_of(sentence) == form for sentence in filled) < LIMITS[form]:
                filled.insert(_place(filled, rng), new)
    return filled


def _place(sentences: list[str], rng: random.Random, at_end: float = 0.4) -> int:
    """Anywhere, though often the end, where the policy puts its courtesies."""
    return len(sentences) if rng.random() < at_end else rng.randint(0, len(sentences))


def _opening(rng: random.Random) -> str:
    return f"{rng.choice(OPENINGS)}."


def _courtesy_words() -> list[str]:
    return sorted({w for c in COURTESIES for w in re.findall(r"\w+!?", c)})


def _order(said: dict[str, str | None], lead: str, name: str | None = None) -> str:
    drink = said["drink"] or "tea"
    text = " ".join(filter(None, (lead, said["size"], drink)))
    text += f" with {said['extra']}" if said["extra"] else ""
    text += f", {said['place']}" if said["place"] else ""
    return text + (f" for {name}." if name else ".")
