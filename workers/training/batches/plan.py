"""Plans which examples are trained on, in which steps: selection with counted reasons, batches, mismatched partners.

Pure functions of the examples and a seed: the same job gives the same batches on every machine.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from policies.base.errors import TrainingError, explain
from policies.base.seeds import derive_rng
from policies.examples.kind import Example, LabelledStep, TokenSequence, TokenSpan

_WINDOW_STEPS = 8
"""Steps whose rows are sorted by length together: enough to save most padding, few enough to stay random."""


def select(
    examples: Sequence[Example], *, kind: type[Example], max_length: int, loss: str
) -> tuple[list[Example], dict[str, int]]:
    """Return the examples that can be trained on, and how many were dropped for which reason.

    Raises:
        TrainingError: an example is not of the kind that the loss reads.
    """
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        if not isinstance(example, kind):
            raise TrainingError(
                explain(
                    f"the loss {loss!r} trains on {kind.__name__} records and was given another kind",
                    value=type(example).__name__,
                    where="training.loss and preferences",
                    fix="choose a preference builder that makes what the loss reads",
                )
            )
        reason = unusable_because(example, max_length)
        if reason is None:
            kept.append(example)
        else:
            dropped[reason] += 1
    return kept, dict(dropped)


def require_some(kept: Sequence[Example], dropped: dict[str, int]) -> None:
    """Refuse a round with nothing to train on.

    Raises:
        TrainingError: names the reasons for which examples were dropped.
    """
    if not kept:
        raise TrainingError(
            explain(
                "no example is left to train on",
                value=dropped or "no examples at all",
                where="preferences and training.max_length",
                fix="see the reasons; rounds with fewer than training.min_examples are skipped",
            )
        )


def unusable_because(example: Example, max_length: int) -> str | None:
    """Tell why an example cannot be trained on, or None."""
    too_long = any(len(s.token_ids) > max_length for s in example.sequences())
    return "too_long" if too_long else example.problem()


def count_kept(examples: Sequence[Example]) -> dict[str, float]:
    """Metrics of how many examples are trained on: by label where their kind has one, else all."""
    labels = [example.label() for example in examples]
    if None in labels:
        return {f"train/{examples[0].counted_as}": float(len(examples))}
    return {
        "train/desirable": float(labels.count(True)),
        "train/undesirable": float(labels.count(False)),
    }


def longest_sides(examples: Sequence[Example]) -> list[int]:
    """Tokens of the longest sequence of each example."""
    return [max(len(s.token_ids) for s in e.sequences()) for e in examples]


def completion_scored(example: Example) -> Example:
    """The example with every token after the prompt scored, observations too (`loss_mask: completion`).

    An ablation that shows what masks are for: what tools and users wrote is then preferred and imitated as if the
    policy had written it. Log-probs of those tokens are not on record; they stay 0.0 here.
    """
    return example.with_sequences(_completion_scored)


def _completion_scored(sequence: TokenSequence) -> TokenSequence:
    start = len(sequence.prompt)
    mask = (0,) * start + (1,) * (len(sequence.token_ids) - start)
    return sequence.model_copy(update={"loss_mask": mask})


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass; over a step, `share` times the mean loss sums to the mean of the step."""

    rows: tuple[int, ...]
    share: float
    step: int = 0
    """Index of the optimizer step that it belongs to."""


@dataclass(frozen=True)
class BatchPlan:
    """All microbatches of an update in order; each optimizer step takes `accumulation` of them."""

    microbatches: tuple[MicroBatch, ...]
    accumulation: int

    @property
    def num_steps(self) -> int:
        return len(self.microbatches) // self.accumulation

    @property
    def step_rows(self) -> list[tuple[int, ...]]:
        """Rows of each step, in order: the same however the steps are cut into microbatches."""
        rows: list[list[int]] = [[] for _ in range(self.num_steps)]
        for part in self.microbatches:
            rows[part.step].extend(part.rows if part.share else ())
        return [tuple(step) for step in rows]

    def means(self, values: Sequence[float]) -> list[float]:
        """Mean of `values`, which are by row, over the rows of each step."""
        return [sum(values[row] for row in step) / len(step) for step in self.step_rows]


def plan_batches(
    lengths: Sequence[int],
    *,
    batch_size: int,
    micro_batch_size: int | None,
    epochs: int,
    seed: int,
    classes: Sequence[bool] | None = None,
) -> BatchPlan:
    """Cut the rows into optimizer steps of nearly equal size, and these into microbatches.

    Rows are shuffled, sorted by length within windows of some steps, cut, and the steps shuffled again. With
    `classes` both classes are spread evenly over all steps: a KTO step with one class only would push one way.

    Args:
        lengths: tokens of each row.
        batch_size: most rows of a step.
        micro_batch_size: most rows of a forward pass; None means batch_size.
        epochs: how often every row is seen.
        seed: of the shuffles.
        classes: desirable bit of each row.
    """
    count = len(lengths)
    num_steps = math.ceil(count / batch_size)
    accumulation = math.ceil(math.ceil(count / num_steps) / (micro_batch_size or batch_size))
    microbatches: list[MicroBatch] = []
    for epoch in range(epochs):
        rng = derive_rng(seed, "batches", epoch)
        order = list(range(count))
        rng.shuffle(order)
        steps = _even_cuts(_spread(order, classes), num_steps)
        for start in range(0, num_steps, _WINDOW_STEPS):
            window = steps[start : start + _WINDOW_STEPS]
            by_length = sorted((row for step in window for row in step), key=lengths.__getitem__)
            rows = iter(_spread(by_length, classes))
            steps[start : start + _WINDOW_STEPS] = [[next(rows) for _ in step] for step in window]
        rng.shuffle(steps)
        for step in steps:
            number = len(microbatches) // accumulation
            microbatches.extend(_micro(step, accumulation, number))
    return BatchPlan(microbatches=tuple(microbatches), accumulation=accumulation)


