"""What every training engine promises, whatever is inside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import PawlError, TrainingError
from policies.objectives.reference import ReferencePart, ReferencePlan
from policies.storage.artifacts import file_sha256
from policies.storage.policy_store import weight_files
from tests.support.training_cases import (
    demonstrations,
    examples_of,
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    sequence,
    singles,
    version,
    write_model,
)
from workers.training.engine import TRAINING_ENGINES
from workers.training.update import run_update

ENGINES = sorted(
    n for n, where in TRAINING_ENGINES.members().items() if where.startswith("workers.")
)
LOSS_OF = {"pair": "dpo", "unpaired": "kto", "supervised": "sft"}


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(engine_name: str, tmp_path: Path) -> Path:
    return write_model(engine_name, tmp_path / "model")


@pytest.mark.parametrize("kind", sorted(LOSS_OF))
def test_an_update_leaves_weights_a_log_and_finite_metrics(
    kind: str, engine_name: str, model: Path, tmp_path: Path
) -> None:
    job = make_job(version(model), tmp_path)
    examples = examples_of(kind)
    outcome = run_update(make_engine(engine_name, make_loss(LOSS_OF[kind])), job, examples)
    assert weight_files(Path(job.output_dir))
    assert version(Path(job.output_dir)).digest != version(model).digest
    assert outcome.num_examples == len(examples)
    assert outcome.num_steps == len(log_of(job)) == math.ceil(len(examples) / 4)
    assert [line["step"] for line in log_of(job)] == list(range(1, outcome.num_steps + 1))
    assert all("train/loss" in line for line in log_of(job))
    assert {"train/loss", "train/loss_first", "train/steps"} <= outcome.metrics.keys()
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "model", "new"]


def test_what_lies_beside_the_weights_is_carried_over(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "manifest.json").write_text("{}")
    job = make_job(version(model), tmp_path)
    run_update(make_engine(engine_name, make_loss("dpo")), job, pairs())
    assert (Path(job.output_dir) / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (Path(job.output_dir) / "manifest.json").exists(), (
        "a manifest speaks of one version only"
    )


def test_unusable_examples_are_dropped_and_counted_by_reason(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    good: Any = pairs(3)
    seq = good[0].chosen
    unscored = seq.model_copy(update={"loss_mask": (0,) * len(seq.token_ids)})
    no_prompt = seq.model_copy(update={"loss_mask": (1,) * len(seq.token_ids)})
    bad = [
        good[0].model_copy(update={"rejected": seq}),
        good[0].model_copy(update={"rejected": unscored}),
        good[0].model_copy(update={"chosen": no_prompt}),
        good[0].model_copy(update={"rejected": sequence("elsewhere", 1)}),
        good[0].model_copy(update={"chosen": sequence("p0", 5, length=90)}),
    ]
    job = make_job(version(model), tmp_path)
    outcome = run_update(
        make_engine(engine_name, make_loss("dpo"), max_length=64), job, [*good, *bad]
    )
    reasons = ("identical", "nothing_scored", "no_prompt", "prompt_differs", "too_long")
    assert outcome.dropped == dict.fromkeys(reasons, 1)
    assert outcome.num_examples == 3


def test_examples_of_another_kind_are_refused(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    engine = make_engine(engine_name, make_loss("dpo"))
    with pytest.raises(TrainingError, match="PreferencePair"):
        run_update(engine, make_job(version(model), tmp_path), singles())
    assert not (tmp_path / "new").exists()


def test_nothing_to_train_on_is_refused_with_the_reasons(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    engine = make_engine(engine_name, make_loss("dpo"), max_length=8)
    with pytest.raises(TrainingError, match="too_long"):
        run_update(engine, make_job(version(model), tmp_path), list(pairs()))


def test_a_sampler_is_not_taken_for_another_reference(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    plan = ReferencePlan(parts=(ReferencePart(version=3, weight=1.0),))
    engine = make_engine(engine_name, make_loss("dpo"))
    job = make_job(
        version(model),
        tmp_path,
        logprobs="rollout",
        reference=plan,
        reference_versions=(version(model, 3),),
    )
    with pytest.raises(TrainingError, match="recompute"):
        run_update(engine, job, pairs())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("new")]


def test_samples_of_an_earlier_version_are_no_reason_to_refuse_the_sampler(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    mixed: Any = pairs(4)
    mixed[0] = mixed[0].model_copy(update={"chosen": sequence("p0", 0, policy_version=9)})
    job = make_job(version(model), tmp_path, logprobs="rollout")
    outcome = run_update(make_engine(engine_name, make_loss("dpo")), job, mixed)
    assert outcome.num_examples == 4
    assert outcome.dropped == {}


@pytest.mark.parametrize("kind", ["pair", "unpaired"])
def test_the_sampler_is_not_asked_for_tokens_that_it_did_not_write(
    kind: str, engine_name: str, model: Path, tmp_path: Path
) -> None:
    engine = make_engine(engine_name, make_loss(LOSS_OF[kind]), loss_mask="completion")
    with pytest.raises(TrainingError, match=r"training\.loss_mask"):
        run_update(
            engine, make_job(version(model), tmp_path, logprobs="rollout"), examples_of(kind)
        )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("new")]


def test_imitation_needs_no_reference_and_asks_for_none(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    nowhere = version(model, 3).model_copy(update={"path": str(tmp_path / "nowhere")})
    job = make_job(
        version(model),
        tmp_path,
        logprobs="rollout",
        reference=ReferencePlan(parts=(ReferencePart(version=3, weight=1.0),)),
        reference_versions=(nowhere,),
    )
    outcome = run_update(make_engine(engine_name, make_loss("sft")), job, demonstrations())
    assert {"train/loss", "train/nll"} <= outcome.metrics.keys()
    assert outcome.metrics["train/demonstrations"] == 10
    assert not [name for name in outcome.metrics if name.startswith(("rewards/", "logps/"))]


def test_a_published_folder_is_never_overwritten(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(TrainingError, match="exists already"):
        run_update(
            make_engine(engine_name, make_loss("dpo")), make_job(version(model), tmp_path), pairs()
        )
    assert list((tmp_path / "new").iterdir()) == []


def test_a_killed_attempts_leavings_do_not_disturb(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.tmp").mkdir()
    (tmp_path / "new.tmp" / "half.safetensors").write_bytes(b"half")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    job = make_job(version(model), tmp_path)
    outcome = run_update(make_engine(engine_name, make_loss("dpo")), job, pairs())
    assert len(log_of(job)) == outcome.num_steps
    assert not (Path(job.output_dir) / "half.safetensors").exists()


def test_a_model_that_cannot_be_read_is_an_error_of_ours(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    policy = version(model).model_copy(update={"path": str(tmp_path / "nowhere")})
    with pytest.raises(PawlError, match="nowhere"):
        run_update(make_engine(engine_name, make_loss("dpo")), make_job(policy, tmp_path), pairs())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("new")]


def test_the_same_job_gives_the_same_weights(engine_name: str, model: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        job = make_job(version(model), tmp_path / name)
        run_update(make_engine(engine_name, make_loss("dpo")), job, pairs())
        digests.add(file_sha256(weight_files(Path(job.output_dir))[0]))
    assert len(digests) == 1


def test_another_seed_or_other_examples_give_other_weights(
    engine_name: str, model: Path, tmp_path: Path
) -> None:
    digests = set()
    for name, seed, count in (("a", 1, 10), ("b", 2, 10), ("c", 1, 9)):
        (tmp_path / name).mkdir()
        job = make_job(version(model), tmp_path / name, seed=seed)
        run_update(
            make_engine(engine_name, make_loss("dpo"), learning_rate=1e-3), job, pairs(count)
        )
        digests.add(file_sha256(weight_files(Path(job.output_dir))[0]))
    assert len(digests) == 3
