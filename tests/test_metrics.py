import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.metrics import (
    bootstrap_ci,
    distinct_2,
    edit_ratio,
    kept_fraction,
    mean,
    no_eos_share,
    paired_bootstrap,
    rep_3,
    unchanged_share,
)

IDS = st.lists(st.integers(-3, 6), max_size=15)


def test_mean_of_nothing_is_nan() -> None:
    assert mean(x for x in (True, False, 0.5)) == 0.5
    assert math.isnan(mean([]))


def test_rep_3_counts_repeated_3_grams() -> None:
    assert rep_3([1, 2, 3, 4]) == 0
    assert rep_3([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)  # 3 grams, 1 unique
    assert rep_3([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 2)  # 121 212 121 212
    assert rep_3("the the the".split()) == 0  # one gram
    assert rep_3([1, 1]) == rep_3([]) == 0


def test_distinct_2_is_taken_at_one_length() -> None:
    assert distinct_2([[1, 2, 3], [1, 2, 4]], length=4) == 3 / 4  # 12 23 12 24
    assert distinct_2([[1, 2, 3], [1, 2, 4]], length=3) == 2 / 3
    assert distinct_2([[1, 2], [2, 1]], length=2) == 1, "no 2-gram spans two responses"
    assert math.isnan(distinct_2([[1, 2, 3]], length=3))


def test_no_eos_share() -> None:
    assert no_eos_share([True, False, False, True, False]) == pytest.approx(3 / 5)


def test_edit_ratio_counts_tokens_not_characters() -> None:
    assert edit_ratio([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert edit_ratio([1, 2, 3, 4], [1, 9, 3]) == 2 / 4
    assert edit_ratio([], [5, 6]) == 1
    assert edit_ratio([], []) == 0
    assert edit_ratio(["hello", "world"], ["hallo", "world"]) == 1 / 2


def test_tokens_of_equal_hash_are_not_equal() -> None:
    assert hash(-1) == hash(-2)
    assert edit_ratio([-1], [-2]) == 1
    assert kept_fraction([-1], [-2]) == 0


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein by the textbook recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@given(IDS, IDS)
def test_edit_ratio_is_levenshtein_over_the_longer_length(a: list[int], b: list[int]) -> None:
    expected = distance(a, b) / max(len(a), len(b)) if a or b else 0
    assert edit_ratio(a, b) == pytest.approx(expected)


@given(IDS, IDS)
def test_kept_fraction_is_one_exactly_when_nothing_was_dropped(a: list[int], b: list[int]) -> None:
    rest = iter(b)
    assert (kept_fraction(a, b) == 1) == all(token in rest for token in a)
    assert 0 <= kept_fraction(a, b) <= 1


def test_kept_fraction_is_of_the_response() -> None:
    assert kept_fraction([1, 2, 3, 4], [1, 3]) == 1 / 2
    assert kept_fraction([1, 3], [1, 2, 3, 4]) == 1


def test_unchanged_share() -> None:
    assert unchanged_share([[1, 2], [3], [4]], [(1, 2), [3, 3], [4]]) == pytest.approx(2 / 3)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = random.Random(0)
    samples = [[rng.gauss(5, 2) for _ in range(30)] for _ in range(200)]
    intervals = [bootstrap_ci(sample, n=1000) for sample in samples]
    covered = sum(low <= 5 <= high for low, high in intervals) / len(intervals)
    assert 0.89 <= covered <= 0.98
    wide = [bootstrap_ci(sample, n=1000, level=0.99) for sample in samples[:20]]
    assert all(w[0] < n[0] and n[1] < w[1] for w, n in zip(wide, intervals, strict=False))


def test_the_interval_repeats_and_depends_on_the_seed() -> None:
    values = [0.1, 0.5, 0.7, 0.9]
    assert bootstrap_ci(values) == bootstrap_ci(values)
    assert bootstrap_ci(values, n=50) != bootstrap_ci(values, seed=1, n=50)


def test_one_value_has_no_spread_and_none_has_no_interval() -> None:
    assert bootstrap_ci([0.7]) == [0.7, 0.7]
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_ci([])


def test_pairing_sees_a_difference_that_seeds_hide() -> None:
    a, b = [0.1, 0.5, 0.9, 1.3], [0.0, 0.4, 0.8, 1.2]
    low, high = bootstrap_ci(a)
    assert low < sum(b) / 4 < high, "unpaired, the intervals overlap"
    difference = paired_bootstrap(a, b)
    assert difference.mean == pytest.approx(0.1)
    assert difference.ci == pytest.approx([0.1, 0.1])
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap(a, b[:3])
