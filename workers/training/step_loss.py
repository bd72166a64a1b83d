"""The loss of one optimizer step, computed a microbatch at a time: the parts add up, whatever the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policies.examples.scored_batch import ScoredBatch, TokenScores
from policies.objectives.loss import Loss
from workers.cluster.heartbeat import report_progress
from workers.training.batches.scored import scored_batch, step_logratios, step_tensors
from workers.training.distributed.process_group import WorkerGroup
from workers.training.whole_step import reference_point, values_of_step

if TYPE_CHECKING:
    from torch import Tensor

    from workers.training.batches.collate import Collator

Score = Callable[[Mapping[str, Any]], TokenScores]
"""Scores the tokens of a microbatch without gradient."""
Prepare = Callable[[dict[str, Any]], dict[str, Any]]
"""Puts the tensors of a microbatch on the model's device."""
Keep = Callable[[str, "Tensor"], None]
"""Is given each value that the step's log shows as a mean over the microbatches."""


@dataclass(frozen=True)
class Objective:
    """All that the steps of one update share."""

    loss: Loss
    collate: Collator | None
    """None for an engine that computes nothing."""
    step_rows: Sequence[Sequence[int]]
    """Rows of each optimizer step, in order, those of all workers."""
    across_rows: bool
    """The loss needs all rows of a step at once, and a microbatch of a worker is only a part of them."""
    group: WorkerGroup


