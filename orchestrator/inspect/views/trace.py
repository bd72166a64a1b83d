"""From any id of a run back to where it came from: example, trajectories, verdicts, prompt, policy version."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.inspect.views.learned_in import learned_in
from orchestrator.runs.conversation_text import ending_text, headings_of, opening_text
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.phases import Phase, Published
from orchestrator.runs.reader import read_sound
from orchestrator.runs.removal_notes import removed, why_gone
from orchestrator.runs.state import read_config, results_of, stream, stream_examples
from policies.base.errors import CorruptPolicyError, InputError, PolicyStoreError, explain
from policies.base.records import Comparison, Feedback, Prompt, Trajectory, Verdict
from policies.examples.kind import Example
from policies.storage.artifacts import read_marker, read_records
from policies.storage.policy_store import PolicyStore

_MAX_CANDIDATES = 20_000


def trace(folder: RunFolder, wanted: str) -> dict[str, Any]:
    """Everything behind an example or a trajectory.

    Raises:
        InputError: no record of the run has this id; the message names near ones.
    """
    for index, place in _places(folder, wanted):
        example = _find_example(place, wanted)
        ids = trajectories_of(example) if example is not None else [wanted]
        found = find_trajectories(place, ids)
        if found:
            return _traced(folder, index, place, example, found, wanted)
    raise InputError(_unknown(folder, wanted))


def trajectories_of(example: Example) -> list[str]:
    """Ids of the trajectories that an example was made from."""
    return [sequence.trajectory_id for sequence in example.sequences()]


def _places(folder: RunFolder, wanted: str) -> Iterator[tuple[int, RoundFolder]]:
    """Folders to look in, the one that the id names (`r3.`, `e3.`) first."""
    rounds = [(i, folder.round(i)) for i in folder.rounds()]
    every = [(i, f) for i, r in rounds for f in (r, *r.measurements())]
    scope = wanted.partition(".")[0]

    def other(place: tuple[int, RoundFolder]) -> bool:
        letter = {"evaluate": "e", "final": "f", "test": "t"}.get(place[1].path.name, "r")
        return scope != f"{letter}{place[0]}"

    yield from sorted(every, key=other)


def _find_example(place: RoundFolder, wanted: str) -> Example | None:
    """An example by its id. One whose id is just its trajectory's is found too."""
    return next((e for e in stream_examples(place) if e.id == wanted), None)


def find_trajectories(place: RoundFolder, ids: Sequence[str]) -> list[Trajectory]:
    """Trajectories by id, in the order asked for; those that are not there are left out."""
    left, found = set(ids), {}
    for trajectory in stream(place, "trajectories", Trajectory):
        if trajectory.id in left:
            found[trajectory.id] = trajectory
            left.discard(trajectory.id)
            if not left:
                break
    return [found[i] for i in ids if i in found]


def find_prompts(place: RoundFolder, ids: Iterable[str]) -> dict[str, Prompt]:
    """Prompts of a round by id."""
    wanted = set(ids)
    if read_marker(place.prompts) is None:
        return {}
    return {p.id: p for p in read_records(place.prompts, Prompt) if p.id in wanted}


def _traced(
    folder: RunFolder,
    index: int,
    place: RoundFolder,
    example: Example | None,
    found: list[Trajectory],
    wanted: str,
) -> dict[str, Any]:
    ids = {t.id for t in found}
    prompts = find_prompts(place, {t.prompt_id for t in found})
    verdicts = [
        v
        for kind in ("verdicts", "judge_verdicts")
        for v in stream(place, kind, Verdict)
        if v.trajectory_id in ids
    ]
    comparisons = [c for c in stream(place, "comparisons", Comparison) if {c.first, c.second} & ids]
    feedback = [f for f in stream(place, "feedback", Feedback) if f.trajectory_id in ids]
    versions = sorted({t.policy_version for t in found})
    result = next((r for r in results_of(folder) if r.round == index), None)
    return {
        "id": wanted,
        "kind": "trajectory" if example is None else type(example).__name__,
        "round": index,
        "measurement": place.path.name == "evaluate",
        "example": None if example is None else _example_facts(example),
        "learned_in": [] if example is None else learned_in(folder, index, example.id),
        "trajectories": [_trajectory_facts(t) for t in found],
        "verdicts": [v.model_dump(mode="json") for v in verdicts],
        "comparisons": [c.model_dump(mode="json") for c in comparisons],
        "feedback": [f.model_dump(mode="json", exclude={"verdicts"}) for f in feedback],
        "prompts": [p.model_dump(mode="json") for p in prompts.values()],
        "policy_versions": [fact for v in versions for fact in policy_chain(folder, v)],
        "result": None if result is None else result.model_dump(mode="json"),
    }


