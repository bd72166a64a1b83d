"""Tables of what a person wants to read of a round: a bounded number of samples and of examples, as plain rows.

Consumes: the finished shards of a round. Produces: rows of strings, numbers and booleans. On failure: a
shard that is not there (yet, or any more) gives no rows; one that is damaged raises `ArtifactError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.runs.conversation_text import calls_text, is_conversation, told
from orchestrator.runs.folder import RoundFolder, ShardKind
from policies.base.plain_text import clean_text
from policies.base.records import Author, Feedback, Prompt, Record, Trajectory
from policies.examples.kind import Example, Value
from policies.examples.stored import read_examples
from policies.storage.artifacts import marker_path, read_records

Row = dict[str, Value]
R = TypeVar("R", bound=Record)

MAX_SHARDS = 8
"""Shards that are opened for one table: reading all of a large round would hold up the driver."""
MAX_TEXT = 20_000
"""Characters of one cell."""


@dataclass(frozen=True)
class Sample:
    """An attempt, with its prompt and score where they are known."""

    trajectory: Trajectory
    prompt: Prompt | None
    feedback: Feedback | None


@dataclass(frozen=True)
class ShownExample:
    """A training example, with the attempts behind it that were sampled in the same round."""

    example: Example
    prompt: Prompt | None
    trajectories: Mapping[str, Trajectory]


def samples(folder: RoundFolder, limit: int) -> list[Sample]:
    """Up to `limit` attempts with their scores: the first attempt at every prompt, then the second, ..."""
    prompts = _prompts(folder)
    feedback = {f.trajectory_id: f for f in _read(folder, "feedback", Feedback)}
    trajectories = _read(folder, "trajectories", Trajectory)
    chosen = sorted(trajectories, key=lambda t: t.sample_index)[:limit]
    return [Sample(t, prompts.get(t.prompt_id), feedback.get(t.id)) for t in chosen]


def sample_rows(folder: RoundFolder, limit: int) -> list[Row]:
    """Up to `limit` attempts as rows for a table."""
    return sample_table(samples(folder, limit))


def sample_table(found: Sequence[Sample]) -> list[Row]:
    """Attempts as rows with equal columns; with author and origin where others than the policy wrote, and where there
    are conversations, also how these went.

    Example of a row:
        {"id": "r1.7x8.0", "prompt": "What is 7 times 8?", "completion": "56", "score": 1.0,
         "desirable": True, "status": "complete", "tokens": 3, "policy_version": 0, "note": ""}
    """
    rows = [_sample_row(sample) for sample in found]
    if any(sample.trajectory.author is not Author.POLICY for sample in found):
        for row, sample in zip(rows, found, strict=True):
            row["author"] = sample.trajectory.author.value
            row["derived_from"] = _cell(sample.trajectory.derived_from or "")
    if any(is_conversation(sample.trajectory) for sample in found):
        for row, sample in zip(rows, found, strict=True):
            row |= _conversation_columns(sample.trajectory)
    return rows


def _sample_row(sample: Sample) -> Row:
    """One attempt in plain values."""
    trajectory, prompt, feedback = sample.trajectory, sample.prompt, sample.feedback
    note = trajectory.error or (feedback.unusable_because if feedback else None) or ""
    return {
        "id": _cell(trajectory.id),
        "prompt": _prompt_text(prompt, trajectory.prompt_id),
        "completion": _told(trajectory),
        "score": feedback.score if feedback else None,
        "desirable": feedback.desirable if feedback else None,
        "status": trajectory.status.value,
        "tokens": trajectory.num_policy_tokens,
        "policy_version": trajectory.policy_version,
        "answer": "" if prompt is None or prompt.answer is None else _answer(prompt.answer),
        "note": _cell(note),
    }


def _conversation_columns(trajectory: Trajectory) -> Row:
    return {
        "turns": sum(turn.role == "policy" for turn in trajectory.turns),
        "tool_calls": _cell(calls_text(trajectory)),
        "ending": trajectory.ending.value,
        "outcome": trajectory.outcome,
    }


def examples(folder: RoundFolder, limit: int) -> list[ShownExample]:
    """Up to `limit` training examples: the first of every prompt, then the second, ..."""
    found = [e for path in _some(folder.shards("examples")) for e in read_examples(path)]
    if not found:
        return []
    prompts = _prompts(folder)
    trajectories = {t.id: t for t in _read(folder, "trajectories", Trajectory)}
    return [
        ShownExample(example, prompts.get(example.prompt_id), trajectories)
        for example in _spread(found)[:limit]
    ]


def example_rows(folder: RoundFolder, limit: int) -> list[Row]:
    """Up to `limit` examples as rows for a table."""
    return example_table(examples(folder, limit))


def example_table(found: Sequence[ShownExample]) -> list[Row]:
    """Examples as texts, in rows with equal columns: the sequences side by side, and the facts of their kind."""
    sides = list(dict.fromkeys(name for shown in found for name in shown.example.sides()))
    rows = [_example_row(shown, sides) for shown in found]
    for name, values in _differences(found, sides).items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _example_row(shown: ShownExample, sides: Sequence[str]) -> Row:
    """One example in plain values."""
    example, own = shown.example, shown.example.sides()
    row: Row = {"id": _cell(example.id), "prompt": _prompt_text(shown.prompt, example.prompt_id)}
    for side in sides:
        known = side in own
        row[side] = _text_of(own[side].trajectory_id, shown.trajectories) if known else None
    facts = example.row()
    row |= {name: _cell(v) if isinstance(v, str) else v for name, v in facts.items()}
    row["weight"] = example.weight
    return row


def _differences(found: Sequence[ShownExample], names: Sequence[str]) -> dict[str, list[Value]]:
    """Columns that only some rounds need: policy versions and authors where they are mixed, what sequences share."""
    columns: dict[str, list[Value]] = {}
    every = [shown.example.sides() for shown in found]
    if len({s.policy_version for sides in every for s in sides.values()}) > 1:
        for name in names:
            key = "policy_version" if name == "completion" else f"{name}_policy_version"
            columns[key] = [
                sides[name].policy_version if name in sides else None for sides in every
            ]
    authors = [_authors(shown) for shown in found]
    if any(who is not Author.POLICY for each in authors for who in each.values()):
        for name in names:
            key = "author" if name == "completion" else f"{name}_author"
            columns[key] = [each[name].value if name in each else None for each in authors]
    shared = [shared_tokens(shown.example, shown.trajectories) for shown in found]
    if any(shared):
        columns["shared_tokens"] = list(shared)
    return columns


def _authors(shown: ShownExample) -> dict[str, Author]:
    """The writer of each side, as far as its trajectory is there."""
    sides = shown.example.sides().items()
    known = {name: shown.trajectories.get(side.trajectory_id) for name, side in sides}
    return {name: trajectory.author for name, trajectory in known.items() if trajectory}


def shared_tokens(example: Example, trajectories: Mapping[str, Trajectory]) -> int:
    """Tokens after the prompt that all sequences begin with and that are not scored; 0 in an ordinary example."""
    sequences = example.sequences()
    trajectory = trajectories.get(sequences[0].trajectory_id) if len(sequences) > 1 else None
    if trajectory is None or 1 not in sequences[0].loss_mask or 1 not in trajectory.loss_mask:
        return 0
    return len(sequences[0].prompt) - trajectory.loss_mask.index(1)


def columns_of(rows: Sequence[Row]) -> dict[str, list[Value]]:
    """Rows turned into columns of equal length, in the order of the first row."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})}


