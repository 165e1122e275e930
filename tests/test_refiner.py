"""The embedded model as refiner, and the controls that isolate the idea."""

import random

import pytest
from rapidfuzz.distance import Levenshtein

from rftkit import OnlineRefiner, load_policy, load_task
from rftkit.models import Policy
from rftkit.refiner import REFINERS, _edited

CLEAN = "Hello, Ana! One small tea with milk, to go. Thank you!"
FLOODED = (
    "Hello, Ana! One small tea with milk, to go. Thank you! Thank Thank Thank Thank Thank Thank"
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("tiny")


@pytest.fixture(scope="module")
def prompt() -> str:
    return "For Ana: small tea, milk, to go."


def test_a_clean_response_comes_back_token_by_token(policy: Policy, prompt: str) -> None:
    (result,) = OnlineRefiner(policy).refine([prompt], [CLEAN])
    assert result.refined == CLEAN
    assert not result.changed
    assert result.edit_ratio == 0
    assert result.diff == [["equal", CLEAN]]


def test_a_flood_is_cut_and_the_rest_kept(policy: Policy, prompt: str) -> None:
    (result,) = OnlineRefiner(policy).refine([prompt], [FLOODED])
    assert result.changed
    assert load_task("dialogue").well_formed(None, result.refined)  # type: ignore[arg-type]
    assert result.refined.startswith("Hello, Ana! One small tea with milk, to go.")
    assert "".join(text for op, text in result.diff if op != "insert") == FLOODED
    assert "".join(text for op, text in result.diff if op != "delete") == result.refined


def test_a_wrong_but_well_formed_response_is_kept(policy: Policy, prompt: str) -> None:
    wrong = "Hello, Zoe! One large cocoa with mint, for here."
    (result,) = OnlineRefiner(policy).refine([prompt], [wrong])
    assert result.refined == wrong


def test_prompts_may_be_text_messages_or_a_tasks_rows(policy: Policy) -> None:
    row = load_task("dialogue").prompts("heldout")[0]
    refined = OnlineRefiner(policy).refine([row, row.text, list(row.messages)], [FLOODED] * 3)
    assert len({r.refined for r in refined}) == 1


def test_equal_pairs_are_refined_once(policy: Policy, prompt: str) -> None:
    refiner = OnlineRefiner(policy)
    seen: list[int] = []
    inner = refiner._refine
    refiner._refine = lambda p, y, s: seen.append(len(y)) or inner(p, y, s)  # type: ignore
    out = refiner.refine([prompt] * 3, [CLEAN, FLOODED, CLEAN])
    assert seen == [2]
    assert out[0] is out[2]


def test_a_refinement_without_an_end_is_refused(policy: Policy, prompt: str) -> None:
    (result,) = OnlineRefiner(policy, max_new_tokens=3).refine([prompt], [FLOODED])
    assert result.fallback == "cut off"
    assert result.refined == FLOODED


def test_an_empty_response_has_a_refinement(policy: Policy, prompt: str) -> None:
    (result,) = OnlineRefiner(policy).refine([prompt], [""])
    assert result.response == ""


def test_the_controls(policy: Policy, prompt: str) -> None:
    eos = policy.tokenizer.eos_token_id
    ids = [[*policy.encode(t), eos] for t in (CLEAN, FLOODED, CLEAN)]
    prompts = [[{"role": "user", "content": prompt}]] * 3
    made = {
        name: cls(policy, 48).refine_ids(prompts, ids, seed=4) for name, cls in REFINERS.items()
    }
    assert [r.refined_ids for r in made["identity"]] == ids
    assert made["fresh"][0].refined_ids != made["fresh"][2].refined_ids  # sampled, not the response
    for real, random_edit in zip(made["dynamic"], made["random-edit"], strict=True):
        size = Levenshtein.distance(real.response_ids, real.refined_ids)
        edits = Levenshtein.distance(random_edit.response_ids, random_edit.refined_ids)
        assert edits == size
        assert len(random_edit.refined_ids) == len(real.refined_ids)
        assert random_edit.changed == (size > 0)
        assert random_edit.refined_ids[-1] == eos


@pytest.mark.parametrize(
    ("ids", "refined"),
    [
        ([5, 6, 7, 8, 1], [5, 7, 8, 1]),  # deleted
        ([5, 6, 7, 8, 1], [5, 6, 9, 7, 8, 1]),  # inserted
        ([5, 6, 7, 8, 1], [5, 9, 8, 2, 3, 1]),  # all kinds
        ([5] * 32, [5, 5, 6, 1]),  # a flood that did not end
        ([5], [1]),
        ([1], [5, 6, 1]),
    ],
)
def test_random_edits_are_as_many_and_as_long_as_the_refiners(
    ids: list[int], refined: list[int]
) -> None:
    for seed in range(30):
        found = _edited(ids, refined, [*ids[:-1], 9, 4], random.Random(seed))
        assert len(found) == len(refined)
        assert found[-1] == 1
        assert Levenshtein.distance(ids, found) == Levenshtein.distance(ids, refined)
    assert _edited(ids, ids, [9], random.Random(0)) == ids


def test_random_edits_end_what_the_refiner_ends(policy: Policy, prompt: str) -> None:
    """A control that taught not to stop would lose for another reason than its edits."""
    unended = policy.encode(FLOODED)
    prompts = [[{"role": "user", "content": prompt}]]
    (real,) = OnlineRefiner(policy, 48).refine_ids(prompts, [unended])
    size = Levenshtein.distance(unended, real.refined_ids)
    control = REFINERS["random-edit"](policy, 48)
    found = [control.refine_ids(prompts, [unended], seed=seed)[0] for seed in range(10)]
    assert size > 5
    assert {r.refined_ids[-1] for r in found} == {policy.tokenizer.eos_token_id}
    assert {Levenshtein.distance(unended, r.refined_ids) for r in found} == {size}
    assert {len(r.refined_ids) for r in found} == {len(real.refined_ids)}
    assert len({tuple(r.refined_ids) for r in found}) == 10
