"""How every attack ended, by backend, and the table of it."""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Mapping

from tests.attacks.host_programs import ATTACKS
from workers.sandbox.settings import SandboxResult, SandboxStatus

ENDINGS: dict[str, dict[str, str]] = {}
"""Backend (with what was taken off) to attack to how it ended."""


def note(column: str, attack: str, result: SandboxResult, reached: list[str]) -> None:
    """Keep how one attack ended for the table."""
    ENDINGS.setdefault(column, {})[attack] = "REACHED" if reached else held_by(result)


LEGEND = (
    "EPERM, ENOSYS: the filter of system calls. EACCES: Landlock or file modes. ENOENT: not in the namespace. "
    "ENOMEM, EFBIG, ENOSPC, a limit, an exception: resource limits. killed, ... limit: ended from outside. "
    "REACHED: nothing held it, as it must be where the layer was taken off."
)


def held_by(result: SandboxResult) -> str:
    """What stopped an attack, in a word or two."""
    last = (result.error.strip().splitlines() or [""])[-1]
    if result.status is SandboxStatus.OK:
        return "ran to its end in vain"
    if result.status is not SandboxStatus.RAISED:
        return result.status.value.replace("_", " ")
    found = re.search(r"\[Errno (\d+)\]", last)
    return errno.errorcode[int(found[1])] if found else last.partition(":")[0][:30]


def table(endings: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A row per attack and a row per class with counts, in Markdown."""
    columns = list(endings)
    lines = [f"| attack | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    reached: Counter[str] = Counter()
    for group, attacks in ATTACKS.items():
        for attack in attacks:
            cells = [endings[column].get(attack.name, "") for column in columns]
            lines.append(f"| {group}: {attack.name} | {' | '.join(cells)} |")
            for column, cell in zip(columns, cells, strict=True):
                reached[column] += cell.startswith("REACHED")
    cells = [f"{reached[column]} of {len(endings[column])}" for column in columns]
    return [*lines, f"| **reached its aim** | {' | '.join(cells)} |"]
