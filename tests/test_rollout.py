"""Sampling: the same policy whichever way its weights are held, with honest log-probs."""

import pytest
import torch
from small import model_folder
from test_models import nudge

from rftkit import load_policy
from rftkit.models import Policy
from rftkit.rollout import Sampler, generate
from rftkit.scoring import micro_batches, score_targets, target_batches, target_log_probs
from rftkit.tasks import Prompt

PROMPTS = [Prompt(({"role": "user", "content": t},)) for t in ("a", "some more words", "hi there")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = load_policy(model_folder("qwen2"))
    nudge(loaded)
    return loaded


def test_the_dense_copy_samples_what_the_four_bit_model_samples(policy: Policy) -> None:
    both = [
        Sampler(policy, kind).sample(PROMPTS, group=4, max_new_tokens=12, seed=3)
        for kind in ("dense", "direct")
    ]
    assert both[0].response_ids == both[1].response_ids
    assert len(both[0]) == 12
    assert both[0].prompt_ids[3] == both[0].prompt_ids[0] != both[0].prompt_ids[4]


def test_the_dense_copy_follows_the_adapter(policy: Policy) -> None:
    sampler = Sampler(policy)
    before = policy.adapter()
    nudge(policy, 0.2)
    sampler.refresh()
    rollouts = sampler.sample(PROMPTS, group=2, max_new_tokens=8, seed=0)
    scored = score_targets(policy.model, rollouts.prompt_ids, rollouts.response_ids, 1000)
    for ours, theirs in zip(rollouts.log_probs, scored, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    policy.load_adapter(before)


def test_sampled_log_probs_and_entropy_are_those_of_the_temperature(policy: Policy) -> None:
    rollouts = Sampler(policy).sample(PROMPTS, group=3, max_new_tokens=9, temperature=0.7, seed=1)
    scored = score_targets(
        policy.model, rollouts.prompt_ids, rollouts.response_ids, 64, temperature=0.7
    )
    for ours, theirs in zip(rollouts.log_probs, scored, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert all((e >= 0).all() for e in rollouts.entropy)


def test_greedy_decoding_is_that_of_transformers(policy: Policy) -> None:
    ids = [policy.encode_chat(p.messages) for p in PROMPTS]
    ours = generate(
        policy.model, ids, max_new_tokens=10, eos_ids=policy.eos_ids, pad_id=0, temperature=0
    )
    for context, mine in zip(ids, ours.ids, strict=True):
        theirs = policy.model.generate(
            input_ids=torch.tensor([context]), max_new_tokens=10, do_sample=False
        )
        assert mine == theirs[0, len(context) :].tolist()


def test_responses_end_at_eos_or_at_their_limit(policy: Policy) -> None:
    ids = [policy.encode_chat(p.messages) for p in PROMPTS]
    eos = frozenset(range(0, 1024, 3))  # frequent, so that rows end at different lengths
    out = generate(policy.model, ids, group=8, max_new_tokens=6, eos_ids=eos, pad_id=0)
    assert len({len(row) for row in out.ids}) > 1
    for row in out.ids:
        assert not eos & set(row[:-1])
        assert len(row) == 6 or row[-1] in eos


def test_the_same_seed_gives_the_same_rollouts(policy: Policy) -> None:
    sampler = Sampler(policy)
    first, second, other = (
        sampler.sample(PROMPTS, group=2, max_new_tokens=8, seed=s).response_ids for s in (5, 5, 6)
    )
    assert first == second != other


def test_log_probs_do_not_depend_on_padding_or_on_the_micro_batch(policy: Policy) -> None:
    contexts = [[8] * n for n in (2, 5, 9, 3)]
    targets = [[20, 21, 1], [22, 1], [23, 24, 25, 26], [1]]
    alone = [
        target_log_probs(policy.model, [c], [t])[0][0]
        for c, t in zip(contexts, targets, strict=True)
    ]
    for budget in (1, 20, 1000):
        together = score_targets(policy.model, contexts, targets, budget)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a.detach(), b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_context_read_once_for_all_its_rows_changes_neither_values_nor_gradients(
    kind: str,
) -> None:
    policy = load_policy(model_folder(kind))
    nudge(policy, 0.2)
    contexts = [[8] * 3, [9, 8, 7, 6, 5], [8] * 3, [9, 8, 7, 6, 5], [8] * 3]
    targets = [[20, 21, 1], [22, 1], [23, 24, 25, 26], [1], [20]]

    def gradients(rows: list[list[int]]) -> list[torch.Tensor]:
        loss = torch.tensor(0.0)
        for part in rows:
            logp, _ = target_log_probs(
                policy.model, [contexts[i] for i in part], [targets[i] for i in part]
            )
            loss = loss + sum(logp[n].sum() * (i + 1) for n, i in enumerate(part))
        return [loss.detach(), *torch.autograd.grad(loss, policy.parameters())]

    alone = gradients([[i] for i in range(5)])
    for groups in ([[0, 1, 2, 3, 4]], target_batches(policy.model, contexts, targets, 20)):
        for a, b in zip(alone, gradients(groups), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 15, 30, 1000])
def test_batches_of_shared_contexts_keep_the_budget_and_lose_no_row(budget: int) -> None:
    net = load_policy(model_folder()).model
    contexts = [[7] * n for n in (3, 5, 3, 8, 5, 3)]
    targets = [[1] * n for n in (4, 2, 9, 1, 6, 4)]
    groups = target_batches(net, contexts, targets, budget)
    assert sorted(i for g in groups for i in g) == list(range(6))
    for group in groups:
        read = {tuple(contexts[i]) for i in group}
        cost = len(read) * max(map(len, read)) + len(group) * max(len(targets[i]) for i in group)
        assert cost <= budget or len(group) == 1


def test_micro_batches_keep_the_budget_and_lose_no_row() -> None:
    lengths = [5, 30, 7, 7, 50, 1, 12]
    groups = micro_batches(lengths, 30)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) * max(lengths[i] for i in g) <= 30 or len(g) == 1 for g in groups)
