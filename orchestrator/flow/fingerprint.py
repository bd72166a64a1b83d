"""Digests of what files are made from besides other files: settings, policies, and code of the user's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestrator.runs.plug_in_changes import PlugIns
from policies.base.records import PolicyVersion
from policies.base.redaction import redact
from policies.storage.artifacts import file_sha256

PLUG_INS = "plug_ins"
"""Name of the digest of plug-ins among what a file was made from."""
_OWN_FILE = re.compile(r"(?P<path>.+\.py)(:\w+)?")


def input_digests(
    settings: Sequence[BaseModel | Mapping[str, Any] | str | int],
    *policies: PolicyVersion,
    plug_ins: PlugIns | None = None,
) -> dict[str, str]:
    """Digests by name: `settings`, `policy` where policies take part, `plug_ins` where settings name any.

    A run that an older Pawl began has not recorded its plug-ins: `code` is of the files that settings name then.

    Example:
        >>> sorted(input_digests(["r1", 0]))
        ['settings']
    """
    plain = [s.model_dump(mode="json") if isinstance(s, BaseModel) else s for s in settings]
    found = {
        "settings": _digest(redact(plain))
    }  # another value of the same secret is the same setting
    if policies:
        found["policy"] = _digest([p.digest for p in policies])
    if plug_ins is not None and plug_ins.codes:
        named = plug_ins.digests(plain)
        return found | ({PLUG_INS: _digest(named)} if named else {})
    code = {path: file_sha256(Path(path)) for path in sorted(set(_own_files(plain)))}
    if code:
        found["code"] = _digest(code)
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _own_files(value: Any) -> Iterator[str]:
    """Python files that settings name (`./my_verifier.py:score`), wherever in the tree."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _own_files(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _own_files(inner)
    elif isinstance(value, str):
        match = _OWN_FILE.fullmatch(value)
        if match is not None and Path(match["path"]).is_file():
            yield match["path"]
