"""The policies of an audited run: manifests, parents, the chain of serving versions, references and updates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.config.plug_ins.asked import reference_plan
from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.check import Check, Report
from orchestrator.rounds.update_files import read_update_files
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import JournalEntry
from orchestrator.runs.phases import Collected, Drawn, Phase, Published, Trained
from orchestrator.runs.removal_notes import Removed, note_path, removed
from policies.base.errors import CorruptPolicyError, CorruptStateError
from policies.base.records import RoundResult, RoundStatus
from policies.storage.artifacts import file_sha256
from policies.storage.folder_names import numbered_folders
from policies.storage.policy_store import MANIFEST, Manifest, PolicyStore, read_manifest
from policies.storage.version_files import differences, fact_of, files_digest, foreign_files

CLOSE = 1e-9
"""Weights of a reference are computed the same way twice; only JSON stands between."""


def check_lineage(
    folder: RunFolder,
    entries: Sequence[JournalEntry],
    report: Report,
    absent: frozenset[str] = frozenset(),
) -> dict[int, Manifest]:
    """Manifests by version, after checking them, their files and the chain of the journal.

    Args:
        folder: the run.
        entries: its journal.
        report: takes what is found.
        absent: files that were left in a bucket, relative to the run folder.
    """
    manifests = _manifests(folder, report, absent)
    check = report["lineage"]
    for number, manifest in sorted(manifests.items()):
        _check_parent(number, manifest, manifests, check)
    store = PolicyStore(folder.policies)
    published = {e.round: Published.model_validate(e.result) for e in _of(entries, Phase.PUBLISH)}
    gone = _removed(folder, check)
    check.notes += [note.sentence() for note in gone.values()]
    for index, version in published.items():
        known = manifests.get(version.version)
        if known is None:
            note = gone.get(version.version)
            check.expect(
                note is not None and note.was.get("digest", version.digest) == version.digest,
                f"version {version.version} of round {index} has no manifest, and retention did not remove it",
            )
            continue
        check.expect(
            (known.digest, known.parent) == (version.digest, version.parent)
            and version.files_digest in ("", files_digest(store.get(version.version))),
            f"version {version.version} is not what round {index} published: its manifest has digest "
            f"{known.digest[:12]} and parent {known.parent}, the journal {version.digest[:12]} and {version.parent}",
        )
    _check_initial(entries, store, manifests, report)
    _check_chain(entries, published, check)
    finished = {e.round for e in _of(entries, Phase.ACCEPT)}
    for number in sorted(set(manifests) - {0} - {p.version for p in published.values()}):
        if manifests[number].round in finished:
            report["committed"].expect(
                False, f"{folder.policies / f'{number:04d}'} was published by no round"
            )
    return manifests


def _removed(folder: RunFolder, check: Check) -> dict[int, Removed]:
    try:
        return removed(folder, "policy")
    except CorruptStateError as error:
        check.expect(False, str(error))
        return {}


def _check_initial(
    entries: Sequence[JournalEntry],
    store: PolicyStore,
    manifests: Mapping[int, Manifest],
    report: Report,
) -> None:
    """That version 0 is the model that round 0 recorded."""
    first = next((e for e in entries if (e.round, e.phase) == (0, Phase.DRAW)), None)
    if first is None:
        return
    drawn, where = Drawn.model_validate(first.result), store.directory(0) / MANIFEST
    if 0 not in manifests:
        report["lineage"].expect(where.is_file(), f"{where} is missing: the run has begun")
    elif drawn.model:
        report["lineage"].expect(
            drawn.model == files_digest(store.get(0)),
            f"{where} is not of the model that round 0 recorded",
        )


def check_place_of_model(
    config: RunConfig | None, manifests: Mapping[int, Manifest], check: Check
) -> None:
    """That version 0 lies where the config says, where that is a folder of this machine."""
    if config is None or 0 not in manifests or not os.path.isabs(config.policy.model):
        return
    found, wanted = manifests[0].path, config.policy.model
    check.expect(
        os.path.realpath(found) == os.path.realpath(wanted),
        f"the manifest of version 0 says that the model lies in {found}, the config says {wanted}",
    )


def _manifests(folder: RunFolder, report: Report, absent: frozenset[str]) -> dict[int, Manifest]:
    found: dict[int, Manifest] = {}
    store = PolicyStore(folder.policies)
    for number, path in numbered_folders(
        folder.policies
    ):  # what else lies there is told with the foreign files
        try:
            manifest = read_manifest(path, number)
        except CorruptPolicyError as error:
            report["files"].expect(False, str(error))
            continue
        if manifest is None:
            report["committed"].notes.append(f"{path} has no manifest; a resume removes it")
            continue
        found[number] = manifest
        if number == 0:  # its files are elsewhere
            others = sorted(p for p in path.iterdir() if p.name != MANIFEST)
            report["logs"].notes += [f"{p} is nobody's; it is ignored" for p in others]
        here = f"policies/{path.name}/"
        left = {name.removeprefix(here) for name in absent if name.startswith(here)}
        _check_files(store, number, manifest, report["files"], left)
    return found


def _check_files(
    store: PolicyStore, number: int, manifest: Manifest, check: Check, absent: set[str]
) -> None:
    """Weights by their digests, the files beside them as they were recorded, and what else lies there."""
    where = Path(manifest.path) if number == 0 else store.directory(number)
    if number == 0 and not where.is_dir():
        check.notes.append(f"the starting model is not at {where}: its files are not checked")
        return
    for name, digest in sorted(manifest.files.items()):
        path = where / name
        if name in absent and not path.exists():
            check.notes.append(f"{path} was not fetched (version {number})")
            continue
        if not check.expect(path.is_file(), f"{path} is missing (version {number})"):
            continue
        check.expect(
            file_sha256(path) == digest,
            f"{path} changed since version {number} was published: its sha256 is not that of the manifest",
        )
    if manifest.companions is None:
        check.notes.append(
            f"version {number} was recorded by an older Pawl: the files beside its weights are not checked"
        )
        return
    wrong = differences(where, manifest.companions, ours=number > 0, absent=absent)
    there = {p.name for p in where.glob("*.safetensors")}
    wrong += [f"{name} was added" for name in sorted(there - set(manifest.files))]
    check.num_examined += len(manifest.companions)
    for sentence in wrong:
        check.fail(f"{where}: {sentence} since version {number} was recorded")
    if number > 0:
        foreign = foreign_files(where, manifest.companions)
        check.notes += [f"{where / name} is nobody's; it is ignored" for name in foreign]


def _check_parent(
    number: int, manifest: Manifest, manifests: Mapping[int, Manifest], check: Check
) -> None:
    if number == 0:
        check.expect(manifest.parent is None, "version 0 has a parent")
        return
    parent = manifest.parent
    check.expect(
        parent is not None and parent < number,
        f"version {number} has parent {parent}: a parent is an earlier version",
    )


def _check_chain(
    entries: Sequence[JournalEntry], published: Mapping[int, Published], check: Check
) -> None:
    serving, served = 0, {0}
    for entry in _of(entries, Phase.ACCEPT):
        result = RoundResult.model_validate(entry.result)
        where = f"round {result.round}"
        check.expect(
            result.before == serving,
            f"{where} started from version {result.before}, version {serving} served",
        )
        candidate = published.get(result.round)
        possible = {result.before} | ({candidate.version} if candidate else set())
        if result.status is RoundStatus.REJECTED:
            possible |= served  # the acceptance rule may go back to a version from before
        check.expect(
            result.after in possible,
            f"{where} left version {result.after}, which it neither started from nor published",
        )
        if candidate is not None:
            check.expect(
                candidate.parent == result.before,
                f"{where} published a child of version {candidate.parent} and started from {result.before}",
            )
        if result.status in (RoundStatus.IMPROVED, RoundStatus.KEPT):
            check.expect(
                candidate is not None and result.after == candidate.version,
                f"{where} is {result.status.value} without its new version serving",
            )
        serving = result.after
        served.add(serving)


def check_references(
    config: RunConfig | None, entries: Sequence[JournalEntry], check: Check
) -> None:
    """The reference of every update: what its schedule says, made of versions that were there."""
    served: list[int] = []
    for entry in entries:
        if entry.phase is Phase.ACCEPT:
            served.append(RoundResult.model_validate(entry.result).after)
        if entry.phase is not Phase.TRAIN:
            continue
        trained = Trained.model_validate(entry.result)
        have = {part.version: part.weight for part in trained.reference.parts}
        check.expect(
            set(have) <= set(served),
            f"round {entry.round} was trained against version {sorted(set(have) - set(served))}, which never served "
            "before it",
        )
        if config is None:
            continue
        stage = config.stage_of(entry.round)
        so_far = served[stage.first_round - 1 :]
        if not so_far:
            check.fail(f"round {entry.round} was trained, and no line before it says what served")
            continue
        plan = reference_plan(config, stage.training.reference, so_far)
        want = {part.version: part.weight for part in plan.parts}
        same = set(have) == set(want) and all(abs(have[v] - want[v]) < CLOSE for v in have)
        check.expect(
            same,
            f"round {entry.round} was trained against {trained.reference}, its schedule says {plan}",
        )


def check_training(
    run: RunFolder,
    index: int,
    of_round: Mapping[Phase, JournalEntry],
    check: Check,
    absent: frozenset[str] = frozenset(),
) -> None:
    """Compare what the update of round `index` says it saw, against the round's examples and the step log."""
    if Phase.TRAIN not in of_round or Phase.COLLECT not in of_round:
        return
    trained = Trained.model_validate(of_round[Phase.TRAIN].result)
    outcome = trained.outcome
    if outcome is None:
        return
    num_examples = (
        trained.num_reused
        + sum(part.num_examples for part in trained.replayed)
        + Collected.model_validate(of_round[Phase.COLLECT].result).num_examples
    )
    seen = outcome.num_examples + sum(outcome.dropped.values())
    check.expect(
        seen == num_examples,
        f"round {of_round[Phase.TRAIN].round}: the update took {outcome.num_examples} examples and dropped "
        f"{sum(outcome.dropped.values())}, the round has {num_examples}",
    )
    _check_update_files(run, index, of_round, check, absent)
    log = run.round(index).train_log
    if log.relative_to(run.path).as_posix() in absent and not log.exists():
        return
    try:
        steps = [_step(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        check.expect(False, f"{log} cannot be read: {error}")
        return
    check.expect(
        steps == sorted(set(steps)),
        f"{log} has steps twice or out of order: {_repeated(steps)}",
    )
    check.expect(
        len(set(steps)) == outcome.num_steps,
        f"{log} has {len(set(steps))} steps, the update made {outcome.num_steps}",
    )


def _check_update_files(
    run: RunFolder,
    index: int,
    of_round: Mapping[Phase, JournalEntry],
    check: Check,
    absent: frozenset[str],
) -> None:
    """The step log and the optimizer state as the update left them; its weights until they are a version."""
    folder = run.round(index)
    try:
        record = read_update_files(folder)
    except CorruptStateError as error:
        check.expect(False, str(error))
        return
    here = folder.train.relative_to(run.path).as_posix()
    if record is None:
        note = f"round {index} has no record of what its update left (an older Pawl wrote none)"
        check.notes += [] if f"{here}/files.json" in absent else [note]
        return
    gone = note_path(run, "optimizer", index).exists()
    for fact in record.files:
        path = folder.train / fact.name
        left = f"{here}/{fact.name}" in absent or (gone and path == folder.optimizer_state)
        moved = fact.name.startswith("candidate/") and not (
            Phase.PUBLISH not in of_round and folder.candidate.exists()
        )
        if moved or (left and not path.exists()):
            continue
        check.expect(
            path.is_file() and fact_of(folder.train, fact.name) == fact,
            f"{path} is not as the update of round {index} left it",
        )


def _step(line: str) -> int:
    row: dict[str, Any] = json.loads(line)
    return int(row["step"])


def _repeated(steps: Sequence[int]) -> str:
    out = [b for a, b in pairwise(steps) if b <= a]
    return ", ".join(map(str, out[:5]))


def _of(entries: Sequence[JournalEntry], phase: Phase) -> list[JournalEntry]:
    return [entry for entry in entries if entry.phase is phase]
