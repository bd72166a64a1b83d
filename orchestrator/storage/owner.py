"""The owner of a place in a bucket: a copy belongs to the run that claimed it first, for good.

Object storage need not know conditional writes, so runs that claim one place at the same moment agree by what they
write and list ("safe agreement" of Borowsky and Gafni, "Generalized FLP impossibility result for t-resilient
asynchronous computations", 1993). A run writes `owners/<run id>.1`, lists, and goes up to `.2` where no other has done
so, else back to `.0`; when nobody stands at 1 any more, the smallest id at 2 has won, nobody can come to stand there
later, and the winner writes `.3`. Listings must show what was written before (S3 does since 2020), and a listing counts
when the next one is the same.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.bucket_location import Location
from orchestrator.config.sections import StorageSettings
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.storage.bucket import Bucket
from policies.base.errors import ConfigurationError, StorageError, explain

OWNERS = "owners"
IDENTITY = "run.json"
LOOK_SECONDS = 20.0
"""Longest wait for the bucket when it is only looked at."""
UNDECIDED_SECONDS = 60.0
"""Longest wait for a run that has begun to claim the same place."""
_CLAIM = re.compile(r"owners/([0-9A-Za-z_-]+)\.([0123])")


@dataclass(frozen=True)
class Claims:
    """The contents of `owners/`: the levels that each run has reached."""

    levels: dict[str, frozenset[int]]

    @property
    def winner(self) -> str | None:
        """The owner, once it has said so."""
        return next((run for run, levels in self.levels.items() if 3 in levels), None)

    @property
    def undecided(self) -> list[str]:
        """Runs that have begun to claim, and neither went on nor back."""
        return sorted(run for run, levels in self.levels.items() if levels == {1})

    @property
    def high(self) -> list[str]:
        """Runs one of which is the owner."""
        return sorted(run for run, levels in self.levels.items() if 2 in levels)


def run_id_of(folder: RunFolder) -> str:
    """The id of the run in a folder."""
    return read_identity(folder).run_id


def read_claims(bucket: Bucket) -> Claims:
    """The claims as they stood at one moment: two listings that agree."""
    before = bucket.names(OWNERS)
    while (now := bucket.names(OWNERS)) != before:
        before = now
    levels: dict[str, frozenset[int]] = {}
    for name in now:
        if match := _CLAIM.fullmatch(name):
            levels[match[1]] = levels.get(match[1], frozenset()) | {int(match[2])}
    return Claims(levels)


def owner_of(bucket: Bucket) -> str | None:
    """The id of the run whose copy lies here, or is being begun here; None for a place that is free.

    A copy of an older Pawl has no claims: there its `run.json` says whose it is.

    Raises:
        StorageError: the bucket does not answer.
    """
    claims = read_claims(bucket)
    if claims.levels:
        return claims.winner or (claims.high or claims.undecided)[0]
    if IDENTITY not in bucket.names():
        return None
    try:
        return str(json.loads(bucket.read(IDENTITY))["run_id"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def claim_place(bucket: Bucket, run_id: str) -> None:
    """Make the place this run's, or find that it is already.

    Raises:
        ConfigurationError: it is another run's.
        StorageError: the bucket does not answer, or another run began to claim it and never ended that.
    """
    claims = read_claims(bucket)
    owner = claims.winner if claims.levels else owner_of(bucket)
    if owner is not None and owner != run_id:
        raise ConfigurationError(foreign(bucket, owner))
    if claims.winner == run_id:
        return
    if not claims.levels.get(run_id, frozenset()) & {0, 2}:
        bucket.put(f"{OWNERS}/{run_id}.1", b"{}\n")
        others = [run for run in read_claims(bucket).high if run != run_id]
        bucket.put(f"{OWNERS}/{run_id}.{0 if others else 2}", b"{}\n")
    deadline = time.monotonic() + UNDECIDED_SECONDS
    while (claims := read_claims(bucket)).undecided and claims.winner is None:
        if time.monotonic() > deadline:
            raise StorageError(_stuck(bucket, claims.undecided[0]))
        time.sleep(0.2)
    owner = claims.winner or claims.high[0]
    if owner != run_id:
        raise ConfigurationError(foreign(bucket, owner))
    bucket.put(f"{OWNERS}/{run_id}.3", b"{}\n")


def look(settings: StorageSettings, name: str) -> Bucket:
    """The place of the run `name`, for a short look."""
    assert settings.url is not None
    location = Location.parse(settings.url).under(name)
    return Bucket(location, settings.endpoint_url, min(LOOK_SECONDS, settings.timeout_seconds))


def check_place(settings: StorageSettings, folder: RunFolder) -> None:
    """Refuse to begin or go on with a run whose place in the bucket is another's.

    Raises:
        ConfigurationError: it is.
        StorageError: the bucket does not answer.
    """
    if settings.url is None:
        return
    bucket = look(settings, folder.path.name)
    owner = owner_of(bucket)
    if owner is not None and not (folder.identity.exists() and run_id_of(folder) == owner):
        raise ConfigurationError(foreign(bucket, owner))


def taken_names(settings: StorageSettings) -> list[str]:
    """Names of runs that have a copy in the bucket; none where it does not answer (the run will be told)."""
    if settings.url is None:
        return []
    try:
        location = Location.parse(settings.url)
        timeout = min(LOOK_SECONDS, settings.timeout_seconds)
        return Bucket(location, settings.endpoint_url, timeout).folders()
    except (StorageError, ConfigurationError):
        return []


def foreign(bucket: Bucket, owner: str) -> str:
    """Tell why a place cannot be used, and what can be done."""
    name, server = Path(bucket.location.prefix).name, bucket.endpoint
    server = f"AWS_ENDPOINT_URL={server} " if server else ""
    return explain(
        f"{bucket.location} holds the copy of another run of this name, which this one would ruin",
        value=f"run id {owner}",
        where="storage.url and --name",
        fix=f"give another name (--name {name}-b); or go on with that run: add --or-resume --name {name}, or "
        f"`{server}pawl resume {bucket.location} --runs-dir {name}-fetched`",
    )


def _stuck(bucket: Bucket, run_id: str) -> str:
    return explain(
        f"another run has begun to claim {bucket.location} and did not go on: it died, or it is slow",
        value=f"run id {run_id}",
        where="storage.url and --name",
        fix=f"wait and repeat the command; if that run is dead, remove {bucket.location}/{OWNERS}/{run_id}.1",
    )
