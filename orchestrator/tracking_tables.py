"""What a person wants to read of a round: a bounded number of samples and of examples, as plain rows.

Consumes: the finished shards of a round. Produces: rows of strings, numbers and booleans. On failure: a
shard that is not there (yet, or any more) gives no rows; one that is damaged raises `ArtifactError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.metric_names import clean_text
from orchestrator.run_folder import RoundFolder, ShardKind
from policies.errors import ArtifactError
from policies.examples import PreferencePair, SupervisedExample, UnpairedExample
from policies.records import Feedback, Prompt, Record, Trajectory
from policies.shards import marker_path, read_records

Row = dict[str, str | int | float | bool | None]
R = TypeVar("R", bound=Record)

MAX_SHARDS = 8
"""Shards that are opened for one table: reading all of a large round would hold up the driver."""
MAX_TEXT = 20_000
"""Characters of one cell."""


def sample_rows(folder: RoundFolder, limit: int) -> list[Row]:
    """Up to `limit` attempts with their scores: the first attempt at every prompt, then the second, ...

    Example of a row:
        {"id": "r1.7x8.0", "prompt": "What is 7 times 8?", "completion": "56", "score": 1.0,
         "desirable": True, "status": "complete", "tokens": 3, "policy_version": 0, "note": ""}
    """
    prompts = _prompts(folder)
    feedback = {f.trajectory_id: f for f in _read(folder, "feedback", Feedback)}
    trajectories = _read(folder, "trajectories", Trajectory)
    chosen = sorted(trajectories, key=lambda t: t.sample_index)[:limit]
    return [_sample_row(t, prompts.get(t.prompt_id), feedback.get(t.id)) for t in chosen]


def _sample_row(trajectory: Trajectory, prompt: Prompt | None, feedback: Feedback | None) -> Row:
    note = trajectory.error or (feedback.unusable_because if feedback else None) or ""
    return {
        "id": _cell(trajectory.id),
        "prompt": _prompt_text(prompt, trajectory.prompt_id),
        "completion": completion_text(trajectory),
        "score": feedback.score if feedback else None,
        "desirable": feedback.desirable if feedback else None,
        "status": trajectory.status.value,
        "tokens": trajectory.num_policy_tokens,
        "policy_version": trajectory.policy_version,
        "answer": "" if prompt is None or prompt.answer is None else _answer(prompt.answer),
        "note": _cell(note),
    }


def example_rows(folder: RoundFolder, limit: int) -> list[Row]:
    """Up to `limit` training examples as texts: chosen beside rejected, or one completion with its label."""
    kind = _example_kind(folder)
    if kind is None:
        return []
    prompts = _prompts(folder)
    texts = {t.id: completion_text(t) for t in _read(folder, "trajectories", Trajectory)}
    rows: list[Row] = []
    for example in _spread(_read(folder, "examples", kind))[:limit]:
        row: Row = {
            "id": _cell(example.id),
            "prompt": _prompt_text(prompts.get(example.prompt_id), example.prompt_id),
        }
        if isinstance(example, PreferencePair):
            row["chosen"] = _text_of(example.chosen.trajectory_id, texts)
            row["rejected"] = _text_of(example.rejected.trajectory_id, texts)
            row["margin"] = example.margin
            row["soft_label"] = example.soft_label
        else:
            row["completion"] = _text_of(example.sequence.trajectory_id, texts)
            if isinstance(example, UnpairedExample):
                row["desirable"] = example.desirable
                row["score"] = example.score
        row["weight"] = example.weight
        rows.append(row)
    return rows


def columns_of(rows: Sequence[Row]) -> dict[str, list[str | int | float | bool | None]]:
    """Rows turned into columns of equal length, in the order of the first row."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})}


def completion_text(trajectory: Trajectory) -> str:
    """All that was said after the prompt; what the policy did not write is marked."""
    parts = [
        t.text if t.role == "policy" else f"\n[observation] {t.text}\n" for t in trajectory.turns
    ]
    return _cell("".join(parts))


def _cell(text: str) -> str:
    return clean_text(text)[:MAX_TEXT]


def _answer(value: Any) -> str:
    return _cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _prompt_text(prompt: Prompt | None, prompt_id: str) -> str:
    """The last message; a system line and a worked example before it are the same in every row."""
    return _cell(
        prompt.messages[-1].content if prompt and prompt.messages else f"[prompt {prompt_id}]"
    )


def _text_of(trajectory_id: str, texts: dict[str, str]) -> str:
    return texts.get(trajectory_id, _cell(f"[{trajectory_id}, sampled in another round]"))


def _prompts(folder: RoundFolder) -> dict[str, Prompt]:
    """The prompts of a round by id, from the round's list or, where there is none, from its shards."""
    if _finished(folder.prompts):
        return {p.id: p for p in read_records(folder.prompts, Prompt)}
    paths = sorted((folder.path / "prompts").glob("shard-*.parquet"))
    return {p.id: p for path in _some(paths) for p in read_records(path, Prompt)}


def _read(folder: RoundFolder, kind: ShardKind, record: type[R]) -> list[R]:
    return [item for path in _some(folder.shards(kind)) for item in read_records(path, record)]


def _some(paths: Sequence[Path]) -> list[Path]:
    """At most `MAX_SHARDS` finished files, spread evenly; the same shard numbers for every kind."""
    step = max(1, -(-len(paths) // MAX_SHARDS))
    return [path for path in paths[::step] if _finished(path)]


def _finished(path: Path) -> bool:
    return path.is_file() and marker_path(path).is_file()


def _spread(
    examples: Iterable[PreferencePair | UnpairedExample | SupervisedExample],
) -> list[PreferencePair | UnpairedExample | SupervisedExample]:
    """The first example of every prompt, then the second of every prompt, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for example in examples:
        rank = seen[example.prompt_id] = seen.get(example.prompt_id, -1) + 1
        ranked.append((rank, example))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]


def _example_kind(
    folder: RoundFolder,
) -> type[PreferencePair] | type[UnpairedExample] | type[SupervisedExample] | None:
    """Which examples a round holds, from the columns of its first file."""
    import pyarrow.parquet as pq

    paths = _some(folder.shards("examples"))
    if not paths:
        return None
    try:
        names = set(pq.read_schema(paths[0]).names)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{paths[0]} is not a Parquet file: {error}") from error
    if "chosen" in names:
        return PreferencePair
    return UnpairedExample if "desirable" in names else SupervisedExample
