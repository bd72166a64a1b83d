"""What a run folder holds is written through `policies.files`: nothing else opens, renames or removes files there."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITERS = {
    "os": {
        "replace",
        "rename",
        "unlink",
        "remove",
        "truncate",
        "fsync",
        "link",
        "rmdir",
        "makedirs",
    },
    "shutil": {"rmtree", "move", "copyfile", "copy", "copy2", "copytree"},
}
METHODS = {"write_text", "write_bytes", "unlink", "rename", "rmdir", "mkdir", "symlink_to", "touch"}
"""Methods of paths. `replace` is left out: strings have it too."""
OPENERS = {"open_to_append", "open_to_change"}
"""Of `policies.files`, for those who have a reason to write by themselves."""

ELSEWHERE = {
    "orchestrator/refused_start.py": "removes the empty folders above a refused run: rmdir takes no file of anybody",
    "policies/files.py": "the module itself",
    "policies/faulty_files.py": "breaks files on purpose",
    "policies/fake_model.py": "makes the starting model, or fills a folder that is synced and renamed as a whole",
    "workers/sandbox/": "folders of the sandbox, never of a run",
    "workers/child_process.py": "settings of its own process under /proc",
    "workers/verify/judge_cache.py": "a cache: it saves time, a torn line is asked again",
    "workers/training/": "a draft of the update, in an attempt folder that is synced and moved as a whole",
    "workers/ray_token.py": "a folder among the temporary files, never of a run",
    "orchestrator/events.py": "for people; never read for decisions, a torn line is skipped",
    "orchestrator/activity.py": "signs of life for people: lost without harm",
    "workers/alive.py": "signs of life for people: lost without harm",
    "orchestrator/views/report.py": "fills the temporary file that policies.files moves into place",
    "orchestrator/storage/bucket.py": "fills the temporary file that policies.files moves into place",
    "orchestrator/tracking/mlflow_client.py": "copies a report into a folder that is sent, not into the run",
    "orchestrator/tracking/spool.py": "has its own order of writes: each line is synced before the call returns",
}
"""Files, or folders, that write without the module, and why that is right."""


def writes(path: Path) -> list[str]:
    """Calls in `path` that change files directly."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = ""
        if isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if function.attr in WRITERS.get(owner, ()) or (
                function.attr in METHODS and owner not in ("files", "durable", *WRITERS)
            ):
                name = f"{owner}.{function.attr}"
            elif function.attr == "open" and _writes(node, 0 if owner != "os" else 1):
                name = f"{owner}.open"
        elif isinstance(function, ast.Name) and (
            function.id in OPENERS or (function.id == "open" and _writes(node, 1))
        ):
            name = function.id
        if name:
            found.append(f"{node.lineno}: {name}")
    return found


def _writes(call: ast.Call, place: int) -> bool:
    mode = call.args[place] if len(call.args) > place else None
    mode = next((k.value for k in call.keywords if k.arg == "mode"), mode)
    return isinstance(mode, ast.Constant) and bool(set(str(mode.value)) & set("wax+"))


def excused(name: str) -> str | None:
    return next((key for key in ELSEWHERE if name == key or name.startswith(key)), None)


def test_run_folders_are_written_through_one_module() -> None:
    found: dict[str, list[str]] = {}
    for package in ("policies", "workers", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if calls := writes(path):
                found[str(path.relative_to(ROOT))] = calls
    assert {name: calls for name, calls in found.items() if excused(name) is None} == {}, (
        "use policies.files, or say in ELSEWHERE why not"
    )
    used = {excused(name) for name in found}
    assert set(ELSEWHERE) == used, f"no longer needed: {sorted(set(ELSEWHERE) - used)}"


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "open('x', 'w')\nPath('x').write_text('')\nos.replace('a', 'b')\nshutil.rmtree('x')\n"
        "path.open('ab')\nopen('x', mode='r+')\nopen('x')\npath.open()\nfiles.remove_tree(path)\n"
    )
    assert [line.split(":")[0] for line in sorted(writes(source))] == ["1", "2", "3", "4", "5", "6"]


def test_what_exists_is_opened_for_writing_where_links_are_not_followed() -> None:
    found: dict[str, list[str]] = {}
    for package in ("policies", "workers", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name not in ("policies/files.py", "policies/faulty_files.py") and (
                by_name := [
                    f"{node.lineno}"
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "open"
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                    and set(str(node.args[0].value)) & set("a+")
                ]
            ):
                found[name] = by_name
    assert found == {}, "use policies.files.open_to_append or open_to_change"
