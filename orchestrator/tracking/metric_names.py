"""Names and values in the form that MLflow accepts: pure functions, no MLflow import.

MLflow refuses a whole batch for one bad name, so nothing leaves Pawl before it passed here.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.config.tracking_uri import redact
from policies.base.plain_text import clean_text

MAX_NAME = 250
"""Longest name of a metric, parameter or tag."""
MAX_PARAM = 6000
"""Longest value of a parameter."""
MAX_TAG = 8000
"""Longest value of a tag."""

_PLAIN_METRIC = re.compile(r"[A-Za-z0-9_./ :@-]+")
_FOREIGN = re.compile(r"[^A-Za-z0-9_./ :-]")


def clean_name(name: str) -> str:
    """A name that MLflow accepts; different names stay different.

    `@` becomes `_at_`, because MLflow has no `@` and `pass@1` is the most looked-at curve. Any other name
    that has to be changed gets a short hash of the original, so that two of them never fall together.

    Example:
        >>> clean_name("eval/pass@1")
        'eval/pass_at_1'
    """
    if _PLAIN_METRIC.fullmatch(name):
        plain = name.replace("@", "_at_")
        if len(plain) <= MAX_NAME and _is_plain_path(plain):
            return plain
    mark = "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    safe = _FOREIGN.sub("_", name)
    parts = [part for part in safe.split("/") if part not in ("", ".", "..")]
    return ("/".join(parts) or "_")[: MAX_NAME - len(mark)] + mark


def _is_plain_path(name: str) -> bool:
    """MLflow refuses names that, read as file paths, would mean another file."""
    return posixpath.normpath(name) == name and name != "." and not name.startswith(("..", "/"))


def clean_metrics(values: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics with accepted names, and the names of those left out: not a finite number.

    Example:
        >>> clean_metrics({"kl": 0.1, "train/loss": float("nan")})
        ({'kl': 0.1}, ['train/loss'])
    """
    kept: dict[str, float] = {}
    dropped: list[str] = []
    for name, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            kept[clean_name(name)] = float(value)
        else:
            dropped.append(name)
    return kept, dropped


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters; a cut text ends with a hash of the whole, so two stay apart."""
    if len(text) <= limit:
        return text
    mark = f"... sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return text[: limit - len(mark)] + mark


def flatten_params(tree: Mapping[str, Any]) -> dict[str, str]:
    """A resolved config as flat parameters: `training.loss.beta` -> `0.1`; passwords in addresses removed."""
    flat: dict[str, str] = {}
    _flatten(tree, "", flat)
    return flat


def _flatten(value: Any, path: str, into: dict[str, str]) -> None:
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            _flatten(inner, f"{path}.{key}" if path else str(key), into)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            _flatten(inner, f"{path}.{index}", into)
    else:
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        )
        into[clean_name(path)] = shorten(clean_text(redact(text)), MAX_PARAM)


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with accepted names and lengths; empty ones are left out."""
    return {
        clean_name(name): shorten(clean_text(redact(value)), MAX_TAG)
        for name, value in tags.items()
        if value
    }
