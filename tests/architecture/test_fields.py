"""No dead fields: whatever a record or a setting promises is written by somebody and read by somebody, in the product.

Found in the syntax trees. A record's field is written by a call of its class (or a copy) with that keyword, and read as
an attribute, or as a key where views handle records as plain values, in a module that speaks of the record or of one
that holds it. A setting is written by the user; it is read outside the validators of its own class, in its module, in
that of a base or a derived class, or in one that names the class or its section.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("policies", "workers", "orchestrator")
RECORD_MODULES = (
    "policies/base/messages.py",
    "policies/base/tool_calls.py",
    "policies/base/records.py",
    "policies/examples/kind.py",
    "policies/examples/kinds/pair.py",
    "policies/examples/kinds/supervised.py",
    "policies/examples/kinds/unpaired.py",
)
BASES = ("Record", "Settings", "Component.Config")

FOR_PEOPLE: dict[str, str] = {
    "Verdict.seconds": "a column of the Parquet files: which attempt took a verifier long",
    "Comparison.rationale": "a column of the Parquet files: what the judge wrote, in both orders",
    "Comparison.seconds": "a column of the Parquet files: which comparison took a judge long",
    "Comparison.error": "a column of the Parquet files; counted from the judge's own answers",
}
"""Fields that nobody but a person reads, each with its reason."""
BY_PLUG_INS = {"Prompt.tools": "tools of one prompt: a prompt source of the user's own sets them"}
"""Fields that nobody of ours writes, each with its reason."""
IN_VALIDATORS = {
    "OpenAIBackend.Config.allow_http": "permits an address that would be refused",
    "PromptedJudge.Config.prompt_file": "is loaded when the config is read, and travels as its text",
}
"""Settings whose whole effect is in a validator of their class, each with its reason."""


@dataclass
class Module:
    """What a module reads, writes and speaks of."""

    path: Path
    names: set[str] = field(default_factory=set)
    """Every identifier."""
    reads: set[str] = field(default_factory=set)
    """Attributes that are loaded, and keys of plain values, outside validators."""
    calls: set[tuple[str, str]] = field(default_factory=set)
    """Last part of the called name, and a keyword of the call."""
    updates: set[str] = field(default_factory=set)
    """Keys of `model_copy(update={...})` and the like."""


@dataclass(frozen=True)
class Owner:
    """A record or a class of settings."""

    name: str
    path: Path
    bases: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    """Name and annotation of each field that the class declares itself."""


@cache
def modules() -> dict[Path, Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[path] = _module(path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def _module(path: Path, tree: ast.Module) -> Module:
    module = Module(path)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) and _is_validator(node):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                module.reads.add(name)
                module.names.add(name)
            case ast.Name(id=name):
                module.names.add(name)
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                module.reads.add(key)
            case ast.Call():
                _note_call(node, module)
            case ast.Dict():
                keys = [k.value for k in node.keys if isinstance(k, ast.Constant)]
                module.updates |= {key for key in keys if isinstance(key, str)}
    return module


def _note_call(node: ast.Call, module: Module) -> None:
    called = ast.unparse(node.func).rpartition(".")[2]
    module.calls |= {(called, k.arg) for k in node.keywords if k.arg is not None}
    if called in ("get", "getattr"):
        keys = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
        module.reads |= {key for key in keys if isinstance(key, str)}


def _is_validator(node: ast.FunctionDef) -> bool:
    return any("validator" in ast.unparse(each) for each in node.decorator_list)


@cache
def owners() -> tuple[Owner, ...]:
    """Every class that descends from a record or from settings, by the names of its bases."""
    found: list[Owner] = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += _classes(tree.body, path, "")
    known = set(BASES)
    chosen: dict[tuple[str, Path], Owner] = {}
    for _ in range(6):  # classes may stand before their bases
        for owner in found:
            # A component without settings of its own is given the `Config` of its base.
            if any(base in known or base.endswith(".Config") for base in owner.bases):
                chosen[owner.name, owner.path] = owner
                known.add(owner.name)
    return tuple(chosen.values())


def _classes(body: list[ast.stmt], path: Path, outer: str) -> Iterator[Owner]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            name = f"{outer}{node.name}"
            fields = tuple(
                (each.target.id, ast.unparse(each.annotation))
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            )
            kept = tuple((n, a) for n, a in fields if "ClassVar" not in a and n[0] != "_")
            yield Owner(name, path, tuple(ast.unparse(base) for base in node.bases), kept)
            yield from _classes(node.body, path, f"{name}.")


@cache
def holders() -> dict[str, set[str]]:
    """Names of a record and of all records that hold it, or hold one that does."""
    holding: defaultdict[str, set[str]] = defaultdict(set)
    for owner in owners():
        for _, annotation in owner.fields:
            for other in owners():
                if other.name in annotation:
                    holding[other.name].add(owner.name)
    for _ in range(5):
        for name, above in list(holding.items()):
            holding[name] = above.union(*(holding[each] for each in above if each in holding))
    return {owner.name: {owner.name} | holding.get(owner.name, set()) for owner in owners()}


def _records() -> list[tuple[Owner, str]]:
    wanted = {ROOT / name for name in RECORD_MODULES}
    return [(owner, name) for owner in owners() if owner.path in wanted for name, _ in owner.fields]


def _settings() -> list[tuple[Owner, str]]:
    wanted = {ROOT / name for name in RECORD_MODULES}
    return [
        (owner, name)
        for owner in owners()
        if owner.path not in wanted and ("Config" in owner.name or _is_settings(owner))
        for name, _ in owner.fields
    ]


def _is_settings(owner: Owner) -> bool:
    return owner.name.endswith("Settings") or "Settings" in owner.bases


def _label(each: tuple[Owner, str]) -> str:
    return f"{each[0].path.stem}.{each[0].name}.{each[1]}"


@pytest.mark.parametrize(("owner", "name"), _records(), ids=map(_label, _records()))
def test_every_field_of_a_record_is_written(owner: Owner, name: str) -> None:
    for module in modules().values():
        if {(owner.name, name), ("cls", name)} & module.calls or name in module.updates:
            return
    assert f"{owner.name}.{name}" in BY_PLUG_INS, f"nothing writes {owner.name}.{name}"


def _is_kind(module: Module, owner: Owner) -> bool:
    """Whether the module is a kind of example's own: what it tells of its fields is told to all."""
    return module.path == owner.path and "kinds" in module.path.parts


