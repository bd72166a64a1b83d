"""SFT through TRL's SFTTrainer on our ids, masks and steps: its numbers, ours, and the hooks it stands on."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from trl import SFTTrainer

from policies.examples.kinds import SupervisedExample
from tests.support.training_cases import (
    demonstrations,
    log_of,
    make_engine,
    make_job,
    make_loss,
    turns_sequence,
    version,
    weights_of,
    write_tiny_model,
)
from workers.training.checkpoints.weights import load_model
from workers.training.engine import AdapterSettings


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def shown(count: int = 7, **changes: Any) -> list[SupervisedExample]:
    """Trajectories of two turns whose lengths differ a lot, so that averages over tokens and over sequences do."""
    return [
        SupervisedExample(
            id=f"shown{i}",
            prompt_id=f"p{i}",
            sequence=turns_sequence(f"p{i}", i, turns=(1 + i, 2 + 3 * (i % 3))),
            **changes,
        )
        for i in range(count)
    ]


def nlls(path: Path, examples: list[SupervisedExample]) -> tuple[list[float], list[int]]:
    """NLL of each example's policy tokens from the model's own logits, and how many they are."""
    model = load_model(str(path), device="cpu", attention="eager", trust_remote_code=False)
    sums, counts = [], []
    for example in examples:
        ids, mask = torch.tensor([example.sequence.token_ids]), example.sequence.loss_mask
        with torch.no_grad():
            values = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(-math.fsum(v for v, m in zip(values.tolist(), mask[1:], strict=True) if m))
        counts.append(sum(mask))
    return sums, counts


@pytest.mark.parametrize(
    ("hook", "parameters"),
    [
        (
            "_prepare_dataset",
            [
                *("self", "dataset", "processing_class", "args", "packing"),
                *("formatting_func", "dataset_name"),
            ],
        ),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_send_telemetry", ["self"]),
        ("get_train_dataloader", ["self"]),
        ("create_optimizer", ["self", "model"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_the_hooks_of_sft_that_we_replace_are_as_they_were_in_trl_1_16(
    hook: str, parameters: list[str]
) -> None:
    found = list(inspect.signature(getattr(SFTTrainer, hook)).parameters)
    assert found == parameters, f"SFTTrainer.{hook} changed: read it, then adapt steps.py"


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_the_first_loss_is_the_mean_nll_of_what_the_policy_wrote(
    average: str, micro: int | None, model_dir: Path, tmp_path: Path
) -> None:
    examples = shown()
    sums, counts = nlls(model_dir, examples)
    by_token = sum(sums) / sum(counts)
    by_sequence = sum(s / n for s, n in zip(sums, counts, strict=True)) / len(sums)
    assert abs(by_token - by_sequence) > 1e-2
    engine = make_engine(
        "trl", make_loss("sft", average=average), batch_size=8, micro_batch_size=micro
    )
    outcome = engine.update(make_job(version(model_dir), tmp_path), list(examples))
    expected = by_token if average == "tokens" else by_sequence
    assert outcome.num_steps == 1
    assert outcome.metrics["train/loss_first"] == pytest.approx(expected, abs=1e-4)
    if micro is None:
        assert outcome.metrics["train/nll"] == pytest.approx(by_token, abs=1e-4)
        assert outcome.metrics["train/entropy"] > 0


def test_our_own_step_trains_as_trls_does(model_dir: Path, tmp_path: Path) -> None:
    """A weight of 2 on every example takes our own step and doubles the loss, and nothing but the loss."""
    runs = {}
    for label, weight in (("trl", 1.0), ("own", 2.0)):
        (tmp_path / label).mkdir()
        job = make_job(version(model_dir), tmp_path / label)
        engine = make_engine(
            "trl", make_loss("sft"), learning_rate=1e-3, micro_batch_size=2, max_grad_norm=1e9
        )
        engine.update(job, list(shown(7, weight=weight)))
        runs[label] = log_of(job)
    assert len(runs["trl"]) == 2
    for mine, theirs in zip(runs["own"], runs["trl"], strict=True):
        assert mine["train/loss"] == pytest.approx(2 * theirs["train/loss"], rel=1e-3)
        assert mine["train/grad_norm"] == pytest.approx(2 * theirs["train/grad_norm"], rel=1e-2)
        assert mine["train/nll"] == pytest.approx(theirs["train/nll"], rel=1e-3)
        assert mine["train/entropy"] == pytest.approx(theirs["train/entropy"], rel=1e-2)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_the_microbatch_size_does_not_change_the_update(
    average: str, model_dir: Path, tmp_path: Path
) -> None:
    """Seven rows in steps of four and three: with one row a pass, a row of the short step is repeated at share 0."""
    ends = []
    for micro in (1, 4):
        folder = tmp_path / str(micro)
        folder.mkdir()
        engine = make_engine(
            "trl", make_loss("sft", average=average), micro_batch_size=micro, learning_rate=1e-3
        )
        job = make_job(version(model_dir), folder)
        engine.update(job, list(shown()))
        ends.append((log_of(job), weights_of(job.output_dir)))
    (logs, weights), (others, theirs) = ends
    for mine, other in zip(logs, others, strict=True):
        assert mine["train/loss"] == pytest.approx(other["train/loss"], abs=2e-4)
        assert mine["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)
    for name in weights:
        torch.testing.assert_close(weights[name], theirs[name], rtol=1e-2, atol=2e-4)


def test_sft_lowers_the_nll_of_what_it_is_shown(model_dir: Path, tmp_path: Path) -> None:
    examples = cast("list[SupervisedExample]", demonstrations())
    engine = make_engine("trl", make_loss("sft"), learning_rate=1e-2, epochs=6)
    job = make_job(version(model_dir), tmp_path)
    engine.update(job, list(examples))
    (before, counts), (after, _) = nlls(model_dir, examples), nlls(Path(job.output_dir), examples)
    assert sum(after) < sum(before) - 0.3 * sum(counts)


def test_sft_trains_an_adapter(model_dir: Path, tmp_path: Path) -> None:
    job = make_job(version(model_dir), tmp_path)
    engine = make_engine(
        "trl", make_loss("sft"), adapter=AdapterSettings(rank=2), learning_rate=1e-2
    )
    outcome = engine.update(job, demonstrations())
    before, after = weights_of(model_dir), weights_of(job.output_dir)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name for name in changed)
    assert math.isfinite(outcome.metrics["train/nll"])


def test_sft_says_nothing_on_the_console(
    model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine("trl", make_loss("sft"))
    assert engine.update(make_job(version(model_dir), tmp_path), demonstrations()).num_steps == 3
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
