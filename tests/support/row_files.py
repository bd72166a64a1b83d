"""Small data sets on disk, in every kind of file that a source reads, and what a source makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from orchestrator.prompts.source import PROMPT_SOURCES, PromptSource
from policies.base.component import create
from policies.base.records import Prompt


def source_of(
    folder: Path, rows: Sequence[Any], kind: str = "jsonl", **settings: Any
) -> PromptSource:
    """The source of a file that holds these rows."""
    path = folder / f"rows.{'jsonl' if kind == 'jsonl' else 'parquet'}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    if kind == "huggingface":
        settings["cache_dir"] = str(folder / "cache")
    source: PromptSource = create(
        PROMPT_SOURCES.parse({"type": kind, "path": str(path), **settings})
    )
    return source


def read(folder: Path, rows: Sequence[Any], kind: str = "jsonl", **settings: Any) -> list[Prompt]:
    """The prompts of a file that holds these rows."""
    return source_of(folder, rows, kind, **settings).load()


def pasted(message: str) -> dict[str, Any]:
    """The first setting that a message tells to set (`prompts.*.name: value`), as it is read from YAML."""
    found = re.search(r"prompts\.\*\.([\w.]+): (\[[^\]]*\]|\w+)", message)
    assert found is not None, f"no setting to paste in {message!r}"
    settings: Any = yaml.safe_load(found[2])
    for name in reversed(found[1].split(".")):
        settings = {name: settings}
    assert isinstance(settings, dict)
    return settings
