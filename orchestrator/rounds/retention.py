"""Retention: old policies and old samples are removed as `retention` says, never what is needed.

A removal is three steps, each of which may be the last before a crash: a note in `<run>/removed/` that says what is
gone and what it was, then the manifest or the markers (from here on the item does not exist), then the data. Doing it
again completes it. The driver does it between rounds; `pawl show`, `trace` and `verify` read the notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.plug_ins.asked import reference_plan
from orchestrator.config.run_config import RunConfig
from orchestrator.rounds.context import Run
from orchestrator.rounds.judge_versions import judges_of_coming_rounds
from orchestrator.rounds.update_view import rounds_still_read
from orchestrator.runs.events import EventKind
from orchestrator.runs.folder import SHARD_KINDS, RunFolder
from orchestrator.runs.removal_notes import Kind, Removed, note_path, write_note
from orchestrator.runs.samplers import earlier_version, sampling_version
from policies.base.records import RoundResult
from policies.storage import files
from policies.storage.artifacts import marker_path
from policies.storage.folder_names import numbered_folders
from policies.storage.policy_store import MANIFEST, PolicyStore

KINDS = SHARD_KINDS[::-1]
"""What is removed of an old round, the last made first; the prompts, the steps of the update and the journal stay."""
_LOOK_AHEAD = 2000
"""Rounds of the future whose references are worked out one by one."""
_SCORES = ("serving/pass@1", "eval/pass@1", "eval/score")


def keep_what_is_wanted(run: Run) -> None:
    """Remove what `retention` does not keep, after a finished round; records it in the events."""
    settings = run.config.retention
    results = run.journal.results()
    if not results or (settings.policies == "all" and settings.trajectories == "all"):
        return
    last = results[-1].round
    for kind, number in _unwanted(run.config, run.folder, results):
        was = _describe(run.folder, kind, number)
        note = Removed(kind=kind, number=number, after_round=last, was=was)
        path = note_path(run.folder, kind, number)
        with run.fence.holding():
            if not path.exists():
                write_note(path, note)
            _remove(run.folder, kind, number)
        run.events.emit(EventKind.REMOVED, round_index=last, what=kind, number=number, **was)


def needed_policies(config: RunConfig, results: Sequence[RoundResult]) -> set[int]:
    """Versions that a coming round may start from, sample with, compare with or report as the best.

    Found by asking the reference schedules of all coming rounds, once as if every one were accepted and once as if
    none were; rounds that have not happened have negative numbers.
    """
    served = [result.after for result in results]
    best = best_round(results)
    wanted = {0, served[-1], best.after}
    if results[-1].best is not None:
        wanted.add(results[-1].best)
    for index in range(len(served), min(config.rounds, len(served) + _LOOK_AHEAD) + 1):
        num_new = index - len(served)
        for new in ([-1 - i for i in range(num_new)], [served[-1]] * num_new):
            history = [*served, *new]
            stage = config.stage_of(index)
            plan = reference_plan(
                config, stage.training.reference, history[stage.first_round - 1 :]
            )
            wanted |= {part.version for part in plan.parts}
            wanted.add(sampling_version(config, history, index))
            for share in stage.earlier:
                wanted.add(earlier_version(config, history, index, share.rounds_ago))
            wanted |= judges_of_coming_rounds(config, history)
    return {number for number in wanted if number >= 0}


def best_round(results: Sequence[RoundResult]) -> RoundResult:
    """The finished round with the best held-out score; of equal ones the first, without scores the last."""
    for name in _SCORES:
        scored = [result for result in results if name in result.metrics]
        if scored:
            return max(scored, key=lambda result: (result.metrics[name], -result.round))
    return results[-1]


@dataclass(frozen=True)
class _Place:
    """Places of the files of a removed item."""

    first: tuple[Path, ...]
    """Manifest or markers."""
    then: tuple[Path, ...]
    """Data: files or folders."""


def _unwanted(
    config: RunConfig, folder: RunFolder, results: Sequence[RoundResult]
) -> Iterator[tuple[Kind, int]]:
    """Yield what to remove, oldest first; also what a crash left half removed."""
    finished = [result.round for result in results]
    keep = config.retention.policies
    if keep != "all":
        needed = needed_policies(config, results)
        there = [number for number, _ in numbered_folders(folder.policies)]
        old = [number for number in there if number <= finished[-1]]
        if isinstance(keep, int):
            needed |= set(old[-keep:])
        for number in old:
            if number not in needed:
                yield "policy", number
        carrying = results[-1].after  # versions are numbered by round
        for index in finished:
            if index != carrying and folder.round(index).optimizer_state.exists():
                yield "optimizer", index
    last = config.retention.trajectories
    if last != "all":
        for index in sorted(set(finished[:-last]) - rounds_still_read(config, results)):
            if any(path.exists() for path in _place(folder, "round", index).then):
                yield "round", index


def _remove(folder: RunFolder, kind: Kind, number: int) -> None:
    place = _place(folder, kind, number)
    for path in place.first:
        files.remove_file(path)
    for path in place.then:
        if path.is_dir():
            files.remove_tree(path)
        else:
            files.remove_file(path)


def _place(folder: RunFolder, kind: Kind, number: int) -> _Place:
    if kind == "policy":
        directory = folder.policies / f"{number:04d}"
        return _Place((directory / MANIFEST,), (directory,))
    if kind == "optimizer":
        state = folder.round(number).optimizer_state
        return _Place((marker_path(state),), (state,))
    halves = (folder.round(number), *folder.round(number).measurements())
    return _Place(
        tuple(marker_path(p) for half in halves for kind in KINDS for p in half.shards(kind)),
        tuple(half.path / kind for half in halves for kind in KINDS),
    )


def _describe(folder: RunFolder, kind: Kind, number: int) -> dict[str, str]:
    if kind != "policy" or not (folder.policies / f"{number:04d}" / MANIFEST).exists():
        return {}
    version = PolicyStore(folder.policies).get(number)
    return {"digest": version.digest, "parent": str(version.parent)}
