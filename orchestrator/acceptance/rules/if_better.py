"""Roll back a policy that is clearly worse on the held-out prompts than one before it; keep every other.

A round's gain is often smaller than the standard error of its measurement. Rolling back whatever measured lower would
throw away half of the progress and keep what was lucky, so only what is *clearly* worse goes: by a one-sided t test on
the differences prompt by prompt (Miller 2024, arXiv 2411.00640, section 4). The candidate is compared with the version
that serves and with the best one before, so that a chain of losses, none of them clear, is caught as a whole. What it
seems to lose against is measured again first, with new samples: no version stays on top for a lucky measurement.
`benchmarks/gate.md` has what this does to a run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from pydantic import Field

from orchestrator.acceptance.measurement import Evidence, Measurement, difference
from orchestrator.acceptance.rule import AcceptanceRule, Decision
from orchestrator.acceptance.statistics import Estimate, is_clearly_below
from policies.base.bounds import MAX_SCORE
from policies.base.component import Component

SUSPICION = 0.7
"""Confidence of a loss from which on the better version is measured again before anything is decided."""


class IfBetter(AcceptanceRule):
    """Compares one metric, higher being better."""

    class Config(Component.Config):
        """Settings of the comparison."""

        metric: str = "eval/pass@1"
        """Name of the held-out metric that decides. `eval/pass@<k>` and `eval/score` have a value by prompt and are
        tested; others are compared as they are."""
        confidence: float = Field(default=0.9, gt=0.5, lt=1)
        """How sure a loss must be before it is rolled back: 0.9 rolls back one in ten policies that are as good as the
        one before. Higher keeps more."""
        worse_by: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """A loss up to this is no reason to roll back, however sure; in units of the metric."""
        margin: float | None = Field(default=None, ge=-MAX_SCORE, le=MAX_SCORE)
        """Instead of the test: the candidate must reach the serving policy's value plus this, whatever the noise.
        Null: only what is clearly worse is rolled back."""

    def measure_again(self, evidence: Evidence) -> tuple[int, ...]:
        config = cast(IfBetter.Config, self.config)
        if config.metric not in evidence.candidate:
            return ()
        wanted = [
            rival.version
            for rival in self._rivals(evidence)
            if config.metric not in rival or self._suspects(evidence.candidate, rival)
        ]
        return tuple(wanted)

    def decide(self, evidence: Evidence) -> Decision:
        config = cast(IfBetter.Config, self.config)
        candidate, metric = evidence.candidate, config.metric
        if metric in candidate and metric not in evidence.serving:
            version = evidence.serving.version
            return Decision(True, f"not decided: version {version} has no {metric} to compare with")
        lacking = next((m for m in (candidate, evidence.serving) if metric not in m), None)
        if lacking is not None:
            known = ", ".join(sorted(lacking)) or "nothing"
            return Decision(
                False,
                f"no {metric} of version {lacking.version} to compare (measured: {known}); see acceptance.metric",
            )
        if config.margin is not None:
            return self._by_margin(candidate, evidence.serving, config.margin)
        texts = []
        for rival in self._rivals(evidence):
            found = difference(candidate, rival, metric)
            if found is None:
                found = Estimate(candidate[metric] - rival[metric], 0.0, 2)
            text = self._sentence(candidate, rival, found)
            if is_clearly_below(found, -config.worse_by, config.confidence):
                best = self._best(evidence).version
                return Decision(False, f"{text}: clearly worse", back_to=best, best=best)
            texts.append(text)
        best = self._best(replace(evidence, serving=candidate, earlier=evidence.known())).version
        return Decision(True, f"{'; '.join(texts)}: not clearly worse", best=best)

    def _by_margin(self, candidate: Measurement, serving: Measurement, margin: float) -> Decision:
        metric = cast(IfBetter.Config, self.config).metric
        new, old = candidate[metric], serving[metric]
        found = difference(candidate, serving, metric)
        accepted = new >= old + margin
        sign = ">=" if accepted else "<"
        paired = "" if found is None else f" (paired difference {found})"
        return Decision(
            accepted, f"{metric} {new:.4f} {sign} {old:.4f} + margin {margin:g}{paired}"
        )

    def _rivals(self, evidence: Evidence) -> list[Measurement]:
        """The version that serves, and the best one where that is another."""
        best = self._best(evidence)
        rest = [] if best.version == evidence.serving.version else [best]
        return [evidence.serving, *rest]

    def _best(self, evidence: Evidence) -> Measurement:
        """The version with the highest metric over all its measurements; of equal ones the newest."""
        config = cast(IfBetter.Config, self.config)
        if config.margin is not None:
            return evidence.serving
        known = [m for m in evidence.known().values() if config.metric in m]
        return max(known, key=lambda m: (m[config.metric], m.version), default=evidence.serving)

    def _suspects(self, candidate: Measurement, rival: Measurement) -> bool:
        config = cast(IfBetter.Config, self.config)
        found = difference(candidate, rival, config.metric)
        if found is None:  # an older Pawl kept no attempts by prompt
            return rival.counts is None and candidate.counts is not None
        if config.margin is not None:
            return found.value < config.margin
        return is_clearly_below(found, -config.worse_by, SUSPICION)

    def _sentence(self, candidate: Measurement, rival: Measurement, found: Estimate) -> str:
        metric = cast(IfBetter.Config, self.config).metric
        again = f", measured {rival.times} times" if rival.times > 1 else ""
        return (
            f"{metric} {candidate[metric]:.3f} against {rival[metric]:.3f} of version {rival.version}{again}: "
            f"{found} over {found.num_prompts} prompts"
        )
