"""A held-out measurement prompt by prompt: what metrics, their standard errors and acceptance rules are made of.

One rule for what counts. An attempt is *measured* when something graded it; what the policy did wrong (no answer, cut
off, a failed call) is graded and wrong. It is *unmeasured* when our side failed: the sampler, a verifier, a prompt that
does not fit. A prompt is measured when at least half of its attempts are; all metrics are over the measured prompts,
the same for every k of pass@k.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator.acceptance.statistics import (
    Estimate,
    clustered_mean,
    clustered_ratio,
    paired_difference,
    sampling_error,
)
from policies.base.records import Record
from workers.scoring.aggregate import pass_at_k, powers_of_two

Values = dict[int, float]
"""One value per measured prompt, by its place in the held-out set."""


class PromptCounts(Record):
    """Results of the attempts at each held-out prompt, in their order.

    Example: `PromptCounts(asked=(8, 8), measured=(8, 7), right=(3, 0), score_sum=(3.0, 0.0), ended=(6, 8),
    ended_right=(3, 0))`.
    """

    asked: tuple[int, ...]
    measured: tuple[int, ...]
    """Attempts that were graded."""
    right: tuple[int, ...]
    score_sum: tuple[float, ...]
    """Sum of the graded attempts' scores."""
    ended: tuple[int, ...]
    """Graded attempts that ended by themselves, before any limit."""
    ended_right: tuple[int, ...]

    @cached_property
    def measured_prompts(self) -> list[int]:
        """Places of the prompts at which at least half of the attempts, and one, were graded."""
        rows = enumerate(zip(self.asked, self.measured, strict=True))
        return [place for place, (asked, measured) in rows if 2 * measured >= max(asked, 1)]

    @property
    def unmeasured_share(self) -> float:
        """Share of all attempts that nothing graded, those at prompts that do not count included."""
        return self.num_unmeasured / max(sum(self.asked), 1)

    @property
    def num_unmeasured(self) -> int:
        """Attempts that nothing graded."""
        return sum(self.asked) - sum(self.measured)

    def values(self, metric: str) -> Values | None:
        """Each measured prompt's value of `eval/pass@<k>` or `eval/score`; None for what has no value by prompt."""
        places = self.measured_prompts
        if metric == "eval/score":
            return {i: self.score_sum[i] / self.measured[i] for i in places}
        k = metric.removeprefix("eval/pass@")
        if not k.isdecimal() or not places or int(k) > min(self.measured[i] for i in places):
            return None
        if k == "1":
            return {i: self.right[i] / self.measured[i] for i in places}
        return {i: pass_at_k(self.measured[i], self.right[i], int(k)) for i in places}

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Means over the measured prompts and, as `<name>_se`, their standard errors.

        pass@k is the unbiased estimate 1 - C(n-c, k) / C(n, k) for c right among n (Chen et al., arXiv 2107.03374,
        eq. 1), for every power of two that no measured prompt has fewer graded attempts than.
        """
        places = self.measured_prompts
        found: dict[str, float] = {
            f"{prefix}/prompts": float(len(places)),
            f"{prefix}/prompts_unmeasured": float(len(self.asked) - len(places)),
            f"{prefix}/unusable_share": self.unmeasured_share,
        }
        if not places:
            return found
        names = [f"pass@{k}" for k in powers_of_two(min(self.measured[i] for i in places))]
        for name in [*names, "score"]:
            values = self.values(f"eval/{name}")
            assert values is not None
            found |= _with_error(f"{prefix}/{name}", clustered_mean(list(values.values())))
        if any(self.ended[i] for i in places):
            complete = clustered_ratio(
                [self.ended_right[i] for i in places], [self.ended[i] for i in places]
            )
            found |= _with_error(f"{prefix}/pass@1_complete", complete)
        return found


def pooled(counts: Sequence[PromptCounts]) -> PromptCounts:
    """Several measurements of one version with the same prompts, as one."""
    columns = {
        name: tuple(sum(row) for row in zip(*(dict(c)[name] for c in counts), strict=True))
        for name in PromptCounts.model_fields
    }
    return PromptCounts.model_validate(columns)


@dataclass(frozen=True)
class Measurement(Mapping[str, float]):
    """Evidence on one version: its metrics by name, and the attempts behind them by prompt."""

    version: int
    metrics: Mapping[str, float]
    counts: PromptCounts | None = None
    """None for measurements by an older Pawl, which kept the metrics only."""
    times: int = 1
    """How often it was measured; the metrics are over all times."""

    @classmethod
    def of(
        cls, version: int, counts: Sequence[PromptCounts], rest: Mapping[str, float]
    ) -> Measurement:
        """All measurements of a version together; `rest` are metrics that have no value by prompt."""
        whole = pooled(counts)
        return cls(version, {**rest, **whole.metrics()}, whole, len(counts))

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)


@dataclass(frozen=True)
class Evidence:
    """The facts that an acceptance rule decides on."""

    candidate: Measurement
    serving: Measurement
    """The version that serves now."""
    earlier: Mapping[int, Measurement] = field(default_factory=dict)
    """Every version that served before and can serve again, by number."""

    def known(self) -> dict[int, Measurement]:
        """The serving version and the earlier ones, by number."""
        return {**self.earlier, self.serving.version: self.serving}


def difference(new: Measurement, old: Measurement, metric: str = "eval/pass@1") -> Estimate | None:
    """New minus old over the prompts that both have measured, paired; None where there is no value by prompt."""
    if new.counts is None or old.counts is None:
        return None
    a, b = new.counts.values(metric), old.counts.values(metric)
    shared = sorted(a.keys() & b.keys()) if a is not None and b is not None else []
    if not shared:
        return None
    assert a is not None
    assert b is not None
    floor = 0.0
    if metric in ("eval/pass@1", "eval/score"):
        floor = sampling_error(
            [
                (
                    a[i] * new.counts.measured[i],
                    new.counts.measured[i],
                    b[i] * old.counts.measured[i],
                    old.counts.measured[i],
                )
                for i in shared
            ]
        )
    return paired_difference([a[i] for i in shared], [b[i] for i in shared], floor)


def _with_error(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value} | ({} if found.error is None else {f"{name}_se": found.error})
