"""Overrides of a config from the command line: `training.loss.beta=0.2`, `verifiers.0.type=exact_match`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from orchestrator.config.errors import Origins, model_at
from orchestrator.config.run_config import RunConfig
from orchestrator.config.strict_yaml import MAX_DEPTH, KeyPath, parse_yaml
from policies.base.component import FamilyField
from policies.base.errors import ConfigurationError

Resolve = Callable[[Any, str], Any]
"""Makes the files in an override's value absolute; gets the value and the key it stands under."""


def apply_override(tree: dict[str, Any], origins: Origins, text: str, resolve: Resolve) -> None:
    """Set one value in `tree`, and remember in `origins` where it was set.

    A path may go through a bare component name: `rollout.engine.x=1` turns `engine: vllm` into
    `engine: {type: vllm, x: 1}`. An index one past the end of a list appends.

    Raises:
        ConfigurationError: it is not `key=value`, or the path cannot exist.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigurationError(
            f"override {_shown(text)!r} is not key=value. Fix: write e.g. training.loss.beta=0.2"
        )
    if len(parts) > MAX_DEPTH:
        raise ConfigurationError(
            f"override {key[:60]!r}... leads {len(parts)} levels down. Fix: write e.g. training.loss.beta=0.2"
        )
    value = parse_yaml(value_text, name=f"override {key[:200]}").value
    path: list[str | int] = []
    here: Any = tree
    for part, following in pairwise(parts):
        step = _step(here, part, text)
        here = _enter(here, step, following, tuple(path))
        path.append(step)
    last = _step(here, parts[-1], text)
    path.append(last)
    resolved = resolve(value, _nearest_key(path))
    if isinstance(here, list) and last == len(here):
        here.append(resolved)
    else:
        here[last] = resolved
    _forget_below(origins, tuple(path))
    origins[tuple(path)] = f"Set on the command line by {key}="


def _shown(text: str) -> str:
    """An override for a message: its value may be a secret, so only the key."""
    return text.split("=", 1)[0][:200]


def _nearest_key(path: list[str | int]) -> str:
    return next((p for p in reversed(path) if isinstance(p, str)), "")


def _step(here: Any, part: str, text: str) -> str | int:
    """`part` as a key or an index of `here`, checked."""
    if isinstance(here, dict):
        return part
    if isinstance(here, list):
        if part.isdecimal() and len(part) < 10 and int(part) <= len(here):
            return int(part)
        raise ConfigurationError(
            f"override {_shown(text)!r}: {part!r} is not an index of a list of {len(here)}. Fix: "
            f"use 0 to {len(here)}"
        )
    raise ConfigurationError(
        f"override {_shown(text)!r}: nothing can be set below {here!r}. Fix: check the path with "
        "`pawl validate`"
    )


def _enter(here: Any, step: str | int, following: str, path: KeyPath) -> Any:
    """The container at `step` of `here`, which stands at `path`; made where there is none yet."""
    there: Any
    if isinstance(here, list):
        there = here[int(step)] if int(step) < len(here) else None
    else:
        there = here.get(step)
    if isinstance(there, str):
        there = {"type": there}
    elif there is None:
        there = [] if following == "0" else _default_component(path, step)
    if isinstance(here, list) and step == len(here):
        here.append(there)
    else:
        here[step] = there
    return there


def _default_component(path: KeyPath, step: str | int) -> dict[str, Any]:
    """Return what an absent section starts from: `{type: dpo}` where a component has a default, else nothing."""
    section = model_at(RunConfig, path)
    field = section.model_fields.get(str(step)) if section is not None else None
    if (
        field is None
        or field.is_required()
        or not any(isinstance(m, FamilyField) for m in field.metadata)
    ):
        return {}
    return {"type": field.get_default(call_default_factory=True).type}


def _forget_below(origins: Origins, path: KeyPath) -> None:
    for known in [p for p in origins if p[: len(path)] == path]:
        del origins[known]
