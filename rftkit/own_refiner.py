"""A refiner of the user's own: a rule, a grammar checker, another service; any function.

    def refine(prompts, responses) -> list[str]

prompts: a list of messages for each response, as chat templates take them. The function returns
each response as it should be, and one that is fine as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from rftkit.errors import UserError
from rftkit.instruct import Answer
from rftkit.models import Policy
from rftkit.plugins import in_a_line, load_function
from rftkit.refiner import Messages, OnlineRefiner, Refinement


class OwnRefiner(OnlineRefiner):
    """What the function MODULE:FUNCTION makes of each response. It takes no forward pass.

    An unchanged response keeps its tokens; every refined one ends. One of over `max_new_tokens`
    tokens is refused as "cut off": the response stays.
    """

    def __init__(self, policy: Policy, function: str, max_new_tokens: int = 64):
        """Raises UserError where there is no such function."""
        self.max_new_tokens = max_new_tokens
        self.policy, self.passes, self.place = policy, 0, f"refiner: {function}"
        self.function = load_function("refiner", function, "my_rules:once")

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        texts = [self.policy.decode(ids) for ids in responses]
        refined = self._call(deepcopy([list(p) for p in prompts]), list(texts))
        rows = zip(responses, texts, refined, strict=True)
        return [self._refinement(ids, self._answer(ids, a, b)) for ids, a, b in rows]

    def _answer(self, ids: list[int], text: str, refined: str) -> Answer:
        if text == refined and ids[-1:] and ids[-1] in self.policy.eos_ids:
            return Answer(ids)
        kept = ids if text == refined else self.policy.encode(refined)
        if len(kept) > self.max_new_tokens:
            return Answer(ids, "cut off")
        return Answer([*kept, self.policy.tokenizer.eos_token_id])

    def _call(self, prompts: list[list[dict[str, str]]], responses: list[str]) -> list[str]:
        count = len(responses)
        try:
            found = self.function(prompts, responses)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.place} failed with {in_a_line(error)}") from None
        texts = isinstance(found, Sequence) and all(isinstance(text, str) for text in found)
        if not texts or isinstance(found, str) or len(found) != count:
            raise UserError(
                f"{self.place} must return a list with one text a response ({count} here)"
            )
        return list(found)
