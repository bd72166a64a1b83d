"""One shard of an audited round: its files against their markers, and its rows against each other."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from orchestrator.flow.fingerprint import PLUG_INS
from orchestrator.inspect.audit.check import Report
from orchestrator.runs.folder import SHARD_KINDS, ShardPaths
from policies.base.errors import ArtifactError
from policies.base.records import (
    Comparison,
    Feedback,
    Prompt,
    Record,
    Trajectory,
    TrajectoryStatus,
    Verdict,
)
from policies.base.role_answers import RoleAnswer
from policies.examples.stored import is_sequence, read_examples
from policies.storage.artifacts import (
    Marker,
    content_digest,
    file_sha256,
    read_marker,
    read_records,
)

_RECORDS: dict[str, type[Record]] = {
    "prompts": Prompt,
    "answers": RoleAnswer,
    "trajectories": Trajectory,
    "verdicts": Verdict,
    "judge_verdicts": Verdict,
    "comparisons": Comparison,
    "feedback": Feedback,
}
_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompts": ("id",),
    "answers": ("id", "prompt_id"),
    "trajectories": (
        "id",
        "prompt_id",
        "sample_index",
        "policy_version",
        "policy_digest",
        "status",
    ),
    "verdicts": ("source", "trajectory_id", "status", "span"),
    "judge_verdicts": ("source", "trajectory_id", "status", "span"),
    "comparisons": ("source", "first", "second"),
    "feedback": ("trajectory_id", "desirable"),
}

_NEWER = {"trajectories": ("derived_from",)}
"""Columns that files by an older Pawl do not have."""

Row = Mapping[str, Any]


class Keys:
    """Ids of one kind in one round, kept as 8 bytes each: a million of them are 8 MB."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, key: str) -> None:
        """Remember a key."""
        self._hashes.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()))

    def __len__(self) -> int:
        return len(self._hashes)

    def num_repeated(self) -> int:
        """Keys that came more than once; two different ones of a million share a hash once in 10^7 rounds."""
        import pyarrow as pa
        import pyarrow.compute as pc

        hashes = pa.Array.from_buffers(
            pa.uint64(), len(self._hashes), [None, pa.py_buffer(self._hashes)]
        )
        return len(self._hashes) - int(pc.count_distinct(hashes).as_py())


