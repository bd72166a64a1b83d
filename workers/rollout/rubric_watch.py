"""Watches the reward functions of a `verifiers` rubric, which turns what they raise into 0.0: no loss of the policy.

In versions 0.1 to 0.3 `Rubric._call_individual_reward_func` logs an exception and goes on with 0.0. Here every function
that counts is wrapped, so that the failure is known to whoever asked for the score.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_origin

_FAILURES: ContextVar[list[str] | None] = ContextVar("failures of reward functions", default=None)
"""Where the functions of the rubric that is scoring now note what they raised; one list for each episode."""
_GROUP_PARAMETERS = {"states", "prompts", "completions", "answers", "tasks", "infos"}
_WATCHED = "_pawl_watched"


@contextmanager
def noting_failures() -> Iterator[list[str]]:
    """Return what watched reward functions raise in the meantime, in the code that is called from here."""
    found: list[str] = []
    token = _FAILURES.set(found)
    try:
        yield found
    finally:
        _FAILURES.reset(token)


def watch(rubric: Any) -> None:
    """Wrap the reward functions of a rubric, and of those inside it, once; metrics without weight are left alone."""
    for inner in getattr(rubric, "rubrics", None) or ():
        watch(inner)
    functions, weights = getattr(rubric, "funcs", None), getattr(rubric, "weights", None)
    if not isinstance(functions, list) or not isinstance(weights, list):
        return
    rubric.funcs = [
        _watched(function) if weight else function
        for function, weight in zip(functions, weights, strict=True)
    ]


def has_group_rewards(rubric: Any) -> bool:
    """Tell whether a function of the rubric, or of one inside it, scores several attempts together."""
    if any(has_group_rewards(inner) for inner in getattr(rubric, "rubrics", None) or ()):
        return True
    functions = getattr(rubric, "funcs", None)
    return isinstance(functions, list) and any(_takes_a_group(function) for function in functions)


def _takes_a_group(function: Callable[..., Any]) -> bool:
    """By its parameters or its return type, as the package itself tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in callables have none
        return False
    returned = signature.return_annotation
    is_list = list in (returned, get_origin(returned)) or str(returned).lower().startswith("list[")
    return is_list or bool(_GROUP_PARAMETERS & set(signature.parameters))


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(function, _WATCHED):
        return function

    async def finished(result: Any) -> Any:
        with _noted(function):
            return _number(await result)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _noted(function):
            result = function(*args, **kwargs)
            return finished(result) if inspect.isawaitable(result) else _number(result)

    setattr(call, _WATCHED, True)
    return call


@contextmanager
def _noted(function: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures = _FAILURES.get()
        if failures is not None:
            name = getattr(function, "__name__", type(function).__name__)
            failures.append(f"{name}: {type(error).__name__}: {error}")
        raise


def _number(result: Any) -> Any:
    """The result, when it is a number as the package reads it; else what it raises there."""
    float(result)
    return result
