"""Refiner playground: type or corrupt a response, see what the refiner makes of it and why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import ipywidgets as widgets
import matplotlib as mpl
import torch
from matplotlib.colors import to_hex

from rftkit.chat import characters
from rftkit.decoding import verify_decode
from rftkit.diff import to_html
from rftkit.errors import UserError
from rftkit.models import Policy, load_policy
from rftkit.refiner import OnlineRefiner, Refinement
from rftkit.scoring import target_log_probs
from rftkit.tasks import Prompt, Score, Task, load_task
from rftkit.tasks.base import edit_units
from rftkit.widgets.parts import Explorer, button, dropdown, escape, row

LONGEST = 128  # tokens of a response in the playground
HOT = 6.0  # nats at the dark end of the heat strip
SHOWN_PROMPTS = 12


@dataclass(frozen=True)
class Piece:
    """One token of the refined response, or a few that make up one character.

    accepted: the refiner took it over from the response; None where that is not known. loss:
    −log π(y'|x) of the SFT loss, in nats.
    """

    text: str
    accepted: bool | None
    loss: float


@dataclass(frozen=True)
class Inspection:
    """A refinement in detail. scores: of the response, and of the refined response."""

    refinement: Refinement
    pieces: list[Piece]
    scores: tuple[Score, Score]

    @property
    def sft_loss(self) -> float:
        """Mean over the tokens of the refined response, in nats."""
        return sum(p.loss for p in self.pieces) / len(self.refinement.refined_ids)


def inspect_refinement(policy: Policy, task: Task, prompt: Prompt, response: str) -> Inspection:
    """Refine one response and look at each token of the result.

    Raises UserError where the response has more than LONGEST tokens.
    """
    count = len(policy.encode(response))
    if count > LONGEST:
        raise UserError(f"response: {count} tokens, {LONGEST} at most; shorten it")
    refiner = OnlineRefiner(policy, LONGEST)
    (refinement,) = refiner.refine([prompt], [response])
    ids = refinement.refined_ids
    with torch.no_grad():
        context = policy.encode_chat(prompt.messages)
        log_probs = target_log_probs(policy.model, [context], [ids])[0][0]  # [tokens]
    accepted = _accepted(policy, refiner, prompt, refinement)
    pieces = []
    for first, end in characters(policy.tokenizer, ids):
        text = "EOS" if ids[first] in policy.eos_ids else policy.tokenizer.decode(ids[first:end])
        took = None if accepted is None else all(accepted[first:end])
        pieces.append(Piece(text, took, -float(log_probs[first:end].sum())))
    texts = [response, refinement.refined]
    scores = task.score([prompt, prompt], texts, [True, True])
    return Inspection(refinement, pieces, (scores[0], scores[1]))


def inspection_html(inspection: Inspection) -> str:
    """Diff, scores, decisions token by token, and the heat strip."""
    refinement, pieces = inspection.refinement, inspection.pieces
    if refinement.fallback:
        verdict = f"refused ({escape(refinement.fallback)}): the response stays"
    else:
        verdict = "changed" if refinement.changed else "unchanged: the constraint is off"
    edits = f"edit ratio {refinement.edit_ratio:.2f} · forward passes {refinement.rounds}"
    diff = f'<div style="font-size:120%;margin:4px 0 10px">{to_html(refinement.diff)}</div>'
    parts = [f"<b>Refinement</b> · {verdict} · {edits}", diff, _scores(inspection.scores)]
    if all(piece.accepted is not None for piece in pieces):
        kept = sum(bool(piece.accepted) for piece in pieces)
        signs = (
            f"✓ accepted from the response ({kept}) · ✎ the refiner's own ({len(pieces) - kept})"
        )
        parts += [f"<b>Token by token</b> · {signs}", _strip(map(_decision, pieces))]
    mean = f"−log π of the refined response in nats a token, mean {inspection.sft_loss:.2f}"
    parts += [f"<b>SFT loss</b> · {mean}", _strip(map(_heat, pieces))]
    look = 'class="mathjax_ignore" style="line-height:1.5;max-width:960px"'
    return f"<div {look}>{''.join(map(_block, parts))}</div>"


class RefinerPlayground(Explorer):
    """A prompt, a response to edit by hand or by button, and the refinement below."""

    def __init__(self, policy: Policy | None = None, task: str = "dialogue", seed: int = 0):
        self.policy = policy or load_policy("tiny")
        self.task = load_task(task)
        self.rng = random.Random(seed)
        prompts = self.task.prompts("heldout")[:SHOWN_PROMPTS]
        self.prompt = dropdown([(p.text, p) for p in prompts], "prompt", "98%")
        self.response = widgets.Textarea(
            description="response",
            rows=3,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "98%"},
        )
        corruptions: dict[str, tuple[str, Callable[[], str]]] = {
            "clean": ("a well-formed response, right or wrong", self._clean),
            "random edit": ("drop, double, swap or replace one word", self._random_edit),
            "flood": ("the degeneracy that training without a constraint ends in", self._flood),
            "overstep": ("the first step of that, at the limit of good form", self._overstep),
        }
        buttons = [
            button(name, tooltip, partial(self.attempt, partial(self._write, make)))
            for name, (tooltip, make) in corruptions.items()
        ]
        again = button("refine", "refine the response as it stands", self.refresh)
        super().__init__([self.prompt, self.response, row(*buttons, again)])
        self.layout.max_width = "980px"
        self.prompt.observe(self.refresh, "value")
        self.response.observe(self.refresh, "value")
        self.attempt(lambda: self._write(self._overstep))

    def html(self) -> str:
        return inspection_html(
            inspect_refinement(self.policy, self.task, self.prompt.value, self.response.value)
        )

    def _write(self, make: Callable[[], str]) -> None:
        with self.quiet():
            self.response.value = make()
        self._show()

    def _clean(self) -> str:
        return self.task.clean(self.prompt.value, self.rng)

    def _random_edit(self) -> str:
        return edit_units(self.response.value, self.rng, 1)

    def _flood(self) -> str:
        return self.task.flood(self.prompt.value, self.response.value, self.rng)

    def _overstep(self) -> str:
        return self.task.overstep(self.prompt.value, self.rng)[0]


def _accepted(
    policy: Policy, refiner: OnlineRefiner, prompt: Prompt, refinement: Refinement
) -> list[bool] | None:
    """For each refined token whether it was the response's next one; decoded once more for that.

    None where the refined response is not the refiner's text as it came.
    """
    form, response = refiner.form, refinement.response_ids
    with policy.reference():
        out = verify_decode(
            policy.model,
            [form.context(list(prompt.messages), response)],
            [form.draft(response)],
            max_new_tokens=form.limit,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
        )
    return out.accepted[0] if out.ids[0] == refinement.refined_ids else None


def _scores(scores: Sequence[Score]) -> str:
    """A small table: response and refined response by task reward, gold reward and form."""
    head = "".join(f"<th {_CELL}>{name}</th>" for name in ("", "task reward", "gold reward", ""))
    rows = [
        f"<th {_CELL} scope='row'>{name}</th><td {_CELL}>{score.task_reward:.2f}</td>"
        f"<td {_CELL}>{score.gold_reward:.2f}</td>"
        f"<td {_CELL}>{'degenerate' if score.degenerate else 'well-formed'}</td>"
        for name, score in zip(("response", "refined response"), scores, strict=True)
    ]
    body = "".join(f"<tr>{cells}</tr>" for cells in (head, *rows))
    return f'<table style="border-collapse:collapse;margin:0 0 10px">{body}</table>'


_CELL = 'style="text-align:left;padding:1px 14px 1px 0;font-weight:normal"'


def _decision(piece: Piece) -> str:
    colours = "#ffffff", "#333333"
    if not piece.accepted:
        colours = "#d6ebf8", "#00466e"
    return _token(piece.text, "✓" if piece.accepted else "✎", *colours)


def _heat(piece: Piece) -> str:
    """One hue from light to dark, so that it reads with any colour vision and in print."""
    warmth = min(max(piece.loss, 0.0) / HOT, 1.0)
    ink = "#ffffff" if warmth > 0.55 else "#1a1a1a"
    return _token(piece.text, f"{piece.loss:.1f}", to_hex(mpl.colormaps["Purples"](warmth)), ink)


def _token(text: str, below: str, background: str, ink: str) -> str:
    shown = escape(text).replace(" ", "␣").replace("\n", "⏎") or "∅"
    return (
        '<span style="display:inline-block;text-align:center;margin:1px;padding:1px 5px;'
        f"border:1px solid #bbbbbb;border-radius:3px;background:{background};color:{ink}"
        f'"><span style="font-family:monospace">{shown}</span>'
        f'<br><span style="font-size:80%">{below}</span></span>'
    )


def _strip(tokens: Iterable[str]) -> str:
    return f'<div style="line-height:1.3;margin:2px 0 10px">{"".join(tokens)}</div>'


def _block(part: str) -> str:
    return f"<div>{part}</div>"
