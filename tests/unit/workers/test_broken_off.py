"""A completion that the engine broke off makes its attempt an error, whatever strategy asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.records import Ending, Prompt, Sampling, StopReason, Trajectory, TrajectoryStatus
from policies.storage.artifacts import read_records, write_records
from policies.storage.fake_model import write_fake_model
from tests.contracts.test_strategies import PROMPTS, SETTINGS
from tests.support.committing import committed
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, Generation, GenerationRequest
from workers.rollout.engines.fake import FakeEngine
from workers.rollout.strategy import STRATEGIES
from workers.rollout.worker import RolloutWorker, ShardJob

SAMPLED = sorted(set(STRATEGIES.members()) - {"demonstrations", "logged_answers"})


class BrokenEngine(FakeEngine):
    """Breaks off whatever it is asked about the number 3."""

    def _one(self, request: GenerationRequest) -> Generation:
        if "What is 3 times" in self.chat.decode(request.prompt_token_ids):
            return Generation.failed("the engine was told to abort")
        return super()._one(request)


class SilentEngine(BrokenEngine):
    """Says nothing of the reason."""

    def _one(self, request: GenerationRequest) -> Generation:
        found = super()._one(request)
        return found if found.error is None else Generation((), (), "", StopReason.ERROR)


@pytest.mark.parametrize("engine", ["BrokenEngine", "SilentEngine"])
@pytest.mark.parametrize("strategy", SAMPLED)
def test_what_was_broken_off_is_an_error_without_tokens_and_the_others_are_not(
    strategy: str, engine: str, tmp_path: Path
) -> None:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5))
    settings: Any = STRATEGIES.parse({"type": strategy, **SETTINGS.get(strategy, {})})
    worker = RolloutWorker(
        ENGINES.parse(f"{__file__}:{engine}"), [settings], policy=policy, dtype="float32", seed=0
    )
    write_records(tmp_path / "prompts.parquet", Prompt, PROMPTS, summary={})
    job = ShardJob(
        prompts_path=str(tmp_path / "prompts.parquet"),
        output_path=str(tmp_path / "out.parquet"),
        policy=policy,
        samples_per_prompt=3,
        sampling=Sampling(max_tokens=64),
        scope="r1",
        seed=0,
    )
    summary = committed(worker.sample(job))
    worker.close()
    found = read_records(tmp_path / "out.parquet", Trajectory)
    broken = [t for t in found if t.prompt_id == "3x7"]
    assert len(broken) == summary["errors"] == 3
    for each in broken:
        assert each.status is TrajectoryStatus.ERROR
        assert each.ending is Ending.FAILED
        assert each.error
        assert not any(t.token_ids for t in each.turns)
    assert all(t.status is not TrajectoryStatus.ERROR for t in found if t not in broken)
