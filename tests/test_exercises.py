"""Every exercise with the right answer and typical wrong ones, worked out on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.exercises import check, exercises
from rftkit.health import idle_reason


def rloo(rewards: Tensor) -> Tensor:
    n = rewards.shape[-1]
    rows = [[r - (sum(row) - r) / (n - 1) for r in row] for row in rewards.tolist()]
    return torch.tensor(rows)


def bradley_terry(a: float, b: float) -> float:
    """In the form of odds, e^(a / 0.15) to e^(b / 0.15)."""
    return math.exp(a / 0.15) / (math.exp(a / 0.15) + math.exp(b / 0.15))


def kl(p: Tensor, q: Tensor) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def cross_entropy(p: Tensor, q: Tensor) -> float:
    return -sum(a * math.log(b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def stop_before_the_second_t(y: str) -> str:
    before, *rest = y.split("t")
    return y if len(rest) < 2 else f"{before}t{rest[0]}."


def one_pass(draft: list[str], wanted: list[str]) -> list[str]:
    agree = [draft[:n] == wanted[:n] for n in range(len(draft) + 1)]
    return wanted[: sum(agree)]


def gold_within_five_nats(rows: list[dict[str, float]]) -> float:
    gold = math.nan
    for row in rows:
        if row["kl"] > 5:
            break
        gold = row["gold_reward"]
    return gold


def at_rest(kept: float, repaired: float, now: float) -> float:
    """By going there, ten thousand small steps."""
    for _ in range(10_000):
        now += 0.05 * (kept * now + repaired * (1 - now) - now)
    return now


def back_to_each_place(words: list[str]) -> list[str]:
    step = {"left": -1, "right": 1, "up": 1j, "down": -1j}
    kept: list[str] = []
    places: list[complex] = [0]
    for word in words:
        places.append(places[-1] + step[word])
        kept.append(word)
        first = places.index(places[-1])
        del places[first + 1 :], kept[first:]
    return kept


def no_move_and_back(words: list[str]) -> list[str]:
    pairs = ("left right", "right left", "up down", "down up")
    text = " ".join(words)
    while any(pair in text for pair in pairs):
        for pair in pairs:
            text = " ".join(text.replace(pair, "").split())
    return text.split()


def straight_there(words: list[str]) -> list[str]:
    back = {"left": "right", "down": "up", "right": "left", "up": "down"}
    return [w for w in back for _ in range(words.count(w) - words.count(back[w]))]


def reason_for_idling(flat: float, ended: list[bool]) -> str:
    """By the kit's own rule."""
    reason = idle_reason(RunConfig(), flat, ended)
    return {"ever": "cut off", "all ": "flat"}.get(reason[:4], "")


