"""Turn-weighted, step-level and soft-label losses through TRL's real trainers on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from policies.examples.kinds import PreferencePair, TokenSequence
from policies.objectives.losses.dmpo import turn_weights
from tests.parity.updates import against, log_probs, run
from tests.support.training_cases import (
    log_of,
    make_job,
    make_loss,
    turn_pairs,
    turn_singles,
    turns_sequence,
    version,
    write_tiny_model,
)

BETA = 0.5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=5)


def dmpo_sum(path: Path, side: TokenSequence, gamma: float) -> float:
    values = log_probs(path, side)
    weights = turn_weights(len(side.turns), gamma)
    return sum(
        w * math.fsum(values[t.start : t.end]) for w, t in zip(weights, side.turns, strict=True)
    )


def test_dmpo_weighs_turns_in_the_policys_and_in_the_references_sums(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    examples = turn_pairs()
    loss = make_loss("dmpo", beta=BETA, gamma=0.7)
    outcome = run(loss, examples, tmp_path / "run", model_dir, **against(other_dir))
    rewards, losses = [], []
    for pair in examples:
        a, b = (
            dmpo_sum(model_dir, side, 0.7) - dmpo_sum(other_dir, side, 0.7)
            for side in (pair.chosen, pair.rejected)
        )
        rewards.append(BETA * a)
        losses.append(math.log1p(math.exp(-BETA * (a - b))))
    assert outcome.metrics["rewards/chosen"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-3)
    assert outcome.metrics["train/loss_first"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_dmpo_on_single_turns_trains_as_dpo_does(
    model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    ends = [
        run(
            make_loss(name), _one_turn_pairs(), tmp_path / name, model_dir, **against(other_dir)
        ).metrics
        for name in ("dpo", "dmpo")
    ]
    for name in ("train/loss", "rewards/margins", "train/grad_norm"):
        assert ends[1][name] == pytest.approx(ends[0][name], rel=1e-3)


def _one_turn_pairs() -> list[PreferencePair]:
    return [
        PreferencePair(
            id=f"pair{i}",
            prompt_id=f"p{i}",
            chosen=turns_sequence(f"p{i}", 0, turns=(5,)),
            rejected=turns_sequence(f"p{i}", 1, turns=(6,)),
            margin=1.0,
        )
        for i in range(6)
    ]


@pytest.mark.parametrize("name", ["step_kto", "sentence_kto"])
def test_steps_are_summed_and_labelled_where_they_lie(
    name: str, model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    examples = turn_singles()
    examples[1] = examples[1].model_copy(
        update={"sequence": examples[1].sequence.model_copy(update={"steps": ()})}
    )
    outcome = run(make_loss(name), examples, tmp_path / "run", model_dir, **against(other_dir))
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for example in examples:
        ours, theirs = (log_probs(path, example.sequence) for path in (model_dir, other_dir))
        for step in example.sequence.steps:
            span = slice(step.start, step.end)
            ratios[step.desirable].append(math.fsum(ours[span]) - math.fsum(theirs[span]))
    for side, label in (("chosen", True), ("rejected", False)):
        mean = sum(ratios[label]) / len(ratios[label])
        assert outcome.metrics[f"steps/logratios/{side}"] == pytest.approx(mean, abs=1e-3)
    assert outcome.metrics["train/desirable_steps"] == 11
    assert outcome.metrics["train/undesirable_steps"] == 11
    assert outcome.metrics["train/without_judged_steps"] == 1
    assert outcome.metrics["steps/kl"] >= 0


def test_at_the_reference_a_step_loss_is_half_for_the_outcome_and_half_for_the_steps(
    model_dir: Path, tmp_path: Path
) -> None:
    plain = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    loss = make_loss("step_kto", step_weight=0.6, **plain)
    outcome = run(loss, turn_singles(), tmp_path / "run", model_dir)
    assert outcome.metrics["train/loss_first"] == pytest.approx(0.5 + 0.6 * 0.5, abs=1e-4)
    assert outcome.metrics["steps/kl"] == pytest.approx(0.0, abs=1e-4)


def test_soft_labels_reach_the_loss(model_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    """With every label at 0.25, chosen and rejected change places in three of four parts of the loss."""
    doubtful = [p.model_copy(update={"soft_label": 0.25}) for p in turn_pairs()]
    first = []
    for name, soft in (("soft", True), ("hard", False)):
        loss = make_loss("dpo", beta=BETA, soft_labels=soft)
        metrics = run(loss, doubtful, tmp_path / name, model_dir, **against(other_dir)).metrics
        first.append(metrics["train/loss_first"])
        margin = metrics["rewards/margins"]
    # -p ls(x) - (1-p) ls(-x) = -ls(x) + (1-p) x, and x is the reward margin
    assert first[0] == pytest.approx(first[1] + 0.75 * margin, abs=1e-3)


def test_losses_on_turns_do_not_depend_on_the_microbatch(model_dir: Path, tmp_path: Path) -> None:
    logs = []
    for micro in (2, 6):
        folder = tmp_path / str(micro)
        options = {"batch_size": 6, "micro_batch_size": micro}
        run(make_loss("dmpo"), turn_pairs(), folder, model_dir, options=options)
        logs.append([line["train/loss"] for line in log_of(make_job(version(model_dir), folder))])
    assert logs[0] == pytest.approx(logs[1], abs=2e-4)
