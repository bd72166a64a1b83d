"""What reaches the trainer: log-probs of the right tokens, references of the right side, settings as they were set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.records import Prompt, Sampling
from policies.base.seeds import derive_seed
from policies.examples.kinds import LabelledStep, PreferencePair
from tests.support.training_cases import (
    make_job,
    pair_loss,
    pairs,
    sequence,
    version,
    write_tiny_model,
)
from workers.rollout.strategy import RolloutJob
from workers.training.batches.plan import BatchPlan, MicroBatch
from workers.training.batches.reference_logprobs import ReferenceScores, score_reference, scorer
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import TrainingOptions
from workers.training.schedule import warmup_steps
from workers.training.trl_parts.arguments import loss_arguments, training_arguments
from workers.training.trl_parts.inputs import pair_inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    path = write_tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(path)


def expected(model: Any, ids: tuple[int, ...], mask: tuple[int, ...]) -> list[float]:
    """Log-prob of every scored token, from the whole matrix of logits of this one sequence."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return [float(logits[i - 1, token]) for i, token in enumerate(ids) if mask[i]]


def test_a_token_is_scored_by_what_stands_before_it_and_by_no_padding(model: Any) -> None:
    from policies.objectives.logprobs import padded, sequence_logprobs

    sequences = [sequence("a", 0, length=5), sequence("b", 0, length=9), sequence("c", 1)]
    scores = sequence_logprobs(model, sequences).per_token
    for found, one in zip(scores, sequences, strict=True):
        wanted = expected(model, one.token_ids, one.loss_mask)
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    _, attention, mask = padded(sequences, pad=9)
    assert attention.sum(dim=1).tolist() == [len(one.token_ids) for one in sequences]
    assert mask.sum(dim=1).tolist() == [sum(one.loss_mask) for one in sequences]


def scored(model: Any, folder: Path, precision: str, **changes: Any) -> ReferenceScores:
    sequences = [sequence("a", 0), sequence("a", 1, policy_version=2), sequence("b", 0)]
    policy = version(write_tiny_model(folder / "policy"), number=3)
    given = [s.model_copy(update={"policy_version": 3}) if s.policy_version == 0 else s for s in sequences]  # fmt: skip
    return score_reference(
        make_job(policy, folder, **changes),
        given,
        [],
        sampled=given,
        policy=scorer(model, precision),
        load_reference=lambda: pytest.fail("the reference is the policy"),
        probe=0,
        group=WorkerGroup(),
    )


def test_what_an_earlier_version_sampled_is_scored_anew_and_the_rest_is_taken_as_recorded(
    model: Any, tmp_path: Path
) -> None:
    fresh, stale, other = scored(model, tmp_path, "fp32", logprobs="rollout").sequences
    assert set(fresh.tolist()) == set(other.tolist()) == {-4.0}
    one = sequence("a", 1)
    wanted = expected(model, one.token_ids, one.loss_mask)
    assert stale.tolist() == pytest.approx(wanted, abs=1e-5)


