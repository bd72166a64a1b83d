"""What the driver does with a worker's drafts, for tests that call workers directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.storage.artifacts import Written, commit


def committed(written: Written) -> dict[str, Any]:
    """Finish the drafts where they lie; returns the summary."""
    for place, draft in enumerate(written.files):
        commit(draft, Path(draft.path), summary=written.summary if place == 0 else None)
    return dict(written.summary)
