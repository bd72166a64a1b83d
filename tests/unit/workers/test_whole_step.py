"""A whole optimizer step: one reference point, cut at 0 once, and its rows with a part of them live."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.objectives.loss import PairTensors, ScoredBatch
from workers.training.distributed.process_group import WorkerGroup
from workers.training.whole_step import reference_point, values_of_step

ALONE, LIKE = WorkerGroup(), torch.zeros(())


@pytest.mark.parametrize("cuts", [[3], [1, 2], [2, 1], [1, 1, 1], [0, 3]])
def test_the_reference_point_is_the_mean_of_the_step_cut_at_0_once(cuts: list[int]) -> None:
    """The mean of -3, 1 and 5 is 1; with each part cut at 0 for itself it would be 2 or more."""
    parts = list(torch.tensor([-3.0, 1.0, 5.0]).split(cuts))
    assert float(reference_point(parts, ALONE, LIKE)) == pytest.approx(1.0)
    assert float(reference_point([-2 * part for part in parts], ALONE, LIKE)) == 0.0


def test_without_borrowed_completions_the_reference_point_is_0() -> None:
    assert float(reference_point([], ALONE, LIKE)) == 0.0


def test_the_log_probs_of_a_step_come_back_in_their_places_with_a_gradient_for_the_live_ones() -> (
    None
):
    """Two pairs in a microbatch, one in another: the step's sequences are its chosen sides, then its rejected ones."""

    def batch(values: list[float], weights: list[float]) -> ScoredBatch:
        count = len(weights)
        return ScoredBatch(
            logps=torch.tensor(values),
            references={"reference": torch.zeros(2 * count)},
            lengths=torch.full((2 * count,), 3),
            owners=torch.arange(count).repeat(2),
            sizes=(count, count),
            weights=torch.tensor(weights),
            kl=LIKE,
            mean_lengths=torch.tensor([3.0, 3.0]),
            values={},
        )

    first, second = batch([1.0, 2.0, -1.0, -2.0], [0.5, 0.5]), batch([3.0, -3.0], [4.0])
    parts = [
        ([2, 0, 5, 3], first.logps[None]),
        ([1, 4], second.logps[None]),
        ([], second.logps[None]),
    ]
    values = values_of_step(parts, 6, ALONE)
    assert values.tolist() == [[2.0, 3.0, 1.0, -2.0, -3.0, -1.0]]
    step = replace(batch([0.0] * 6, [0.5, 4.0, 0.5]), logps=values[0])
    live = batch([30.0, -30.0], [4.0])
    live.logps.requires_grad_()
    whole = PairTensors.of(step.with_live(live, [1, 4]))
    assert whole.chosen_logps.tolist() == [2.0, 30.0, 1.0]
    assert whole.rejected_logps.tolist() == [-2.0, -30.0, -1.0]
    assert whole.chosen_lengths.tolist() == [3, 3, 3]
    (whole.chosen_logps * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert live.logps.grad is not None
    assert live.logps.grad.tolist() == [10.0, 0.0]
