"""What every prompt source promises, found by family: a new file is tested with no edit here.

A source that reads something gets it from `settings_of`; one that is not listed is tried with its defaults.
"""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.prompts.source import PROMPT_SOURCES, is_safe_id
from policies.base.component import create
from policies.base.records import Prompt
from tests.support.heavy_imports import loaded_by

NAMES = list(PROMPT_SOURCES.members())
HEAVY = (
    "torch",
    "vllm",
    "ray",
    "mlflow",
    "trl",
    "datasets",
    "math_verify",
    "reasoning_gym",
    "pyarrow",
)


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"What is {i}\u00d71?", "answer": i} for i in range(20)]
    lines, table = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), table)
    settings: dict[str, dict[str, Any]] = {
        "jsonl": {"path": str(lines)},
        "parquet": {"path": [str(table)]},
        "huggingface": {"path": str(table), "cache_dir": str(folder / "cache")},
        "reasoning_gym": {"dataset": "spell_backward", "size": 10, "seed": 4},
    }
    return {"type": name, **settings.get(name, {})}


def load(name: str, folder: Path) -> list[Prompt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other people's libraries say when they are imported
        prompts: list[Prompt] = create(PROMPT_SOURCES.parse(settings_of(name, folder))).load()
    return prompts


def test_there_are_sources_to_test() -> None:
    shipped = {"jsonl", "parquet", "huggingface", "reasoning_gym", "arithmetic", "tool_arithmetic"}
    assert shipped <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_unique_safe_and_askable(name: str, tmp_path: Path) -> None:
    prompts = load(name, tmp_path)
    assert prompts
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert is_safe_id(prompt.id)
        assert prompt.messages[-1].role != "assistant"
        assert all(message.content.strip() for message in prompt.messages)
        assert Prompt.model_validate_json(prompt.model_dump_json()) == prompt
        json.dumps([prompt.answer, prompt.metadata], allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_settings_give_the_same_prompts(name: str, tmp_path: Path) -> None:
    assert load(name, tmp_path) == load(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str, tmp_path: Path) -> None:
    config = PROMPT_SOURCES.parse(settings_of(name, tmp_path))
    assert PROMPT_SOURCES.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="no_such_setting"):
        PROMPT_SOURCES.parse({**settings_of(name, tmp_path), "no_such_setting": 1})


def test_importing_sources_loads_nothing_heavy() -> None:
    code = (
        "from orchestrator.prompts.source import PROMPT_SOURCES\n"
        "import orchestrator.prompts.draw, orchestrator.prompts.overlap\n"
        "for name in PROMPT_SOURCES.members(): PROMPT_SOURCES.resolve(name)"
    )
    assert loaded_by(code, HEAVY) == []
