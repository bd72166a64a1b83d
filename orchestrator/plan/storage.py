"""The part of the preflight that looks at the bucket: whether it answers, and whose the run's place in it is."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.bucket_location import Location
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.runs.folder import RunFolder
from orchestrator.storage.owner import check_place
from policies.base.errors import ConfigurationError, StorageError


def plan_storage(config: RunConfig, plan: Plan, run_folder: Path, *, elsewhere: bool) -> None:
    """Add where the run is copied to; a problem where the copy of another run lies, a warning where nobody answers.

    Args:
        config: what would run.
        plan: where the lines go.
        run_folder: where the run would be written; its name is that of its place in the bucket.
        elsewhere: the run is for another machine: the bucket is not asked.
    """
    settings = config.storage
    if settings.url is None:
        return
    try:
        place = Location.parse(settings.url).under(run_folder.name)
        if not elsewhere:
            check_place(settings, RunFolder(run_folder))
    except ConfigurationError as error:
        plan.add("storage", str(error), "problem")
    except StorageError as error:
        plan.add("storage", str(error), "warning")
    else:
        plan.add("storage", f"{place}{'; not asked' if elsewhere else ''}")
