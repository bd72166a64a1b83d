"""Losses over turns, steps, soft labels and demonstrations: worked values, limits, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from policies.examples.kinds import LabelledStep, TokenSequence, TokenSpan
from policies.objectives.loss import (
    PairLoss,
    PairTensors,
    StepTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
    UnpairedTensors,
)
from policies.objectives.losses.dmpo import turn_weights
from tests.support.scored_batches import pair_tensors
from tests.support.training_cases import make_loss
from workers.training.batches.collate import ReferenceSums, spread_weights, step_batch
from workers.training.batches.reference_logprobs import step_sums, weighted_sum
from workers.training.batches.scored import step_logratios, step_tensors


def pair_loss(name: str, **settings: Any) -> PairLoss:
    return cast(PairLoss, make_loss(name, **{"beta": 0.1, **settings}))


def step_loss(name: str, **settings: Any) -> UnpairedLoss:
    return cast(UnpairedLoss, make_loss(name, **{"beta": 0.1, **settings}))


def in_turns(
    lengths: list[int], gap: int = 2, scored_from: int = 0, differs_from: int | None = None
) -> TokenSequence:
    """Three prompt tokens, then turns of these lengths with `gap` observed tokens after each but the last.

    Sequences have the same tokens up to position `differs_from` of one of them.
    """
    mask, turns = [0, 0, 0], []
    for i, length in enumerate(lengths):
        turns.append(TokenSpan(start=len(mask), end=len(mask) + length))
        mask += [1] * length + [0] * (gap if i < len(lengths) - 1 else 0)
    mask = [m if i >= scored_from else 0 for i, m in enumerate(mask)]
    return TokenSequence(
        trajectory_id="t",
        policy_version=0,
        token_ids=tuple(
            i if differs_from is None or i < differs_from else 1000 + i for i in range(len(mask))
        ),
        loss_mask=tuple(mask),
        logprobs=(0.0,) * len(mask),
        turns=tuple(turns),
    )


@pytest.mark.parametrize(
    ("turns", "gamma", "expected"),
    [
        (3, 0.7, [1.0, 0.543379, 0.223744]),
        (2, 0.7, [1.0, 0.411765]),
        (1, 0.7, [1.0]),
        (4, 1.0, [1.0, 0.75, 0.5, 0.25]),
    ],
)
def test_turn_weights_are_the_worked_ones(turns: int, gamma: float, expected: list[float]) -> None:
    assert turn_weights(turns, gamma) == pytest.approx(expected, abs=1e-6)


def test_turn_weights_reach_their_limit_continuously() -> None:
    assert turn_weights(5, 1 - 1e-7) == pytest.approx(turn_weights(5, 1.0), abs=1e-5)


def dmpo_of(
    loss: PairLoss, ratios: tuple[list[float], list[float]], lengths: list[int]
) -> PairTensors:
    """Pairs whose turns have these log-ratios, spread over their tokens, against a reference that varies by token."""
    sides = [in_turns(lengths), in_turns(lengths)]
    policy, references = [], []
    for sequence, of_turns, other in zip(sides, ratios, sides[::-1], strict=True):
        reference = torch.linspace(-3, -1, len(sequence.token_ids))
        ratio = torch.zeros(len(sequence.token_ids))
        for turn, value in zip(sequence.turns, of_turns, strict=True):
            ratio[turn.start : turn.end] = value / (turn.end - turn.start)
        scored = torch.tensor(sequence.loss_mask).bool()
        weights = loss.token_weights(sequence, other)
        references.append(torch.tensor([weighted_sum(reference[scored], weights)]))
        policy.append((reference + ratio) * scored)
    mask = torch.tensor([s.loss_mask for s in sides])
    spread = spread_weights(mask, [loss.token_weights(s, s) for s in sides])
    return pair_tensors(torch.stack(policy), mask, *references, weights=spread)


def test_dmpo_gives_the_worked_value_from_tokens_with_observations_between() -> None:
    loss = pair_loss("dmpo", gamma=0.7)
    pairs = dmpo_of(loss, ([0.5, 0.2, 0.3], [-0.3, 0.1, -0.4]), [2, 3, 1])
    assert float(pairs.chosen_logratios) == pytest.approx(0.675799, abs=1e-5)
    assert float(pairs.rejected_logratios) == pytest.approx(-0.335160, abs=1e-5)
    assert float(loss.per_pair(pairs)) == pytest.approx(0.643876, abs=1e-6)


def test_dmpo_with_one_turn_is_dpo() -> None:
    loss = pair_loss("dmpo", gamma=0.7)
    pairs = dmpo_of(loss, ([1.4], [-0.3]), [5])
    torch.testing.assert_close(loss.per_pair(pairs), pair_loss("dpo").per_pair(pairs))
    assert loss.token_weights(in_turns([5]), in_turns([2, 2], differs_from=3)) == [1.0] * 5
    bare = in_turns([4]).model_copy(update={"turns": ()})
    assert loss.token_weights(bare, bare) == [1.0] * 4, "no record of turns: one turn"


def test_each_side_is_weighed_by_its_own_number_of_turns() -> None:
    loss = pair_loss("dmpo", gamma=0.7)
    two, three = in_turns([2, 1]), in_turns([1, 1, 2], differs_from=3)
    assert loss.token_weights(two, three) == pytest.approx([1, 1, 0.411765], abs=1e-6)
    assert loss.token_weights(three, two) == pytest.approx(
        [1, 0.543379, 0.223744, 0.223744], abs=1e-6
    )


def test_turns_that_both_sides_share_are_where_the_pair_starts_from() -> None:
    loss = pair_loss("dmpo", gamma=0.7)
    whole = in_turns([2, 3, 1])
    late = in_turns([2, 3, 1], scored_from=whole.turns[1].start)
    assert loss.token_weights(late, late) == pytest.approx([1, 1, 1, 0.411765], abs=1e-6)


def sum_over_turns(
    loss: PairLoss, own: TokenSequence, other: TokenSequence, *of_turns: float
) -> float:
    """Weighted sum of log-ratios that are spread evenly over the tokens of each turn."""
    ratio = [0.0] * len(own.token_ids)
    for turn, value in zip(own.turns, of_turns, strict=True):
        for i in range(turn.start, turn.end):
            ratio[i] = value / (turn.end - turn.start)
    weights = loss.token_weights(own, other)
    scored = [r for r, m in zip(ratio, own.loss_mask, strict=True) if m]
    return sum(w * r for w, r in zip(weights, scored, strict=True))


@pytest.mark.parametrize(
    "masked", [False, True], ids=["whole-trajectories", "scored-from-the-fork"]
)
def test_weights_begin_at_the_turn_in_which_the_sides_part_whoever_made_the_pair(
    masked: bool,
) -> None:
    # Chosen has 3 turns, rejected 2, and the first is the same on both sides. From the fork on they have 2 and 1:
    # weights 1, 0.411765 and 1. Chosen: 0.2 + 0.411765 x 0.3 = 0.323529; rejected: 0.1; the shared 0.5 counts nowhere.
    loss = pair_loss("dmpo", gamma=0.7)
    fork = in_turns([2, 3, 1]).turns[1].start
    start = fork if masked else 0
    chosen = in_turns([2, 3, 1], scored_from=start, differs_from=fork)
    rejected = in_turns([2, 4], scored_from=start)
    first = [] if masked else [0.0, 0.0]
    assert loss.token_weights(chosen, rejected) == pytest.approx(
        [*first, 1, 1, 1, 0.411765], abs=1e-6
    )
    assert loss.token_weights(rejected, chosen) == pytest.approx([*first, 1, 1, 1, 1])
    right = sum_over_turns(loss, chosen, rejected, 0.5, 0.2, 0.3)
    wrong = sum_over_turns(loss, rejected, chosen, 0.5, 0.1)
    assert right == pytest.approx(0.323529, abs=1e-6)
    assert wrong == pytest.approx(0.1)
    # beta 0.1: log(1 + exp(-0.0223529)) = 0.682033
    assert math.log1p(math.exp(-0.1 * (right - wrong))) == pytest.approx(0.682033, abs=1e-6)


def test_a_turn_in_which_the_sides_part_counts_whole_and_a_side_that_ends_at_the_fork_not_at_all() -> (
    None
):
    loss = pair_loss("dmpo", gamma=0.7)
    turn = in_turns([2, 3, 1]).turns[1]
    chosen = in_turns([2, 3, 1], differs_from=turn.start + 1)
    assert loss.token_weights(chosen, in_turns([2, 3, 1])) == pytest.approx(
        [0, 0, 1, 1, 1, 0.411765], abs=1e-6
    )
    longer = in_turns([2, 3, 1])
    shorter = longer.model_copy(
        update={
            "token_ids": longer.token_ids[: turn.end],
            "loss_mask": longer.loss_mask[: turn.end],
            "logprobs": longer.logprobs[: turn.end],
            "turns": longer.turns[:2],
        }
    )
    assert loss.token_weights(shorter, longer) == [0.0] * 5
    assert loss.token_weights(longer, shorter) == [0.0] * 5 + [1.0]


def test_an_observation_that_is_scored_counts_as_the_turn_before_it() -> None:
    loss = pair_loss("dmpo", gamma=0.7)
    sequence = in_turns([1, 2], gap=2)
    everything = sequence.model_copy(update={"loss_mask": (0, 0, 0, 1, 1, 1, 1, 1)})
    weights = loss.token_weights(everything, everything)
    assert weights == pytest.approx([1, 1, 1, 0.411765, 0.411765], abs=1e-6)


def steps_of(
    ratios: list[float], rows: list[int], labels: list[bool], kl: float = 0.05
) -> StepTensors:
    return StepTensors(
        logratios=torch.tensor(ratios),
        rows=torch.tensor(rows, dtype=torch.long),
        desirable=torch.tensor(labels, dtype=torch.bool),
        weights=torch.ones(len(ratios)),
        kl=torch.tensor(kl),
        mean_per_example=torch.tensor(len(rows) / max(1, len(set(rows)))),
    )


def outcomes(
    ratios: list[float], desirable: list[bool], steps: StepTensors | None
) -> UnpairedTensors:
    return UnpairedTensors(
        torch.tensor(ratios),
        torch.zeros(len(ratios)),
        torch.tensor(desirable),
        torch.tensor(0.1),
        steps,
    )


WORKED = steps_of([0.6, -0.2, 0.1], [0, 0, 0], [True, True, False])


@pytest.mark.parametrize("name", ["step_kto", "sentence_kto"])
def test_step_kto_gives_the_worked_value(name: str) -> None:
    examples = outcomes([0.5], [False], WORKED)
    loss = step_loss(name)
    assert float(loss.per_example(examples)) == pytest.approx(0.509999, abs=1e-6)
    assert float(loss.weighted(examples, (1.0, 1.0))) == pytest.approx(1.007916, abs=1e-6)
    half = step_loss(name, step_weight=0.5).weighted(examples, (1.0, 1.0))
    assert float(half) == pytest.approx(0.509999 + 0.5 * 0.497918, abs=1e-6)


@pytest.mark.parametrize("name", ["step_kto", "sentence_kto"])
def test_without_judged_steps_or_weight_a_step_loss_is_kto(name: str) -> None:
    kto = step_loss("kto").weighted(outcomes([0.5, -1.0], [False, True], None), (2.0, 3.0))
    bare = outcomes([0.5, -1.0], [False, True], steps_of([], [], []))
    torch.testing.assert_close(step_loss(name).weighted(bare, (2.0, 3.0)), kto)
    judged = outcomes([0.5, -1.0], [False, True], WORKED)
    silent = step_loss(name, step_weight=0.0).weighted(judged, (2.0, 3.0))
    torch.testing.assert_close(silent, kto)
    with_steps = step_loss(name).weighted(judged, (2.0, 3.0))
    assert float(with_steps[1]) == pytest.approx(float(kto[1])), "the second row has no steps"
    with pytest.raises(ValueError, match="steps"):
        step_loss(name).weighted(outcomes([0.5], [True], None), (1.0, 1.0))


def test_sentence_kto_is_step_kto_but_for_the_average() -> None:
    """Rows with as many steps each coincide; else fKTO averages over all sentences, Step-KTO row by row."""
    even = steps_of([0.6, -0.2, 0.1, 0.4], [0, 0, 1, 1], [True, True, False, True])
    uneven = replace(even, rows=torch.tensor([0, 0, 0, 1]))

    def mean(name: str, steps: StepTensors) -> float:
        return float(
            step_loss(name).weighted(outcomes([0.5, 0.2], [True, False], steps), (1.0, 1.0)).mean()
        )

    assert mean("sentence_kto", even) == pytest.approx(mean("step_kto", even), abs=1e-7)
    assert mean("sentence_kto", uneven) == pytest.approx(mean("sentence_kto", even), abs=1e-7)
    losses = [0.486253, 0.506250, 0.501250, 1 - 1 / (1 + math.exp(-0.035))]
    by_row = (sum(losses[:3]) / 3 + losses[3]) / 2
    over_all = sum(losses) / 4
    gap = mean("step_kto", uneven) - mean("sentence_kto", uneven)
    assert gap == pytest.approx(by_row - over_all, abs=2e-6)
    assert abs(gap) > 1e-3


def test_steps_have_a_beta_and_class_weights_of_their_own() -> None:
    examples = outcomes([0.5], [False], WORKED)
    sharp = step_loss("step_kto", step_beta=1.0).weighted(examples, (1.0, 1.0))
    own = [1 / (1 + math.exp(x)) for x in (0.55, -0.25, -0.05)]
    assert float(sharp) == pytest.approx(0.509999 + sum(own) / 3, abs=1e-6)
    heavy = replace(WORKED, weights=torch.tensor([1.0, 1.0, 4.0]))
    loss = step_loss("step_kto").weighted(outcomes([0.5], [False], heavy), (7.0, 2.0))
    expected = 2 * 0.509999 + (0.486253 + 0.506250 + 4 * 0.501250) / 3
    assert float(loss) == pytest.approx(expected, abs=2e-6)
    assert step_loss("step_kto").step_class_weights(40, 10) == (1.0, 3.0)
    fixed = step_loss("step_kto", step_desirable_weight=1.0, step_undesirable_weight=1.0)
    assert fixed.step_class_weights(40, 10) == (1.0, 1.0)


def test_no_gradient_flows_into_the_steps_reference_point() -> None:
    kl = torch.tensor(0.05, requires_grad=True)
    ratios = torch.tensor([0.6, -0.2, 0.1], requires_grad=True)
    steps = replace(WORKED, kl=kl, logratios=ratios)
    loss = step_loss("step_kto").weighted(outcomes([0.5], [False], steps), (1.0, 1.0)).sum()
    gradient, none = torch.autograd.grad(loss, [ratios, kl], allow_unused=True)
    assert [float(g) < 0 for g in gradient] == [True, True, False], "desirable steps are raised"
    assert none is None


def test_the_log_ratio_of_a_step_is_the_sum_over_its_scored_tokens() -> None:
    sequence = in_turns([3, 2], gap=2)  # scored: 3 4 5, 8 9
    steps = (
        LabelledStep(start=3, end=5, desirable=True),
        LabelledStep(start=5, end=9, desirable=False),  # reaches over the observation
        LabelledStep(start=6, end=8, desirable=True),  # observation only: nothing to learn from
    )
    sequence = sequence.model_copy(update={"steps": steps})
    plain = in_turns([2])
    reference = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    assert step_sums(sequence, reference) == [-3.0, -12.0, 0.0]
    sums = [ReferenceSums(0.0), ReferenceSums(-31.0, tuple(step_sums(sequence, reference)))]
    batch = step_batch([plain, sequence], sums, (1.0, 3.0))
    mask = torch.zeros((2, 10))
    mask[1] = torch.tensor(sequence.loss_mask)
    log_probs = (-torch.arange(10.0).expand(2, 10) * mask)[:, 1:]  # -position where scored
    found = step_tensors(log_probs, batch, torch.tensor(0.0))
    assert found.rows.tolist() == [1, 1]
    assert found.desirable.tolist() == [True, False]
    assert found.weights.tolist() == [1.0, 3.0]
    assert found.logratios.tolist() == [-3 - 4 + 3.0, -5 - 8 + 12.0]
    assert step_logratios(log_probs, step_batch([plain], sums[:1], (1.0, 1.0))).shape == (0,)


def pairs_at(margin: Tensor, soft_labels: Tensor | None) -> PairTensors:
    zeros = torch.zeros_like(margin)
    return PairTensors(margin, zeros, zeros, zeros, zeros + 3, zeros + 3, soft_labels=soft_labels)


def test_soft_labels_weigh_both_outcomes() -> None:
    margin, labels = torch.tensor([1.5, 1.5, 1.5]), torch.tensor([1.0, 0.0, 0.3])
    values = pair_loss("dpo", soft_labels=True).per_pair(pairs_at(margin, labels))
    sure, wrong = (math.log1p(math.exp(sign * 0.15)) for sign in (-1, 1))
    assert values.tolist() == pytest.approx([sure, wrong, 0.3 * sure + 0.7 * wrong], abs=1e-6)
    smoothed = pair_loss("dpo", label_smoothing=0.3).per_pair(pairs_at(margin, None))
    constant = torch.full((3,), 0.7)
    torch.testing.assert_close(
        pair_loss("dpo", soft_labels=True).per_pair(pairs_at(margin, constant)), smoothed
    )
    ignored = pair_loss("dpo").per_pair(pairs_at(margin, labels))
    assert ignored.tolist() == pytest.approx([sure] * 3, abs=1e-6), "off unless asked for"


def test_a_soft_label_puts_the_best_margin_at_its_log_odds() -> None:
    best = torch.tensor([math.log(0.8 / 0.2) / 0.1], requires_grad=True)
    loss = pair_loss("dpo", soft_labels=True).per_pair(pairs_at(best, torch.tensor([0.8])))
    (slope,) = torch.autograd.grad(loss.sum(), [best])
    assert float(slope) == pytest.approx(0.0, abs=1e-7)


def test_soft_labels_are_needed_where_they_are_read_and_exclude_smoothing() -> None:
    loss = pair_loss("dpo", soft_labels=True)
    assert loss.needs_custom_step, "TRL has no soft labels"
    with pytest.raises(ValueError, match="soft_labels"):
        loss.per_pair(pairs_at(torch.zeros(1), None))
    with pytest.raises(ValueError, match="label_smoothing"):
        make_loss("dpo", soft_labels=True, label_smoothing=0.1)


def test_sft_averages_over_tokens_or_over_sequences() -> None:
    logps, lengths = torch.tensor([-6.0, -2.0]), torch.tensor([2.0, 4.0])
    examples = SupervisedTensors(logps, lengths, lengths.mean())
    by_token = cast(SupervisedLoss, make_loss("sft")).per_example(examples)
    assert float(by_token.mean()) == pytest.approx(8 / 6)
    by_sequence = cast(SupervisedLoss, make_loss("sft", average="sequences")).per_example(examples)
    assert by_sequence.tolist() == [3.0, 0.5]


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("sft", {"beta": 0.1}, "beta"),
        ("sft", {"average": "rows"}, "average"),
        ("dmpo", {"gamma": 0.0}, "gamma"),
        ("dmpo", {"gamma": 1.1}, "gamma"),
        ("dmpo", {"ld_alpha": 0.5}, "ld_alpha"),
        ("step_kto", {"step_weight": -1.0}, "step_weight"),
        ("step_kto", {"step_desirable_weight": 0.0}, "step_desirable_weight"),
        ("sentence_kto", {"step_beta": 0.0}, "step_beta"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    name: str, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(ValueError, match=key):
        make_loss(name, **settings)
