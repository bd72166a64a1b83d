"""The torch engine makes the update that the TRL engine makes: the same numbers at every step, the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policies.base.errors import ConfigurationError
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.step_gradients import CASES
from tests.support.training_cases import (
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    version,
    weights_of,
    write_tiny_model,
)
from workers.training.engine import AdapterSettings, UpdateOutcome
from workers.training.update import run_update

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "epochs": 2,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
}
LORA = AdapterSettings(rank=2, alpha=4.0, dropout=0.2)
TOLERANCE = 1e-5
"""Of weights that an update moves by 6e-3: sums in another order."""
SEEN = ("train/loss", "train/learning_rate", "train/grad_norm", "train/entropy", "train/nll", "kl")

EXTRAS_OF_TRL = {
    "logits/chosen",
    "logits/rejected",
    "train/mean_token_accuracy",
    "train/num_tokens",
}
"""Told by TRL's trainers beside what Pawl measures."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    write_tiny_model(folder / "model")
    write_tiny_model(folder / "other", seed=1)
    return folder


def updated(
    engine: str, case: str, root: Path, folder: Path, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, float]], UpdateOutcome]:
    """The weights, the log and the outcome of an update of a case against a reference that is another model."""
    place = folder / engine
    place.mkdir()
    job = make_job(
        version(root / "model"),
        place,
        reference=ReferencePlan(parts=(ReferencePart(version=1, weight=1.0),)),
        reference_versions=(version(root / "other", number=1),),
    )
    adapter = changes.pop("adapter", None)
    given = CASES[case]
    made = make_engine(
        engine, make_loss(given.loss, **given.settings), adapter, **(OPTIONS | changes)
    )
    outcome = run_update(made, job, given.examples())
    return weights_of(job.output_dir), log_of(job), outcome


def assert_same(case: str, root: Path, folder: Path, **changes: Any) -> None:
    mine, log, outcome = updated("torch", case, root, folder, **changes)
    theirs, wanted, expected = updated("trl", case, root, folder, **changes)
    start = weights_of(root / "model")
    moved = max(float((theirs[n] - start[n]).abs().max()) for n in start)
    assert mine.keys() == theirs.keys()
    apart = max(float((mine[n] - theirs[n]).abs().max()) for n in theirs)
    assert apart <= TOLERANCE < moved / 100, (apart, moved)
    assert len(log) == len(wanted)
    for own, other in zip(log, wanted, strict=True):
        names = [n for n in other if n in SEEN or n.startswith(("rewards/", "logps/", "steps/"))]
        assert {n: own.get(n) for n in names} == pytest.approx(
            {n: other[n] for n in names}, rel=1e-3, abs=1e-4
        )
    assert (outcome.num_tokens, outcome.num_steps) == (expected.num_tokens, expected.num_steps)
    assert expected.metrics.keys() - outcome.metrics.keys() <= EXTRAS_OF_TRL


@pytest.mark.parametrize(
    ("case", "micro"),
    [("dpo", None), ("dpo", 2), ("kto", None), ("kto", 2), ("sft", None), ("sft", 2)],
)
def test_an_update_of_pairs_singles_and_demonstrations_is_trls(
    case: str, micro: int | None, root: Path, tmp_path: Path
) -> None:
    assert_same(case, root, tmp_path, micro_batch_size=micro)


@pytest.mark.parametrize("case", ["step_kto", "aot_weighted", "kto_weighted", "own_centred"])
def test_so_is_one_of_losses_that_read_steps_other_rows_and_weights(
    case: str, root: Path, tmp_path: Path
) -> None:
    assert_same(case, root, tmp_path, micro_batch_size=2)


def test_an_adapter_begins_and_drops_out_as_in_trl(root: Path, tmp_path: Path) -> None:
    assert_same("dpo", root, tmp_path, adapter=LORA, micro_batch_size=2)


def test_activations_made_again_change_nothing(root: Path, tmp_path: Path) -> None:
    assert_same("dpo", root, tmp_path, gradient_checkpointing=True)


def test_a_carried_optimizer_goes_on_from_its_moments(root: Path, tmp_path: Path) -> None:
    ends = {}
    for name in ("torch", "trl"):
        engine = make_engine(name, make_loss("dpo"), None, **OPTIONS, optimizer="carry")
        state, policy = tmp_path / f"{name}.state", root / "model"
        for part in ("first", "second"):
            folder = tmp_path / f"{name}-{part}"
            folder.mkdir()
            carried = str(state) if part == "second" else None
            job = make_job(
                version(policy), folder, optimizer_state=carried, optimizer_output=str(state)
            )
            run_update(engine, job, pairs())
            policy = Path(job.output_dir)
        ends[name] = weights_of(policy)
    apart = max(float((ends["torch"][n] - ends["trl"][n]).abs().max()) for n in ends["trl"])
    assert apart <= TOLERANCE
    assert any(not torch.equal(ends["trl"][n], weights_of(root / "model")[n]) for n in ends["trl"])


def test_a_model_in_shares_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"training\.sharding.*engine to trl"):
        make_engine("torch", make_loss("dpo"), None, sharding="fsdp", workers=2)
