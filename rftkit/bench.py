"""Speed and memory, measured side by side in one run: our steps, our rollouts, and the peer's.

Each round does every piece of work once, so that a slow spell of the machine meets all alike;
medians over rounds are compared, the first round is not counted. The policy stays as loaded
(learning rate 0, at the full cost of an update), so every round is the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any, NamedTuple

from tqdm import tqdm

from rftkit import machine
from rftkit.allocator import keep_freed_memory
from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.estimate import estimate
from rftkit.memory import run_peak_gb
from rftkit.models import pick_device
from rftkit.peer import Generate, require_trl, run_trl
from rftkit.refiner import OnlineRefiner
from rftkit.rollout import Rollouts, Sampler, generate
from rftkit.shape import read_shape
from rftkit.trainer import Trainer

BETA = 0.1  # of both KL steps
NEVER = 10**9  # steps
MAX_NEW_TOKENS = 32

STEPS = ("none", "kl", "dynamic", "trl")
SAMPLERS = ("dense", "direct", "generate")
REFINING = ("verified", "plain")
# What must hold: numerator, denominator, sense, floor.
FLOORS = {
    "kl_to_peer": ("kl", "trl", "at most", 0.6),
    "dynamic_to_peer": ("dynamic", "trl", "at most", 0.85),
    "dynamic_to_kl": ("dynamic", "kl", "at most", 1.35),
    "rollouts_to_generate": ("dense", "generate", "at least", 2.0),
}
MEMORY_FLOOR = 1.1  # policy, reference and refiner, to the policy alone
ESTIMATE_FLOOR = 0.15  # how far from 1 `rftkit estimate` may be of the measured tensors


class Timing(NamedTuple):
    """One piece of work: seconds, and response tokens in it."""

    seconds: float
    tokens: int


def bench(
    config: RunConfig | None = None, peer: str = "", rounds: int = 7, progress: bool = True
) -> dict[str, Any]:
    """Measure, and return JSON types: medians and ranges over rounds, ratios and their floors.

    config: model, precision, device, task, prompts, group and longest response (0 = 32 tokens).
    peer: "trl" or "". Raises UserError where a setting is unknown or TRL is not installed.
    """
    if peer not in ("", "trl"):
        raise UserError(f"peer: {peer!r} is unknown; choose trl")
    if rounds < 1:
        raise UserError(f"rounds: {rounds} must be at least 1")
    if peer:
        require_trl()
    keep_freed_memory()  # as `rftkit train` does; the peer in this process gains from it as well
    ours = _Ours(fixed_work(config or RunConfig(), rounds + 1))
    timings: dict[str, list[Timing]] = {name: [] for name in ours.works}
    with tqdm(total=rounds + 3, desc="bench", disable=not progress) as bar:

        def our_round() -> None:
            for name, work in ours.works.items():
                timings[name].append(work(len(timings[name])))
            bar.update()

        def after_peer(seconds: float, tokens: int) -> None:
            timings.setdefault(peer, []).append(Timing(seconds, tokens))
            our_round()

        settings = None
        if peer:
            kl = replace(ours.config, constraint="kl", coef=BETA)
            task = ours.trainers["none"].task
            settings = run_trl(kl, task, ours.prompts, rounds + 1, after_peer)
        else:
            for _ in range(rounds + 1):
                our_round()
        peaks = _peaks(ours.config, ours.refines, bar.update)
    counted = {name: found[1:] for name, found in timings.items()}  # the first is warm-up
    found = ours.facts() | _results(counted, peaks)
    dense = found["tokens_per_second"]["dense"]["median"]
    return found | {
        "share_of_limit": {name: dense / most for name, most in found["decoding_limit"].items()},
        "sampler_mismatch": ours.mismatch,
        "refinement": ours.refinement(counted),
        "peer": settings,
    }


def fixed_work(config: RunConfig, steps: int) -> RunConfig:
    """`config` for `steps` equal steps: nothing evaluated or saved, no change to the policy."""
    return replace(
        config,
        max_new_tokens=config.max_new_tokens or MAX_NEW_TOKENS,
        lr=0.0,
        steps=steps + 1,  # behind the last one comes an evaluation
        eval_every=NEVER,  # but at step 0, which is warm-up
        eval_prompts=1,
        strength_every=NEVER,
        save_every=NEVER,
        samples=0,
    )


class _Ours:
    """Everything that is timed but the peer's step, on one policy; `works` by name."""

    def __init__(self, config: RunConfig):
        self.config = config
        first = Trainer(replace(config, constraint="none"))
        self.policy, self.sampler = first.policy, first.sampler
        self.refines = self.policy.refines_natively
        self.prompts = first.train_prompts[: config.prompts]
        self.trainers = {"none": first}
        for name, coef in (("kl", BETA), ("dynamic", config.coef)):
            if name == "kl" or self.refines:
                settings = replace(config, constraint=name, coef=coef)
                self.trainers[name] = Trainer(settings, policy=self.policy, task=first.task)
        self.mismatch = 0.0  # nats a token, of the last step
        self.works: dict[str, Callable[[int], Timing]] = {}
        for name, trainer in self.trainers.items():
            trainer.train_prompts = list(self.prompts)
            self.works[name] = self._step(trainer)
        direct, peer = Sampler(self.policy, "direct"), Generate(config, self.prompts)
        self.works["dense"] = self._timed(lambda n: self.sample(self.sampler, n).tokens)
        self.works["direct"] = self._timed(lambda n: self.sample(direct, n).tokens)
        self.works["generate"] = self._timed(peer.sample)
        if self.refines:
            self.refining = _Refining(self)
            self.works["verified"] = self._timed(self.refining.verified)
            self.works["plain"] = self._timed(self.refining.plain)

    def _timed(self, work: Callable[[int], int]) -> Callable[[int], Timing]:
        """`work` takes the number of the round and returns its tokens."""

        def run(n: int) -> Timing:
            machine.synchronise(self.policy.device)
            start = time.perf_counter()
            tokens = work(n)
            machine.synchronise(self.policy.device)
            return Timing(time.perf_counter() - start, tokens)

        return run

    def _step(self, trainer: Trainer) -> Callable[[int], Timing]:
        steps = trainer.steps()

        def step(_: int) -> int:
            metrics = next(steps)
            self.mismatch = float(metrics["mismatch"])
            return int(metrics["tokens"])

        return self._timed(step)

    def sample(self, sampler: Sampler, n: int) -> Rollouts:
        """The rollouts of round n."""
        return sampler.sample(
            self.prompts,
            group=self.config.group,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=n,
        )

    def facts(self) -> dict[str, Any]:
        """The machine, the work, and the limits that the one sets to the other."""
        dtype = self.policy.model.dtype
        rate = machine.rates(self.policy.device, dtype)
        rollouts, shape = self.sample(self.sampler, 1), read_shape(self.config.model)
        kept = ("model", "task", "prompts", "group", "max_new_tokens", "token_budget", "lora_rank",
                "lr")  # fmt: skip
        return {
            "machine": machine.facts(self.policy.device) | rate,
            "work": {name: getattr(self.config, name) for name in kept}
            | {"precision": self.policy.precision, "beta": BETA},
            "decoding_limit": machine.decoding_limits(shape, rollouts, rate, dtype.itemsize),
        }

    def refinement(self, timings: dict[str, list[Timing]]) -> dict[str, Any] | None:
        """Passes, edits and seconds of refining; None for a model that has no refiner."""
        if not self.refines:
            return None
        seconds = {n: _spread([t.seconds for t in timings[n]]) for n in REFINING}
        return self.refining.summary() | {"seconds": seconds}


