"""The loss of a batch: however it is cut up and shared, its gradient is that of the plain sum."""

from dataclasses import replace

import pytest
import torch
from small import model_folder
from test_models import nudge

import rftkit.batch
from rftkit import RunConfig, UserError, load_policy
from rftkit.batch import Batch, Gradients, sequences
from rftkit.constraints import DynamicConstraint, KLConstraint, NoConstraint, Pull
from rftkit.models import Policy
from rftkit.objectives import kl_k3
from rftkit.refiner import Refinement
from rftkit.rollout import Rollouts
from rftkit.scoring import target_log_probs
from rftkit.tasks import Prompt

CONFIG = RunConfig(model="small", group=2, max_new_tokens=8, coef=0.7)
IDS = [[20, 21, 1], [20, 21, 1], [22, 23, 24, 1], [25, 1]]  # the first two are equal
REFINED = [[20, 21, 1], [20, 21, 1], [22, 24, 1], [25, 1]]  # the third is edited
REF = [torch.tensor([-1.0, -2.0, -0.5, -3.0])[: len(ids)] for ids in IDS]


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = load_policy(model_folder())
    nudge(loaded)
    return loaded


def make_batch(policy: Policy, pull: Pull) -> Batch:
    prompts = [Prompt(({"role": "user", "content": t},)) for t in ("a", "b longer")]
    contexts = [policy.encode_chat(p.messages) for p in prompts for _ in range(2)]
    with torch.no_grad():
        logp = [
            target_log_probs(policy.model, [c], [t])[0][0]
            for c, t in zip(contexts, IDS, strict=True)
        ]
    rollouts = Rollouts(
        [p for p in prompts for _ in range(2)], contexts, IDS, [""] * 4, [True] * 4, logp, logp, 2
    )
    return Batch(rollouts, torch.tensor([1.0, -0.5, 2.0, 0.0]), torch.ones(4), pull)


def gradient(policy: Policy, constraint: NoConstraint, batch: Batch, budget: int) -> torch.Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    Gradients(policy, constraint, replace(CONFIG, token_budget=budget)).accumulate(batch)
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def plain(policy: Policy, batch: Batch, extra: torch.Tensor | float) -> torch.Tensor:
    """The same, spelled out: -Σ A log π / tokens, plus the constraint's loss."""
    rollouts, tokens = batch.rollouts, batch.rollouts.tokens
    loss = torch.as_tensor(extra)
    for context, ids, advantage in zip(rollouts.prompt_ids, IDS, batch.advantages, strict=True):
        loss = loss - advantage * target_log_probs(policy.model, [context], [ids])[0].sum() / tokens
    grads = torch.autograd.grad(loss, policy.parameters())
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("budget", [1, 25, 10_000])
def test_policy_gradient(policy: Policy, budget: int) -> None:
    batch = make_batch(policy, Pull())
    ours = gradient(policy, NoConstraint(policy, CONFIG), batch, budget)
    torch.testing.assert_close(ours, plain(policy, batch, 0.0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_with_kl(policy: Policy, budget: int) -> None:
    batch = make_batch(policy, Pull(ref_log_probs=REF))
    constraint = KLConstraint(policy, replace(CONFIG, kl_form="k3-loss"))
    pairs = zip(batch.rollouts.prompt_ids, IDS, REF, strict=True)
    kl = sum(kl_k3(target_log_probs(policy.model, [c], [t])[0][0], r).sum() for c, t, r in pairs)
    expected = plain(policy, batch, 0.7 * kl / batch.rollouts.tokens)
    ours = gradient(policy, constraint, batch, budget)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2]])
