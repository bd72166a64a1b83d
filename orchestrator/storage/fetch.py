"""Bringing a run back from a bucket to a machine that has nothing of it: what its next round needs, checked.

Of finished rounds only small files come, except for the last one and examples that are learned from again; of policies,
those that serve or are a reference. The rest stays in the bucket. Every file is compared with the sha256 that was
written when it was sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.bucket_location import Location
from orchestrator.config.sections import StorageSettings
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.removal_notes import FETCHED, LeftInBucket, left_in_bucket, write_note
from orchestrator.storage.bucket import Bucket
from orchestrator.storage.mirror import JOURNAL, SEGMENTS
from orchestrator.storage.owner import IDENTITY, look, owner_of
from policies.base.errors import ConfigurationError, CorruptStateError, RunNotFoundError, explain
from policies.base.records import RoundResult
from policies.storage import files

CONFIG = "config.json"
SMALL_BYTES = 2**20
_ROUND = re.compile(r"rounds/(\d+)/(.*)")
_POLICY = re.compile(r"policies/(\d+)/(.*)")


def is_address(text: str) -> bool:
    """Tell whether a run is named by its place in a bucket."""
    return text.startswith("s3:/")


def fetch_run(
    url: str,
    runs_dir: Path,
    *,
    endpoint_url: str | None = None,
    timeout_seconds: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
) -> RunFolder:
    """Make the run at `url` resumable under `runs_dir`; `run.json` comes last, so half a fetch is no run.

    Raises:
        ConfigurationError: there is a run of this name already.
        RunNotFoundError: no run lies at `url`.
        CorruptStateError: an object is not what was sent.
        StorageError: the bucket does not answer.
    """
    location = Location.parse(url)
    folder = RunFolder(runs_dir.resolve() / Path(location.prefix).name)
    if folder.identity.exists():
        raise ConfigurationError(
            explain(
                "there is a run of this name here already, and it may be ahead of the bucket",
                value=str(folder.path),
                where="--runs-dir",
                fix=f"go on with it (`pawl resume {folder.path}`), move it away, or give another --runs-dir",
            )
        )
    bucket = Bucket(location, endpoint_url, timeout_seconds)
    index, journals = _index(bucket)
    if IDENTITY not in index:
        raise RunNotFoundError(
            f"no run lies at {location}. Fix: give s3://BUCKET/PREFIX/RUN, and the server by AWS_ENDPOINT_URL"
        )
    run_id = _whose(bucket, str(index[IDENTITY]["sha256"]))
    _check_target(folder, location, run_id)
    journal_digest = _journal_digest(bucket, journals)
    begun = LeftInBucket(address=str(location), run_id=run_id, names=())
    write_note(folder.path / FETCHED, begun)
    _fetch(bucket, folder.path, JOURNAL, journal_digest)
    journal = Journal(folder.journal)
    needed = _Needed(journal, json.loads(bucket.read(CONFIG)) if CONFIG in index else {})
    names = [name for name, facts in index.items() if needed(name, int(str(facts["bytes"])))]
    left = begun.model_copy(update={"names": tuple(sorted(index.keys() - set(names)))})
    write_note(folder.path / FETCHED, left)
    for name in sorted(names, key=lambda n: (n == IDENTITY, n)):
        _fetch(bucket, folder.path, name, str(index[name]["sha256"]))
    size = sum(int(str(index[n]["bytes"])) for n in names)
    say(
        f"fetched {len(names)} of {len(index)} files ({size / 2**20:.1f} MiB) of {location} into {folder.path}; "
        f"{len(journal.results())} round(s) are finished"
    )
    return folder


def fetch_same_run(
    settings: StorageSettings,
    runs_dir: Path,
    name: str,
    *,
    check: Callable[[Any], None],
    say: Callable[[str], None],
) -> bool:
    """Fetch the run `name` from the bucket that a config names, where it lies there and not here.

    Args:
        settings: where copies of runs go.
        runs_dir: folder of all runs.
        name: of the run.
        check: raises when the run's recorded config (JSON) is not the right one; called before anything is written.
        say: what is told to people.

    Returns:
        Whether there was one.
    """
    if settings.url is None:
        return False
    bucket = look(settings, name)
    if owner_of(bucket) is None or IDENTITY not in bucket.names():
        return False
    check(json.loads(bucket.read("config.json")))
    fetch_run(
        str(bucket.location),
        runs_dir,
        endpoint_url=settings.endpoint_url,
        timeout_seconds=settings.timeout_seconds,
        say=say,
    )
    return True


class _Needed:
    """The files that the next round needs."""

    def __init__(self, journal: Journal, config: Mapping[str, Any]) -> None:
        """Take the journal, and the config as a tree: it may name plug-ins that are not here."""
        results = journal.results()
        self._round = len(results)
        self._learned_again = learned_again(results, config)
        served = [r.after for r in results]
        # Versions are numbered by the round that made them; after a step back it is an older one's moments that go on.
        self._accepted = served[-1] if served else 0
        self._served = frozenset(served)
        """Any of them may be a reference (initial, rounds ago, moving average) or a share of a mixture."""

    def __call__(self, name: str, num_bytes: int) -> bool:
        if match := _ROUND.fullmatch(name):
            number, rest = int(match[1]), match[2]
            if number >= self._round - 1:
                return True
            if rest.startswith("train/") and number == self._accepted:
                return True  # optimizer state that is carried over
            if rest.startswith("examples/") and number in self._learned_again:
                return True
            return num_bytes <= SMALL_BYTES and not rest.endswith((".parquet", ".parquet.json"))
        if match := _POLICY.fullmatch(name):
            number = int(match[1])
            return number in self._served or number >= self._round or num_bytes <= SMALL_BYTES
        return True


def learned_again(results: Sequence[RoundResult], config: Mapping[str, Any]) -> frozenset[int]:
    """Finished rounds whose examples may join a coming update: the serving version's, and those to be replayed."""
    sections = [config.get("training"), *(s.get("training") for s in config.get("stages") or ())]
    replays = [(section or {}).get("replay") or {} for section in sections]
    served = [r.after for r in results]
    ahead = (config.get("rollout") or {}).get("ahead", 0)
    samplers = {r.round: served[max(0, r.round - 1 - min(ahead, r.round - 1))] for r in results}
    furthest = max((replay.get("rounds", 1) for replay in replays if replay), default=0)
    return frozenset(
        r.round
        for r in results
        if samplers[r.round] == results[-1].after or r.round >= len(results) - furthest
    )