# Name: the right answer, then wrong ones, each with a word of the hint it must get.
ON_PAPER: dict[str, tuple[Any, dict[str, Any]]] = {
    "01.1": (-math.sqrt(3), {"minus the mean": -3 / 4, "sample": -1.5, "sign": 1.7320}),
    "01.2": (0.05, {"as it was": 0.1, "smaller": -0.05, "sum": 0.5, "padding": 0.5 / 12}),
    "01.3": (1, {"Dr. GRPO": 10, "divides": 0.1}),
    "01.4": (
        rloo,
        {"included": lambda r: r - r.mean(-1, keepdim=True), "stops": lambda r: r + "x"},
    ),
    "02.1": (
        -0.2 / math.sqrt(0.145),
        {"at 0.6": 0.1 / math.sqrt(0.13), "minus the mean": -0.2, "of c.": 0.2 / math.sqrt(0.145)},
    ),
    "02.2": (0.4, {"rest": 0.6, "words": 4 / 7, "pairs": 0.5}),
    "02.3": (0.2242 - 2 * 0.0945, {"of its own": 0.1297, "alone": 0.2242, "one more": -0.189}),
    "02.4": ("alike", {"would see it": "loops", "lost": "fine"}),
    "02.5": (
        bradley_terry,
        {
            "noise": lambda a, b: 1 / (1 + math.exp(b - a)),
            "not always": lambda a, b: 1.0 * (a > b),
            "difference": lambda a, b: a / (a + b),
            "sign": lambda a, b: bradley_terry(b, a),
            "stops with": lambda a, b: math.exp(a) / 0,
        },
    ),
    "03.1": (2 * math.log(2) - 3 / 4, {"upside down": 3 - math.log(4), "k1": math.log(4)}),
    "03.2": (math.e, {"square root": math.e**2 / 2, "closer": math.e**4, "at β = 0.3": math.e**2}),
    "03.3": ("none", {"averages to zero": "KL", "refiner": "dynamic", "one of the words": "k1"}),
    "03.4": (0.51, {"first cut": 0.6, "direction": 0.49, "share": 0.52}),
    "03.5": (kl, {"under p": lambda p, q: kl(q, p), "cross-entropy": cross_entropy}),
    "04.1": (4 / 13, {"refined response": 4 / 9, "number of edits": 4, "fraction kept": 9 / 13}),
    "04.2": (1, {"plain": 20, "unread": 0, "EOS": 2}),
    "04.3": (0.75, {"4 of them": 0.3, "does nothing": 0.8, "break rate": 1 / 6}),
    "04.4": (
        one_pass,
        {
            "own token": lambda draft, wanted: one_pass(draft, wanted)[:-1],
            "worth nothing": lambda draft, wanted: wanted,
            "stops with": lambda draft, wanted: draft[99],
        },
    ),
    "05.1": (
        13 / 8 * math.log(2),
        {"refined responses now": 13 / 9 * math.log(2), "mean of each": 5 / 3 * math.log(2)},
    ),
    "05.2": (9, {"squares": 3, "scatters around": 0, "not as before": 1}),
    "05.3": (2.6 / 21, {"collects": 2 / 21, "counts too": 0.6 / 21, "cct": 2.4 / 21}),
    "05.4": (
        stop_before_the_second_t,
        {
            "stays cc.": lambda y: "".join(dict.fromkeys(y.rstrip("."))) + ".",
            "never ends": lambda y: stop_before_the_second_t(y)[: 3 if y.count("t") < 2 else -1],
            "stops with": lambda y: y.index("t"),
        },
    ),
    "06.1": (27, {"may hold one twice": 6, "left out the order": 10, "as large as": 9}),
    "06.2": (6, {"not yet 95%": 5, "three quarters": 3, "halves": 20}),
    "06.3": (
        ["D", "A", "B"],
        {"E has no more": ["A", "B", "D", "E"], "each best for theirs": ["D"], "A,": ["D", "B"]},
    ),
    "06.4": ("fresh", {"never asks": "identity", "size": "random-edit", "leaves one": "dynamic"}),
    "06.5": (
        gold_within_five_nats,
        {
            "nobody could": lambda rows: max(r["gold_reward"] for r in rows if r["kl"] <= 5),
            "may come back": lambda rows: [r["gold_reward"] for r in rows if r["kl"] <= 5][-1],
            "stops with": lambda rows: rows["kl"],
        },
    ),
    "07.1": (1.26, {"lines": 1.34, "counts 0.5": 1.76, "only a comment": 1.2, "negative": 1.42}),
    "07.2": (6, {"without comments": 4, "paid 1.40": 5, "whole": 2 + 1 / 0.28}),
    "07.3": (2 / 5, {"is right": 3 / 5, "all five": 2 / 3, "visible ones as well": 4 / 5}),
    "07.4": (
        " h(5) ",
        {"among the visible": "h(0)", "with the cap and": "h(4)", "stops with": "g(9)"},
    ),
    "08.1": (3.5, {"taken off": 3, "is the bonus": 2.5, "leads away": 4}),
    "08.2": (3, {"ten steps": 8, "is the shaping": 2, "away pay": 13}),
    "08.3": (1 / 8, {"paid the bonus": 1 / 12, "every second": 1 / 20, "the task's": 0.5}),
    "08.4": (
        back_to_each_place,
        {
            "is a loop as well": no_move_and_back,
            "another way": straight_there,
            "stops with": lambda words: words[99],
        },
    ),
    "09.1": (
        122_880,
        {"keys alone": 61_440, "queries": 860_160, "fp32": 245_760, "Padding": 147_456},
    ),
    "09.2": (46_080, {"frozen": 4_358_144, "add up": 34_865_152, "A alone": 7168}),
    "09.3": (6.66, {"do not get all": 8, "too tightly": 7.4, "reserve off": 6.6, "0.6 GB": 7.2}),
    "09.4": (
        ["kept", "stripped", "refused"],
        {
            "behind a preamble": ["kept", "refused", "refused"],
            "to apologise": ["kept", "stripped", "stripped"],
            "the usual one": ["refused", "stripped", "refused"],
            "must not be learned": ["kept", "stripped", "kept"],
            "three words": ["stripped", "kept", "kept"],
        },
    ),
    "10.1": (82 / 256, {"wrong throughout": 81 / 256, "do teach": 174 / 256, "All four": 3 / 4}),
    "10.2": (
        math.log(2),
        {"right sign": -math.log(2), "half": math.log(4), "both": math.log(2) / 2},
    ),
    "10.3": (
        ["blind", "low", "high"],
        {
            "hardly any response": ["healthy", "low", "high"],
            "held too much": ["high", "low", "blind"],
            "it sees the flaw": ["low", "blind", "high"],
            "too early": ["blind", "low", "healthy"],
        },
    ),
    "10.4": (
        reason_for_idling,
        {
            "Name the cause": lambda flat, ended: reason_for_idling(
                flat, [flat == 1 or any(ended)]
            ),
            "no reason yet": lambda flat, ended: reason_for_idling(flat, [all(ended)]),
            "a share of 1": lambda flat, ended: reason_for_idling(math.ceil(flat), ended),
            "stops with": lambda flat, ended: ended[99],
        },
    ),
    "11.1": (1440, {"every response refined": 2560, "the policy's": 1280, "refiner's": 160}),
    "11.2": (
        ["B", "A"],
        {
            "six of seven": ["D", "A"],
            "every second": ["C", "A"],
            "other way": ["A", "B"],
            "does pull": ["B", "D"],
            "First the one": ["D", "C"],
        },
    ),
    "11.3": (0.82, {"left out": 0.72, "spoilt": 1, "own share": 0.9, "of all": 0.8}),
    "11.4": (
        at_rest,
        {
            "one step": lambda kept, repaired, now: now * kept + (1 - now) * repaired,
            "changes nothing": lambda kept, repaired, now: (
                0 if repaired == 0 else at_rest(kept, repaired, now)
            ),
            "leaves out": lambda kept, repaired, now: kept,
            "stops with": lambda kept, repaired, now: repaired / (1 - kept),
        },
    ),
}


