"""Steps, microbatches and mismatched partners: who is trained on when, and with whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from policies.base.errors import DivergenceError, TrainingError
from policies.base.seeds import derive_rng
from policies.examples.kinds import UnpairedExample
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.training_cases import make_engine, make_loss, sequence, singles, turn_singles
from workers.training.batches.plan import mismatched_sequences, plan_batches
from workers.training.engine import AdapterSettings
from workers.training.step_log import StepLog

LENGTHS = [derive_rng("length", i).randint(5, 60) for i in range(97)]


def sizes_of_steps(count: int, batch: int, micro: int | None) -> list[int]:
    plan = plan_batches(LENGTHS[:count], batch_size=batch, micro_batch_size=micro, epochs=1, seed=0)
    parts = plan.microbatches
    steps = [parts[i : i + plan.accumulation] for i in range(0, len(parts), plan.accumulation)]
    assert len(steps) == plan.num_steps
    for step in steps:
        assert sum(part.share for part in step) == pytest.approx(1.0)
        assert all(len(part.rows) <= (micro or batch) for part in step)
    return [sum(len(part.rows) for part in step if part.share) for step in steps]


@pytest.mark.parametrize(
    ("count", "batch", "micro"),
    [(97, 8, None), (97, 8, 2), (3, 8, 1), (8, 8, 8), (13, 6, 1), (1, 4, None)],
)
def test_every_row_is_seen_once_in_steps_of_nearly_equal_size(
    count: int, batch: int, micro: int | None
) -> None:
    sizes = sizes_of_steps(count, batch, micro)
    plan = plan_batches(LENGTHS[:count], batch_size=batch, micro_batch_size=micro, epochs=2, seed=0)
    seen = Counter(row for part in plan.microbatches if part.share for row in part.rows)
    assert sum(sizes) == count
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1, "a last step of one row would be the noisiest of all"
    assert seen == Counter(dict.fromkeys(range(count), 2))


def test_the_plan_is_a_function_of_the_seed_and_epochs_differ() -> None:
    def rows(seed: int) -> list[tuple[int, ...]]:
        plan = plan_batches(LENGTHS, batch_size=8, micro_batch_size=None, epochs=2, seed=seed)
        return [part.rows for part in plan.microbatches]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(1)[:13] != rows(1)[13:]


def test_rows_of_like_length_share_a_step_without_the_steps_being_sorted() -> None:
    plan = plan_batches(LENGTHS, batch_size=8, micro_batch_size=None, epochs=1, seed=0)
    longest = [max(LENGTHS[row] for row in part.rows) for part in plan.microbatches]
    padded = sum(
        most * len(part.rows) for most, part in zip(longest, plan.microbatches, strict=True)
    )
    assert padded / sum(LENGTHS) < 1.25, "random batches of these lengths are padded by 0.7"
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_every_step_and_microbatch_mixes_the_classes_even_when_length_tells_them_apart() -> None:
    classes = [i % 3 == 0 for i in range(96)]
    lengths = [10 if right else 50 for right in classes]
    plan = plan_batches(
        lengths, batch_size=12, micro_batch_size=6, epochs=1, seed=3, classes=classes
    )
    desirable = {sum(classes[row] for row in part.rows) for part in plan.microbatches}
    assert desirable <= {1, 2, 3}


def test_partners_come_from_other_prompts_although_samples_of_a_prompt_lie_side_by_side() -> None:
    examples = cast("list[UnpairedExample]", singles(40))
    partners = mismatched_sequences(examples, range(40), seed=0)
    for row, partner in partners.items():
        own, other = examples[row], examples[partner.completion_of]
        assert own.prompt_id != other.prompt_id
        prompt = own.sequence.token_ids[: own.sequence.loss_mask.index(1)]
        start = other.sequence.loss_mask.index(1)
        assert partner.sequence.token_ids == prompt + other.sequence.token_ids[start:]
        assert partner.sequence.loss_mask == (0,) * len(prompt) + other.sequence.loss_mask[start:]
        assert 0 in partner.sequence.loss_mask[len(prompt) :], "the observation stays masked"
    assert partners == mismatched_sequences(examples, range(40), seed=0)
    assert partners != mismatched_sequences(examples, range(40), seed=1)


def test_a_borrowed_completion_brings_its_turns_and_steps_to_their_new_places() -> None:
    examples = turn_singles(12, labels=(True, False))
    for row, partner in mismatched_sequences(examples, range(12), seed=0).items():
        own, other = examples[row].sequence, examples[partner.completion_of].sequence
        made = partner.sequence
        assert [made.token_ids[t.start : t.end] for t in made.turns] == [
            other.token_ids[t.start : t.end] for t in other.turns
        ]
        assert [(made.token_ids[s.start : s.end], s.desirable) for s in made.steps] == [
            (other.token_ids[s.start : s.end], s.desirable) for s in other.steps
        ]
        assert made.steps[0].start == own.loss_mask.index(1)
        assert made.steps[-1].end == len(made.token_ids)


def test_the_mean_over_a_step_does_not_count_rows_repeated_to_fill_it() -> None:
    plan = plan_batches([5, 6, 7], batch_size=2, micro_batch_size=1, epochs=2, seed=0)
    assert plan.num_steps == 4
    assert any(part.share == 0 for part in plan.microbatches)
    for step, mean in enumerate(plan.means([1.0, 10.0, 100.0])):
        rows = [r for p in plan.microbatches if p.step == step and p.share for r in p.rows]
        assert mean == pytest.approx(sum(10.0**r for r in rows) / len(rows))


def test_kto_on_one_prompt_is_refused_with_the_reason() -> None:
    examples = [
        UnpairedExample(
            id=f"{i}", prompt_id="p0", sequence=sequence("p0", i), desirable=True, score=1.0
        )
        for i in range(4)
    ]
    with pytest.raises(TrainingError, match="same prompt"):
        mismatched_sequences(examples, range(4), seed=0)


@pytest.mark.parametrize(
    ("options", "adapter", "message"),
    [
        ({"batch_size": 8, "micro_batch_size": 3}, None, "divide"),
        ({"optimizer": "carry"}, AdapterSettings(), "new adapter"),
        ({"sharding": "fsdp"}, None, "training.workers to 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_any_work(
    options: dict[str, object], adapter: AdapterSettings | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine("trl", make_loss("dpo"), adapter, **options)


def test_the_step_log_refuses_what_is_not_finite_and_names_the_step(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.record({"loss": 0.5, "grad_norm": 1.0, "epoch": 0.1})
    with pytest.raises(DivergenceError, match="grad_norm is not finite at step 2"):
        log.record({"loss": 0.5, "grad_norm": float("inf")})
    assert (
        tmp_path / "log.jsonl"
    ).read_text() == '{"step": 1, "train/loss": 0.5, "train/grad_norm": 1.0}\n'


def test_means_are_over_the_steps_that_have_the_value(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.record({"loss": 1.0, "rewards/chosen": 2.0})
    log.record({"loss": 3.0})
    assert log.means() == {
        "train/loss": 2.0,
        "rewards/chosen": 2.0,
        "train/loss_first": 1.0,
        "train/steps": 2.0,
        "train/nonfinite_steps": 0.0,
    }
    assert log.final_mean("rewards/chosen") is None


def test_a_metric_that_nobody_named_is_kept_and_a_clock_is_not(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.record({"loss": 1.0, "mean_token_accuracy": 0.5, "logits/chosen": -1.0, "epoch": 1.0})
    log.record({"loss": 1.0, "train_runtime": 3.0, "odd": float("nan"), "rewards/chosen": 1.0})
    means = log.means()
    assert means["train/mean_token_accuracy"] == 0.5
    assert means["logits/chosen"] == -1.0
    assert not [name for name in means if "epoch" in name or "runtime" in name or "odd" in name]
    again = StepLog(tmp_path / "again.jsonl", log.steps)
    assert again.means() == means, "a checkpoint brings them back"


def test_a_reference_plan_reads_as_a_sentence() -> None:
    parts = (ReferencePart(version=0, weight=0.4), ReferencePart(version=1, weight=0.6))
    assert str(ReferencePlan(parts=parts)) == "0.4 x version 0 + 0.6 x version 1"
