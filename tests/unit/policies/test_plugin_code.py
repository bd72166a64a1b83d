"""What a plug-in is made of: all that it loads from its own folder, now or later, and nothing that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.plug_ins.plugin_code import PlugInCode, changes, code_of, codes_of, now

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files by name (`pkg__sub` is `pkg/sub`) below a folder, and returns the folder."""

    def files(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return files


def names(folder: Path) -> list[str]:
    code = code_of(f"{folder}/mine.py:score")
    assert code is not None
    return sorted(code.files)


@pytest.mark.parametrize(
    "line",
    [
        "import other",
        "from other import x",
        "def f():\n    import other",
        "try:\n    import other\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('other')",
        "__import__('other')",
    ],
)
def test_imports_of_every_form_count_at_the_top_and_later(write: Write, line: str) -> None:
    assert names(write(mine=line, other="import third", third="", unused="")) == [
        "mine.py",
        "other.py",
        "third.py",
    ]


def test_packages_and_relative_imports_count_with_their_init(write: Write) -> None:
    folder = write(
        mine="from pkg.deep import part",
        pkg__init="",
        pkg__deep__init="from ..near import x",
        pkg__deep__part="from . import twin",
        pkg__deep__twin="",
        pkg__near="x = 1",
        pkg__unused="",
    )
    assert names(folder) == [
        "mine.py",
        "pkg/__init__.py",
        "pkg/deep/__init__.py",
        "pkg/deep/part.py",
        "pkg/deep/twin.py",
        "pkg/near.py",
    ]


@pytest.mark.parametrize(
    "line", ["import importlib\nimportlib.import_module(name)", "exec(open(name).read())"]
)
def test_a_computed_import_makes_every_source_of_the_folder_count(write: Write, line: str) -> None:
    folder = write(mine=line, a="", b__init="", b__c="")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pyvenv.cfg").write_text("")
    (folder / ".venv" / "lib.py").write_text("")
    assert names(folder) == ["a.py", "b/__init__.py", "b/c.py", "mine.py"]


def test_a_file_that_the_source_names_counts(write: Write) -> None:
    folder = write(mine="WORDS = __file__[:-7] + 'words.txt'\nopen('words.txt')")
    (folder / "words.txt").write_text("a")
    (folder / "other.txt").write_text("a")
    assert names(folder) == ["mine.py", "words.txt"]


def test_changes_are_told_by_file_and_the_folder_itself_does_not_count(
    write: Write, tmp_path: Path
) -> None:
    folder = write(mine="import other, gone", other="", gone="")
    before = code_of(f"{folder}/mine.py:score")
    assert before is not None
    (folder / "other.py").write_text("import new")
    (folder / "new.py").write_text("")
    (folder / "gone.py").unlink()
    after = now(f"{folder}/mine.py:score", before)
    assert changes(before, after) == ["gone.py is gone", "new.py is new", "other.py was edited"]
    assert before.model_copy(update={"root": "/elsewhere"}).digest == before.digest
    assert before.digest != after.digest


def test_a_module_that_shadows_an_installed_one_is_a_change(write: Write) -> None:
    folder = write(mine="import json")
    before = code_of(f"{folder}/mine.py:score")
    assert before is not None
    (folder / "json.py").write_text("")
    assert changes(before, now(f"{folder}/mine.py:score", before)) == ["json.py is new"]


@pytest.mark.parametrize(
    "source",
    [
        "def score(x):\n    with open(__file__[:-7] + 'seen.log', 'a') as log:\n        log.write('x')\n",
        "from pathlib import Path\nLOG = Path(__file__).with_name('seen.log')\nLOG.open(mode='a+')\n",
        "from pathlib import Path\ndef score(x):\n    Path(__file__).with_name('seen.log').write_text('x')\n",
        "import logging\nlogging.FileHandler('seen.log')\n",
    ],
)
def test_a_file_that_a_plug_in_writes_is_no_part_of_it_and_one_that_it_reads_is(
    write: Write, source: str
) -> None:
    folder = write(mine=source + "TABLE = open(__file__[:-7] + 'table.json').read()\n")
    (folder / "seen.log").write_text("")
    (folder / "table.json").write_text("{}")
    before = code_of(f"{folder}/mine.py:score")
    assert before is not None
    assert set(before.files) == {"mine.py", "table.json"}
    (folder / "table.json").write_text("[]")
    assert changes(before, now(f"{folder}/mine.py:score", before)) == ["table.json was edited"]


def test_a_data_file_that_comes_into_being_is_no_change(write: Write) -> None:
    folder = write(mine="CACHE = 'cache.json'\n")
    before = code_of(f"{folder}/mine.py:score")
    assert before is not None
    (folder / "cache.json").write_text("{}")
    assert changes(before, now(f"{folder}/mine.py:score", before)) == []


def test_an_installed_package_counts_by_its_version_and_its_list_of_files() -> None:
    code = code_of("typer.main:Typer")
    assert code is not None
    assert code.package.startswith("typer ")
    assert list(code.files) == ["RECORD"]
    assert changes(code, code.model_copy(update={"package": "typer 0"})) == [
        f"{code.package} became typer 0"
    ]
    other = code.model_copy(update={"files": {"RECORD": "0"}})
    assert changes(code, other) == [f"{code.package} was installed anew with other files"]


def test_a_module_on_the_path_counts_by_its_files(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(graders_of_mine__init="", graders_of_mine__one="import side", side="")
    monkeypatch.syspath_prepend(folder)
    code = code_of("graders_of_mine.one:Grader")
    assert code is not None
    assert sorted(code.files) == [
        "graders_of_mine/__init__.py",
        "graders_of_mine/one.py",
        "side.py",
    ]


def test_functions_inside_of_sections_and_files_that_components_require_are_found(
    write: Write,
) -> None:
    folder = write(mine="")
    (folder / "prompt.txt").write_text("{prompt}")
    config = {
        "rollout": {
            "strategy": {"tools": [{"type": "function", "function": f"{folder}/mine.py:f"}]}
        },
        "cluster": {"address": "head:6379"},
        "verifiers": [{"type": "workers.verify.verifier:Verifier"}],
    }
    found = codes_of(config, required=[str(folder / "prompt.txt")])
    assert sorted(Path(name.partition(":")[0]).name for name in found) == ["mine.py", "prompt.txt"]
    assert all(isinstance(code, PlugInCode) for code in found.values())
