"""What no line of ours may do: hand text to a shell or an interpreter, or read and write pickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    p
    for top in ("policies", "workers", "orchestrator", "scripts", "benchmarks")
    for p in sorted((ROOT / top).rglob("*.py"))
]
RUNS_TEXT = {"eval", "exec", "compile", "execfile"}
SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pty.spawn",
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "jsonpickle"}

ALLOWED = {
    # It runs code that somebody else wrote, inside the sandbox: that is what it is for.
    "workers/sandbox/launcher.py": RUNS_TEXT,
}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return "?"


def breaches(tree: ast.AST, allowed: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield f"imports from {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        given = {k.arg: k.value for k in node.keywords}
        if name in RUNS_TEXT - allowed or name in SHELLS:
            yield f"calls {name}"
        if "shell" in given and not is_constant(given["shell"], False):
            yield f"calls {name} with a shell"
        if name == "torch.load" and not is_constant(given.get("weights_only"), True):
            yield "calls torch.load without weights_only=True"
        if name == "torch.save":
            yield "calls torch.save, which pickles"
        if name.endswith("yaml.load"):
            yield "calls yaml.load"
        if is_constant(given.get("trust_remote_code"), True):
            yield f"calls {name} with trust_remote_code=True"
        if is_constant(given.get("allow_pickle"), True):
            yield f"calls {name} with allow_pickle=True"


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_shell_no_interpreter_and_no_pickle(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(breaches(tree, set(ALLOWED.get(name, ())))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import subprocess\nsubprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system('ls ' + name)",
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from cloudpickle import dumps",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.save(x, p)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "numpy.load(p, allow_pickle=True)",
    ],
)
def test_the_rule_finds_each_breach(bad: str) -> None:
    assert len(list(breaches(ast.parse(bad), set()))) == 1


def test_every_exception_of_the_rule_is_a_file_that_needs_it() -> None:
    for name in ALLOWED:
        assert list(breaches(ast.parse((ROOT / name).read_text(encoding="utf-8")), set())), name
