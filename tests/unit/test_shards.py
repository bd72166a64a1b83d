"""Shard files: what is read is what was written, and whatever changed since is named and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policies.errors import ArtifactError
from policies.records import Message, Prompt, Verdict, VerdictStatus
from policies.shards import (
    content_digest,
    marker_path,
    read_marker,
    read_records,
    write_atomically,
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
    import pyarrow.parquet as pq

    path = tmp_path / "prompts.parquet"
    write_records(path, Prompt, prompts())
    schema = pq.read_schema(path)
    assert schema.names == ["id", "messages", "answer", "metadata", "tools"]
    assert (
        str(schema.field("messages").type) == "list<element: struct<role: string, content: string>>"
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
