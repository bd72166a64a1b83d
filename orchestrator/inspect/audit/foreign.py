"""Files in an audited run folder that no Pawl wrote: named in a note, and ignored by everything."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.inspect.audit.check import Check
from orchestrator.runs.folder import RunFolder

_SHARDS = (
    r"(prompts\.parquet|(prompts|answers|trajectories|verdicts|judge_verdicts|comparisons|feedback|examples)/"
    r"shard-\d+\.parquet)(\.json)?"
)
_MEASURED = r"((evaluate|final|test|again-\d+)/)?"
_KNOWN = re.compile(
    r"(run|config|driver|activity|fetched)\.json|config\.source\.yaml|journal\.jsonl|events\.jsonl|lock"
    r"|report\.(html|md)|supervise\.log"
    r"|epochs/(\d+\.(json|head|beat)|lock)"
    r"|accepted/\d+\.json|activity/.*|quarantine/.*|removed/\w+-\d+\.json|tracking/(spool\.jsonl|(offset|runs)\.json|lock)"
    r"|judge_cache/worker-[\w-]+\.jsonl"
    r"|policies/\d+/.*"
    rf"|rounds/\d+/({_MEASURED}({_SHARDS}|attempts/.*)|train/(steps\.jsonl|files\.json|outcome\.json"
    r"|optimizer\.safetensors|(candidate|checkpoints)/.*))"
)
_TEMPORARY = re.compile(r"(.*/)?\.[^/]*\.tmp")


def is_known(name: str) -> bool:
    """Tell whether a file of this name, relative to the run folder, may be there.

    Example:
        >>> is_known("rounds/0001/examples/shard-0000.parquet"), is_known("rounds/notes.txt")
        (True, False)
    """
    return bool(_KNOWN.fullmatch(name) or _TEMPORARY.fullmatch(name))


def name_foreign_files(folder: RunFolder, check: Check) -> None:
    """Note what is nobody's. What lies in the folder of a policy is told with its manifest."""
    for path in sorted(folder.path.rglob("*")):
        name = path.relative_to(folder.path).as_posix()
        if not path.is_dir() and not is_known(name):
            check.notes.append(f"{_shown(path)} is nobody's; it is ignored")


def _shown(path: Path) -> str:
    return repr(str(path)) if not str(path).isprintable() else str(path)
