"""Keeps the garbage collector of a long test process from walking through what it imported, over and over.

Every update of a training engine collects garbage, so that a model's memory is given back. Beside a hundred libraries
that takes longer than the update of a tiny model: a million objects are looked at that no test ever frees.
"""

from __future__ import annotations

import gc
import sys

MANY_MODULES = 100
"""So many newly imported modules are worth setting aside."""

_num_modules = 0


def pytest_runtest_setup() -> None:
    """Set aside what is alive before a test: what was imported, for the most part."""
    global _num_modules
    if len(sys.modules) > _num_modules + MANY_MODULES:
        _num_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Give all of it back, so that libraries which count what they leave at exit find nothing."""
    gc.unfreeze()