def _told(trajectory: Trajectory) -> str:
    return _cell(told(trajectory))


def _cell(text: str) -> str:
    return clean_text(text)[:MAX_TEXT]


def _answer(value: Any) -> str:
    return _cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _prompt_text(prompt: Prompt | None, prompt_id: str) -> str:
    """The last message; a system line and a worked example before it are the same in every row."""
    return _cell(
        prompt.messages[-1].content if prompt and prompt.messages else f"[prompt {prompt_id}]"
    )


def _text_of(trajectory_id: str, trajectories: Mapping[str, Trajectory]) -> str:
    trajectory = trajectories.get(trajectory_id)
    if trajectory is None:
        return _cell(f"[{trajectory_id}, sampled in another round]")
    return _told(trajectory)


def _prompts(folder: RoundFolder) -> dict[str, Prompt]:
    """The prompts of a round by id, from the round's list or, where there is none, from its shards."""
    if _finished(folder.prompts):
        return {p.id: p for p in read_records(folder.prompts, Prompt)}
    paths = folder.prompt_shards()
    return {p.id: p for path in _some(paths) for p in read_records(path, Prompt)}


def _read(folder: RoundFolder, kind: ShardKind, record: type[R]) -> list[R]:
    return [item for path in _some(folder.shards(kind)) for item in read_records(path, record)]


def _some(paths: Sequence[Path]) -> list[Path]:
    """At most `MAX_SHARDS` finished files, spread evenly; the same shard numbers for every kind."""
    step = max(1, -(-len(paths) // MAX_SHARDS))
    return [path for path in paths[::step] if _finished(path)]


def _finished(path: Path) -> bool:
    return path.is_file() and marker_path(path).is_file()


def _spread(found: Iterable[Example]) -> list[Example]:
    """The first example of every prompt, then the second of every prompt, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for example in found:
        rank = seen[example.prompt_id] = seen.get(example.prompt_id, -1) + 1
        ranked.append((rank, example))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]
