"""Keeps secrets out of what is written and shown: known values, and texts that look like tokens.

A value is known as a secret when it stands in an environment variable or a setting whose name says so, or came
into a config by `${NAME}`. What a model wrote is not searched: it never saw them.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

MIN_LENGTH = 6
"""Shorter values are not searched for: they would be found in ordinary words."""

_SETTINGS = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|secret_?key|private_?key|token|secret|password|passwd|passphrase|credentials?"
    r"|authorization)$",
    re.IGNORECASE,
)
_VARIABLES = re.compile(
    r"^(?!.*_(?:PATH|FILE|DIR|ENV|ID|NAME|URL)$)"
    r"(?:.*_)?(?:KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PAT)(?:_|$)"
)
"""Not the names of where a secret is: RAY_AUTH_TOKEN_PATH."""
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|xox[abpr]-[A-Za-z0-9-]{10,}"
    r"|AKIA[0-9A-Z]{16}|AIza[A-Za-z0-9_-]{30,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
)
"""Tokens of well-known services, wherever they come from."""
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_USER_PART = re.compile(r"(?<=://)[^/\s'\"@]*:[^/\s'\"]*@")
_HIDDEN = "***"

_known: dict[str, str] = {}
"""Secret values, each with the variable that it came from, or an empty text."""
_lock = threading.Lock()


def names_a_secret(name: str) -> bool:
    """Tell whether a setting of this name holds a secret.

    Example:
        >>> [names_a_secret(n) for n in ("api_key", "judge_token", "api_key_env", "max_tokens", "metadata_key")]
        [True, True, False, False, False]
    """
    return _SETTINGS.search(name) is not None


def looks_like_a_secret(text: str) -> bool:
    """Tell whether a text has the form of a token of a well-known service."""
    return _SHAPES.search(text) is not None


def remember(value: str, variable: str = "") -> None:
    """From now on `value` is a secret in this process; `variable` is the environment variable that it came from."""
    if len(value) >= MIN_LENGTH:
        with _lock:
            _known[value] = variable or _known.get(value, "")


def secret_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables that hold secrets, by name."""
    given = os.environ if environment is None else environment
    return {n: v for n, v in given.items() if _is_secret_variable(n) and len(v) >= MIN_LENGTH}


@functools.lru_cache(maxsize=4096)
def _is_secret_variable(name: str) -> bool:
    """Asked for every variable at every event, and the names hardly ever change."""
    return _VARIABLES.search(name) is not None


def redact_secrets(text: str) -> str:
    """`text` without secrets: known values, tokens by their form, passwords in addresses."""
    with _lock:
        values = set(_known)
    values.update(secret_variables().values())
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    text = _SHAPES.sub(_HIDDEN, text)
    text = _BEARER.sub(lambda found: f"{found[1]} {_HIDDEN}", text)
    return _USER_PART.sub(f"{_HIDDEN}@", text)


def redact_values(value: Any) -> Any:
    """A tree of plain values with every text redacted."""
    if isinstance(value, str):
        return redact_secrets(value)
    if isinstance(value, Mapping):
        return {key: redact_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(inner) for inner in value]
    return value


def redact(value: Any) -> Any:
    """A tree of plain values as it may be written: secrets that came by `${NAME}` are `${NAME}` again.

    A `${` that is meant as it stands becomes `$${`, so that `${NAME}` can be filled in when the tree is read.
    """
    if isinstance(value, str):
        return _sealed(value)
    if isinstance(value, Mapping):
        return {key: redact(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(inner) for inner in value]
    return value


def _sealed(text: str) -> str:
    with _lock:
        named = {value: name for value, name in _known.items() if name}
    if not named:
        return text.replace("${", "$${")
    # One pass from left to right: what was put in is not searched again.
    pattern = re.compile("|".join(re.escape(v) for v in sorted(named, key=len, reverse=True)))
    parts: list[str] = []
    end = 0
    for match in pattern.finditer(text):
        parts += [text[end : match.start()].replace("${", "$${"), f"${{{named[match[0]]}}}"]
        end = match.end()
    return "".join([*parts, text[end:].replace("${", "$${")])