class _Refining:
    """Refines a round's rollouts twice: verified against the responses, and token by token."""

    def __init__(self, ours: _Ours):
        policy, config = ours.policy, ours.config
        self.policy, self.limit = policy, config.max_new_tokens
        self.refiner = OnlineRefiner(policy, self.limit)
        rollouts = ours.sample(ours.sampler, 0)
        pairs = {  # equal ones are refined once
            (str(p), tuple(y)): (list(p.messages), y)
            for p, y in zip(rollouts.prompts, rollouts.response_ids, strict=True)
        }
        self.messages = [m for m, _ in pairs.values()]
        self.responses = [y for _, y in pairs.values()]

    def verified(self, n: int) -> int:
        self.refined = self.refiner.refine_ids(self.messages, self.responses)
        return sum(len(r.refined_ids) for r in self.refined)

    def plain(self, n: int) -> int:
        pairs = zip(self.messages, self.responses, strict=True)
        with self.policy.reference():
            out = generate(
                self.policy.model,
                [self.refiner.form.context(m, y) for m, y in pairs],
                max_new_tokens=self.limit,
                eos_ids=self.policy.eos_ids,
                pad_id=self.policy.pad_id,
                temperature=0,
            )
        self.written = out.ids
        return sum(map(len, out.ids))

    def summary(self) -> dict[str, Any]:
        """Forward passes a refinement, edits, and the share that both ways write identically."""
        both = list(zip(self.refined, self.written, strict=True))
        eos = self.policy.eos_ids
        same = [r.refined_ids == z or bool(r.fallback and z[-1] not in eos) for r, z in both]
        return {
            "passes": {
                "verified": fmean(r.rounds for r in self.refined),
                "plain": fmean(map(len, self.written)),
            },
            "edit_ratio": fmean(r.edit_ratio for r in self.refined),
            "changed": fmean(r.changed for r in self.refined),
            "identical": fmean(same),
        }


