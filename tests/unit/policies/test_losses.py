"""What the losses must satisfy whatever the numbers: identities, symmetries, limits, class weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from policies.objectives.loss import PairTensors, UnpairedTensors
from tests.parity.vectors import masked_sequence, weights_for
from tests.support.scored_batches import pair_tensors
from tests.support.training_cases import make_loss, pair_loss, unpaired_loss
from workers.training.batches.reference_logprobs import weighted_sum

MARGIN_ONLY = [
    ("dpo", {}),
    ("dpo", {"label_smoothing": 0.1}),
    ("robust", {}),
    ("hinge", {}),
    ("exo_pair", {"label_smoothing": 0.1}),
    ("discopop", {}),
    ("aot", {}),
]
ABSOLUTE = ["nca_pair", "bco_pair", "apo_zero", "apo_down", "sppo_hard", "ipo", "sigmoid_norm"]


def tensors(a: list[float], b: list[float], lengths: tuple[int, int] = (4, 3)) -> PairTensors:
    """Pairs with log-ratios a and b over some reference."""
    chosen, rejected = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    ref_chosen = torch.linspace(-9.0, -5.0, len(a), dtype=torch.float64)
    ref_rejected = ref_chosen - 2
    ones = torch.ones(len(a))
    return PairTensors(
        ref_chosen + chosen,
        ref_rejected + rejected,
        ref_chosen,
        ref_rejected,
        lengths[0] * ones,
        lengths[1] * ones,
        mean_chosen_length=torch.tensor(float(lengths[0])),
    )


@pytest.mark.parametrize(
    ("name", "settings", "value"),
    [
        ("dpo", {}, math.log(2)),
        ("dpo", {"label_smoothing": 0.3}, math.log(2)),
        ("robust", {}, math.log(2)),
        ("hinge", {}, 1.0),
        ("ipo", {}, 25.0),
        ("sppo_hard", {}, 50.0),
        ("apo_zero", {}, 1.0),
        ("aot", {}, math.log(2)),
        ("sigmoid_norm", {}, math.log(2)),
    ],
)
def test_at_the_reference_the_loss_is_the_neutral_one_and_pushes_both_sides_alike(
    name: str, settings: dict[str, Any], value: float
) -> None:
    pairs = tensors([0.0], [0.0], lengths=(3, 3))
    chosen = pairs.chosen_logps.requires_grad_()
    rejected = pairs.rejected_logps.requires_grad_()
    loss = (
        pair_loss(name, **settings)
        .per_pair(replace(pairs, chosen_logps=chosen, rejected_logps=rejected))
        .sum()
    )
    assert loss.item() == pytest.approx(value)
    up, down = torch.autograd.grad(loss, [chosen, rejected])
    assert float(up) < 0 < float(down)
    assert float(up) == pytest.approx(-float(down))


def test_swapping_the_sides_adds_beta_times_the_margin() -> None:
    loss = pair_loss("dpo")
    margin = loss.per_pair(tensors([1.5], [0.0])) - loss.per_pair(tensors([0.0], [1.5]))
    assert float(margin) == pytest.approx(-0.1 * 1.5)


@pytest.mark.parametrize(("name", "settings"), MARGIN_ONLY)
def test_a_constant_on_both_policy_sums_leaves_margin_losses_alone(
    name: str, settings: dict[str, Any]
) -> None:
    loss = pair_loss(name, **settings)
    here, moved = tensors([1.0, -0.5], [-0.5, 0.25]), tensors([4.0, 2.5], [2.5, 3.25])
    torch.testing.assert_close(loss.per_pair(here), loss.per_pair(moved))


@pytest.mark.parametrize("name", ABSOLUTE)
def test_a_constant_on_both_policy_sums_changes_absolute_and_averaged_losses(name: str) -> None:
    loss = pair_loss(name)
    here, moved = tensors([1.0], [-0.5]), tensors([8.0], [6.5])
    assert float(loss.per_pair(here)) != pytest.approx(float(loss.per_pair(moved)), abs=1e-3)


@pytest.mark.parametrize("name", [n for n, _ in MARGIN_ONLY if n != "aot"] + ABSOLUTE)
def test_a_constant_on_policy_and_reference_of_one_side_changes_nothing(name: str) -> None:
    loss = pair_loss(name)
    if name == "aot":
        pytest.skip(
            "AOT compares the distributions of policy and of reference margins, not their differences"
        )
    pairs = tensors([1.0, -0.5], [-0.5, 0.25])
    moved = replace(
        pairs, chosen_logps=pairs.chosen_logps + 3, ref_chosen_logps=pairs.ref_chosen_logps + 3
    )
    torch.testing.assert_close(loss.per_pair(pairs), loss.per_pair(moved))


def test_special_cases_are_the_general_ones_at_their_limits() -> None:
    pairs, one = tensors([1.0, -0.5], [-0.5, 0.25]), tensors([1.0], [-0.5])
    dpo = pair_loss("dpo").per_pair(pairs)
    for name, settings in (
        ("dpo", {"label_smoothing": 0.0}),
        ("robust", {"label_smoothing": 0.0}),
        ("dpo", {"f_divergence": "alpha_divergence", "alpha_divergence_coef": 1.0}),
        ("dpo", {"ld_alpha": 1.0}),
    ):
        torch.testing.assert_close(pair_loss(name, **settings).per_pair(pairs), dpo)
    unweighted = replace(pairs, alignment=torch.zeros(2))
    torch.testing.assert_close(pair_loss("dpo", use_weighting=True).per_pair(unweighted), dpo)
    for name in ("aot", "aot_unpaired"):
        torch.testing.assert_close(pair_loss(name).per_pair(one), pair_loss("dpo").per_pair(one))


def test_kto_at_reference_point_zero_is_apo_zero_unpaired() -> None:
    ratios = torch.tensor([1.0, -0.5, 0.3])
    examples = UnpairedTensors(
        ratios, torch.zeros(3), torch.tensor([True, False, True]), torch.zeros(())
    )
    torch.testing.assert_close(
        unpaired_loss("kto").per_example(examples),
        unpaired_loss("apo_zero_unpaired").per_example(examples),
    )


def test_no_gradient_flows_into_the_kl_estimate_of_kto() -> None:
    kl = torch.tensor(0.2, requires_grad=True)
    logps = torch.tensor([1.0], requires_grad=True)
    loss = (
        unpaired_loss("kto")
        .per_example(UnpairedTensors(logps, torch.zeros(1), torch.tensor([True]), kl))
        .sum()
    )
    gradient, none = torch.autograd.grad(loss, [logps, kl], allow_unused=True)
    assert float(gradient) == pytest.approx(-0.024960, abs=1e-6)
    assert none is None


def test_wpo_weights_carry_no_gradient() -> None:
    alignment = torch.tensor([-0.5], requires_grad=True, dtype=torch.float64)
    pairs = replace(tensors([1.0], [-0.5]), alignment=alignment)
    chosen = pairs.chosen_logps.requires_grad_()
    loss = pair_loss("dpo", use_weighting=True).per_pair(replace(pairs, chosen_logps=chosen)).sum()
    _, none = torch.autograd.grad(loss, [chosen, alignment], allow_unused=True)
    assert none is None


def test_the_nll_term_counts_scored_tokens_of_each_sequence() -> None:
    pairs = tensors([0.0], [0.0], lengths=(5, 3))
    extra = pair_loss("dpo", nll_coefficient=2.0).per_pair(pairs) - pair_loss("dpo").per_pair(pairs)
    assert float(extra) == pytest.approx(2.0 * 9.0 / 5)


def test_what_stands_at_a_masked_position_changes_nothing() -> None:
    scored = torch.tensor([[1, 0, 1], [1, 1, 0]])
    reference = torch.zeros(1)

    def summed(noise: float) -> PairTensors:
        log_probs = torch.tensor([[-1.0, noise, -2.0], [-1.5, -0.5, noise]]) * scored
        return pair_tensors(log_probs, scored, reference, reference)

    quiet, loud = summed(0.0), summed(-50.0)
    assert quiet.chosen_lengths.tolist() == [2]
    for name in ("dpo", "ipo", "sft_chosen"):
        torch.testing.assert_close(pair_loss(name).per_pair(quiet), pair_loss(name).per_pair(loud))


def test_ld_weighs_the_tail_of_the_longer_side_in_policy_and_reference_alike() -> None:
    scored = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]])
    log_probs = torch.tensor([[-1.0, -2.0, 0, -4.0, -8.0], [0, -3.0, -5.0, 0, 0]])
    zero = torch.zeros(1)
    loss = pair_loss("dpo", ld_alpha=0.5)
    pairs = pair_tensors(log_probs, scored, zero, zero, weights=weights_for(loss, scored))
    assert pairs.chosen_logps.tolist() == [-1 - 2 + 0.5 * (-4 - 8)]
    assert pairs.rejected_logps.tolist() == [-8.0]
    chosen, rejected = (masked_sequence(row) for row in scored.tolist())
    values = torch.tensor([-1.0, -2, -4, -8])
    assert weighted_sum(values, loss.token_weights(chosen, rejected)) == -9.0
    assert weighted_sum(values) == -15.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((10, 10), (1.0, 1.0)),
        ((12, 10), (1.0, 1.0)),
        ((10, 100), (10.0, 1.0)),
        ((40, 10), (1.0, 3.0)),
        ((0, 10), (1.0, 1.0)),
        ((10, 0), (1.0, 1.0)),
    ],
)
def test_auto_class_weights_keep_the_ratio_within_bounds(
    counts: tuple[int, int], expected: tuple[float, float]
) -> None:
    weights = unpaired_loss("kto").class_weights(*counts)
    assert weights == pytest.approx(expected)
    if all(counts):
        assert 1 - 1e-9 <= weights[0] * counts[0] / (weights[1] * counts[1]) <= 4 / 3 + 1e-9


@pytest.mark.parametrize("counts", [(5, 50), (50, 5), (9, 8)])
@pytest.mark.parametrize("fixed", ["desirable_weight", "undesirable_weight"])
def test_a_weight_given_as_a_number_stays_and_the_other_follows(
    fixed: str, counts: tuple[int, int]
) -> None:
    desirable, undesirable = unpaired_loss("kto", **{fixed: 2.0}).class_weights(*counts)
    assert (desirable if fixed == "desirable_weight" else undesirable) == 2.0
    assert 1 - 1e-9 <= desirable * counts[0] / (undesirable * counts[1]) <= 4 / 3 + 1e-9


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("dpo", {"beta": 0.0}, "beta"),
        ("dpo", {"beta": -1.0}, "beta"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing"),
        ("exo_pair", {"label_smoothing": 0.0}, "label_smoothing"),
        ("robust", {"label_smoothing": 0.7}, "label_smoothing"),
        ("dpo", {"nll_coefficient": -0.1}, "nll_coefficient"),
        ("dpo", {"ld_alpha": 1.5}, "ld_alpha"),
        ("dpo", {"alpha_divergence_coef": 0.3}, "alpha_divergence_coef"),
        ("nca_pair", {"f_divergence": "forward_kl"}, "f_divergence"),
        ("aot", {"use_weighting": True}, "use_weighting"),
        ("kto", {"kl_share": 0.0}, "kl_share"),
        ("kto", {"desirable_weight": -1.0}, "desirable_weight"),
        ("apo_zero_unpaired", {"kl_share": 0.5}, "kl_share"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    name: str, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(ValueError, match=key):
        make_loss(name, **settings)


def test_the_gradient_of_dpo_is_the_worked_one() -> None:
    pairs = tensors([1.5], [0.0])
    chosen = pairs.chosen_logps.requires_grad_()
    loss = pair_loss("dpo").per_pair(replace(pairs, chosen_logps=chosen)).sum()
    (gradient,) = torch.autograd.grad(loss, [chosen])
    assert gradient.item() == pytest.approx(-0.046257, abs=1e-6)


def test_dpo_lowers_both_sides_of_a_near_identical_pair_where_nll_holds_the_chosen_up() -> None:
    """Likelihood displacement: two sequences that share their logits move together; the NLL term resists."""
    for coefficient, rises in ((0.0, False), (4.0, True)):
        theta = torch.tensor(
            0.0, requires_grad=True
        )  # moves the rejected side twice as much as the chosen one
        pairs = tensors([0.0], [0.0])
        moved = replace(
            pairs,
            chosen_logps=pairs.chosen_logps + theta,
            rejected_logps=pairs.rejected_logps + 2 * theta,
        )
        loss = pair_loss("dpo", beta=1.0, nll_coefficient=coefficient).per_pair(moved).sum()
        (slope,) = torch.autograd.grad(loss, [theta])
        assert (float(-slope) > 0) is rises
