"""The online refiner: the reference model writes a minimally corrected version of each response.

It works on token ids, so that an unchanged response stays the same tokens. The embedded model was
trained to refine; how an instruct model is asked to stands in `rftkit.instruct`. The controls that
isolate the idea (identity, fresh, random-edit) share the refiner's interface.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from rftkit.chat import characters
from rftkit.decoding import verify_decode
from rftkit.diff import text_diff
from rftkit.errors import UserError
from rftkit.instruct import RULES, Answer, InstructForm
from rftkit.metrics import edit_ratio
from rftkit.models import Policy
from rftkit.rollout import generate
from rftkit.tasks import Prompt

Messages = Sequence[dict[str, str]]
TRIES = 100  # at random edits that add up to as many as the refiner's


@dataclass(frozen=True)
class Refinement:
    """One response and its refined version; ids include EOS where there is one.

    fallback says why the refiner's text was refused and the response kept ("" = it was not).
    rounds counts the forward passes that it took, 0 for a control that takes none. stripped: a
    preamble or a fence around the refiner's text was left out.
    """

    response_ids: list[int]
    refined_ids: list[int]
    response: str
    refined: str
    diff: list[list[str]]
    fallback: str = ""
    rounds: int = 0
    stripped: bool = False

    @property
    def changed(self) -> bool:
        return self.refined_ids != self.response_ids

    @property
    def edit_ratio(self) -> float:
        """Token Levenshtein distance / the longer length: 0 unchanged, 1 nothing kept."""
        return edit_ratio(self.response_ids, self.refined_ids)

    def to_dict(self) -> dict[str, Any]:
        """The texts, whether and how much they differ, and the diff as [op, text] pairs."""
        return {
            "response": self.response,
            "refined": self.refined,
            "changed": self.changed,
            "edit_ratio": self.edit_ratio,
            "diff": self.diff,
        }


class NativeForm:
    """The embedded model's own roles: it reads a draft turn and writes the refined turn."""

    shares_start = False

    def __init__(self, policy: Policy, max_new_tokens: int):
        self.policy, self.limit = policy, max_new_tokens

    def context(self, messages: Messages, response: Sequence[int]) -> list[int]:
        """Ids of the refiner's prompt, up to where the refined response begins."""
        ids = list(response)
        while ids and ids[-1] in self.policy.eos_ids:
            ids.pop()
        draft: list[dict[str, Any]] = [*messages, {"role": "draft", "content": ids}]
        return self.policy.encode_chat(draft)

    def draft(self, response: Sequence[int]) -> list[int]:
        """The answer to expect: the response itself."""
        return list(response)

    def read(self, response: Sequence[int], written: Sequence[int]) -> Answer:
        """A refinement that ends without EOS is refused: the response stays."""
        if written[-1] not in self.policy.eos_ids:
            return Answer(list(response), "cut off")
        return Answer(list(written))


class OnlineRefiner:
    """R(x, y): greedy decoding of the reference, which sees the prompt and the response.

    Nothing trains through it. Where its answer is no refinement, the response stays (`fallback`).
    """

    name = "dynamic"

    def __init__(
        self,
        policy: Policy,
        max_new_tokens: int = 64,
        edit_limit: float = 0.5,
        rules: str = RULES,
    ):
        """max_new_tokens: of a refined response. For an instruct model, which the embedded one is
        not: the largest edit ratio that is accepted, and what it is told to do."""
        self.policy = policy
        self.max_new_tokens = max_new_tokens
        self.form: NativeForm | InstructForm = (
            NativeForm(policy, max_new_tokens)
            if policy.refines_natively
            else InstructForm(policy, max_new_tokens, edit_limit, rules)
        )
        self.passes = 0  # forward passes so far

    def refine(
        self, prompts: Sequence[Prompt | str | Messages], responses: Sequence[str]
    ) -> list[Refinement]:
        """Refine texts. A prompt is a task's Prompt, a user's text, or a list of messages.

        Raises UserError where there are not as many responses as prompts, or one is no text.
        """
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise UserError("refine: give a list of prompts and a list of as many responses")
        if not all(isinstance(text, str) for text in responses):
            raise UserError("refine: each response must be a text")
        eos = self.policy.tokenizer.eos_token_id
        messages = [_messages(p) for p in prompts]
        ids = [[*self.policy.encode(text), eos] for text in responses]
        return self.refine_ids(messages, ids)

    def refine_ids(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int = 0
    ) -> list[Refinement]:
        """Refine token ids; equal (prompt, response) pairs are refined once."""
        pairs = {(str(p), tuple(y)): (p, y) for p, y in zip(prompts, responses, strict=True)}
        refined = self._refine([p for p, _ in pairs.values()], [y for _, y in pairs.values()], seed)
        known = dict(zip(pairs, refined, strict=True))
        return [known[str(p), tuple(y)] for p, y in zip(prompts, responses, strict=True)]

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        contexts = [self.form.context(p, y) for p, y in zip(prompts, responses, strict=True)]
        groups = [len(list(run)) for _, run in groupby(prompts)]
        with self.policy.reference():
            out = verify_decode(
                self.policy.model,
                contexts,
                # Its own draft: an unchanged response costs one forward pass.
                [self.form.draft(y) for y in responses],
                max_new_tokens=self.form.limit,
                eos_ids=self.policy.eos_ids,
                pad_id=self.policy.pad_id,
                groups=[len(contexts)] if self.form.shares_start else groups,
            )
        self.passes += out.passes
        rows = zip(responses, out.ids, out.rounds, strict=True)
        return [self._refinement(y, self.form.read(y, z), rounds) for y, z, rounds in rows]

    def _refinement(self, response: list[int], answer: Answer, rounds: int = 0) -> Refinement:
        refined, why, stripped = answer
        before = after = self._pieces(response)
        said = written = self.policy.decode(response)
        if refined != response:
            after, written = self._pieces(refined), self.policy.decode(refined)
        diff = text_diff(before, after)
        return Refinement(response, refined, said, written, diff, why, rounds, stripped)

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """The text in pieces of whole characters, without EOS."""
        ids = [i for i in ids if i not in self.policy.eos_ids]
        spans = characters(self.policy.tokenizer, ids)
        return [self.policy.tokenizer.decode(ids[a:b]) for a, b in spans]