# From timings to what is reported


def _results(timings: dict[str, list[Timing]], peaks: dict[str, Any]) -> dict[str, Any]:
    values = {name: [t.seconds for t in found] for name, found in timings.items()}
    values |= {name: [t.tokens / t.seconds for t in timings[name]] for name in SAMPLERS}
    ratios = {}
    for name, (above, below, sense, floor) in FLOORS.items():
        if above in values and below in values:
            pairs = zip(values[above], values[below], strict=True)
            value = median(values[above]) / median(values[below])
            by_round = [a / b for a, b in pairs]
            ratios[name] = _ratio(value, sense, floor) | {
                "min": min(by_round),
                "max": max(by_round),
            }
    for name in ("process", "tensors"):
        value = peaks["policy_reference_refiner"][name] / peaks["policy"][name]
        ratios[f"memory_{name}"] = _ratio(value, "at most", MEMORY_FLOOR)
    predicted = peaks["estimated_tensors"] / peaks["policy_reference_refiner"]["tensors"]
    ratios["estimate_to_measured"] = _ratio(predicted, "1 within", ESTIMATE_FLOOR)
    return {
        "rounds": len(timings["none"]),
        "tokens": {name: median(t.tokens for t in found) for name, found in timings.items()},
        "seconds_per_step": {n: _spread(values[n]) for n in STEPS if n in values},
        "tokens_per_second": {n: _spread(values[n]) for n in SAMPLERS},
        "peak_memory_gb": peaks,
        "ratios": ratios,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _ratio(value: float, sense: str, floor: float) -> dict[str, Any]:
    met = {
        "at most": value <= floor,
        "at least": value >= floor,
        "1 within": abs(value - 1) <= floor,
    }[sense]
    return {"value": value, "sense": sense, "floor": floor, "met": met}


def _peaks(config: RunConfig, refines: bool, done: Callable[[], object]) -> dict[str, Any]:
    """Peaks in GB of the policy alone, and of a run in which one base plays all three roles."""
    steps = replace(config, steps=4)
    alone = run_peak_gb(replace(steps, constraint="none"))
    done()
    # Evaluation scores as many responses as a step has under the reference.
    rows = config.prompts * config.group
    constraint = "dynamic" if refines else "kl"
    every = replace(steps, constraint=constraint, coef=config.coef, eval_every=1, eval_prompts=rows)
    together = run_peak_gb(every)
    done()
    device = pick_device(config.device, config.model).type
    predicted = estimate(every, device="cuda" if device == "cuda" else "cpu")["peak_gb"]
    return {"policy": alone, "policy_reference_refiner": together, "estimated_tensors": predicted}


# For a person to read


def table(result: dict[str, Any]) -> str:
    """What `bench` returned, as text."""
    limits, reached = result["decoding_limit"], result["share_of_limit"]
    lines = [
        *_heading(result),
        f"{'':<26}{'median':>9}{'lowest':>9}{'highest':>9}",
        *_rows("s/step", result["seconds_per_step"], 3),
        *_rows("tokens/s", result["tokens_per_second"], 0),
    ]
    lines += [
        f"tokens/s at most, by {name.removeprefix('by_')}: {limit:.0f}; dense reaches "
        f"{reached[name]:.0%}"
        for name, limit in limits.items()
    ]
    lines.append(f"sampler against trainer: {result['sampler_mismatch']:.1e} nats a token apart")
    if result["refinement"] is not None:
        lines += ["", *_refinement_lines(result["refinement"])]
    lines += ["", *_memory_lines(result["peak_memory_gb"]), ""]
    lines += [f"{'ratio':<22}{'value':>8}   {'rounds':<15}{'floor':<16}met"]
    for name, ratio in result["ratios"].items():
        spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}" if "min" in ratio else ""
        floor = f"{ratio['sense']} {ratio['floor']:g}"
        met = "yes" if ratio["met"] else "no"
        lines.append(f"{name:<22}{ratio['value']:>8.2f}   {spread:<15}{floor:<16}{met}")
    return "\n".join(lines)


