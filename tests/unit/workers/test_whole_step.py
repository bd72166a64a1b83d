"""A whole optimizer step: one reference point, cut at 0 once, and its rows with a part of them live."""

from __future__ import annotations

import pytest
import torch

from policies.objectives.loss import PairTensors
from workers.training.distributed.process_group import WorkerGroup
from workers.training.whole_step import reference_point, rows_of_step, values_by_row

ALONE, LIKE = WorkerGroup(), torch.zeros(())


@pytest.mark.parametrize("cuts", [[3], [1, 2], [2, 1], [1, 1, 1], [0, 3]])
def test_the_reference_point_is_the_mean_of_the_step_cut_at_0_once(cuts: list[int]) -> None:
    """The mean of -3, 1 and 5 is 1; with each part cut at 0 for itself it would be 2 or more."""
    parts = list(torch.tensor([-3.0, 1.0, 5.0]).split(cuts))
    assert float(reference_point(parts, ALONE, LIKE)) == pytest.approx(1.0)
    assert float(reference_point([-2 * part for part in parts], ALONE, LIKE)) == 0.0


def test_without_borrowed_completions_the_reference_point_is_0() -> None:
    assert float(reference_point([], ALONE, LIKE)) == 0.0


def test_the_rows_of_a_step_come_back_in_their_places_with_a_gradient_for_the_live_ones() -> None:
    def pairs(values: list[float]) -> PairTensors:
        own = torch.tensor(values)
        zero = torch.zeros(len(values))
        return PairTensors(own, zero, zero, zero, zero + 3, zero + 2, soft_labels=zero + 1)

    first, second = pairs([1.0, 2.0]), pairs([3.0])
    parts = [
        (places, {**values_by_row(batch), "weights": torch.full((len(places),), weight)})
        for batch, places, weight in ((first, [2, 0], 0.5), (second, [1], 4.0))
    ]
    step = rows_of_step(parts, 3, ALONE)
    assert step.weights.tolist() == [0.5, 4.0, 0.5]
    live = pairs([30.0])
    live.chosen_logps.requires_grad_()
    whole = step.with_live(live, [1])
    assert whole.chosen_logps.tolist() == [2.0, 30.0, 1.0]
    assert whole.chosen_lengths.tolist() == [3, 3, 3]
    (whole.chosen_logps * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert live.chosen_logps.grad is not None
    assert live.chosen_logps.grad.tolist() == [10.0]
