"""Sends what a run that has ended left unsent, to the tracking server and to its bucket: later, without a driver."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.config.run_config import RunConfig
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lease import claim
from orchestrator.runs.private import check_confined, private_files
from orchestrator.runs.stored_config import read_config
from orchestrator.storage.mirror import is_behind, mirroring
from orchestrator.tracking.mlflow_client import push_backlog
from orchestrator.tracking.spool import Spool, TrackingAnswered
from policies.base.errors import PawlError, StorageError, TrackingError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """A count of what was sent, and of what could not be."""

    entries: int = 0
    """To the tracking server."""
    copied: bool = False
    """Whether the bucket's copy was behind and has caught up."""
    problems: tuple[PawlError, ...] = ()

    def lines(self, folder: RunFolder) -> list[str]:
        """For people."""
        found = []
        if self.entries:
            found.append(f"{self.entries} kept tracking entries were sent")
        if self.copied:
            found.append("the copy in the bucket was behind and has caught up")
        left = unsent_entries(folder)
        for problem in self.problems:
            if isinstance(problem, TrackingAnswered):
                found.append(f"tracking takes nothing; {left} entries are kept: {problem}")
            elif isinstance(problem, TrackingError):
                found.append(
                    f"{left} tracking entries could not be sent ({problem}); they are kept, and "
                    f"`pawl resume {folder.path}` sends them"
                )
            else:
                found.append(str(problem))
        return found


def unsent_entries(folder: RunFolder) -> int:
    """Tracking entries of a run that no server has taken."""
    return Spool(folder.tracking, writes=False).left() if folder.tracking.is_dir() else 0


@private_files()
def send_unsent(folder: RunFolder, *, on_warning: Callable[[str], None] = logger.warning) -> Sent:
    """Send what is left of a run that has ended; what fails is told and stays where it is."""
    check_confined(folder.path)
    config = read_config(folder)
    entries, problems = 0, list[PawlError]()
    if config.tracking.enabled and unsent_entries(folder):
        try:
            entries = push_backlog(folder, config.tracking, on_warning=on_warning)
        except TrackingError as error:
            problems.append(error)
    copied = False
    try:
        copied = _copy(config, folder, on_warning)
    except PawlError as error:
        problems.append(error)
    return Sent(entries, copied, tuple(problems))


def _copy(config: RunConfig, folder: RunFolder, on_warning: Callable[[str], None]) -> bool:
    """Bring the copy in the bucket up to date; says whether it was behind.

    Raises:
        StorageError: the bucket does not answer.
        ConfigurationError: its place belongs to another run.
        LeaseError: another process drives the run.
    """
    settings = config.storage
    if settings.url is None or not is_behind(settings, folder):
        return False
    with (
        claim(folder) as lease,
        mirroring(settings, folder, epoch=lease.claim.epoch, on_warning=on_warning),
    ):
        pass
    if is_behind(settings, folder):
        raise StorageError(
            f"the copy of {folder.path} in {settings.url} is still behind. Fix: `pawl resume`"
        )
    return True
