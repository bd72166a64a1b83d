"""Read YAML strictly: no tags, no duplicate keys, no bombs, numbers as YAML 1.2 has them, lines remembered.

`1e-5` is a float here (YAML 1.1 makes it a string), `no` is a string, and every value knows its line, so
that an error can name it. Nothing in a file can run code.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from policies.base.errors import ConfigurationError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 20_000
"""Values, counted after aliases and merges: the largest shipped config has a few hundred."""
MAX_DIGITS = 400
"""Of a whole number: more than any double has, and few enough to be shown."""

KeyPath = tuple[str | int, ...]
"""Where a value stands, e.g. `("verifiers", 0, "type")`."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_TYPES = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar types of YAML 1.2's core schema, which gives up while it reads what is too much."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute
    num_nodes = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.num_nodes += 1
        self.depth += 1
        if self.num_nodes > MAX_NODES or self.depth > MAX_DEPTH + 1:
            what = "too many values" if self.num_nodes > MAX_NODES else "too deep"
            raise _TooMuchError(what, self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _TooMuchError(Exception):
    """More values, or more levels, than a config has. Holds what and the mark."""


for _name, _pattern, _first in _PLAIN_TYPES:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class YamlText:
    """A parsed text: plain values, and the line of every key and list item."""

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)


def parse_yaml(text: str, *, name: str) -> YamlText:
    """Parse one YAML document into dicts, lists, strings, numbers, booleans and None.

    Args:
        name: what messages call the text, usually the file's name.

    Raises:
        ConfigurationError: the text is not YAML, or holds something that is refused; with line and column.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigurationError(
            f"{name}: too large (over {MAX_BYTES >> 20} MiB). Fix: a config is a page of text; "
            "keep data in files of its own"
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
        builder = _Builder(name)
        value = None if node is None else builder.build(node, (), 0)
    except _TooMuchError as error:
        what, mark = error.args
        raise ConfigurationError(
            f"{name}:{mark.line + 1}:{mark.column + 1}: {what}. Fix: write the values out, in a page of text"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(_syntax_message(error, text, name)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigurationError(
            f"{name}:{line}: character #x{code:04x} is not allowed in YAML. Fix: remove it"
        ) from None
    except RecursionError:
        raise ConfigurationError(
            f"{name}: too deep. Fix: a config nests a few levels only"
        ) from None
    return YamlText(value, builder.lines)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{name}: not YAML: {error.problem or error}. Fix: correct the syntax"
    where = f"{name}:{mark.line + 1}:{mark.column + 1}"
    lines = text.splitlines()
    before = lines[mark.line][: mark.column + 1] if mark.line < len(lines) else ""
    if "\t" in before and not before.strip():
        return f"{where}: a tab is used for indentation. Fix: indent with spaces"
    problem = " ".join(part for part in (error.context, error.problem) if part)
    return f"{where}: not YAML: {problem}. Fix: correct the syntax there or just before"


class _Builder:
    """Turns YAML nodes into plain values, within limits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self._nodes = 0

    def _count(self, node: yaml.Node, depth: int) -> None:
        """Count a value, also one that an alias or a merge brings again."""
        self._nodes += 1
        if (
            depth > MAX_DEPTH or self._nodes > MAX_NODES
        ):  # an alias that contains itself ends here too
            what = "deep" if depth > MAX_DEPTH else "large (aliases expand to too many values)"
            raise self._refused(node, f"too {what}", "write the values out, without aliases")

    def build(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        self._count(node, depth)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, ("map",))
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, ("seq",))
            return [self.build(n, (*path, i), depth + 1) for i, n in enumerate(node.value)]
        self._check_tag(node, ("null", "bool", "int", "float", "str"))
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own_lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                for other in self._merged(value_node):
                    self._count(other, depth + 1)
                    for key, value in self._mapping(other, path, depth + 1).items():
                        merged.setdefault(key, value)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(key_node, "a key must be a plain word", "write `key: value`")
            key = str(key_node.value)
            if key in own_lines:
                raise ConfigurationError(
                    f"{self.name}:{line}: key {key!r} is given twice (lines {own_lines[key]} and "
                    f"{line}). Fix: remove one of the two"
                )
            own_lines[key] = line
            self.lines[(*path, key)] = line
            found[key] = self.build(value_node, (*path, key), depth + 1)
        return {**merged, **found}

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        options = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for option in options:
            if not isinstance(option, yaml.MappingNode):
                raise self._refused(
                    node, "`<<` takes mappings only", "give it an alias of a mapping"
                )
            yield option

    def _scalar(self, node: yaml.Node) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                if len(text) > MAX_DIGITS:
                    raise ValueError(f"it has {len(text)} digits")
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(
                    text.replace(".inf", "inf")
                    .replace(".Inf", "inf")
                    .replace(".INF", "inf")
                    .replace(".nan", "nan")
                    .replace(".NaN", "nan")
                    .replace(".NAN", "nan")
                )
        except ValueError as error:
            raise self._refused(
                node, f"not a number that can be read ({error})", "write a shorter number"
            ) from None
        return text

    def _check_tag(self, node: yaml.Node, allowed: tuple[str, ...]) -> None:
        if node.tag.removeprefix(_TAG) not in allowed:
            shown = node.tag.replace(_TAG, "!!")
            raise self._refused(
                node,
                f"tag {shown} is not allowed (nothing in a config may run code)",
                "remove the tag",
            )

    def _refused(self, node: yaml.Node, what: str, fix: str) -> ConfigurationError:
        mark = node.start_mark
        return ConfigurationError(
            f"{self.name}:{mark.line + 1}:{mark.column + 1}: {what}. Fix: {fix}"
        )


_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/")


def _unreadable(path: Path) -> str:
    """Name what stands at a path that can never be a config: a pipe would be waited for, a device may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a directory"
    # `<(...)` of a shell is a pipe that somebody writes to, under this name.
    if stat.S_ISFIFO(mode) and not str(path).startswith(_STREAMS):
        return "a pipe"
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        return "a socket or a device"
    if stat.S_ISCHR(mode) and not path.samefile(os.devnull) and path.name != "stdin":
        return "a device"
    return ""


def read_config_text(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigurationError: it is missing, a directory, unreadable, too large, or not UTF-8.
    """
    try:
        kind = _unreadable(path)
        if kind:
            raise ConfigurationError(
                f"config: cannot read {path} (it is {kind}). Fix: give a YAML file"
            )
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"config: cannot read {path} ({reason}). Fix: check the path and its permissions"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(
            f"config: {path} is too large (over {MAX_BYTES >> 20} MiB). Fix: give a YAML config; "
            "keep data in files of its own"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"config: {path} is not UTF-8 (byte {error.start}). Fix: save it as UTF-8"
        ) from None
