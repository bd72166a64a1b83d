"""Tells whether a function reads texts or chat messages, judged from its annotations and from its source; nothing is
called.

TRL hands messages over where the prompts of a data set are chats and texts where they are texts. Here every prompt is a
chat, so the function decides.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from workers.verify.parameter_names import MANY, ONE

_FIELDS = frozenset({"content", "role"})
_SHOWN = ("prompt", "completion")
MAX_DEPTH = 3
"""So many calls deep functions of the same module are looked into."""


def annotated_form(function: Callable[..., Any]) -> bool | None:
    """True if the annotation of the completions (else of the prompts) says messages; None where it leaves it open."""
    found: dict[str, bool] = {}
    for name, annotation in getattr(_plain(function), "__annotations__", {}).items():
        meaning = ONE.get(name) or MANY.get(name)
        if meaning not in _SHOWN:
            continue
        text = str(annotation).lower()
        messages = "dict" in text or "message" in text
        rest = re.sub(r"(dict|mapping)\[[^][]*\]", "", text)
        if messages != bool(re.search(r"\bstr\b", rest)):
            found[meaning] = messages
    return next((found[meaning] for meaning in reversed(_SHOWN) if meaning in found), None)


def source_reads_messages(function: Callable[..., Any]) -> bool:
    """True if the source of `function`, or of what it calls in its module, takes a message's `content` or `role`."""
    return any(_reads(tree) for tree in _trees(_plain(function), MAX_DEPTH))


def _plain(function: Any) -> Any:
    """The function behind partials, decorators and instances with `__call__`."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004 - the method, not whether there is one


def _trees(function: Any, depth: int) -> Iterator[ast.AST]:
    """The source of a function and of those of its module that it names."""
    seen: set[int] = set()
    pending = [(function, depth)]
    while pending:
        current, left = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(current)))
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        yield tree
        known = getattr(inspect.unwrap(current), "__globals__", {})
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if left:
            pending += [
                (known[n], left - 1) for n in sorted(names) if inspect.isfunction(known.get(n))
            ]


def _reads(tree: ast.AST) -> bool:
    """Tell whether some expression takes the field of a message: `x["content"]`, `m.get("role")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.value, ast.Call):
            key = node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            key = node.args[0]
        else:
            continue
        if isinstance(key, ast.Constant) and key.value in _FIELDS:
            return True
    return False