def _index(bucket: Bucket) -> tuple[dict[str, dict[str, object]], set[str]]:
    """Return what was sent: size and sha256 of every file, and the sha256 of each state of the journal."""
    index: dict[str, dict[str, object]] = {}
    journals = set()
    for name in bucket.names(SEGMENTS):
        try:
            segment = json.loads(bucket.read(name))
            index |= segment["files"]
            journals.add(segment["journal_sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStateError(
                f"{bucket.location}/{name} cannot be read: {error}. Fix: restore it from a version of the bucket"
            ) from error
    return index, journals


def _whose(bucket: Bucket, sha256: str) -> str:
    """The id of the run whose copy lies in the bucket.

    Raises:
        CorruptStateError: its `run.json` is not what was sent: another run has written over it.
    """
    content = bucket.read(IDENTITY)
    run_id = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        run_id = str(json.loads(content)["run_id"])
    owner = owner_of(bucket)
    if hashlib.sha256(content).hexdigest() != sha256 or owner != run_id:
        raise CorruptStateError(
            f"{bucket.location}/{IDENTITY} is not what was sent (it says run id {run_id!r}, the place belongs to "
            f"{owner!r}). Fix: restore it from a version of the bucket"
        )
    return run_id


def _check_target(folder: RunFolder, location: Location, run_id: str) -> None:
    """Refuse to fetch into a folder that holds something else than a part of the same run, fetched before.

    Raises:
        ConfigurationError: it does.
    """
    path = folder.path
    if not path.exists():
        return
    there = sorted(os.fsencode(p.name).decode(errors="replace") for p in path.iterdir())
    try:
        note = left_in_bucket(folder)
    except (OSError, ValueError):
        note = None
    mine = note is not None and (note.address, note.run_id) == (str(location), run_id)
    if there and not mine:
        raise ConfigurationError(
            explain(
                "the folder that the run would be fetched into is not empty, and what is in it is no part of this run",
                value=f"{path}: {', '.join(there[:3])}",
                where="--runs-dir",
                fix=f"give another one (--runs-dir {path.parent.name}-fetched), or move {path} away",
            )
        )


def _journal_digest(bucket: Bucket, journals: set[str]) -> str:
    content = bucket.read(JOURNAL) if JOURNAL in bucket.names() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest not in journals:
        raise CorruptStateError(
            f"{bucket.location}/{JOURNAL} is not what was sent. Fix: restore it from a version of the bucket"
        )
    return digest


def _fetch(bucket: Bucket, root: Path, name: str, sha256: str) -> None:
    target = (root / name).resolve()
    if not target.is_relative_to(root):
        raise CorruptStateError(f"{bucket.location}: {name!r} leads out of the run folder")

    def write(temporary: Path) -> None:
        if bucket.download(name, temporary) != sha256:
            raise CorruptStateError(
                f"{bucket.location}/{name} is not what was sent (its sha256 differs). Fix: restore it from a version "
                "of the bucket; nothing is trained on changed files"
            )

    files.write_atomically(target, write)
