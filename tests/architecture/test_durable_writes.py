"""A run folder is written through `policies.storage.files`: nothing else opens, renames or removes files there."""

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
UNBUFFERED = {"write", "pwrite", "writev", "ftruncate", "fdopen", "sendfile", "posix_fallocate"}
"""Functions of `os` whose answer must be counted (`write`), or that lead to a handle of that kind."""

ELSEWHERE = {
    "orchestrator/runs/refused_start.py": "removes empty folders above a refused run: rmdir takes no file of anybody",
    "policies/storage/files.py": "the module itself",
    "policies/storage/file_layer.py": "the operations that it is made of",
    "policies/storage/faulty_files.py": "breaks files on purpose",
    "policies/storage/fake_model.py": "the starting model, or a folder that is synced and renamed as a whole",
    "workers/sandbox/": "folders of the sandbox, never of a run",
    "workers/isolation/child_process.py": "settings of its own process under /proc",
    "workers/training/": "a draft of the update, in an attempt folder that is synced and moved as a whole",
    "workers/cluster/private_folder.py": "a folder among the temporary files, never of a run",
    "workers/cluster/ray/token.py": "a folder among the temporary files, never of a run",
    "orchestrator/flow/watchdog.py": "signs of life for people: lost without harm",
    "workers/cluster/heartbeat.py": "signs of life for people: lost without harm",
    "orchestrator/tracking/mlflow_client.py": "copies a report into a folder that is sent, not into the run",
    "orchestrator/runs/naming.py": "gives the name of a run back before there is anything in its folder",
    "orchestrator/tracking/sqlite_store.py": "MLflow's own store, never of a run",
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
        elif isinstance(function, ast.Name) and function.id == "open" and _writes(node, 1):
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
        "use policies.storage.files, or say in ELSEWHERE why not"
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


MODULES = (
    "policies/storage/files.py",
    "policies/storage/file_layer.py",
    "policies/storage/faulty_files.py",
)
NO_FILES_OF_A_RUN = {
    "workers/sandbox/": "pipes and folders of the sandbox",
    "workers/cluster/ray/token.py": "a token among the temporary files, made anew by each driver",
    "workers/isolation/forked_call.py": "one short write into a pipe",
    "workers/cluster/transfer/cache.py": "locks without content",
    "orchestrator/tracking/spool.py": "a lock without content",
    "orchestrator/driver/supervise.py": "a pipe to its own child",
    "orchestrator/runs/claim_lock.py": "a lock without content",
    "orchestrator/cli/surroundings.py": "standard streams, led to nowhere where there is none",
    "orchestrator/tracking/sqlite_store.py": "a lock without content",
    "policies/storage/bounded_json.py": "opens to read, without waiting for a pipe",
    "policies/storage/safetensors_header.py": "opens to read, without waiting for a pipe",
    "workers/isolation/child_process.py": "a file among the temporary ones for what a child prints",
    "orchestrator/cli/output.py": "standard output, led to nowhere when nobody takes it",
}
"""Where the system is written to directly, and why no line of a run can be torn by it."""


def by_hand(path: Path) -> list[str]:
    """Calls in `path` that open an existing file to write, or write what somebody would have to count."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        flags = {n.attr for a in node.args for n in ast.walk(a) if isinstance(n, ast.Attribute)}
        values = [*node.args, *(k.value for k in node.keywords if k.arg in ("mode", "buffering"))]
        constants = [a.value for a in values if isinstance(a, ast.Constant)]
        texts = [c for c in constants if isinstance(c, str) and 0 < len(c) <= 3]
        if (
            (owner == "os" and name in UNBUFFERED)
            or (owner == "os" and name == "open" and not flags & {"O_RDONLY", "O_PATH"})
            or (name in ("open", "fdopen", "FileIO") and any(set(t) & set("a+") for t in texts))
            or any(k.arg == "buffering" and k.value in _zeros(k.value) for k in node.keywords)
        ):
            found.append(f"{node.lineno}: {owner}.{name}".replace(": .", ": "))
    return found


def _zeros(value: ast.expr) -> list[ast.expr]:
    return [value] if isinstance(value, ast.Constant) and value.value == 0 else []


def test_nobody_but_the_file_layer_appends_or_writes_without_counting() -> None:
    found: dict[str, list[str]] = {}
    for package in ("policies", "workers", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name not in MODULES and (calls := by_hand(path)):
                found[name] = calls
    known = {
        name: next((k for k in NO_FILES_OF_A_RUN if name.startswith(k)), None) for name in found
    }
    assert {name: found[name] for name, key in known.items() if key is None} == {}, (
        "use policies.storage.files.append_line or append_unsynced, or put for a whole file"
    )
    assert set(NO_FILES_OF_A_RUN) == set(known.values())


def test_the_search_for_writing_by_hand_finds_it(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "os.write(1, b'')\nopen('x', 'ab')\npath.open('r+b')\nos.open('x', os.O_APPEND | os.O_CREAT)\n"
        "path.open(mode='a')\nopen('x', 'wb', buffering=0)\nopen('x')\npath.open('rb')\n"
        "files.append_line(path, b'')\nos.open('x', os.O_RDONLY)\n"
    )
    assert [line.split(":")[0] for line in by_hand(source)] == ["1", "2", "3", "4", "5", "6"]