def _micro(step: list[int], accumulation: int, number: int) -> list[MicroBatch]:
    parts = _even_cuts(step, accumulation)
    # A step with fewer rows than microbatches repeats a row with share 0, so that all steps have as many.
    return [
        MicroBatch(rows=tuple(part), share=len(part) / len(step), step=number)
        if part
        else MicroBatch(rows=(step[0],), share=0.0, step=number)
        for part in parts
    ]


def _even_cuts(rows: Sequence[int], parts: int) -> list[list[int]]:
    bounds = [round(len(rows) * i / parts) for i in range(parts + 1)]
    return [list(rows[a:b]) for a, b in itertools.pairwise(bounds)]


def _spread(rows: list[int], classes: Sequence[bool] | None) -> list[int]:
    """Interleave the classes in proportion, keeping the order inside each."""
    if classes is None:
        return rows
    places: list[tuple[float, int]] = []
    for wanted in (False, True):
        members = [row for row in rows if classes[row] is wanted]
        places.extend(((i + 0.5) / len(members), row) for i, row in enumerate(members))
    return [row for _, row in sorted(places, key=lambda place: place[0])]


@dataclass(frozen=True)
class MismatchedSequence:
    """A mismatched sequence for the KL term of KTO: the prompt of one row, the completion of another."""

    row: int
    completion_of: int
    sequence: TokenSequence


def mismatched_sequences(
    examples: Sequence[Example], rows: Sequence[int], *, seed: int
) -> dict[int, MismatchedSequence]:
    """Give each of `rows` the completion of an example with another prompt.

    Samples of one prompt lie side by side, so taking the neighbour's completion (as TRL does) would often take a
    completion of the same prompt, and the "mismatched" log-ratio would be a matched one. Observations inside the
    borrowed completion stay masked.

    Raises:
        TrainingError: all examples have the same prompt.
    """
    if len({e.prompt_id for e in examples}) < 2:
        raise TrainingError(
            explain(
                "KTO estimates its reference point from completions of other prompts, and all examples of this round "
                "have the same prompt",
                value=examples[0].prompt_id if examples else None,
                where="prompts.per_round and training.loss",
                fix="draw more prompts a round, or use the loss apo_zero_unpaired, which has no such term",
            )
        )
    order = list(range(len(examples)))
    derive_rng(seed, "partners").shuffle(order)
    place = {row: i for i, row in enumerate(order)}
    partners: dict[int, MismatchedSequence] = {}
    for row in rows:
        offset = 1
        while (
            examples[order[(place[row] + offset) % len(order)]].prompt_id == examples[row].prompt_id
        ):
            offset += 1
        other = order[(place[row] + offset) % len(order)]
        partners[row] = MismatchedSequence(
            row, other, _mismatched(examples[row].sequences()[0], examples[other].sequences()[0])
        )
    return partners


def _mismatched(prompt_from: TokenSequence, completion_from: TokenSequence) -> TokenSequence:
    prompt, start = prompt_from.prompt, len(completion_from.prompt)
    completion = completion_from.token_ids[start:]
    shift = len(prompt) - start

    def moved(span: TokenSpan | LabelledStep) -> dict[str, int]:
        return {"start": max(span.start, start) + shift, "end": span.end + shift}

    return TokenSequence(
        trajectory_id=f"{prompt_from.trajectory_id}|{completion_from.trajectory_id}",
        policy_version=completion_from.policy_version,
        token_ids=prompt + completion,
        loss_mask=(0,) * len(prompt) + completion_from.loss_mask[start:],
        logprobs=(0.0,) * (len(prompt) + len(completion)),
        turns=tuple(t.model_copy(update=moved(t)) for t in completion_from.turns if t.end > start),
        steps=tuple(s.model_copy(update=moved(s)) for s in completion_from.steps if s.end > start),
    )


def share_of(batches: Sequence[MicroBatch], rank: int, size: int) -> list[MicroBatch]:
    """The rows of each microbatch that worker `rank` of `size` has; one that gets none repeats a row with share 0.

    DDP takes the mean of the workers' gradients, so a share is multiplied by their number: the sum over the workers is
    then what one worker would compute on the whole microbatch.
    """
    if size == 1:
        return list(batches)
    shares = []
    for batch in batches:
        first, end = (round(len(batch.rows) * i / size) for i in (rank, rank + 1))
        rows = batch.rows[first:end]
        part = batch.share * size * len(rows) / len(batch.rows)
        shares.append(MicroBatch(rows=rows or batch.rows[:1], share=part, step=batch.step))
    return shares
