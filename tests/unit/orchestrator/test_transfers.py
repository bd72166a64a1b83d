"""Which files a call names for nodes that do not see the run folder, and when nobody asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.files import load_config
from orchestrator.config.run_config import RunConfig
from orchestrator.flow.task import RecordFile
from orchestrator.flow.waiting import Patience
from orchestrator.plan.network import seen_by
from orchestrator.rounds.training import UpdateTask
from orchestrator.rounds.transfers import group_files, models_of, policy_files, run_files
from orchestrator.runs.folder import RunFolder
from policies.base.records import PolicyVersion
from policies.objectives.reference import ReferencePart, ReferencePlan
from policies.storage.fake_model import write_fake_model
from policies.storage.policy_store import PolicyStore
from workers.training.engine import ProcessGroup, UpdateJob

FAKE_JUDGE = "{type: rubric, backend: {type: engine, engine: {type: fake}, model: %s}}"
JOINED = "cluster={backend: ray, address: '10.0.0.5:6379', shared_folder: %s}"


def config(*overrides: str) -> RunConfig:
    return load_config("fake-smoke", list(overrides)).config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "all workers run on this machine"),
        (["cluster={backend: ray, shared_folder: false}"], "shared_folder: false changes nothing"),
        ([JOINED % "true"], "every node of the cluster must see it"),
        ([JOINED % "false"], "files travel through Ray"),
    ],
)
def test_the_plan_says_who_must_see_the_run_folder(overrides: list[str], words: str) -> None:
    assert words in seen_by(config(*overrides))


def test_only_a_joined_cluster_is_asked_whether_it_sees_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for here in ([], ["cluster={backend: ray, shared_folder: false}"]):
        assert run_files(config(*here).cluster, folder, (), lambda: None) is None
    assert list(tmp_path.iterdir()) == []
    known = run_files(config(JOINED % "false").cluster, folder, ("/m",), lambda: None)
    assert known is not None
    assert known.seen_here()
    assert not known.shared
    again = run_files(config(JOINED % "false").cluster, folder, (), lambda: None)
    assert again is not None
    assert again.token != known.token, "a copy of the folder must not pass for it"
    assert not known.seen_here()


def test_judges_name_the_policy_or_the_model_that_judges(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    start = store.adopt_initial(write_fake_model(tmp_path / "start", 0.3))
    model = write_fake_model(tmp_path / "judge", 0.5)
    one, other = FAKE_JUDGE % "policy", FAKE_JUDGE % model
    judges = config(f"judges=[{one}, {other.replace('rubric', 'rubric, name: b')}]")
    assert set(group_files(judges, "judge", [start]).reads) == {str(model), start.path}
    assert set(models_of(judges, store)) == {start.path, str(model)}


def test_all_training_workers_read_and_the_first_writes() -> None:
    def version(number: int) -> PolicyVersion:
        return PolicyVersion(
            number=number, round=number, parent=None, path=f"/run/policies/{number}", digest="9f"
        )

    folder = RunFolder(Path("/run")).round(3)
    job = UpdateJob(
        round=3,
        policy=version(2),
        reference=ReferencePlan(parts=(ReferencePart(version=0, weight=1.0),)),
        reference_versions=(version(0),),
        logprobs="recompute",
        seed=1,
        output_dir="/run/rounds/0003/attempts/t/candidate",
        optimizer_state="/run/rounds/0002/train/optimizer.safetensors",
        log_path="/run/rounds/0003/attempts/t/steps.jsonl",
        checkpoint_dir=str(folder.checkpoints),
    )
    assert job.optimizer_state is not None
    weights = policy_files(job.policy, *job.reference_versions).reads
    task = UpdateTask(
        key="update",
        name="update",
        reads=(RecordFile("e", Path("/run/rounds/0003/examples/shard-0000.parquet")),),
        folders=(*weights, job.optimizer_state, str(folder.checkpoints)),
        job=job,
        folder=folder,
        patience=Patience(1.0),
        meeting=Patience(1.0),
    )
    first, second = (
        task.files_of(
            job.model_copy(
                update={"process_group": ProcessGroup(address="a", port=1, rank=rank, world_size=2)}
            )
        )
        for rank in (0, 1)
    )
    assert set(first.reads) == {
        "/run/policies/2",
        "/run/policies/0",
        "/run/rounds/0002/train/optimizer.safetensors",
        "/run/rounds/0003/examples/shard-0000.parquet",
        "/run/rounds/0003/train/checkpoints",
    }
    assert second.reads == first.reads
    assert first.writes == ("/run/rounds/0003/attempts/t",)
    assert first.live == (job.log_path, job.checkpoint_dir)
    assert (second.writes, second.live) == ((), ())
