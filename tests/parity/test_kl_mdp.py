"""What multi-turn DPO with masks converges to: the optimal policy of a small decision process, known in closed form.

Two turns with two actions each; the environment answers the first action; only (good, right) is worth 1. The
optimum of E[u] - eta KL (arXiv 2409.02392, section 3) by backward recursion is what the dpo loss finds on soft labels.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from policies.base.records import Sampling, StopReason, Trajectory, TrajectoryStatus, Turn
from policies.examples.kinds import PreferencePair, TokenSequence
from policies.objectives.loss import PairLoss
from tests.support.scored_batches import collated, pair_tensors
from tests.support.training_cases import make_loss
from workers.training.batches.plan import MicroBatch, completion_scored

ETA = 0.5
GOOD, BAD, RIGHT, LEFT = 10, 11, 20, 21
PLAYS = list(itertools.product((GOOD, BAD), (RIGHT, LEFT)))
PROMPT = (1, 2)


def utility(first: int, second: int) -> float:
    return float((first, second) == (GOOD, RIGHT))


def trajectory(first: int, second: int) -> Trajectory:
    """The first action, an observation of three tokens that says what it was, the second action."""
    guess = (math.log(0.5),)
    reply = (30, first + 30, 31)
    turns = (
        Turn(
            role="policy", token_ids=(first,), text="", logprobs=guess, stop_reason=StopReason.STOP
        ),
        Turn(role="observation", token_ids=reply, text="", stop_reason=StopReason.OBSERVATION),
        Turn(
            role="policy", token_ids=(second,), text="", logprobs=guess, stop_reason=StopReason.STOP
        ),
    )
    return Trajectory(
        id=f"{first}.{second}",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=PROMPT,
        turns=turns,
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def ordered_pairs() -> list[PreferencePair]:
    """All 16, each with the probability that the first side is preferred."""
    pairs = []
    for one, two in itertools.product(PLAYS, PLAYS):
        label = 1 / (1 + math.exp(utility(*two) - utility(*one)))
        pairs.append(
            PreferencePair(
                id=f"{one}>{two}",
                prompt_id="p",
                chosen=TokenSequence.of(trajectory(*one)),
                rejected=TokenSequence.of(trajectory(*two)),
                margin=utility(*one) - utility(*two),
                soft_label=label,
            )
        )
    return pairs


class Tabular:
    """A policy of six logits: two for the first turn, two for the second after each first action."""

    def __init__(self) -> None:
        self.first = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.second = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)

    def log_probs(self, ids: Tensor) -> Tensor:
        """Next-token log-probs of rows [prompt, action, observation, action]. [N, T-1]

        At observations stands what an unmasked policy would be tempted by: its belief in the first action.
        """
        start = len(PROMPT)
        first = (ids[:, start] == BAD).long()
        second = (ids[:, -1] == LEFT).long()
        of_first = self.first.log_softmax(0)[first]
        of_second = self.second.log_softmax(1)[first, second]
        columns = [torch.zeros_like(of_first), of_first, *[2 * of_first] * 3, of_second]
        return torch.stack(columns, dim=1)

    def probabilities(self) -> tuple[float, float, float]:
        """Of good, of right after good, of right after bad."""
        first, second = self.first.detach().softmax(0), self.second.detach().softmax(1)
        return float(first[0]), float(second[0, 0]), float(second[1, 0])


def batch_of(loss: PairLoss, pairs: list[PreferencePair]) -> dict[str, Any]:
    """All pairs as training's collator makes them, against the uniform reference."""
    actions = sum(pairs[0].chosen.loss_mask)
    uniform = actions * math.log(0.5)
    references, lengths = [(uniform, uniform)] * len(pairs), [float(actions)] * 2
    rows = MicroBatch(rows=tuple(range(len(pairs))), share=1.0)
    return {**collated(loss, pairs, references, lengths, rows)}


def objective(policy: Tabular, loss: PairLoss, batch: dict[str, Any]) -> Tensor:
    """Mean loss over all pairs, through the sums that training uses."""
    scored = batch["completion_mask"][:, 1:]
    tensors = pair_tensors(
        policy.log_probs(batch["input_ids"]) * scored,
        scored,
        *batch["facts"]["references"]["reference"].double().chunk(2),
        soft_labels=batch["facts"]["values"]["soft_label"].double(),
    )
    return loss.per_pair(tensors).mean()


def fitted(loss: PairLoss, pairs: list[PreferencePair], iterations: int = 200) -> Tabular:
    policy = Tabular()
    batch = batch_of(loss, pairs)
    settings: dict[str, Any] = {"tolerance_grad": 1e-12, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS(
        [policy.first, policy.second],
        max_iter=iterations,
        line_search_fn="strong_wolfe",
        **settings,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(policy, loss, batch)
        value.backward()
        return value.detach()

    optimizer.step(closure)
    return policy


def dpo(**settings: Any) -> PairLoss:
    return cast(PairLoss, make_loss("dpo", beta=ETA, **settings))


def test_the_optimum_by_backward_recursion() -> None:
    second = {a: [utility(a, b) for b in (RIGHT, LEFT)] for a in (GOOD, BAD)}
    value = {a: ETA * math.log(sum(math.exp(u / ETA) for u in us) / 2) for a, us in second.items()}
    assert value[GOOD] == pytest.approx(0.716890, abs=1e-6)
    assert value[BAD] == 0.0
    start = ETA * math.log(sum(math.exp(v / ETA) for v in value.values()) / 2)
    assert start == pytest.approx(0.477229, abs=1e-6)
    good = 0.5 * math.exp((value[GOOD] - start) / ETA)
    right = 0.5 * math.exp((1 - value[GOOD]) / ETA)
    assert (good, right) == pytest.approx((0.807490, 0.880797), abs=1e-6)
    assert ETA * (math.log(good / 0.5) + math.log(right / 0.5)) + start == pytest.approx(1.0)


def test_soft_labels_on_all_pairs_recover_the_optimal_policy() -> None:
    policy = fitted(dpo(soft_labels=True), ordered_pairs())
    expected = (0.807490, 0.880797, 0.5)
    assert policy.probabilities() == pytest.approx(expected, abs=1e-5)


def test_with_observations_scored_another_policy_is_found() -> None:
    unmasked = [cast(PreferencePair, completion_scored(p)) for p in ordered_pairs()]
    assert sum(unmasked[0].chosen.loss_mask) == 5
    good, _, _ = fitted(dpo(soft_labels=True), unmasked).probabilities()
    assert abs(good - 0.807490) > 0.05, "the mask is what makes the answer right"


def margin(policy: Tabular) -> float:
    """Margin of the best play over the worst, in nats."""
    good, right, other = policy.probabilities()
    return math.log(good * right) - math.log((1 - good) * min(other, 1 - other))


def test_hard_labels_never_settle() -> None:
    hard = batch_of(dpo(), [p for p in ordered_pairs() if p.margin > 0])
    policy = Tabular()
    optimizer = torch.optim.Adam([policy.first, policy.second], lr=0.2)
    margins = []
    for step in range(1, 401):
        optimizer.zero_grad()
        objective(policy, dpo(), hard).backward()
        optimizer.step()
        if step in (50, 100, 200, 400):
            margins.append(margin(policy))
    soft = margin(fitted(dpo(soft_labels=True), ordered_pairs()))
    assert soft == pytest.approx(1 / ETA, abs=1e-4), "soft labels stop at u / eta"
    assert margins[0] > soft
    assert all(later > earlier + 0.5 for earlier, later in itertools.pairwise(margins))