def test_with_the_dynamic_constraint(policy: Policy, budget: int, rows: list[int]) -> None:
    refinements = [Refinement(y, z, "", "", []) for y, z in zip(IDS, REFINED, strict=True)]
    batch = make_batch(policy, Pull(refinements=refinements, sft_rows=rows))
    nll = sum(
        -target_log_probs(policy.model, [batch.rollouts.prompt_ids[i]], [REFINED[i]])[0].sum()
        for i in rows
    )
    tokens = sum(len(REFINED[i]) for i in rows)
    expected = plain(policy, batch, 0.7 * nll / tokens)
    ours = gradient(policy, DynamicConstraint(policy, CONFIG), batch, budget)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_equal_sequences_are_read_once(policy: Policy) -> None:
    refinements = [Refinement(y, z, "", "", []) for y, z in zip(IDS, REFINED, strict=True)]
    batch = make_batch(policy, Pull(refinements=refinements, sft_rows=[0, 1, 2, 3]))
    found = {tuple(s.target): (s.rollouts, s.refined) for s in sequences(batch)}
    assert found == {
        (20, 21, 1): ([0, 1], 2),
        (22, 23, 24, 1): ([2], 0),
        (22, 24, 1): ([], 1),
        (25, 1): ([], 1),  # its advantage is zero: only the constraint reads it
    }


def out_of_memory_above(rows: int, monkeypatch, where: str) -> None:
    """Let a micro-batch of more rows fail as PyTorch does, while it is read or differentiated."""
    message = "CUDA out of memory. Tried to allocate 2.00 GiB."
    read, grad, size = rftkit.batch.target_log_probs, torch.autograd.grad, [0]

    def limited_read(net, contexts, targets, temperature):
        size[0] = len(targets)
        if where == "forward" and size[0] > rows:
            raise torch.OutOfMemoryError(message)
        return read(net, contexts, targets, temperature)

    def limited_grad(*args, **kwargs):
        if where == "backward" and size[0] > rows:
            raise torch.OutOfMemoryError(message)
        return grad(*args, **kwargs)

    monkeypatch.setattr(rftkit.batch, "target_log_probs", limited_read)
    monkeypatch.setattr(torch.autograd, "grad", limited_grad)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(
    policy: Policy, monkeypatch, caplog, where: str
) -> None:
    refinements = [Refinement(y, z, "", "", []) for y, z in zip(IDS, REFINED, strict=True)]
    pull = Pull(refinements=refinements, sft_rows=[0, 1, 2, 3])
    constraint = DynamicConstraint(policy, CONFIG)
    expected = gradient(policy, constraint, make_batch(policy, pull), 10_000)
    out_of_memory_above(1, monkeypatch, where)
    gradients = Gradients(policy, constraint, replace(CONFIG, token_budget=10_000))
    for _ in range(2):  # the second step goes on with what was found
        for parameter in policy.parameters():
            parameter.grad = None
        sums, pulled = gradients.accumulate(make_batch(policy, pull), measure=True)
        ours = torch.cat([p.grad.flatten() for p in policy.parameters()])
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
    assert caplog.text.count("memory ran out") == 1
    assert sums["constraint_loss"] > 0
    assert sum(float(p.norm()) for p in pulled) > 0


def test_a_single_sequence_that_does_not_fit_is_named(policy: Policy, monkeypatch) -> None:
    out_of_memory_above(0, monkeypatch, "forward")
    gradients = Gradients(policy, NoConstraint(policy, CONFIG), CONFIG)
    with pytest.raises(UserError, match=r"memory ran out on a single sequence of \d+ tokens"):
        gradients.accumulate(make_batch(policy, Pull()))


def test_checkpointing_keeps_the_gradient_and_leaves_no_trace(policy: Policy) -> None:
    constraint, found, read = NoConstraint(policy, CONFIG), [], []
    layer = policy.model.get_base_model().model.layers[0]
    hook = layer.mlp.register_forward_pre_hook(lambda *_: read.append(1))
    for checkpointing in (False, True):
        for parameter in policy.parameters():
            parameter.grad = None
        batch, config = make_batch(policy, Pull()), replace(CONFIG, checkpointing=checkpointing)
        read.clear()
        Gradients(policy, constraint, config).accumulate(batch)
        found.append((torch.cat([p.grad.flatten() for p in policy.parameters()]), len(read)))
        assert not layer.training
        assert not policy.model.is_activation_checkpointing
    hook.remove()
    (expected, once), (ours, again) = found
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
    assert again == 2 * once, "forward, and again on the way back"