def _example_facts(example: Example) -> dict[str, Any]:
    """An example without its tokens: they are those of its trajectories."""
    named = {"id": example.id, "prompt_id": example.prompt_id, "weight": example.weight}
    behind = {
        "trajectory" if name == "completion" else name: sequence.trajectory_id
        for name, sequence in example.sides().items()
    }
    return named | example.row() | behind


def _trajectory_facts(trajectory: Trajectory) -> dict[str, Any]:
    known, mask = trajectory.logprobs, trajectory.loss_mask
    return {
        "id": trajectory.id,
        "prompt_id": trajectory.prompt_id,
        "status": trajectory.status.value,
        "ending": trajectory.ending.value,
        "outcome": trajectory.outcome,
        "graded": None if trajectory.graded is None else trajectory.graded.model_dump(mode="json"),
        "error": trajectory.error,
        "policy_version": trajectory.policy_version,
        "policy_digest": trajectory.policy_digest,
        "sampling": trajectory.sampling.model_dump(mode="json"),
        "branch": None if trajectory.branch is None else trajectory.branch.model_dump(mode="json"),
        "prompt_tokens": len(trajectory.prompt_token_ids),
        "policy_tokens": trajectory.num_policy_tokens,
        "observation_tokens": len(mask)
        - len(trajectory.prompt_token_ids)
        - trajectory.num_policy_tokens,
        "scored_tokens": sum(mask),
        "mean_logprob": sum(known) / sum(mask) if known and sum(mask) else None,
        "author": trajectory.author.value,
        "derived_from": trajectory.derived_from,
        "turns": [t.model_dump(mode="json", exclude={"logprobs"}) for t in trajectory.turns],
        "opening": opening_text(trajectory),
        "headings": headings_of(trajectory),
        "ending_text": ending_text(trajectory),
        "prompt_token_ids": list(trajectory.prompt_token_ids),
    }


def policy_chain(folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """A version and its ancestors down to version 0, as their manifests tell.

    Raises:
        CorruptPolicyError: a manifest is not that of the version which the journal published.
    """
    store = PolicyStore(folder.policies)
    published = {
        known.version: known.digest
        for entry in read_sound(folder).entries
        if entry.phase is Phase.PUBLISH
        for known in (Published.model_validate(entry.result),)
    }
    chain: list[dict[str, Any]] = []
    current: int | None = number
    while current is not None and len(chain) < 10_000:
        try:
            version = store.get(current)
        except PolicyStoreError:
            note = removed(folder, "policy").get(current)
            if note is None:
                chain.append({"number": current, "missing": True})
                break
            chain.append({"number": current, **note.was, "removed": note.sentence()})
            current = int(note.was["parent"]) if note.was.get("parent", "").isdecimal() else None
            continue
        if published.get(current, version.digest) != version.digest:
            raise CorruptPolicyError(
                explain(
                    f"the manifest of version {current} is not of what the run published",
                    value=version.digest[:12],
                    where=str(store.directory(current)),
                    fix="restore it from a copy of the run; `pawl verify` names what else is damaged",
                )
            )
        chain.append(
            {**version.model_dump(mode="json"), "files_present": Path(version.path).is_dir()}
        )
        current = version.parent
    return chain


def _unknown(folder: RunFolder, wanted: str) -> str:
    """Return which ids come near; looked for among a bounded number."""
    known: list[str] = []
    for _, place in _places(folder, wanted):
        known += (e.id for e in stream_examples(place))
        known += (t.id for t in stream(place, "trajectories", Trajectory))
        if len(known) > _MAX_CANDIDATES:
            break
    close = difflib.get_close_matches(wanted, known[:2000], n=3, cutoff=0.5)
    close = close or heapq.nsmallest(3, known, key=lambda k: abs(len(k) - len(wanted)))
    near = f"close: {', '.join(close)}" if close else "it has no samples yet"
    index = wanted.partition(".")[0][1:]
    gone = why_gone(folder, "round", int(index)) if index.isdecimal() else None
    near = near if gone is None else gone
    name = (read_config(folder).get("tracking") or {}).get("experiment", folder.path.name)
    return (
        f"no example or trajectory {wanted!r} in {folder.path} (experiment {name}; {near}). "
        f"Fix: `pawl show {folder.path} --round N --pairs` lists ids"
    )
