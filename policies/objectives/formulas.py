"""Decides who computes a loss: our formula, or TRL's spelling of it where the class that defines the formula also gives
one.

A subclass that changes a formula inherits the spelling of its parent, which then says something else.
"""

from __future__ import annotations

_NO_FORMULA = frozenset({"trl", "Config", "config", "kind", "kind_name"})
"""What a class may define without changing what is computed: settings with other defaults, and the spelling itself."""


def defines_formula(owner: type) -> bool:
    """True if a class body holds anything that a formula can depend on: methods, properties, constants, `__init__`."""
    return any(
        name == "__init__" or not name.startswith("__")
        for name in vars(owner)
        if name not in _NO_FORMULA
    )


def trl_spells(loss: type) -> bool:
    """Tell whether the class that defines the formula of `loss` last defines `trl()` too.

    Example: true of `Hinge`, and of a subclass of it that only changes the default of beta; false of a subclass that
    overrides `of_scores` or a constant that the formula reads, and of one that overrides `trl()` alone.
    """
    formula = next((c for c in loss.__mro__ if defines_formula(c)), object)
    spelling = next((c for c in loss.__mro__ if "trl" in vars(c)), None)
    # The bases of `policies.objectives.loss` compute nothing; their `trl()` only gives a trainer something to be made
    # with.
    return formula is spelling and formula.__module__ != "policies.objectives.loss"