def test_every_exercise_is_worked_out_here() -> None:
    assert list(exercises()) == list(ON_PAPER)
    assert all(len(wrong) >= 2 for _, wrong in ON_PAPER.values())


@pytest.mark.parametrize("name", ON_PAPER)
def test_the_right_answer_is_right_because(name: str) -> None:
    verdict = check(name, ON_PAPER[name][0])
    assert verdict.right
    assert repr(verdict).startswith(f"{name} right, because ")


@pytest.mark.parametrize("name", ON_PAPER)
def test_a_typical_mistake_gets_its_own_hint(name: str) -> None:
    for word, answer in ON_PAPER[name][1].items():
        verdict = check(name, answer)
        assert not verdict.right
        assert word in verdict.text


@pytest.mark.parametrize(("name", "exercise"), exercises().items())
def test_no_mistake_is_taken_for_another_or_for_right(name: str, exercise: Any) -> None:
    for mistake, hint in exercise.mistakes:
        assert check(name, mistake()).text == f"{name} not yet. {hint}"


@pytest.mark.parametrize("name", ON_PAPER)
@pytest.mark.parametrize(
    "answer", ["no idea", 12345.6, [], object()], ids=lambda a: type(a).__name__
)
def test_any_other_answer_gets_a_hint_too(name: str, answer: Any) -> None:
    verdict = check(name, answer)
    assert not verdict.right
    assert exercises()[name].otherwise in verdict.text


def test_an_open_exercise_says_what_to_do() -> None:
    assert check("01.1", None).text == "01.1 is open: put your answer in place of None."


def test_two_digits_are_nearly_right() -> None:
    assert check("01.1", -1.7).text == "01.1 nearly: give three digits."
    assert check("01.1", torch.tensor(-1.73)).right


def test_an_unknown_exercise_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'01\.9' is unknown; choose one of 01\.1, 01\.2"):
        check("01.9", 1)