@pytest.mark.parametrize(("owner", "name"), _records(), ids=map(_label, _records()))
def test_every_field_of_a_record_is_read(owner: Owner, name: str) -> None:
    around = holders()[owner.name]
    found = any(
        name in module.reads
        and (module.names & around or "views" in module.path.parts or _is_kind(module, owner))
        for module in modules().values()
    )
    assert found or f"{owner.name}.{name}" in FOR_PEOPLE, f"nothing reads {owner.name}.{name}"


def _ancestors(owner: Owner) -> list[Owner]:
    """Its bases, their bases, and so on."""
    direct = [o for o in owners() if o.name in owner.bases and o is not owner]
    return direct + [above for base in direct for above in _ancestors(base)]


def _reads_setting(module: Module, owner: Owner, name: str) -> bool:
    """Whether the module reads such an attribute and has to do with the class, or with a relative of it."""
    if name not in module.reads:
        return False
    above = [o for o in _ancestors(owner) if name in dict(o.fields)]
    below = [o for o in owners() if owner.name in o.bases]
    family = [owner, *above, *below]
    if module.path in {each.path for each in family}:
        return True
    outer = [each.name.partition(".")[0] for each in [owner, *above]]
    plain = [re.sub(r"Settings$|Options$", "", each) for each in outer]
    keys = [re.sub(r"(?<!^)(?=[A-Z])", "_", each).lower() for each in plain]
    sections = {key for o in owners() for key, annotation in o.fields if owner.name in annotation}
    outer += [each.name for each in below]
    words = {*outer, *keys, *(f"{key}s" for key in keys), owner.path.stem, *sections}
    return bool(module.names & words)


@pytest.mark.parametrize(("owner", "name"), _settings(), ids=map(_label, _settings()))
def test_every_setting_is_read(owner: Owner, name: str) -> None:
    found = any(_reads_setting(module, owner, name) for module in modules().values())
    assert found or f"{owner.name}.{name}" in IN_VALIDATORS, (
        f"nothing reads {owner.name}.{name} of {owner.path.relative_to(ROOT)}"
    )


def test_the_exceptions_are_fields_that_exist() -> None:
    records = {f"{owner.name}.{name}" for owner, name in _records()}
    assert set(FOR_PEOPLE) | set(BY_PLUG_INS) <= records
    assert set(IN_VALIDATORS) <= {f"{owner.name}.{name}" for owner, name in _settings()}


def test_records_and_settings_are_found() -> None:
    assert {"Verdict.confidence", "PreferencePair.soft_label", "ScoredGroup.comparisons"} <= {
        f"{owner.name}.{name}" for owner, name in _records()
    }
    assert {"dpo.DPO.Config.soft_labels", "builder.PreferenceBuilder.Config.drop_truncated"} <= {
        _label(each) for each in _settings()
    }
