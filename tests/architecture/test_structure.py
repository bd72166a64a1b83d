"""The shape of the code: one arrow, third parties behind walls, budgets, and what may wait."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.heavy_imports import loaded_by

ROOT = Path(__file__).parents[2]
PACKAGES = ("policies", "workers", "orchestrator", "pawl")
ALLOWED = {
    "policies": {"policies"},
    "workers": {"policies", "workers"},
    "orchestrator": {"policies", "workers", "orchestrator"},
    "pawl": {"policies", "workers", "orchestrator"},
}
WALLS = {
    "ray": {
        "workers/cluster/ray/cluster.py",
        "workers/cluster/ray/failures.py",
        "workers/cluster/ray/group.py",
        "workers/cluster/ray/host.py",
        "workers/cluster/ray/processes.py",
        "workers/cluster/ray/session.py",
    },
    "vllm": {"workers/rollout/engines/vllm.py"},
    "mlflow": {"orchestrator/tracking/mlflow_client.py"},
    "trl": {"workers/training/engines/trl.py"},
    "httpx": {"workers/judge/backends/openai.py"},
    "math_verify": {"workers/verify/mathematics/symbolic_child.py"},
}
HEAVY = (
    "ray",
    "vllm",
    "torch",
    "mlflow",
    "trl",
    "transformers",
    "datasets",
    "reasoning_gym",
    "peft",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def _sources(*tops: str) -> list[Path]:
    return [p for top in tops for p in sorted((ROOT / top).rglob("*.py"))]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrow_orchestrator_workers_policies(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(package)
        for name in _imports(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in ALLOWED[package]
    ]
    assert wrong == []


def _imports_at_run_time(node: ast.AST) -> Iterator[str]:
    """Modules that are imported, also inside functions, but not for the type checker alone."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports_at_run_time(child)


def test_no_module_imports_what_imports_it() -> None:
    module_of = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in _sources(*PACKAGES)
    }
    left = {
        name: {m for m in _imports_at_run_time(_tree(path)) if m in module_of and m != name}
        for name, path in module_of.items()
    }
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize(("library", "homes"), WALLS.items())
def test_each_third_party_stands_behind_one_module(library: str, homes: set[str]) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in _sources(*PACKAGES)
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert found == homes, f"{library} belongs in {homes}"


def test_config_and_every_component_import_nothing_heavy() -> None:
    code = (
        "import orchestrator.config.run_config, orchestrator.cli.app, orchestrator.driver.launch\n"
        "from orchestrator.config.families import FAMILIES\n"
        "for family in FAMILIES:\n"
        "    for name in family.members(): family.resolve(name)"
    )
    assert loaded_by(code, HEAVY) == []


@pytest.mark.parametrize(
    "path",
    _sources(*PACKAGES, "tests", "scripts", "benchmarks"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_and_functions_stay_within_their_budgets(path: Path) -> None:
    assert path.name not in FORBIDDEN_NAMES, "name the file after what is in it"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split it by what it does"
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    "path", _sources(*PACKAGES, "scripts", "benchmarks"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(_tree(path)), "a module opens with a sentence"


@pytest.mark.parametrize("path", _sources("tests"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_can_fail(path: Path) -> None:
    checks = ("assert", "raises(", "warns(", "check_", "expect")
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            body = ast.unparse(node)
            assert any(word in body for word in checks), f"{node.name} asserts nothing"


def test_committed_text_names_no_machine_and_no_secret() -> None:
    needles = [
        "/".join(("", "work", "main")),
        "/".join(("", "opt", "pypi")),
        "/".join(("", "opt", "wheels")),
    ]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.splitlines()
    found = []
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2_000_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {needle}" for needle in needles if needle in text]
    assert found == []
