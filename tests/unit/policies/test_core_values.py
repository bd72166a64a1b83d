"""Values of the core worked out by hand: where a loss, a weight or a limit off by a little would still look right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from policies.examples.kinds import PreferencePair
from policies.objectives.loss import PairTensors, UnpairedTensors
from tests.support.training_cases import pair_loss, pairs, unpaired_loss
from workers.training.batches.plan import select


def margin_of(value: float) -> PairTensors:
    """One pair with log-ratios `value` and 0."""
    import torch

    def one(number: float) -> Any:
        return torch.tensor([number])

    return PairTensors(one(value - 5.0), one(-7.0), one(-5.0), one(-7.0), one(4.0), one(6.0))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_the_logistic_loss_of_beta_times_the_margin(beta: float, smoothing: float) -> None:
    loss = pair_loss("dpo", beta=beta, label_smoothing=smoothing)
    wanted = -(1 - smoothing) * log_sigmoid(beta * 3.0) - smoothing * log_sigmoid(-beta * 3.0)
    assert float(loss.per_pair(margin_of(3.0))[0]) == pytest.approx(wanted, rel=1e-5)


def test_each_class_gets_its_own_weight_in_kto() -> None:
    import torch

    loss = unpaired_loss("kto", beta=0.5)
    examples = UnpairedTensors(
        logps=torch.tensor([-3.0, -3.0]),
        ref_logps=torch.tensor([-4.0, -4.0]),
        desirable=torch.tensor([True, False]),
        kl=torch.tensor(0.4),
    )
    right, wrong = (1 / (1 + math.exp(sign * 0.5 * (1.0 - 0.4))) for sign in (1, -1))
    found = loss.weighted(examples, (2.0, 10.0)).tolist()
    assert found == pytest.approx([2.0 * right, 10.0 * wrong], rel=1e-5)


def test_the_longest_sequence_that_is_allowed_is_kept_and_one_token_more_is_not() -> None:
    (pair,) = pairs(1)
    assert isinstance(pair, PreferencePair)
    longest = max(len(pair.chosen.token_ids), len(pair.rejected.token_ids))
    assert select([pair], kind=PreferencePair, max_length=longest, loss="dpo") == ([pair], {})
    assert select([pair], kind=PreferencePair, max_length=longest - 1, loss="dpo")[1] == {
        "too_long": 1
    }


def test_a_sequence_without_a_prompt_is_not_trained_on() -> None:
    """Nothing predicts the first token: as a scored one it would count in lengths and in no sum."""
    (pair,) = pairs(1)
    assert isinstance(pair, PreferencePair)
    mask = (1, *pair.chosen.loss_mask[1:])
    bare = pair.model_copy(update={"chosen": pair.chosen.model_copy(update={"loss_mask": mask})})
    assert select([bare], kind=PreferencePair, max_length=99, loss="dpo") == ([], {"no_prompt": 1})
