"""Facts that workers are told of the run folder: where it is, how they see that they share it, what may travel."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policies.base.errors import ConfigurationError, explain

PATIENCE_SECONDS = 10.0
"""How long a shared folder may hide a file that was just written: network file systems show names late."""


@dataclass(frozen=True)
class RunFiles:
    """The run folder as a cluster knows it. Example: `RunFiles(root="/runs/a-1", token_path="...", token="5f..")`."""

    root: str
    token_path: str
    """A file that the driver of this epoch wrote into the folder."""
    token: str
    """What stands in it: random, so that a copy of the folder from elsewhere is not taken for the folder."""
    shared: bool = True
    """Every node must see the folder; off, files travel to and from the nodes that do not."""
    readable: tuple[str, ...] = ()
    """Folders besides `root` that workers may be given files of: models that the run names."""
    writable: tuple[str, ...] = ()
    """Patterns of folders below `root` (`rounds/*/attempts`) in which files of workers are taken in."""
    guard: Callable[[], None] | None = None
    """Raises when the driver of this epoch does not hold the run any more; must pickle."""
    timeout_seconds: float = 60.0
    """Longest wait for one piece of a file (`cluster.transfer_timeout_seconds`)."""

    def seen_here(self) -> bool:
        """Tell whether this process sees the run folder itself."""
        expected = json.dumps(self.token)
        deadline = time.monotonic() + (PATIENCE_SECONDS if self.shared else 0.0)
        while True:
            try:
                if Path(self.token_path).read_text(encoding="utf-8") == expected:
                    return True
            except OSError:  # not there, or not readable: not shared
                pass
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)

    def not_shared(self, where: str) -> ConfigurationError:
        """The error for a node that should see the folder and does not."""
        return ConfigurationError(
            explain(
                f"{where} does not see the run folder {self.root}, and its workers could neither read their work nor "
                "hand it in",
                value=self.shared,
                where="cluster.shared_folder",
                fix="put the run folder on storage that every node mounts at this path; or set "
                "cluster.shared_folder: false, and files travel through Ray",
            )
        )
