"""From a config's name or path, and overrides, to a checked `RunConfig`. Imports nothing heavy.

Relative files in a config are taken from the config's own folder; those in an override from the current
folder, where it was typed. `${NAME}` in a string is the environment variable; `$${` is a plain `${`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.config.errors import Origins, Problem, configuration_error
from orchestrator.config.overrides import apply_override
from orchestrator.config.plug_ins.configs import checked_outside
from orchestrator.config.run_config import RunConfig
from orchestrator.config.strict_yaml import KeyPath, parse_yaml, read_config_text
from orchestrator.config.tracking_uri import absolute_uri
from orchestrator.config.values import PATH_KEYS, unusable_texts
from policies.base.errors import ConfigurationError
from policies.base.redaction import (
    looks_like_a_secret,
    names_a_secret,
    redact_secrets,
    remember,
    secret_variables,
)

_FILE_COMPONENT = re.compile(r"^\.{1,2}/.+\.py(:\w+)?$")
_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


_SOURCE_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class LoadedConfig(NamedTuple):
    """A checked config, with what it came from."""

    config: RunConfig
    raw: dict[str, Any]
    """The tree as written, with overrides applied and files made absolute, before variables were filled in."""
    source: str
    """The text of the file, with the overrides as comments at its end."""


def load_config(name: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read, override, resolve and check a config.

    Args:
        name: path of a YAML file, or the name of a shipped config.
        overrides: `training.loss.beta=0.2`, `verifiers.0.type=exact_match`, `verifiers=[{type: x}]`.

    Raises:
        ConfigurationError: anything is wrong; all problems are listed, one a line.
    """
    path = find_config(name)
    text = read_config_text(path)
    parsed = parse_yaml(text, name=path.name)
    if parsed.value is None:
        raise ConfigurationError(
            f"config: {path} is empty. Fix: start from a shipped one, e.g. `pawl plan quickstart`"
        )
    if not isinstance(parsed.value, dict):
        raise ConfigurationError(
            f"config: {path} holds a {type(parsed.value).__name__}, not `key: value` lines. Fix: "
            "start from a shipped config"
        )
    tree: dict[str, Any] = resolve_references(parsed.value, path.resolve().parent)
    origins: Origins = {where: f"Set in {path.name}:{line}" for where, line in parsed.lines.items()}
    for text_of_override in overrides:
        apply_override(
            tree, origins, text_of_override, lambda v, key: resolve_references(v, Path.cwd(), key)
        )
    config = validate_tree(tree, origins)
    lines = [f"# override: {o}\n" for o in overrides]
    return LoadedConfig(
        config,
        tree,
        redact_secrets(text + ("\n" if lines and not text.endswith("\n") else "") + "".join(lines)),
    )


def validate_tree(tree: dict[str, Any], origins: Origins) -> RunConfig:
    """Check a tree of plain values.

    Raises:
        ConfigurationError: all its problems, one a line.
    """
    found = list(unusable_texts(tree))
    if found:
        raise configuration_error(found, origins)
    found = list(_literal_secrets(tree))
    expanded = expand_variables(tree, found)
    config, problems = checked_outside(expanded)
    found += problems
    if found or config is None:
        raise configuration_error(found, origins)
    return config


def find_config(name: str) -> Path:
    """The file called `name`: a path, or a shipped config.

    Raises:
        ConfigurationError: there is none; the message lists the shipped ones.
    """
    if "\0" in name or not name.strip():
        raise ConfigurationError(
            f"config: {name!r} is not a file name. Fix: give a path or the name of a shipped config"
        )
    try:
        path = Path(name).expanduser()
        there = path.exists() or path.is_symlink()
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise ConfigurationError(
            f"config: cannot read {name[:200]} ({said or error}). Fix: give a path, or the "
            "name of a shipped config"
        ) from None
    shipped = shipped_configs()
    if path.suffix not in (".yaml", ".yml") and name in shipped:
        return shipped[name]
    if there:
        return path
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigurationError(
        f"config: cannot read {name} (no such file{hint}). Fix: give a path, or a shipped config: "
        f"{', '.join(shipped)}"
    )


def shipped_configs() -> dict[str, Path]:
    """Names and files of the configs that come with Pawl."""
    folder = _SOURCE_CONFIGS
    if not (folder / "quickstart.yaml").is_file():
        try:
            # A folder of data without __init__.py: a namespace package, which has a path but no file.
            folder = Path(next(iter(import_module("orchestrator.shipped_configs").__path__)))
        except ModuleNotFoundError:
            return {}
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def resolve_references(value: Any, base: Path, key: str = "") -> Any:
    """Make `./file` and `../file` absolute, where a file is meant (see `PATH_KEYS`)."""
    if isinstance(value, dict):
        return {k: resolve_references(v, base, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve_references(v, base, key) for v in value]
    if not isinstance(value, str) or not value.startswith(("./", "../")):
        return value
    if key not in PATH_KEYS and not _FILE_COMPONENT.match(value):
        return value
    file, colon, attribute = value.rpartition(":") if ".py:" in value else (value, "", "")
    return os.path.normpath(base / file) + colon + attribute


def expand_variables(
    value: Any,
    problems: list[Problem],
    environment: Mapping[str, str] = os.environ,
    path: KeyPath = (),
) -> Any:
    """Replace `${NAME}` in strings; an unset variable is added to `problems`."""
    if isinstance(value, dict):
        return {k: expand_variables(v, problems, environment, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [expand_variables(v, problems, environment, (*path, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        if match[2] not in environment:
            problems.append(
                Problem(
                    path,
                    f"environment variable {match[2]} is not set",
                    fix=f"export {match[2]}=..., or write $${{ for a plain ${{",
                )
            )
        found = environment.get(match[2], "")
        if secret or match[2] in secret_variables(environment):
            remember(found, match[2])
        return found

    secret = any(names_a_secret(str(key)) for key in path[-2:])
    return _VARIABLE.sub(one, value)


def _literal_secrets(value: Any, path: KeyPath = ()) -> list[Problem]:
    """Secrets written out in the config: they would be copied into the run folder."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _literal_secrets(v, (*path, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _literal_secrets(v, (*path, i))]
    if not isinstance(value, str) or not value or not path:
        return []
    held = [name for name, secret in secret_variables().items() if secret in value]
    if held:
        what = f"holds the value of the environment variable {held[0]}"
        return [Problem(path, what, fix=f"write ${{{held[0]}}} here")]
    named = names_a_secret(str(path[-1])) and not _VARIABLE.search(value)
    if not named and not looks_like_a_secret(value):
        return []
    return [
        Problem(
            path,
            "a secret is written out in the config",
            fix="put it in the environment and write ${NAME} here",
        )
    ]


def resolve_tracking(config: RunConfig, cwd: Path) -> RunConfig:
    """Anchor a relative SQLite `tracking.uri` at `cwd`: the folder that the run is launched from."""
    uri = absolute_uri(config.tracking.uri, cwd.resolve())
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"tracking": tracking})