@dataclass
class Totals:
    """Totals of the shards of one round."""

    rows: Counter[str] = field(default_factory=Counter)
    """Rows by kind."""
    errors: int = 0
    """Trajectories whose rollout failed."""
    by_version: Counter[int] = field(default_factory=Counter)
    by_digest: Counter[tuple[int, str]] = field(default_factory=Counter)
    desirable: Counter[bool | None] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Verdicts by source and status."""
    keys: dict[str, Keys] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    """Content digests by kind, in shard order."""
    plug_ins: dict[str, set[str]] = field(default_factory=dict)
    """Digests of the plug-ins that files of a kind say they were made with."""


def read_checked_marker(path: Path, report: Report, *, deep: bool) -> Marker | None:
    """The marker of `path` when the file is whole; anything wrong is reported."""
    try:
        marker = read_marker(path)
    except (OSError, ArtifactError) as error:
        report["files"].expect(False, str(error))
        return None
    if marker is None:
        return None
    check = report["files"]
    if not check.expect(path.is_file(), f"{path} is missing, its marker is there"):
        return None
    size = path.stat().st_size
    if not check.expect(
        size == marker.num_bytes, f"{path} has {size} bytes, its marker says {marker.num_bytes}"
    ):
        return None
    if not check.expect(
        file_sha256(path) == marker.sha256, f"{path} changed: its sha256 is not its marker's"
    ):
        return None
    if deep:
        _check_content(path, marker, report)
    return marker


def _check_content(path: Path, marker: Marker, report: Report) -> None:
    import pyarrow as pa

    kind = _RECORDS.get("prompts" if path.name == "prompts.parquet" else path.parent.name)
    try:
        records = read_examples(path) if kind is None else read_records(path, kind)
    except (ArtifactError, OSError, ValueError, pa.ArrowException) as error:
        report["content"].expect(False, f"{path} cannot be read back: {error}")
        return
    report["content"].expect(
        content_digest(records) == marker.content_digest,
        f"{path}: its rows do not add up to the content digest of its marker",
    )


def read_rows(path: Path, kind: str, report: Report, num_rows: int) -> list[Row] | None:
    """The columns that the audit needs; None when the file is not what its kind says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = (
            _example_rows(path)
            if kind == "examples"
            else pq.read_table(path, columns=_columns(kind, pq.read_schema(path).names)).to_pylist()
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        report["files"].expect(False, f"{path} cannot be read as {kind}: {error}")
        return None
    report["files"].expect(
        len(rows) == num_rows, f"{path} has {len(rows)} rows, its marker says {num_rows}"
    )
    return rows


def _columns(kind: str, there: Sequence[str]) -> list[str]:
    return [*_COLUMNS[kind], *(name for name in _NEWER.get(kind, ()) if name in there)]


def _example_rows(path: Path) -> list[Row]:
    """Ids of examples, and of the trajectories behind their sequences, wherever their kind keeps these."""
    import pyarrow.parquet as pq

    ids, ends = {"id", "prompt_id"}, (".trajectory_id", ".policy_version")
    with pq.ParquetFile(path) as file:
        columns = [file.schema.column(i).path for i in range(len(file.schema))]
        if missing := ids - {*columns}:
            raise ValueError(f"it has no column {', '.join(sorted(missing))}")
        rows = file.read(columns=[c for c in columns if c in ids or c.endswith(ends)]).to_pylist()
    return cast("list[Row]", rows)


def _sequences_of(row: Row) -> list[Row]:
    """The sequences of an example, as far as their columns were read."""
    values = [v if isinstance(v, list) else [v] for v in row.values()]
    return [value for each in values for value in each if is_sequence(value)]


class ShardAudit:
    """The files of one shard. Rows live only as long as this object: memory is that of one shard."""

    def __init__(
        self,
        shard: ShardPaths,
        report: Report,
        totals: Totals,
        *,
        samples: int | None,
        deep: bool,
    ) -> None:
        """Take a shard whose prompts have `samples` attempts each; None where that is not known."""
        self.shard, self.report, self.totals = shard, report, totals
        self.samples, self.deep = samples, deep
        self.versions: dict[str, int] = {}
        """Policy version by trajectory id."""

    def run(self) -> set[str]:
        """Check the shard; returns the kinds that are there and whole."""
        there: set[str] = set()
        prompts: set[str] | None = None
        digests: dict[str, str] = {}
        places = {"prompts": self.shard.prompts} | {
            kind: self.shard.of(kind) for kind in SHARD_KINDS
        }
        for kind, path in places.items():
            marker = read_checked_marker(path, self.report, deep=self.deep)
            if marker is None:
                continue
            rows = read_rows(path, kind, self.report, marker.num_rows)
            if rows is None:
                continue
            there.add(kind)
            self.totals.rows[kind] += len(rows)
            self.totals.digests.setdefault(kind, []).append(marker.content_digest)
            digests[kind] = marker.content_digest
            self._input_digests(path, marker, digests)
            if kind == "prompts":
                prompts = {row["id"] for row in rows}
            self._look_at(path, kind, rows, prompts)
        return there

    def _input_digests(self, path: Path, marker: Marker, digests: Mapping[str, str]) -> None:
        """Compare what the marker names as its inputs, as far as it lies in this shard."""
        if PLUG_INS in marker.inputs:
            kind_of = path.parent.name
            self.totals.plug_ins.setdefault(kind_of, set()).add(marker.inputs[PLUG_INS])
        for kind, digest in marker.inputs.items():
            if kind in digests:
                self.report["inputs"].expect(
                    digest == digests[kind], f"{path} was made from other {kind} than its shard has"
                )

    def _look_at(
        self, path: Path, kind: str, rows: Sequence[Row], prompts: set[str] | None
    ) -> None:
        self._remember(kind, (_key(kind, row) for row in rows))
        if kind == "answers":
            foreign = sorted({row["prompt_id"] for row in rows} - (prompts or set()))
            self.report["sources"].expect(
                prompts is None or not foreign,
                f"{path} has answers to prompts that its shard has not: {foreign[:3]}",
            )
        elif kind == "trajectories":
            self._trajectories(path, rows, prompts)
        elif kind in ("verdicts", "judge_verdicts"):
            self._known(path, {row["trajectory_id"] for row in rows})
            self.totals.verdicts.update((row["source"], row["status"]) for row in rows)
        elif kind == "comparisons":
            self._known(path, {row[side] for row in rows for side in ("first", "second")})
        elif kind == "feedback":
            named = {row["trajectory_id"] for row in rows}
            self._known(path, named)
            self.report["counts"].expect(
                named == set(self.versions),
                f"{path} has feedback on {len(named)} of the shard's {len(self.versions)} trajectories",
            )
            self.totals.desirable.update(row["desirable"] for row in rows)
        elif kind == "examples":
            self._examples(path, rows)

    def _remember(self, kind: str, keys: Iterable[str]) -> None:
        known = self.totals.keys.setdefault(kind, Keys())
        for key in keys:
            known.add(key)

    def _known(self, path: Path, ids: set[str]) -> None:
        unknown = sorted(ids - set(self.versions))
        self.report["sources"].expect(
            not unknown,
            f"{path} speaks of {len(unknown)} trajectories that its shard has not, e.g. {unknown[:1]}",
        )

    def _trajectories(self, path: Path, rows: Sequence[Row], prompts: set[str] | None) -> None:
        self.versions = {row["id"]: row["policy_version"] for row in rows}
        self._known(path, {row["derived_from"] for row in rows if row.get("derived_from")})
        self.totals.errors += sum(row["status"] == TrajectoryStatus.ERROR for row in rows)
        self.totals.by_version.update(row["policy_version"] for row in rows)
        self.totals.by_digest.update((row["policy_version"], row["policy_digest"]) for row in rows)
        if prompts is None:
            return
        foreign = sorted({row["prompt_id"] for row in rows} - prompts)
        self.report["sources"].expect(
            not foreign, f"{path} has attempts at prompts that its shard has not: {foreign[:3]}"
        )
        attempts = Counter((row["prompt_id"], row["sample_index"]) for row in rows)
        twice = [key for key, count in attempts.items() if count > 1]
        self.report["ids"].expect(not twice, f"{path} has an attempt twice: {twice[:3]}")
        if self.samples is not None:
            by_prompt = Counter(prompt for prompt, _ in attempts)
            short = sorted(p for p in prompts if by_prompt[p] != self.samples)
            self.report["counts"].expect(
                not short,
                f"{path}: {len(short)} of {len(prompts)} prompts have not {self.samples} attempts, e.g. {short[:1]} "
                f"with {by_prompt[short[0]] if short else 0}",
            )

    def _examples(self, path: Path, rows: Sequence[Row]) -> None:
        sides = [sequence for row in rows for sequence in _sequences_of(row)]
        self._known(path, {side["trajectory_id"] for side in sides})
        wrong = [
            side["trajectory_id"]
            for side in sides
            if self.versions.get(side["trajectory_id"], side["policy_version"])
            != side["policy_version"]
        ]
        self.report["samplers"].expect(
            not wrong, f"{path} names another policy version than the trajectory of {wrong[:1]}"
        )


def _key(kind: str, row: Row) -> str:
    if kind in ("verdicts", "judge_verdicts"):
        return json.dumps([row["source"], row["trajectory_id"], row["span"]])
    if kind == "comparisons":
        return json.dumps([row["source"], row["first"], row["second"]])
    return str(row["trajectory_id"] if kind == "feedback" else row["id"])
