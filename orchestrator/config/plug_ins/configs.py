"""Configs that name plug-ins: checked in the process of the plug-ins, and read here with stand-ins in their places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.checked import checked
from orchestrator.config.errors import Problem
from orchestrator.config.plug_ins.host import IMPORT_SECONDS, HostSettings, PlugInLostError, ask
from orchestrator.config.plug_ins.messages import Question
from orchestrator.config.run_config import RunConfig
from orchestrator.config.strict_yaml import KeyPath
from policies.base.component import installed_points
from policies.base.errors import ConfigurationError
from policies.plug_ins.plugin_code import PlugInCode
from policies.plug_ins.stand_ins import PlugInFacts, StandIns

_REFERENCE = re.compile(r"(?s).+\.py:\w+|[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MOST_IMPORT_SECONDS = 3600.0
CONFIG_SECONDS = 120.0
"""Longest time to check a config once its plug-ins are imported."""


def checked_outside(tree: dict[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    """Return what `checked` says of a tree, without an import of any plug-in in this process.

    A tree that names none is checked here, at once.
    """
    if not names_code(tree):
        return checked(tree)
    try:
        told = ask(Question.CONFIG, {"tree": tree}, host_settings(tree), seconds=CONFIG_SECONDS)
    except PlugInLostError as error:
        paths = _paths_of(tree, error.reference) or [()]
        return None, [Problem(paths[0], error.what, value=error.reference, fix=error.fix)]
    except ConfigurationError as error:
        what, _, fix = str(error).partition("Fix: ")
        return None, [Problem((), what, fix=fix)]
    if "config" not in told:
        return None, [Problem.from_json(p) for p in told["problems"]]
    known = StandIns(
        [PlugInFacts.model_validate(f) for f in told["facts"]],
        {name: PlugInCode.model_validate(code) for name, code in told["code"].items()},
    )
    with known.watching():
        config = RunConfig.model_validate(told["config"])
    return config, []


def host_settings(tree: Mapping[str, Any]) -> HostSettings:
    """Tell how the process is started for this config; what is wrong in it is found later."""
    cluster = tree.get("cluster")
    cluster = cluster if isinstance(cluster, Mapping) else {}
    seconds = cluster.get("import_timeout_seconds")
    usable = isinstance(seconds, (int, float)) and 0 < seconds <= _MOST_IMPORT_SECONDS
    passed = cluster.get("pass_secrets")
    keep = [n for n in passed if isinstance(n, str)] if isinstance(passed, (list, tuple)) else []
    return HostSettings(float(seconds) if usable and seconds else IMPORT_SECONDS, tuple(keep))


def settings_of(config: RunConfig) -> HostSettings:
    """The same of a config that was read."""
    return HostSettings(config.cluster.import_timeout_seconds, config.cluster.pass_secrets)


def names_code(tree: Mapping[str, Any]) -> bool:
    """Tell whether a tree may name a plug-in; a mistake costs a process, no more."""
    return any(_code_in(tree))


def _code_in(value: Any, key: object = "") -> Iterator[bool]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _code_in(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_in(inner, key)
    elif isinstance(value, str) and (
        _REFERENCE.fullmatch(value) or value == "callable" or value in installed_points()
    ):
        yield True


def _paths_of(value: Any, reference: str, path: KeyPath = ()) -> list[KeyPath]:
    """Tell where in the tree `reference` stands."""
    if isinstance(value, Mapping):
        return [p for k, v in value.items() for p in _paths_of(v, reference, (*path, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _paths_of(v, reference, (*path, i))]
    same = isinstance(value, str) and value in (reference, reference.rpartition(":")[2])
    return [path] if same and reference else []
