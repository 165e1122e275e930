"""Degeneracy, correction size and intervals: pure functions on token ids.

Only what needs no model; entropy, KL and perplexity are computed where the logits are. What counts
as degenerate in a domain is its task's own test, not one of these numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

Tokens = Sequence[Hashable]


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; nan of no values, as where nothing was evaluated."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")


def rep_3(tokens: Tokens) -> float:
    """1 − unique/total 3-grams of one response (Welleck et al., 2020). 0 = nothing repeats.

    A response of fewer than three tokens repeats nothing.
    """
    grams = list(_ngrams(tokens, 3))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_2(responses: Sequence[Tokens], length: int = 256) -> float:
    """Unique share of the first `length` 2-grams within the responses of a batch (Li et al., 2016).

    The share falls with the number of 2-grams, so batches compare only at one `length`; nan where
    the batch has fewer.
    """
    grams = [gram for tokens in responses for gram in _ngrams(tokens, 2)][:length]
    return len(set(grams)) / length if len(grams) == length else float("nan")


def no_eos_share(finished: Sequence[bool]) -> float:
    """Share of responses that ran out of tokens before EOS."""
    return 1 - sum(finished) / len(finished)


def edit_ratio(response: Tokens, refined: Tokens) -> float:
    """Token Levenshtein distance / longer length, 0 to 1; 0 for two empty sequences."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_distance(*as_codes(response, refined)))


def kept_fraction(response: Tokens, refined: Tokens) -> float:
    """Longest common subsequence / length of the response: how much of it the refiner kept.

    1 for an empty response, which has nothing to lose.
    """
    from rapidfuzz.distance import LCSseq

    if not response:
        return 1.0
    return LCSseq.similarity(*as_codes(response, refined)) / len(response)


def unchanged_share(responses: Sequence[Tokens], refined: Sequence[Tokens]) -> float:
    """Share of responses that the refiner returned token by token."""
    pairs = zip(responses, refined, strict=True)
    return sum(list(a) == list(b) for a, b in pairs) / len(responses)


def as_codes(a: Tokens, b: Tokens) -> tuple[list[int], list[int]]:
    """Number the tokens of both sequences alike, in order of appearance.

    rapidfuzz compares hashes, and hash(-1) == hash(-2); small numbers of our own cannot collide.
    """
    codes: dict[Hashable, int] = {}

    def code(tokens: Tokens) -> list[int]:
        return [codes.setdefault(token, len(codes)) for token in tokens]

    return code(a), code(b)


class Difference(NamedTuple):
    """Mean of a − b over pairs, and its confidence interval."""

    mean: float
    ci: list[float]


def bootstrap_ci(
    values: Sequence[float], seed: int = 0, n: int = 10_000, level: float = 0.95
) -> list[float]:
    """Percentile bootstrap interval [lo, hi] of the mean (Efron, 1979).

    values: one number a seed. A single value gives [v, v]: no spread can be seen from one.
    Raises ValueError for no values.
    """
    import numpy as np

    if not values:
        raise ValueError("bootstrap_ci needs at least one value")
    sample = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(sample), size=(n, len(sample)))
    tail = (1 - level) / 2
    low, high = np.quantile(sample[picks].mean(axis=1), (tail, 1 - tail))
    return [float(low), float(high)]


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    n: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """How much larger a is than b, pair by pair: two methods on the same seeds or prompts.

    Raises ValueError where the lengths differ or are 0.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    interval = bootstrap_ci(differences, seed, n, level)
    return Difference(mean(differences), interval)


def _ngrams(tokens: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)
