"""The plan of the house: few rooms, no circles between files or folders, short signatures, plain openings."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("policies", "workers", "orchestrator")
MAX_ROOMS = 12
"""Folders and loose modules on the top floor of a package."""
MAX_POSITIONAL = 5

LONG_SIGNATURES = {
    "orchestrator/cli/inspect.py: show": "options of a command",
    "orchestrator/cli/app.py: plan": "options of a command",
    "orchestrator/cli/run.py: resume": "options of a command",
    "orchestrator/cli/run.py: run": "options of a command",
    "orchestrator/driver/launch.py: _drive": "until phases are handed what they read",
    "orchestrator/inspect/audit/rounds.py: __init__": "until phases are handed what they read",
    "orchestrator/inspect/views/trace.py: _traced": "until verdicts say what they are about",
    "orchestrator/plan/solutions.py: _report": "until components say what they require",
    "policies/objectives/logprobs.py: forward": "a function of torch: its inputs are positional",
    "workers/judge/worker.py: judge": "until calls are request records",
    "workers/rollout/strategies/independent.py: _trajectory": "until attempts have an author",
    "workers/scoring/aggregate.py: aggregate": "until scores are named and combined",
    "workers/verify/worker.py: prefer": "until calls are request records",
}
"""Functions with more parameters, each with its reason. This list may only shrink."""

OPENINGS = re.compile(r"(What|Whether|Which|When|Where|Who|Whose|How|Why)\b")


@cache
def _modules() -> Mapping[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports() -> Mapping[str, Set[str]]:
    """Modules of ours by the module that imports them, also inside functions and for the type checker alone."""
    known = _modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {m for m in inner if m in known} or {node.module}
    return {name: (needs & known.keys()) - {name} for name, needs in found.items()}


def in_circles(needs: Mapping[str, Set[str]]) -> set[str]:
    """Names that can be reached from themselves."""
    left = {name: set(others) for name, others in needs.items()}
    while ends := {n for n, others in left.items() if not others & left.keys()}:
        left = {n: others for n, others in left.items() if n not in ends}
    while starts := left.keys() - set().union(*left.values(), set()):
        left = {n: others for n, others in left.items() if n not in starts}
    return set(left)


def test_no_file_stands_in_a_circle_of_imports() -> None:
    assert in_circles(_imports()) == set()


def test_no_two_folders_import_each_other() -> None:
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, needs in _imports().items():
        for needed in needs:
            one, other = name.split("."), needed.split(".")
            shared = next(
                (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None
            )
            if shared and len(one) > shared + 1 and len(other) > shared + 1:
                folders = (".".join(one[: shared + 1]), ".".join(other[: shared + 1]))
                arrows[folders].append(f"{name} imports {needed}")
    both_ways = {pair: arrows[pair] for pair in arrows if (pair[1], pair[0]) in arrows}
    assert both_ways == {}
    assert len(arrows) > 40, "the search finds folders that import others"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_floor_of_a_package_has_few_rooms(package: str) -> None:
    rooms = [
        path.name
        for path in sorted((ROOT / package).iterdir())
        if (path.is_dir() and any(path.glob("*.py")))
        or (path.suffix == ".py" and path.name != "__init__.py")
    ]
    assert len(rooms) <= MAX_ROOMS, rooms


def _long_signatures() -> Iterator[str]:
    for path in _modules().values():
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                own = names[:1] in (["self"], ["cls"])
                if len(names) - own > MAX_POSITIONAL:
                    yield f"{path.relative_to(ROOT).as_posix()}: {node.name}"


def test_at_most_five_parameters_can_be_given_by_position() -> None:
    assert set(_long_signatures()) == set(LONG_SIGNATURES)


@pytest.mark.parametrize(
    "path",
    [
        *_modules().values(),
        *sorted((ROOT / "scripts").glob("*.py")),
        *sorted((ROOT / "benchmarks").glob("*.py")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_docstring_opens_with_a_verb_or_a_noun(path: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    opened = [
        text.splitlines()[0]
        for node in ast.walk(_tree(path))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
    ]
    assert [line for line in opened if OPENINGS.match(line)] == []


def test_the_search_for_circles_finds_them() -> None:
    needs = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert in_circles(needs) == {"b", "c"}