class StepLoss:
    """The loss of one optimizer step. Called once for each microbatch; `numbers` says what they came to."""

    def __init__(
        self,
        objective: Objective,
        parts: Sequence[dict[str, Any]],
        score: Score,
        prepare: Prepare,
        keep: Keep | None = None,
    ) -> None:
        self.objective, self.loss, self.group = objective, objective.loss, objective.group
        self._parts, self._score, self._prepare = parts, score, prepare
        self._points: tuple[Tensor, Tensor] | None = None
        self._whole: ScoredBatch | None = None
        self._losses: list[Tensor] = []
        self._kept: dict[str, list[Tensor]] = {}
        self.keep = keep or self._keep

    def __call__(self, part: Mapping[str, Any], scores: TokenScores) -> Tensor:
        """Return a microbatch's part of the step's loss, with gradient. []

        Args:
            part: one of the step's microbatches, as `Collator` makes them.
            scores: of the policy for its tokens, with entropy, and with log_sum_squares where the loss
                `needs_alignment`.
        """
        batch = self._scored(part, scores)
        scored = part["completion_mask"][:, 1:]
        if scores.entropy is not None:
            self.keep("entropy", (scores.entropy.detach() * scored).sum() / scored.sum())
        for name, value in self.loss.metrics(batch).items():
            self.keep(name, value)
        value = self._part_of_mean(part, batch)
        self._losses.append(value.detach())
        report_progress(microbatches=1)
        return value

    def _keep(self, name: str, value: Tensor) -> None:
        self._kept.setdefault(name, []).append(value.detach())

    def numbers(self) -> dict[str, float]:
        """The loss of the step, and the means over its microbatches of what was kept."""
        means = {n: sum(map(float, values)) / len(values) for n, values in self._kept.items()}
        return {"loss": sum(map(float, self._losses)), **means}

    def look_ahead(self) -> None:
        """Make the passes without gradient that the whole step needs, before the first with one."""
        if not self._parts:
            return
        first = self._prepare(self._parts[0])
        self.reference_points(first["facts"]["weights"])
        if self.objective.across_rows:
            self._whole_step(first)

    def reference_points(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Reference points of completions and of judged steps: one of each for the whole optimizer step. []

        Made before the step's first microbatch, from the mismatched completions of all of them, on all workers.
        """
        if self.loss.kl_share == 0:
            return like.new_zeros(()), like.new_zeros(())
        if self._points is None:
            apart, steps_apart = self._mismatched_logratios()
            self._points = (
                reference_point(apart, self.group, like),
                reference_point(steps_apart, self.group, like),
            )
        return self._points

    def _scored(self, part: Mapping[str, Any], scores: TokenScores) -> ScoredBatch:
        """All that the loss reads of a microbatch."""
        kl, step_kl = self.reference_points(part["facts"]["weights"])
        weights = part.get("token_weights")
        return scored_batch(
            scores.log_probs,
            part["completion_mask"][:, 1:],
            part["facts"],
            weights=None if weights is None else weights[:, 1:],
            log_sum_squares=scores.log_sum_squares if self.loss.needs_alignment else None,
            kl=kl,
            steps=step_tensors(scores.log_probs, part["steps"], step_kl)
            if self.loss.reads_steps
            else None,
        )

    def _part_of_mean(self, part: Mapping[str, Any], batch: ScoredBatch) -> Tensor:
        """A microbatch's part of the weighted mean of the losses over the examples of the optimizer step.

        The parts of all microbatches, added up and then averaged over the workers, are the mean of the whole step, and
        so are their gradients.
        """
        share: float = part["share"]
        losses = self.loss.losses
        if not self.objective.across_rows:
            own: Tensor = (losses(batch) * batch.weights).mean()
            return share * own
        # Every worker takes part, also one without rows of its own.
        whole = self._whole_step(part)
        if not share:  # a row repeated to fill the step
            return 0.0 * losses(batch).sum()
        mean = (losses(whole.with_live(batch, self._places(part))) * whole.weights).mean()
        # The mean belongs to the step, and its value is counted by share; the gradient comes through these rows only.
        return share * mean.detach() + self.group.size * (mean - mean.detach())

    def _whole_step(self, part: Mapping[str, Any]) -> ScoredBatch:
        """All examples of the step: a pass without gradient over this worker's microbatches, and the others' values."""
        import torch

        if self._whole is not None:
            return self._whole
        parts: list[tuple[list[int], Tensor]] = []
        with torch.no_grad():
            for each in self._prepared_parts():
                batch = self._scored(each, self._score(each))
                values = [v for v in (batch.logps, batch.alignment) if v is not None]
                parts.append((self._places(each), torch.stack(values)))
        step = part["step"]
        facts = self._prepare(self._collate.facts(self.objective.step_rows[step], step))
        scores = values_of_step(parts, len(facts["owners"]), self.group)
        alignment = scores[1] if len(scores) > 1 else None
        kl, _ = self.reference_points(facts["weights"])
        self._whole = ScoredBatch(logps=scores[0], alignment=alignment, kl=kl, **facts)
        return self._whole

    def _places(self, part: Mapping[str, Any]) -> list[int]:
        """Places of a microbatch's sequences among those of its step; none of a row that is repeated to fill it."""
        every = self._collate.places(self.objective.step_rows[part["step"]])
        place = {each: i for i, each in enumerate(every)}
        return [place[each] for each in self._collate.places(part["rows"])] if part["share"] else []

    def _mismatched_logratios(self) -> tuple[list[Tensor], list[Tensor]]:
        """Log-ratios of this worker's mismatched completions, and of the judged steps in them, by microbatch."""
        import torch

        apart: list[Tensor] = []
        steps_apart: list[Tensor] = []
        with torch.no_grad():
            for part in self._prepared_parts():
                mismatched = part.get("mismatched")
                if mismatched is None:  # none of its rows has a partner
                    if self.group.sharded:  # the others need this worker's share of the model
                        self._score(part)
                    continue
                log_probs = self._score(mismatched).log_probs
                apart.append(log_probs.sum(dim=1) - mismatched["references"])
                if self.loss.reads_steps:
                    steps_apart.append(step_logratios(log_probs, mismatched["steps"]))
        return apart, steps_apart

    def _prepared_parts(self) -> Iterator[dict[str, Any]]:
        for part in self._parts:
            yield self._prepare(part)
            report_progress()

    @property
    def _collate(self) -> Collator:
        assert self.objective.collate is not None
        return self.objective.collate
