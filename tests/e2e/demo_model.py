"""The real demo model for end-to-end tests: from the cache that scripts/install fills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.config.model_files import DEMO_MODEL, cache_dir


def demo_model() -> Path:
    """Its directory. Without it the test is skipped, but never in CI, which must have it."""
    path = cache_dir() / "models" / DEMO_MODEL
    if not (path / "model.safetensors").is_file():
        reason = f"no demo model at {path}; run scripts/install"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
