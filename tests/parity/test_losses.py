"""Our formulas against published worked values, and against TRL's own loss code on the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policies.objectives.loss import LOSSES, UnpairedLoss, UnpairedTensors
from tests.parity.trl_stub import NumbersModel, inputs_for, trl_loss
from tests.parity.vectors import (
    F1,
    F1_MEANS,
    F2_DESIRABLE,
    F2_MISMATCHED,
    F2_UNDESIRABLE,
    REF_CHOSEN,
    REF_REJECTED,
    fixture_pairs,
    fixture_rows,
    grid,
    weights_for,
)
from tests.support.scored_batches import pair_tensors
from tests.support.training_cases import make_loss, pair_loss, unpaired_loss

SHIPPED = sorted(name for name, where in LOSSES.members().items() if where.startswith("policies."))
TRL_PAIR_TYPES = {
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}


def f1_inputs() -> dict[str, Any]:
    _, mask, _ = fixture_rows()
    references = {
        "ref_chosen_logps": torch.tensor(REF_CHOSEN),
        "ref_rejected_logps": torch.tensor(REF_REJECTED),
    }
    return {**inputs_for(mask), **references}


def test_every_loss_type_of_trl_is_reachable_by_a_config() -> None:
    spelled = {make_loss(name).trl().loss_type for name in SHIPPED}
    assert spelled == TRL_PAIR_TYPES | {"kto", "apo_zero_unpaired", "nll"}


@pytest.mark.parametrize(("name", "settings", "expected"), F1)
def test_our_formula_gives_the_worked_values(
    name: str, settings: dict[str, Any], expected: list[float]
) -> None:
    values = pair_loss(name, **settings).per_pair(fixture_pairs())
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0.0, atol=2e-6)


@pytest.mark.parametrize(("name", "settings", "expected"), F1_MEANS)
def test_f_divergences_give_the_worked_means(
    name: str, settings: dict[str, Any], expected: float
) -> None:
    assert float(pair_loss(name, **settings).per_pair(fixture_pairs()).mean()) == pytest.approx(
        expected, abs=1e-6
    )


def test_aot_gives_the_worked_value() -> None:
    zero = torch.zeros(2)
    pairs = fixture_pairs().__class__(
        torch.tensor([2.0, -4.0]), zero, torch.tensor([0.5, 1.0]), zero, zero, zero
    )
    assert float(pair_loss("aot").per_pair(pairs).mean()) == pytest.approx(0.793823, abs=1e-6)


EXPRESSIBLE = [
    *(
        (name, settings)
        for name, settings, _ in F1
        if not settings.keys() & {"nll_coefficient"} and name != "dpo"
    ),
    *[("dpo", {}), ("dpo", {"use_weighting": True}), ("dpo", {"ld_alpha": 0.5}), ("aot", {})],
    *[
        ("aot", {"label_smoothing": 0.2}),
        ("ipo", {"ld_alpha": 0.3}),
        ("hinge", {"use_weighting": True}),
    ],
    *((name, settings) for name, settings, _ in F1_MEANS),
    (
        "robust",
        {"label_smoothing": 0.2, "f_divergence": "alpha_divergence", "alpha_divergence_coef": 0.25},
    ),
]


@pytest.mark.parametrize(("name", "settings"), EXPRESSIBLE)
def test_trl_computes_the_same_loss_from_the_same_log_probs(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    log_probs, mask, squares = fixture_rows()
    loss = pair_loss(name, **settings)
    ours = loss.per_pair(
        pair_tensors(
            log_probs,
            mask,
            torch.tensor(REF_CHOSEN),
            torch.tensor(REF_REJECTED),
            weights=weights_for(loss, mask),
            log_sum_squares=squares,
        )
    )
    theirs = trl_loss(loss, NumbersModel(log_probs, squares), f1_inputs(), str(tmp_path))
    assert float(ours.mean()) == pytest.approx(theirs, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.3}, {"nll_coefficient": 1.0}])
def test_what_trl_cannot_say_takes_the_custom_step(
    settings: dict[str, float], tmp_path: Path
) -> None:
    log_probs, _, squares = fixture_rows()
    loss = pair_loss("dpo", **settings)
    assert loss.needs_custom_step
    theirs = trl_loss(loss, NumbersModel(log_probs, squares), f1_inputs(), str(tmp_path))
    assert float(loss.per_pair(fixture_pairs()).mean()) != pytest.approx(theirs, abs=1e-3)
    assert theirs == pytest.approx(0.676154, abs=1e-5), "TRL falls back to plain DPO"


def test_trls_token_mean_nll_differs_from_the_per_sequence_form() -> None:
    pairs = fixture_pairs()
    per_sequence = pair_loss("dpo", nll_coefficient=1.0).per_pair(pairs).mean()
    token_mean = (pair_loss("dpo").per_pair(pairs) + pair_loss("sft_chosen").per_pair(pairs)).mean()
    assert float(per_sequence) == pytest.approx(2.217820, abs=1e-5)
    assert float(token_mean) == pytest.approx(2.247582, abs=1e-5)


F3_POLICY = [[-1.0, -1, -9, -9, -2], [-2.0, -1, -7, -4, 0]]
F3_REFERENCE = [[-1.5, -1.5, -3, -3, -2], [-1.8, -1.2, -7.5, -3, 0]]
F3_MASK = [[1, 1, 0, 0, 1], [1, 1, 0, 1, 0]]
F3_UNMASKED = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


@pytest.mark.parametrize(("mask", "expected"), [(F3_MASK, 0.598139), (F3_UNMASKED, 1.350058)])
def test_the_mask_decides_the_loss_in_ours_and_in_trls(
    mask: list[list[int]], expected: float, tmp_path: Path
) -> None:
    scored, table = torch.tensor(mask), torch.tensor(F3_POLICY)
    reference = (torch.tensor(F3_REFERENCE) * scored).sum(dim=1)
    loss = pair_loss("dpo")
    ours = loss.per_pair(pair_tensors(table * scored, scored, reference[:1], reference[1:]))
    inputs = {
        **inputs_for(scored),
        "ref_chosen_logps": reference[:1],
        "ref_rejected_logps": reference[1:],
    }
    assert float(ours) == pytest.approx(expected, abs=1e-6)
    assert trl_loss(loss, NumbersModel(table), inputs, str(tmp_path)) == pytest.approx(
        expected, abs=1e-5
    )


def kto_both_ways(
    loss: UnpairedLoss, mismatched: list[float], folder: Path, **weights: float
) -> tuple[float, float]:
    """F2 through our formula and through TRL's."""
    ratios = torch.tensor(F2_DESIRABLE + F2_UNDESIRABLE)
    desirable = torch.tensor([True, True, False, False])
    kl = torch.tensor(mismatched).mean().clamp(min=0)
    ours = loss.per_example(UnpairedTensors(ratios, torch.zeros(4), desirable, kl))
    ours = ours * torch.where(desirable, weights.get("desirable_weight", 1.0), 1.0)
    table = grid([[value] for value in ratios.tolist() + mismatched], 1)
    ones = torch.ones((4, 1), dtype=torch.long)
    inputs = {
        **inputs_for(ones),
        **{f"KL_{name}": value for name, value in inputs_for(ones, first_row=4).items()},
        "label": desirable,
        "ref_logps": torch.zeros(4),
        "ref_KL_logps": torch.zeros(4),
    }
    return float(ours.mean()), trl_loss(loss, NumbersModel(table), inputs, str(folder), **weights)


@pytest.mark.parametrize(
    ("name", "mismatched", "weights", "expected"),
    [
        ("kto", F2_MISMATCHED, {}, 0.495315),
        ("kto", F2_MISMATCHED, {"desirable_weight": 4 / 3}, 0.578440),
        ("kto", [-0.4, -0.2, -0.6, 0.0], {}, 0.495318),
        ("apo_zero_unpaired", F2_MISMATCHED, {}, 0.495318),
    ],
)
def test_kto_gives_the_worked_value_in_ours_and_in_trls(
    name: str, mismatched: list[float], weights: dict[str, float], expected: float, tmp_path: Path
) -> None:
    ours, theirs = kto_both_ways(unpaired_loss(name), mismatched, tmp_path, **weights)
    assert ours == pytest.approx(expected, abs=2e-6)
    assert theirs == pytest.approx(expected, abs=1e-5)