def test_what_others_wrote_is_scored_anew_though_the_policy_served_then(
    model: Any, tmp_path: Path
) -> None:
    policy = version(write_tiny_model(tmp_path / "policy"), number=0)
    own, foreign = sequence("a", 0), sequence("a", 1).model_copy(update={"logprobs": ()})
    found = score_reference(
        make_job(policy, tmp_path, logprobs="rollout"),
        [own, foreign],
        [],
        sampled=[own, foreign],
        policy=scorer(model, "fp32"),
        load_reference=lambda: pytest.fail("the reference is the policy"),
        probe=9,
        group=WorkerGroup(),
    )
    assert set(found.sequences[0].tolist()) == {-4.0}
    wanted = expected(model, foreign.token_ids, foreign.loss_mask)
    assert found.sequences[1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert found.metrics["train/rescored_sequences"] == 1.0


def test_the_reference_is_scored_in_the_precision_of_training(model: Any, tmp_path: Path) -> None:
    exact, rounded = (
        [value for one in scored(model, tmp_path / p, p).sequences for value in one.tolist()]
        for p in ("fp32", "bf16")
    )
    apart = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
    assert 1e-4 < apart < 0.5


def test_each_side_gets_its_own_reference() -> None:
    from tests.support.scored_batches import collated

    rows = [pair for pair in pairs(3) if isinstance(pair, PreferencePair)]
    references = [(-1.0, -2.0), (-3.0, -4.0), (-5.0, -6.0)]
    batch = collated(pair_loss("dpo"), rows, references, [1.0, 1.0], MicroBatch((2, 0), 1.0))
    given = pair_inputs({**batch})
    assert given["ref_chosen_logps"].tolist() == [-5.0, -1.0]
    assert given["ref_rejected_logps"].tolist() == [-6.0, -2.0]
    assert batch["facts"]["references"]["reference"].tolist() == [-5.0, -1.0, -6.0, -2.0]
    assert batch["facts"]["owners"].tolist() == [0, 1, 0, 1]
    sides = [rows[2].chosen, rows[0].chosen, rows[2].rejected, rows[0].rejected]
    for ids, mask, side in zip(batch["input_ids"], batch["completion_mask"], sides, strict=True):
        size = len(side.token_ids)
        assert tuple(ids[:size].tolist()) == side.token_ids
        assert tuple(mask[:size].tolist()) == side.loss_mask
        assert not mask[size:].any()


def test_a_step_is_summed_over_its_own_scored_tokens() -> None:
    import torch

    from workers.training.batches.collate import ReferenceSums, step_batch
    from workers.training.batches.scored import step_logratios

    one = sequence("a", 0, length=6)
    start = len(one.token_ids) - 6
    steps = (
        LabelledStep(start=start, end=start + 3, desirable=True),  # its third token is masked
        LabelledStep(start=start + 3, end=start + 6, desirable=False),
    )
    judged = one.model_copy(update={"steps": steps})
    batch = step_batch([judged], [ReferenceSums(0.0, (-10.0, -20.0))], (1.0, 3.0))
    # Column t of next-token log-probs speaks of token t + 1.
    values = torch.tensor([[float(i + 1) for i in range(len(one.token_ids) - 1)]])
    first = start + (start + 1)
    second = (start + 3) + (start + 4) + (start + 5)
    assert step_logratios(values, batch).tolist() == [first + 10.0, second + 20.0]
    assert batch["weights"].tolist() == [1.0, 3.0]


def test_token_weights_count_in_sums_and_not_in_lengths() -> None:
    import torch

    from tests.support.scored_batches import pair_tensors

    log_probs = torch.tensor([[-1.0, -2.0, 0.0], [-4.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.0, 0.0]])
    made = pair_tensors(log_probs, mask, torch.zeros(1), torch.zeros(1), weights=weights)
    assert (made.chosen_logps.tolist(), made.rejected_logps.tolist()) == ([-2.0], [-1.0])
    assert (made.chosen_lengths.tolist(), made.rejected_lengths.tolist()) == ([2], [1])


def test_settings_of_the_optimizer_reach_the_trainer_as_they_were_set() -> None:
    steps = tuple(MicroBatch((i,), 1.0, step=i) for i in range(20))
    options = TrainingOptions(
        learning_rate=3e-4,
        weight_decay=0.02,
        max_grad_norm=0.7,
        warmup_fraction=0.25,
        schedule="linear",
    )
    found = training_arguments(options, BatchPlan(steps, 1), seed=5, scratch="x", use_cpu=True)
    assert found["learning_rate"] == 3e-4
    assert found["weight_decay"] == 0.02
    assert found["max_grad_norm"] == 0.7
    assert warmup_steps(options, 20) == 5
    assert loss_arguments(pair_loss("dpo", beta=0.3), (1.0, 1.0))["beta"] == 0.3


def test_seeds_tell_their_parts_apart() -> None:
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("a", "") != derive_seed("", "a")
    job = RolloutJob((), 2, Sampling(), "r1", seed=0)
    prompt = Prompt(id="a", messages=())
    seeds = {job.seed_of(prompt, sample, turn) for sample in range(3) for turn in range(2)}
    assert len(seeds) == 6
