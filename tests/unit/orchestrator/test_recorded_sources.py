"""A run reads its prompts again from the copy of its config: what the user left open stays open there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import create
from policies.base.records import Prompt

ROWS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"prompt": "7*8?", "answer": 56}, {"prompt": "2*3?", "answer": 6}],
    "no-answer": [{"prompt": "Tell me a joke."}],
    "gsm8k": [{"question": "7*8?", "answer": "It is 56.\n#### 56"}],
    "chat": [{"messages": [{"role": "user", "content": "7*8?"}], "answer": "56"}],
    "verl": [
        {
            "prompt": [{"role": "user", "content": "7*8?"}],
            "data_source": "table",
            "reward_model": {"ground_truth": "56"},
        }
    ],
}


def load(config: Any) -> list[Prompt]:
    prompts: list[Prompt] = create(config).load()
    return prompts


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_read_alike_from_a_config_and_from_its_recorded_copy(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    config = PROMPT_SOURCES.parse({"type": "jsonl", "path": str(path)})
    recorded = json.loads(json.dumps(config.model_dump(mode="json")))
    again = PROMPT_SOURCES.parse(recorded)
    assert load(again) == load(config)
    assert again.model_dump(mode="json") == recorded


def test_a_named_column_must_be_there_also_in_the_recorded_copy(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "7*8?"}) + "\n")
    config = PROMPT_SOURCES.parse(
        {"type": "jsonl", "path": str(path), "columns": {"answer": "gold"}}
    )
    for one in (config, PROMPT_SOURCES.parse(config.model_dump(mode="json"))):
        with pytest.raises(Exception, match="no 'gold'"):
            load(one)


def test_the_full_columns_that_older_versions_recorded_are_read_as_they_read_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Tell me a joke."}) + "\n")
    columns: dict[str, Any] = {
        "prompt": "prompt",
        "messages": None,
        "answer": "answer",
        "id": None,
        "metadata": [],
    }
    recorded = {"type": "jsonl", "path": str(path), "columns": columns}
    (prompt,) = load(PROMPT_SOURCES.parse(recorded))
    assert (prompt.messages[0].content, prompt.answer) == ("Tell me a joke.", None)