class IdentityRefiner(OnlineRefiner):
    """Control: y' = y. Self-imitation, whose expected pull is zero; what is left is its noise."""

    name = "identity"

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        return [self._refinement(y, Answer(y)) for y in responses]


class FreshRefiner(OnlineRefiner):
    """Control: y' ~ π_ref(·|x), which ignores the response."""

    name = "fresh"

    def refine_ids(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int = 0
    ) -> list[Refinement]:
        return self._refine(prompts, responses, seed)  # equal responses get different answers

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        device = self.policy.device
        with self.policy.reference():
            out = generate(
                self.policy.model,
                [self.policy.encode_chat(p) for p in prompts],
                max_new_tokens=self.max_new_tokens,
                eos_ids=self.policy.eos_ids,
                pad_id=self.policy.pad_id,
                generator=torch.Generator(device).manual_seed(seed),
            )
        self.passes += max(map(len, out.ids))
        ended = [z[-1] in self.policy.eos_ids for z in out.ids]
        rows = zip(responses, out.ids, ended, strict=True)
        answers = [(y, Answer(z) if end else Answer(y, "cut off"), len(z)) for y, z, end in rows]
        return [self._refinement(*answer) for answer in answers]


class RandomEditRefiner(OnlineRefiner):
    """Control: as many insertions, deletions and substitutions as the refiner makes, at random.

    Like the refiner it ends every response, and it writes as many tokens, so that only *what* is
    edited differs.
    """

    name = "random-edit"

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        rng = random.Random(seed)
        real = super()._refine(prompts, responses, seed)
        written = [i for r in real for i in (*r.response_ids, *r.refined_ids)]
        pool = [i for i in written if i not in self.policy.eos_ids]
        targets = [_edited(r.response_ids, r.refined_ids, pool, rng) for r in real]
        pairs = zip(real, targets, strict=True)
        return [self._refinement(r.response_ids, Answer(target)) for r, target in pairs]


def _edited(
    ids: list[int], refined: list[int], pool: Sequence[int], rng: random.Random
) -> list[int]:
    """`ids` with the edits that led to `refined`, each in a random place and to a random token.

    It has the length of `refined` and ends as that does; `ids` itself where nothing was edited.
    """
    count = Levenshtein.distance(ids, refined)
    if not count:
        return ids
    end = refined[-1:]
    body = ids[: len(ids) - (ids[-1:] == end)]
    edits = Levenshtein.editops(ids, refined)
    ending = [op for op in edits if op.tag != "delete" and op.dest_pos == len(refined) - 1]
    kinds = Counter(op.tag for op in edits if op not in ending)
    kinds["delete"] += sum(op.tag == "replace" for op in ending)  # of a token, by the end
    target = refined
    for _ in range(TRIES):
        target = [*_shuffled(body, kinds, pool, rng), *end]
        if Levenshtein.distance(ids, target) == count:  # no edit took another one back
            break
    return target


def _shuffled(
    body: Sequence[int], kinds: Mapping[str, int], pool: Sequence[int], rng: random.Random
) -> list[int]:
    """`body` after so many edits of each kind, in random places."""
    places = rng.sample(range(len(body)), kinds["delete"] + kinds["replace"])
    deleted, replaced = set(places[: kinds["delete"]]), set(places[kinds["delete"] :])
    found = []
    for i, token in enumerate(body):
        if i in replaced:
            found.append(rng.choice([other for other in pool if other != token]))
        elif i not in deleted:
            found.append(token)
    for _ in range(kinds["insert"]):
        found.insert(rng.randrange(len(found) + 1), rng.choice(pool))
    return found


REFINERS = {r.name: r for r in (OnlineRefiner, IdentityRefiner, FreshRefiner, RandomEditRefiner)}


def _messages(prompt: Prompt | str | Messages) -> list[dict[str, str]]:
    if isinstance(prompt, Prompt):
        return list(prompt.messages)
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, Mapping):
        raise UserError("refine: a prompt is a text or a list of messages, not a message")
    return list(prompt)
