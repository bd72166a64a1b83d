"""`pawl doctor`: looks at a run folder, or at a config and its machine; one finding per thing that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.inspect.doctor.diagnosis import Diagnosis
from orchestrator.inspect.doctor.machine import examine_machine
from orchestrator.inspect.doctor.run import examine_run
from orchestrator.runs.folder import RunFolder


def diagnose(target: str, overrides: Sequence[str] = ()) -> Diagnosis:
    """Look at a run folder, or at a config and the machine it would run on. Starts and changes nothing.

    Raises:
        ConfigurationError: `target` is neither a run folder nor a config that can be loaded.
    """
    folder = RunFolder(Path(target).resolve())
    if folder.identity.exists():
        return examine_run(folder)
    return examine_machine(target, overrides)
