"""Nobody in the orchestrator reads the settings of a component by name: a component says what it requires."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "orchestrator").rglob("*.py"))
BY_NAME = frozenset({"getattr", "hasattr"})


def reads_by_name(source: str) -> Iterator[str]:
    """Calls that read an attribute by its name, and comparisons with the `type` of a component."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            yield ast.unparse(node)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(s, ast.Attribute) and s.attr == "type" for s in sides):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_of_a_component_are_never_read_by_name(path: Path) -> None:
    found = list(reads_by_name(path.read_text(encoding="utf-8")))
    assert found == [], "ask `requires()`, or a method that the family declares"


def test_the_search_finds_what_it_looks_for() -> None:
    source = "getattr(engine, 'size', 1)\nhasattr(b, 'engine')\nx = config.engine.type == 'fake'"
    assert len(list(reads_by_name(source))) == 3
    assert len(SOURCES) > 100
