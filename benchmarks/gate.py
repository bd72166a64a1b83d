"""Simulates what an acceptance rule does to a run: the real rule classes on drawn measurements, no models, in seconds.

A version is a chance of a right answer for each held-out prompt. Prompts differ much (standard deviation 1.5 on the
logit scale), and an update moves each of them by its own amount (standard deviation 0.4) around a mean that raises the
expected score over all prompts that there could be by the true gain. A measurement draws 8 attempts at each of the same
24 prompts. After a rejection the next candidate starts from the version that serves. 200 runs of 8 rounds for each gain
and rule. Prints the table of `benchmarks/gate.md`:

    python benchmarks/gate.py
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.acceptance.measurement import Evidence, Measurement, PromptCounts, pooled
from orchestrator.acceptance.rule import ACCEPTANCE, AcceptanceRule, Decision
from policies.base.component import create

PROMPTS, SAMPLES, ROUNDS = 24, 8, 8
START = 0.4
"""Expected score of the untrained policy."""
SPREAD, MOVE = 1.5, 0.4
"""Standard deviations between prompts, and of what an update does to one of them; on the logit scale."""
GAINS = (0.0, 0.01, 0.03, -0.03)
"""True change of the expected score in a round."""

Chances = NDArray[np.float64]


class Oracle(AcceptanceRule):
    """Knows the true gain."""

    truths: dict[int, float]

    def decide(self, evidence: Evidence) -> Decision:
        new, old = evidence.candidate.version, evidence.serving.version
        return Decision(self.truths[new] > self.truths[old], "the truth")


class Before(AcceptanceRule):
    """The rule before this one: at least the score that the serving version had when it was accepted."""

    def decide(self, evidence: Evidence) -> Decision:
        new, old = evidence.candidate["eval/pass@1"], evidence.serving["eval/pass@1"]
        return Decision(new >= old, "one look at each")


Settings = dict[str, object] | type[AcceptanceRule]

RULES: dict[str, Settings] = {
    "always": {"type": "always"},
    "if_better": {"type": "if_better"},
    "if_better, confidence 0.8": {"type": "if_better", "confidence": 0.8},
    "if_better, margin 0": {"type": "if_better", "margin": 0.0},
    "before: one look, no error": Before,
    "oracle": Oracle,
}
"""Name, and settings or a class of this file."""


@dataclass
class Version:
    """A simulated policy."""

    number: int
    truth: float
    """Expected score over all prompts that there could be."""
    variance: float
    """Of the logits over all prompts."""
    logits: Chances
    """Of the held-out prompts. [C]"""
    test: Chances
    """Of as many prompts that no decision uses. [C]"""
    counts: list[PromptCounts]
    known: Measurement | None = None
    """Made of `counts` once they change."""

    @property
    def measurement(self) -> Measurement:
        if self.known is None or self.known.times != len(self.counts):
            whole = pooled(self.counts)
            score = sum(whole.right) / sum(whole.measured)
            self.known = Measurement(self.number, {"eval/pass@1": score}, whole, len(self.counts))
        return self.known


@dataclass(frozen=True)
class Outcome:
    """One simulated run."""

    gained: float
    """True score of the last version less that of the first."""
    first_look: float
    """Score that the deciding measurement of the last version has, less the truth of the same prompts."""
    final: float
    """The same for the last version measured once more (`final/pass@1`)."""
    test: float
    """Score on prompts that no decision used (`test/pass@1`), less the truth of all prompts."""
    rejected: int
    samples: int
    """Attempts at held-out prompts."""


def simulate(settings: Settings, gain: float, seed: int) -> Outcome:
    """One run under a rule; equal for equal arguments."""
    rule = settings(ACCEPTANCE.parse("always")) if isinstance(settings, type) else _made(settings)
    updates, draws = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    truths: dict[int, float] = {}
    if isinstance(rule, Oracle):
        rule.truths = truths
    middle = _middle(START, SPREAD**2)
    first = updates.normal(middle, SPREAD, (2, PROMPTS))
    serving = Version(0, START, SPREAD**2, first[0], first[1], [])
    _measure(serving, draws)
    truths[0], served, rejected, measured = START, {0: serving}, 0, 1
    for index in range(1, ROUNDS + 1):
        candidate = _update(serving, gain, index, updates)
        truths[index] = candidate.truth
        _measure(candidate, draws)
        known = {**served, index: candidate}
        again = rule.measure_again(_evidence(candidate, serving, served))
        for number in again:
            _measure(known[number], draws)
        measured += 1 + len(again)
        decision = rule.decide(_evidence(candidate, serving, served))
        if decision.accepted:
            serving = served[index] = candidate
        else:
            rejected += 1
            serving = served[serving.number if decision.back_to is None else decision.back_to]
    if rule.selects and not isinstance(settings, type):
        measured += 1
    look = serving.measurement["eval/pass@1"]
    here = float(_chance(serving.logits).mean())
    return Outcome(
        gained=serving.truth - START,
        first_look=look - here,
        final=float(_draw(serving.logits, draws).mean()) / SAMPLES - here,
        test=float(_draw(serving.test, draws).mean()) / SAMPLES - serving.truth,
        rejected=rejected,
        samples=measured * PROMPTS * SAMPLES,
    )


def _made(settings: dict[str, object]) -> AcceptanceRule:
    made: AcceptanceRule = create(ACCEPTANCE.parse(settings))
    return made


def _update(parent: Version, gain: float, number: int, rng: np.random.Generator) -> Version:
    truth = min(max(parent.truth + gain, 0.01), 0.99)
    variance = parent.variance + MOVE**2
    shift = _middle(truth, variance) - _middle(parent.truth, parent.variance)
    moves = rng.normal(shift, MOVE, (2, PROMPTS))
    return Version(number, truth, variance, parent.logits + moves[0], parent.test + moves[1], [])


def _measure(version: Version, rng: np.random.Generator) -> None:
    right = tuple(int(n) for n in _draw(version.logits, rng))
    asked = (SAMPLES,) * PROMPTS
    version.counts.append(
        PromptCounts(
            asked=asked,
            measured=asked,
            right=right,
            score_sum=tuple(map(float, right)),
            ended=asked,
            ended_right=right,
        )
    )


def _draw(logits: Chances, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.binomial(SAMPLES, _chance(logits))


def _chance(logits: Chances) -> Chances:
    return 1.0 / (1.0 + np.exp(-logits))


def _evidence(candidate: Version, serving: Version, served: dict[int, Version]) -> Evidence:
    earlier = {n: v.measurement for n, v in served.items() if v is not serving}
    return Evidence(candidate.measurement, serving.measurement, earlier)


@functools.cache
def _middle(score: float, variance: float) -> float:
    """Mean of the logits at which the expected score is `score`, by bisection on a Gauss-Hermite sum."""
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        found = (weights * _chance(middle + math.sqrt(variance) * points)).sum() / weights.sum()
        low, high = (middle, high) if found < score else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Row:
    """Means over the runs of one rule at one gain."""

    rule: str
    gain: float
    gained: float
    rejected: float
    first_look: float
    final: float
    test: float
    cost: float
    """Held-out samples as a multiple of measuring each version once."""


def rows(repetitions: int, rules: Sequence[str] = tuple(RULES)) -> list[Row]:
    """Every rule at every gain."""
    found = []
    once = (ROUNDS + 1) * PROMPTS * SAMPLES
    for rule in rules:
        for gain in GAINS:
            runs = [simulate(RULES[rule], gain, seed) for seed in range(repetitions)]

            def mean(name: str, runs: Sequence[Outcome] = runs) -> float:
                return math.fsum(getattr(run, name) for run in runs) / len(runs)

            found.append(
                Row(
                    rule=rule,
                    gain=gain,
                    gained=mean("gained"),
                    rejected=mean("rejected"),
                    first_look=mean("first_look"),
                    final=mean("final"),
                    test=mean("test"),
                    cost=mean("samples") / once,
                )
            )
    return found


def table(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| rule | true gain a round | gained in 8 rounds | rejected | first look - truth | final - truth | "
        "test - truth | samples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {r.rule} | {r.gain:+.2f} | {r.gained:+.3f} | {r.rejected:.1f} | {r.first_look:+.3f} | {r.final:+.3f} | "
            f"{r.test:+.3f} | x {r.cost:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=200)
    print(table(rows(parser.parse_args().repetitions)))


if __name__ == "__main__":
    main()