def _heading(result: dict[str, Any]) -> list[str]:
    facts, work = result["machine"], result["work"]
    on = f"{facts['device']} ({facts['name']}), {facts['threads']} threads, torch {facts['torch']}"
    rates = f"{facts['gflops']:.0f} GFLOP/s, {facts['bandwidth_gb_s']:.1f} GB/s"
    model = f"{work['model']} in {work['precision']} with LoRA r={work['lora_rank']}"
    size = f"{work['prompts']} prompts x {work['group']} responses"
    length = f"at most {work['max_new_tokens']} tokens, {result['rounds']} rounds"
    return [f"{on}: {rates}", f"{model}: {size} of {length}", ""]


def _refinement_lines(found: dict[str, Any]) -> list[str]:
    passes = found["passes"]
    counts = f"{passes['verified']:.2f} verified, {passes['plain']:.2f} plain greedy"
    edits = f"edit ratio {found['edit_ratio']:.3f}, identical output {found['identical']:.1%}"
    return [
        f"forward passes a refinement: {counts} ({edits})",
        *_rows("s a batch", found["seconds"], 3),
    ]


def _rows(unit: str, group: dict[str, dict[str, float]], digits: int) -> list[str]:
    return [
        f"{name + ', ' + unit:<26}"
        + "".join(f"{values[key]:>9.{digits}f}" for key in ("median", "min", "max"))
        for name, values in group.items()
    ]


def _memory_lines(peaks: dict[str, Any]) -> list[str]:
    lines = [
        f"peak memory, {name.replace('_', ' + ')}: process {peak['process']:.3f} GB "
        f"({peak['before']:.3f} before the model), tensors {peak['tensors']:.3f} GB"
        for name in ("policy", "policy_reference_refiner")
        for peak in [peaks[name]]
    ]
    return [*lines, f"tensors predicted by `rftkit estimate`: {peaks['estimated_tensors']:.3f} GB"]
