"""What a piece of code imports, seen from a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(code: str, packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are loaded after `code` has run."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import sys\n{code}\nprint(*(p for p in {tuple(packages)!r} if p in sys.modules))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
