"""A training engine of a user's own: one file with six methods, and nothing of ours is edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.base.errors import DivergenceError
from policies.storage.fake_model import read_skill
from policies.storage.policy_store import weight_files
from tests.support.cut_updates import CutOffError, cut_at
from tests.support.fake_runs import fake_tree
from tests.support.training_cases import (
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    singles,
    version,
    write_model,
)
from workers.training.engine import StepEngine
from workers.training.update import run_update

ENGINE = '''
"""Trains a table of next-token scores, in plain gradient descent, and publishes a fake policy."""

from pathlib import Path

import torch

from pawl import StepEngine, TokenScores, TrainedState
from policies.storage.fake_model import read_skill, write_fake_model

SIZE = 64


class TableEngine(StepEngine):
    """The smallest engine that computes."""

    probe_sequences = 0

    def load(self, job, examples):
        self.skill = read_skill(Path(job.policy.path))
        self.table = torch.zeros(SIZE, SIZE, requires_grad=True)
        return {"table/size": float(SIZE)}

    def logprobs(self, tokens, *, reference=False):
        table = torch.zeros(SIZE, SIZE) if reference else self.table
        with torch.no_grad():
            return self._scores(table, tokens)

    def _scores(self, table, tokens):
        ids = tokens["input_ids"] % SIZE
        values = table[ids[:, :-1]].log_softmax(dim=-1)
        picked = values.gather(2, ids[:, 1:, None]).squeeze(2)
        return TokenScores(picked * tokens["completion_mask"][:, 1:])

    def forward_backward(self, batch, loss):
        for part in batch.parts:
            loss(part, self._scores(self.table, part)).backward()
        return {**loss.numbers(), "rows_in_step": len(batch.examples)}

    def step(self, learning_rate):
        norm = self.table.grad.norm().item()
        with torch.no_grad():
            self.table -= learning_rate * self.table.grad
        self.table.grad = None
        return norm

    def state(self):
        return TrainedState({"table": self.table.detach()})

    def load_state(self, state, path):
        with torch.no_grad():
            self.table.copy_(state.weights["table"])

    def save(self, folder):
        learned = self.table.abs().sum().item()
        write_fake_model(folder, min(1.0, self.skill + 0.1), seed=f"{learned}")
        return ()
'''


@pytest.fixture
def engine(tmp_path: Path) -> str:
    """The key under `training.engine` of the user's file."""
    (tmp_path / "my_engine.py").write_text(ENGINE, encoding="utf-8")
    return f"{tmp_path}/my_engine.py:TableEngine"


def pawl(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_run_trains_with_a_file_of_ones_own_named_by_its_path(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training = {
        "engine": {"type": "./my_engine.py:TableEngine"},
        "loss": {"type": "dpo"},
        "reference": {"type": "refresh", "logprobs": "recompute"},
        "batch_size": 4,
        "epochs": 8,
        "learning_rate": 5.0,
    }
    (tmp_path / "config.yaml").write_text(
        json.dumps(fake_tree(tmp_path, training=training, limits={"max_logprob_gap": 10.0}))
    )
    code, said = pawl("run", "config.yaml", "--runs-dir", "runs", "--name", "mine")
    assert code == 0, said
    folder = RunFolder(tmp_path / "runs" / "mine")
    assert [check for check in audit(folder, deep=True) if check.verdict == "wrong"] == []
    code, said = pawl("status", folder.path, "--json")
    trained = [r["metrics"] for r in json.loads(said)["rounds"] if r["round"]]
    assert len(trained) == 2
    for metrics in trained:
        assert metrics["train/loss_first"] == pytest.approx(0.6931, abs=1e-3)
        assert metrics["train/loss"] < metrics["train/loss_first"]
        assert metrics["rewards/margins"] > 0
        assert metrics["table/size"] == 64
        assert 0 < metrics["train/rows_in_step"] <= 4


def test_it_keeps_what_every_engine_promises(engine: str, tmp_path: Path) -> None:
    model = write_model("fake", tmp_path / "model")
    made = make_engine(engine, make_loss("kto"), micro_batch_size=2, learning_rate=0.5)
    assert isinstance(made, StepEngine)
    job = make_job(version(model), tmp_path)
    outcome = run_update(made, job, singles())
    assert outcome.num_steps == len(log_of(job)) == 3
    assert all("kl" in row for row in log_of(job))
    assert {"train/desirable", "train/seconds_steps"} <= outcome.metrics.keys()
    assert read_skill(Path(job.output_dir)) == pytest.approx(0.4)


def test_cut_off_it_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes(
    engine: str, tmp_path: Path
) -> None:
    model = write_model("fake", tmp_path / "model")
    options: dict[str, Any] = {"epochs": 2, "checkpoint_steps": 2, "learning_rate": 0.5}
    made = make_engine(engine, make_loss("dpo"), **options)
    jobs = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        place = str(tmp_path / name / "checkpoints")
        jobs[name] = make_job(version(model), tmp_path / name, checkpoint_dir=place)
    run_update(made, jobs["whole"], pairs())
    with cut_at(4), pytest.raises(CutOffError):
        run_update(made, jobs["cut"], pairs())
    with cut_at(2):  # a step that is behind the checkpoint is not made again
        run_update(made, jobs["cut"], pairs())
    whole, cut = (weight_files(Path(job.output_dir))[0].read_bytes() for job in jobs.values())
    assert whole == cut
    assert log_of(jobs["whole"]) == log_of(jobs["cut"])


def test_an_engine_that_diverges_leaves_nothing_behind(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "my_engine.py"
    path.write_text(ENGINE.replace("return norm", "return norm / 0 if 0 else float('inf')"))
    made = make_engine(engine, make_loss("dpo"))
    job = make_job(version(write_model("fake", tmp_path / "model")), tmp_path)
    with pytest.raises(DivergenceError, match="train/grad_norm is not finite at step 1"):
        run_update(made, job, pairs())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("new")]
