"""Shard files: what is read is what was written, and whatever changed since is named and refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policies.base.errors import ArtifactError, LeaseError
from policies.base.records import (
    Message,
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.storage.artifacts import (
    commit,
    content_digest,
    discard,
    file_sha256,
    find_damage,
    marker_path,
    read_marker,
    read_records,
    write_atomically,
    write_draft,
    write_json,
    write_records,
)


def prompts() -> list[Prompt]:
    return [
        Prompt(
            id="a",
            messages=(Message(role="user", content='é "quoted" \n line'),),
            answer={"n": [1, None, 2.5]},
            metadata={"k": 1.5, "deep": {"x": []}},
            tools=({"name": "f", "parameters": {}},),
        ),
        Prompt(id="b", messages=(), answer=None),
    ]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x" / "prompts.parquet"
    marker = write_records(path, Prompt, prompts(), summary={"n": 2})
    assert read_records(path, Prompt) == prompts()
    assert read_marker(path) == marker
    assert marker.num_rows == 2


def test_an_empty_shard_reads_back_empty(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, [])
    assert read_records(path, Prompt) == []


def test_columns_are_typed_so_that_other_tools_can_read_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    schema = pq.read_schema(path)
    assert schema.names == ["id", "messages", "answer", "metadata", "tools"]
    assert (
        str(schema.field("messages").type)
        == "list<element: struct<role: string, content: string, name: string, reasoning_content: string, "
        "tool_calls: list<element: string>, tool_call_id: string>>"
    )


def test_one_flipped_byte_is_noticed_and_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"prompts\.parquet changed since"):
        read_records(path, Prompt)


def test_a_file_without_its_marker_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    marker_path(path).unlink()
    assert read_marker(path) is None
    with pytest.raises(ArtifactError, match="never finished"):
        read_records(path, Prompt)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    with pytest.raises(ArtifactError, match="Verdict"):
        read_records(path, Verdict)


def test_a_broken_marker_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    marker_path(path).write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="delete"):
        read_marker(path)


def test_every_flipped_digit_of_a_marker_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts(), summary={"tokens": 171}, inputs={"policy": "5"})
    whole = marker_path(path).read_text(encoding="utf-8")
    for place in [i for i, c in enumerate(whole) if c.isdigit()]:
        other = str((int(whole[place]) + 1) % 10)
        marker_path(path).write_text(whole[:place] + other + whole[place + 1 :], encoding="utf-8")
        assert find_damage(path) is not None, whole[place - 20 : place + 5]
    marker_path(path).write_text(whole, encoding="utf-8")
    assert find_damage(path) is None


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.parquet"
    turn = Turn(
        role="policy",
        token_ids=(1, 2),
        text="x",
        logprobs=(-0.5, math.nan),
        stop_reason=StopReason.STOP,
    )
    broken = Trajectory(
        id="t",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )
    with pytest.raises(ArtifactError, match=r"column turns\.logprobs is not finite"):
        write_records(path, Trajectory, [broken])
    assert not marker_path(path).exists()
    verdict = Verdict(source="v", trajectory_id="t", status=VerdictStatus.ABSTAINED)
    write_records(path, Verdict, [verdict])
    table = pq.read_table(path)
    seconds = table.schema.get_field_index("seconds")
    pq.write_table(table.set_column(seconds, "seconds", pa.array([math.inf])), path)
    marker = read_marker(path)
    assert marker is not None
    forged = marker.model_copy(
        update={"sha256": file_sha256(path), "num_bytes": path.stat().st_size}
    ).sealed()
    write_json(marker_path(path), forged.model_dump(mode="json"))
    with pytest.raises(ArtifactError, match="seconds is not finite"):
        read_records(path, Verdict)


def test_a_draft_is_committed_only_as_its_worker_reported_it(tmp_path: Path) -> None:
    draft = write_draft(tmp_path / "attempts" / "x", Prompt, prompts())
    target = tmp_path / "place" / "prompts.parquet"
    assert read_marker(tmp_path / "attempts" / "x") is None
    Path(draft.path).write_bytes(b"x" * draft.num_bytes)
    with pytest.raises(ArtifactError, match=r"another sha256.*not what its worker reported"):
        commit(draft, target)
    assert not target.exists()
    draft = write_draft(tmp_path / "attempts" / "y", Prompt, prompts())
    marker = commit(draft, target, inputs={"policy": "d"}, summary={"n": 2})
    assert read_marker(target) == marker
    assert (marker.inputs, marker.summary) == ({"policy": "d"}, {"n": 2})
    assert read_records(target, Prompt) == prompts()
    assert not Path(draft.path).exists()


def test_a_guard_that_refuses_stops_a_commit_before_anything_is_moved(tmp_path: Path) -> None:
    target = tmp_path / "prompts.parquet"
    write_records(target, Prompt, [])
    draft = write_draft(tmp_path / "draft", Prompt, prompts())

    def refuse() -> None:
        raise LeaseError("lost")

    with pytest.raises(LeaseError):
        commit(draft, target, guard=refuse)
    assert read_records(target, Prompt) == [], "what was finished stays"


def test_a_discarded_file_does_not_exist_any_more(tmp_path: Path) -> None:
    target = tmp_path / "prompts.parquet"
    write_records(target, Prompt, prompts())
    discard(target)
    assert find_damage(target) == "was never finished"
    assert os.listdir(tmp_path) == []


def test_clocks_do_not_enter_the_content_digest() -> None:
    def verdict(seconds: float, score: float) -> Verdict:
        return Verdict(
            source="v", trajectory_id="t", status=VerdictStatus.SCORED, score=score, seconds=seconds
        )

    assert content_digest([verdict(1.0, 1.0)]) == content_digest([verdict(2.0, 1.0)])
    assert content_digest([verdict(1.0, 1.0)]) != content_digest([verdict(1.0, 0.0)])


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})

    def half(temporary: Path) -> None:
        temporary.write_text("{", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["state.json"]
