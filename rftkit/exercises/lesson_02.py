"""Lesson 02: degeneration."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from rftkit.exercises import Exercise
from rftkit.metrics import rep_3
from rftkit.objectives import group_advantages
from rftkit.paths import DATA
from rftkit.tasks.dialogue import ANNOTATOR_NOISE
from rftkit.tasks.preferences import LinearRewardModel

FLOOD = "one tea thank thank thank thank thank".split()
PAIRS = ((1.25, 1.0), (1.0, 1.5), (0.8, 0.8))  # gold rewards


def flood_advantage(price: float, kind: Any = "grpo") -> float:
    """Advantage of tt. in the group c., ct., t., tt. where each t is paid `price`."""
    rewards = torch.tensor([[1, 1 + price, price, 2 * price]], dtype=torch.float64)
    return group_advantages(rewards, kind)[0, 3].item()


def sample_deviation(price: float) -> float:
    """The same with the standard deviation over n − 1."""
    return flood_advantage(price) * math.sqrt(3 / 4)


def repeated(n: int) -> float:
    grams = list(zip(*(FLOOD[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams)


@cache
def weight(name: str) -> float:
    """A weight of the shipped reward model."""
    return LinearRewardModel.load(DATA / "dialogue" / "reward_model.json").weights[name]


def logistic(gold_a: float, gold_b: float, noise: float = ANNOTATOR_NOISE) -> float:
    return 1 / (1 + math.exp(-(gold_a - gold_b) / noise))


def without_noise(gold_a: float, gold_b: float) -> float:
    return float(gold_a > gold_b)


def in_gold_units(gold_a: float, gold_b: float) -> float:
    return logistic(gold_a, gold_b, noise=1.0)


def as_a_share(gold_a: float, gold_b: float) -> float:
    return gold_a / (gold_a + gold_b)


def the_other_one(gold_a: float, gold_b: float) -> float:
    return logistic(gold_b, gold_a)


EXERCISES = {
    "02.1": Exercise(
        right=lambda: flood_advantage(0.3),
        because="the mean is 0.8 and the standard deviation √0.145: at this price the flood lies "
        "below its group.",
        mistakes=(
            (
                lambda: flood_advantage(0.6),
                "That is the advantage at 0.6 for a t. Both the mean and tt.'s own reward change.",
            ),
            (
                lambda: flood_advantage(0.3, "dr_grpo"),
                "That is the reward minus the mean; GRPO also divides by the standard deviation.",
            ),
            (
                lambda: sample_deviation(0.3),
                (
                    "You divided by the sample's standard deviation (n − 1); here it is the "
                    "population's (n)."
                ),
            ),
            (
                lambda: -flood_advantage(0.3),
                "That is the advantage of c.; tt. lies as far on the other side of the mean.",
            ),
        ),
        otherwise="Mean of 1, 1.3, 0.3, 0.6 first, then the square root of the mean squared "
        "distance from it, then (0.6 − mean) / that.",
    ),
    "02.2": Exercise(
        right=lambda: rep_3(FLOOD),
        because="seven tokens have five 3-grams, and three of them are different: 1 − 3/5.",
        mistakes=(
            (
                lambda: 1 - repeated(3),
                "That is the share of different 3-grams. rep-3 is the rest, what was there before.",
            ),
            (
                lambda: repeated(1),
                "You counted words. Count runs of three tokens, one beginning at each place.",
            ),
            (
                lambda: repeated(2),
                "You counted pairs, of which there are six. 3-grams are runs of three tokens.",
            ),
        ),
        otherwise="Write down the runs of three tokens (the first is one tea thank), count all "
        "and count the different ones: 1 − different / all.",
    ),
    "02.3": Exercise(
        right=lambda: weight("word thanks") + weight("other drink") - weight("ordered drink"),
        because="one word of thanks outweighs a wrong drink, so the policy has no reason to get "
        "the order right.",
        mistakes=(
            (
                lambda: weight("word thanks") - weight("ordered drink"),
                (
                    "The wrong drink is not just missing, another one is named: that has a weight "
                    "of its own, other drink."
                ),
            ),
            (
                lambda: weight("word thanks"),
                "That is the thanks alone. The wrong drink changes the task reward as well.",
            ),
            (
                lambda: weight("other drink") - weight("ordered drink"),
                "That is the drink alone. Add what one more thanks is worth.",
            ),
        ),
        otherwise="Add the weights of what is new (word thanks, other drink) and subtract that of "
        "what is gone (ordered drink).",
    ),
    "02.4": Exercise(
        right=lambda: "alike",
        because="within a response nothing repeats, but the responses of a batch share their "
        "2-grams: the policy writes one response.",
        mistakes=(
            (
                lambda: "loops",
                "A loop repeats 3-grams within a response, and rep-3 would see it.",
            ),
            (
                lambda: "fine",
                "Something is lost: of the batch's 256 2-grams only a tenth are different.",
            ),
        ),
        otherwise="Answer with one of the words 'loops', 'alike' and 'fine'.",
    ),
    "02.5": Exercise(
        right=lambda: logistic,
        because="equal gold rewards make a coin toss, and 0.15 more gold wins in 73 of 100.",
        mistakes=(
            (
                lambda: in_gold_units,
                "You left the noise out: divide the difference by 0.15 first.",
            ),
            (
                lambda: without_noise,
                "These people make mistakes: the better one wins often, not always.",
            ),
            (
                lambda: as_a_share,
                "That is a share of the two rewards. The formula asks for their difference.",
            ),
            (
                lambda: the_other_one,
                "That is the chance that b is preferred. Look at the sign in the exponent.",
            ),
        ),
        otherwise="A function of two numbers that returns one: d = (gold_a − gold_b) / 0.15, then "
        "1 / (1 + e^−d). math.exp does it.",
        view=lambda function: [float(function(a, b)) for a, b in PAIRS],
    ),
}
