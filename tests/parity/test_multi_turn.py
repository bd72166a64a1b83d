"""Multi-turn learning through TRL's real trainers on a tiny model: masks, turns, steps, and mixed policy versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from policies.examples.kinds import Example, PreferencePair, TokenSequence, UnpairedExample
from policies.objectives.logprobs import padded, token_scores
from policies.objectives.loss import PairLoss, UnpairedLoss, UnpairedTensors
from tests.parity.trl_stub import NumbersModel, inputs_for, trl_loss
from tests.parity.updates import against, load, log_probs, run, total
from tests.support.scored_batches import pair_tensors
from tests.support.training_cases import (
    demonstrations,
    make_loss,
    turn_pairs,
    turn_singles,
    weights_of,
    write_tiny_model,
)
from workers.training.batches.plan import completion_scored, mismatched_sequences

BETA = 0.5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=5)


def test_m_dpo_sums_over_the_policys_turns_and_nothing_else(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    examples = turn_pairs()
    loss = make_loss("dpo", beta=BETA)
    outcome = run(loss, examples, tmp_path / "run", model_dir, **against(other_dir))
    chosen, ratios, losses = [], [], []
    for pair in examples:
        margin = []
        for side in (pair.chosen, pair.rejected):
            ours = total(log_probs(model_dir, side), side.loss_mask)
            margin.append(ours - total(log_probs(other_dir, side), side.loss_mask))
        chosen.append(total(log_probs(model_dir, pair.chosen), pair.chosen.loss_mask))
        ratios.append(margin[0])
        losses.append(math.log1p(math.exp(-BETA * (margin[0] - margin[1]))))
    count = len(examples)
    assert outcome.metrics["logps/chosen"] == pytest.approx(sum(chosen) / count, abs=1e-3)
    assert outcome.metrics["rewards/chosen"] == pytest.approx(BETA * sum(ratios) / count, abs=1e-3)
    assert outcome.metrics["train/loss_first"] == pytest.approx(sum(losses) / count, abs=1e-3)


@pytest.mark.parametrize("loss", ["dpo", "dmpo", "kto", "step_kto", "sft"])
def test_what_an_environment_wrote_is_no_target(
    loss: str, model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    """Observations after the last turn are context of nothing: other ones must change no weight and no metric."""

    def examples(seed: int) -> Sequence[Example]:
        if loss in ("dpo", "dmpo"):
            return turn_pairs(trailing=4, observation_seed=seed, observation=0)
        singles = turn_singles(trailing=4, observation_seed=seed, observation=0)
        if loss != "sft":
            return singles
        shown = cast("list[Any]", demonstrations(len(singles)))
        return [
            s.model_copy(update={"sequence": u.sequence})
            for s, u in zip(shown, singles, strict=True)
        ]

    def update(name: str, seed: int, **options: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        reference = against(other_dir)
        folder = tmp_path / name
        outcome = run(
            make_loss(loss), examples(seed), folder, model_dir, options=options, **reference
        )
        clocks = ("second", "gap")
        metrics = {k: v for k, v in outcome.metrics.items() if not any(c in k for c in clocks)}
        return weights_of(folder / "new"), metrics

    assert examples(0) != examples(1)
    (weights, metrics), (others, theirs) = update("a", 0), update("b", 1)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert metrics == theirs
    if loss not in ("dpo", "sft"):
        return
    scored, _ = update("c", 0, loss_mask="completion")
    changed, _ = update("d", 1, loss_mask="completion")
    assert any(not torch.equal(scored[name], changed[name]) for name in scored), "the ablation"


def test_no_gradient_reaches_the_predictions_of_observed_tokens(model_dir: Path) -> None:
    """Between turns observations are context; what the model predicted in their place is still not learned from."""
    model = load(model_dir)
    pairs = turn_pairs(2)
    ids, attention, mask = padded([p.chosen for p in pairs] + [p.rejected for p in pairs])
    last: list[Tensor] = []

    def keep(module: Any, given: Any, hidden: Tensor) -> None:
        hidden.retain_grad()
        last.append(hidden)

    hook = model.model.norm.register_forward_hook(keep)
    scores = token_scores(model, ids, attention, mask)
    hook.remove()
    zero = torch.zeros(2)
    tensors = pair_tensors(scores.log_probs, mask[:, 1:], zero, zero)
    cast(PairLoss, make_loss("dpo")).per_pair(tensors).mean().backward()
    gradient = last[0].grad
    assert gradient is not None
    reached = gradient[:, :-1].abs().sum(dim=2) > 0
    observed = attention[:, 1:].bool() & ~mask[:, 1:].bool()
    assert bool(observed.any())
    assert not bool(reached[observed].any())
    assert bool(reached[mask[:, 1:].bool()].all())


M_KTO_POLICY = [[-1.0, -1, -9, -9, -2], [-2.0, -1, -7, -4, 0]]
M_KTO_REFERENCE = [[-1.5, -1.5, -3, -3, -2], [-1.8, -1.2, -7.5, -3, 0]]
M_KTO_MASK = [[1, 1, 0, 0, 1], [1, 1, 0, 1, 0]]


def test_m_kto_gives_the_worked_values_in_ours_and_in_trls(tmp_path: Path) -> None:
    """z0 = 0.3 comes from mismatched trajectories whose observations are masked like those of their owners."""
    scored, table = torch.tensor(M_KTO_MASK), torch.tensor(M_KTO_POLICY)
    reference = (torch.tensor(M_KTO_REFERENCE) * scored).sum(dim=1)
    desirable = torch.tensor([True, False])
    loss = cast(UnpairedLoss, make_loss("kto", beta=0.1))
    ours = loss.per_example(
        UnpairedTensors((table * scored).sum(dim=1), reference, desirable, torch.tensor(0.3))
    )
    assert ours.tolist() == pytest.approx([0.482507, 0.467546], abs=1e-6)
    mismatched = torch.tensor([[-1.0, -50.0, -1.0, 0, 0], [-1.0, -1.0, -70.0, 0, 0]])
    holes = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]])
    inputs = {
        **inputs_for(scored),
        **{f"KL_{name}": value for name, value in inputs_for(holes, first_row=2).items()},
        "label": desirable,
        "ref_logps": reference,
        "ref_KL_logps": torch.tensor([-2.5, -2.1]),  # differences 0.5 and 0.1
    }
    model = NumbersModel(torch.cat([table, mismatched]))
    theirs = trl_loss(loss, model, inputs, str(tmp_path))
    assert theirs == pytest.approx((0.482507 + 0.467546) / 2, abs=1e-5)


def test_the_custom_kto_step_is_trls_on_turns_and_on_partners(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    """A weight of 2 on every example takes our own step; halving the loss must give TRL's."""
    losses = []
    for weight in (1.0, 2.0):
        examples = [s.model_copy(update={"weight": weight}) for s in turn_singles()]
        outcome = run(
            make_loss("kto", beta=BETA),
            examples,
            tmp_path / str(weight),
            model_dir,
            **against(other_dir),
        )
        losses.append(outcome.metrics["train/loss"] / weight)
        assert outcome.metrics["kl"] >= 0
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_reference_point_of_kto_is_masked_like_the_trajectories(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    examples = turn_singles()
    outcome = run(make_loss("kto"), examples, tmp_path / "run", other_dir, **against(model_dir))
    ratios = [
        total(log_probs(other_dir, p.sequence), p.sequence.loss_mask)
        - total(log_probs(model_dir, p.sequence), p.sequence.loss_mask)
        for p in mismatched_sequences(examples, range(len(examples)), seed=7).values()
    ]
    assert any(0 in e.sequence.loss_mask[e.sequence.loss_mask.index(1) :] for e in examples)
    assert outcome.metrics["kl"] == pytest.approx(max(0.0, sum(ratios) / len(ratios)), abs=1e-3)


def test_the_completion_mask_scores_observations_and_later_turns_alike(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    examples = turn_pairs()
    outcome = run(
        make_loss("dpo"),
        examples,
        tmp_path / "run",
        model_dir,
        options={"loss_mask": "completion"},
        **against(other_dir),
    )
    sums = []
    for pair in examples:
        start = pair.chosen.loss_mask.index(1)
        values = log_probs(model_dir, pair.chosen)
        assert 0 in pair.chosen.loss_mask[start:]
        sums.append(math.fsum(values[start:]))
    assert outcome.metrics["logps/chosen"] == pytest.approx(sum(sums) / len(sums), abs=1e-3)


def test_the_gap_to_the_sampler_is_measured_where_it_sampled_whatever_is_scored(
    model_dir: Path, tmp_path: Path
) -> None:
    exact = [_recorded(p, model_dir) for p in turn_pairs()]
    for name, options in (("policy", {}), ("all", {"loss_mask": "completion"})):
        outcome = run(make_loss("dpo"), exact, tmp_path / name, model_dir, options=options)
        assert outcome.metrics["health/logprob_gap"] == pytest.approx(0.0, abs=1e-4)


def _recorded(pair: PreferencePair, path: Path) -> PreferencePair:
    """With the log-probs that a sampler of the policy at `path` would have recorded."""

    def side(sequence: TokenSequence) -> TokenSequence:
        values = zip(log_probs(path, sequence), sequence.loss_mask, strict=True)
        return sequence.model_copy(update={"logprobs": tuple(v * m for v, m in values)})

    return pair.model_copy(update={"chosen": side(pair.chosen), "rejected": side(pair.rejected)})


def test_what_an_earlier_version_sampled_is_scored_by_the_policy_and_the_rest_is_not(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    """Recorded by the policy for version 0, by another model for version 9; rewards at the first step are all 0."""
    fresh = [_recorded(p, model_dir) for p in turn_pairs(4)]
    stale = [_recorded(p, other_dir) for p in turn_pairs(6, policy_version=9)[4:]]
    outcome = run(
        make_loss("dpo"), [*fresh, *stale], tmp_path / "run", model_dir, logprobs="rollout"
    )
    assert outcome.metrics["train/rescored_sequences"] == 4
    assert outcome.metrics["train/loss_first"] == pytest.approx(math.log(2), abs=1e-4)
    assert outcome.metrics["health/logprob_gap"] == pytest.approx(0.0, abs=1e-4)
    wrong = [
        p.model_copy(update={"chosen": p.chosen.model_copy(update={"policy_version": 0})})
        for p in stale
    ]
    taken = run(
        make_loss("dpo"), [*fresh, *wrong], tmp_path / "taken", model_dir, logprobs="rollout"
    )
    assert abs(taken.metrics["rewards/chosen"]) > 1e-3, (
        "a sequence of version 0 is taken at its word"
    )


def test_a_fresh_sample_is_taken_from_the_record_without_a_pass(
    model_dir: Path, tmp_path: Path
) -> None:
    shifted = []
    for pair in turn_pairs():
        exact = _recorded(pair, model_dir)
        sampled = tuple(
            v + 0.25 * m for v, m in zip(exact.chosen.logprobs, exact.chosen.loss_mask, strict=True)
        )
        shifted.append(
            exact.model_copy(
                update={"chosen": exact.chosen.model_copy(update={"logprobs": sampled})}
            )
        )
    outcome = run(
        make_loss("dpo", beta=BETA), shifted, tmp_path / "run", model_dir, logprobs="rollout"
    )
    tokens = sum(sum(p.chosen.loss_mask) for p in shifted) / len(shifted)
    assert outcome.metrics["rewards/chosen"] == pytest.approx(-BETA * 0.25 * tokens, abs=1e-3)
    assert outcome.metrics["train/rescored_sequences"] == 0


def test_an_ablated_example_keeps_its_prompt_out_of_the_loss() -> None:
    pair = turn_pairs(1)[0]
    every = completion_scored(pair)
    assert isinstance(every, PreferencePair)
    start = pair.chosen.loss_mask.index(1)
    assert every.chosen.loss_mask == (0,) * start + (1,) * (len(pair.chosen.token_ids) - start)
    assert every.chosen.token_ids == pair.chosen.token_ids
    single = turn_singles(1)[0]
    alone = completion_scored(single)
    assert isinstance(alone, UnpairedExample)
    assert sum(alone.sequence.loss_mask) > sum(single.sequence.loss_mask)
