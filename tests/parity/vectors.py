"""Fixtures F1, F2 and F3 with their expected values: worked by hand and in numpy from the published formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.examples.kinds import TokenSequence
from policies.objectives.loss import PairLoss, PairTensors
from tests.support.scored_batches import pair_tensors
from workers.training.batches.collate import spread_weights

CHOSEN = [[-1.0, -1.0, -2.0], [-1.0, -2.0, -2.0, -2.0]]
REJECTED = [[-2.0, -4.0], [-1.0, -2.0]]
REF_CHOSEN, REF_REJECTED = [-5.0, -6.5], [-5.5, -3.25]
CHOSEN_SQUARES = [[-0.5, -0.5, -1.0], [-0.5, -1.0, -1.0, -1.0]]
REJECTED_SQUARES = [[-1.0, -2.0], [-0.5, -1.0]]

F1: list[tuple[str, dict[str, Any], list[float]]] = [
    ("dpo", {}, [0.620957, 0.73135]),
    ("dpo", {"label_smoothing": 0.1}, [0.635957, 0.72385]),
    ("dpo", {"nll_coefficient": 1.0}, [1.95429, 2.48135]),
    ("dpo", {"use_weighting": True}, [0.071136, 0.144011]),
    ("robust", {"label_smoothing": 0.1}, [0.602207, 0.740725]),
    ("hinge", {}, [0.85, 1.075]),
    ("ipo", {}, [19.506944, 27.5625]),
    ("exo_pair", {"label_smoothing": 0.1}, [0.431388, 0.552707]),
    ("nca_pair", {}, [1.350825, 1.405552]),
    ("bco_pair", {}, [1.312856, 1.424185]),
    ("sppo_hard", {}, [36.25, 57.8125]),
    ("aot_unpaired", {}, [0.693147, 0.65635]),
    ("apo_zero", {}, [0.962523, 1.018747]),
    ("apo_down", {}, [0.987549, 1.006244]),
    ("discopop", {"tau": 0.05}, [0.849338, 0.794567]),
    ("sigmoid_norm", {}, [0.664406, 0.705725]),
    ("sft_chosen", {}, [1.142857, 2.0]),
]
"""Loss, settings, expected loss of each pair; beta is 0.1."""

F1_MEANS: list[tuple[str, dict[str, Any], float]] = [
    ("dpo", {"f_divergence": "forward_kl"}, 0.684372),
    ("dpo", {"f_divergence": "js_divergence"}, 0.686952),
    ("dpo", {"f_divergence": "alpha_divergence"}, 0.680898),
]

F2_DESIRABLE, F2_UNDESIRABLE, F2_MISMATCHED = [1.0, -0.5], [-0.5, 0.25], [0.4, -0.2, 0.6, 0.0]


def grid(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])


def fixture_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Token log-probs, mask and log of the sum of squares of F1, chosen rows first. [4, 4] each"""
    rows = CHOSEN + REJECTED
    mask = grid([[1.0] * len(row) for row in rows], 4).long()
    return grid(rows, 4), mask, grid(CHOSEN_SQUARES + REJECTED_SQUARES, 4)


def masked_sequence(mask: list[int]) -> TokenSequence:
    """A sequence of one unscored token and then tokens with this mask."""
    zeros = (0.0,) * (len(mask) + 1)
    return TokenSequence(
        trajectory_id="t",
        policy_version=0,
        token_ids=tuple(range(len(mask) + 1)),
        loss_mask=(0, *mask),
        logprobs=zeros,
    )


def weights_for(loss: PairLoss, mask: Tensor) -> Tensor | None:
    """Token weights of the loss for rows with this mask, chosen rows first, as the collator makes them. [2B, T-1]"""
    if not loss.weighs_tokens:
        return None
    rows = [masked_sequence(row) for row in mask.tolist()]
    half = len(rows) // 2
    others = rows[half:] + rows[:half]
    weights = [loss.token_weights(own, other) for own, other in zip(rows, others, strict=True)]
    return spread_weights(mask, weights)


def fixture_pairs() -> PairTensors:
    """F1 as the tensors that a loss reads."""
    log_probs, mask, squares = fixture_rows()
    return pair_tensors(
        log_probs,
        mask,
        torch.tensor(REF_CHOSEN),
        torch.tensor(REF_REJECTED),
        log_sum_squares=squares,
    )
