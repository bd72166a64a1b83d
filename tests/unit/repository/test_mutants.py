"""`scripts/mutants` tells breaks that tests notice from those that they do not; a list that does not fit is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "mutants.py"
ENTRY = """
[[mutant]]
name = "{name}"
file = "core.py"
old = "{old}"
new = "{new}"
tests = ["test_core.py"]
"""


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pawl_mutants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pawl_mutants"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository whose test looks at one of two lines."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "core.py").write_text("def add(a, b):\n    return a + b\n\n\nLIMIT = 3\n")
    (root / "test_core.py").write_text(
        "from core import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    )
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def write_list(folder: Path, *entries: tuple[str, str, str]) -> Path:
    path = folder / "list.toml"
    path.write_text("".join(ENTRY.format(name=n, old=o, new=w) for n, o, w in entries))
    return path


def test_a_break_that_no_test_notices_survives_and_the_tree_is_not_touched(
    mutants: ModuleType, tree: Path, tmp_path: Path
) -> None:
    before = (tree / "core.py").read_bytes()
    path = write_list(
        tmp_path,
        ("minus", "a + b", "a - b"),
        ("limit", "LIMIT = 3", "LIMIT = 4"),
        ("broken", "def add", "def ad"),
    )
    found = mutants.run_all(mutants.read_list(path), tree, jobs=2)
    assert {o.mutant.name: o.survived for o in found} == {
        "minus": False,
        "limit": True,
        "broken": False,
    }
    assert (tree / "core.py").read_bytes() == before
    assert sorted(p.name for p in tree.iterdir()) == [".git", "core.py", "test_core.py"]


def test_a_list_that_does_not_fit_is_refused(
    mutants: ModuleType, tree: Path, tmp_path: Path
) -> None:
    gone = mutants.read_list(write_list(tmp_path, ("gone", "a * b", "a - b")))
    with pytest.raises(mutants.MutantError, match=r"gone: its old text stands 0 times in core\.py"):
        mutants.check_fits(gone, tree)
    same = mutants.read_list(write_list(tmp_path, ("same", "a + b", "a + b")))
    with pytest.raises(mutants.MutantError, match="changes nothing"):
        mutants.check_fits(same, tree)
    with pytest.raises(mutants.MutantError, match="stands there twice"):
        mutants.read_list(write_list(tmp_path, ("a", "x", "y"), ("a", "x", "z")))


def test_tests_that_fail_anyway_notice_nothing(
    mutants: ModuleType, tree: Path, tmp_path: Path
) -> None:
    (tree / "test_core.py").write_text("def test_nothing():\n    assert False\n")
    listed = mutants.read_list(write_list(tmp_path, ("minus", "a + b", "a - b")))
    with pytest.raises(mutants.MutantError, match="fails without any change"):
        mutants.run_all(listed, tree, jobs=1)
