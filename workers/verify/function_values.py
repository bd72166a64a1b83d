"""Values that users' functions get: texts, chat messages with all turns, columns, token ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from policies.base.records import Prompt, Trajectory, Turn
from workers.verify.function_fit import COLUMN, Fit
from workers.verify.ground_truth import last_user_message

_WHOLE_CALL = ("log_extra", "log_metric")
"""Given once for a call, never as a list."""
_CALL_MARKS = ("```", "<tool_call>")
"""How a turn calls a tool where the record of the observation, made by an older version, does not say so."""


def arguments_for_one(
    fit: Fit, prompt: Prompt, trajectory: Trajectory, *, messages: bool, tools: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of a call about one attempt.

    Args:
        fit: which parameter gets what.
        prompt: the prompt.
        trajectory: the attempt.
        messages: prompts and completions are lists of chat messages instead of texts.
        tools: `log_extra` and `log_metric`.
    """

    def value(source: str) -> Any:
        return (
            tools[source]
            if source in _WHOLE_CALL
            else value_of(source, prompt, trajectory, messages=messages)
        )

    return _split(fit, {n: value(s) for n, s in {**fit.sources, **fit.keywords}.items()})


def arguments_for_many(
    fit: Fit,
    prompt: Prompt,
    trajectories: Sequence[Trajectory],
    *,
    messages: bool,
    tools: Mapping[str, Any],
) -> tuple[list[Any], dict[str, Any]]:
    """The same for a call about all attempts at a prompt: lists, one item an attempt."""

    def value(source: str) -> Any:
        if source in _WHOLE_CALL:
            return tools[source]
        return [value_of(source, prompt, t, messages=messages) for t in trajectories]

    return _split(fit, {n: value(s) for n, s in {**fit.sources, **fit.keywords}.items()})


def _split(fit: Fit, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [values.pop(name) for name in fit.positional], values


def value_of(source: str, prompt: Prompt, trajectory: Trajectory, *, messages: bool) -> Any:
    """The value that `source` stands for; containers are copies: a function changes nothing for the next attempt."""
    if source.startswith(COLUMN):
        return copy.deepcopy(_column(prompt.metadata, source.removeprefix(COLUMN)))
    match source:
        case "prompt":
            return prompt_messages(prompt, trajectory) if messages else last_user_message(prompt)
        case "completion":
            return completion_messages(trajectory) if messages else trajectory.completion
        case "answer":
            return copy.deepcopy(answer_of(prompt))
        case "metadata":
            return copy.deepcopy(prompt.metadata)
        case "extra_info":
            return _extra_info(prompt, trajectory)
        case "data_source":
            return prompt.metadata.get("data_source", "")
        case "info":
            return copy.deepcopy(prompt.metadata.get("info", prompt.metadata))
        case "task":
            return prompt.metadata.get("task", "default")
        case "state":
            return _state(prompt, trajectory, messages=messages)
        case "completion_ids":
            return completion_ids(trajectory)
        case "query":
            return last_user_message(prompt) + trajectory.completion
        case "prompt_messages":
            return prompt_messages(prompt, trajectory)
        case "completion_messages":
            return completion_messages(trajectory)
        case _:
            raise KeyError(source)


def _column(columns: Mapping[str, Any], path: str) -> Any:
    """The column called `path`, or what the path with dots reaches; None where a row has a gap."""
    if path in columns:
        return columns[path]
    value: Any = columns
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def answer_of(prompt: Prompt) -> Any:
    """The ground truth; of a row as verl writes it also where the answer was not mapped."""
    if prompt.answer is None:  # rows as verl writes them, when their answer was not mapped
        return _column(prompt.metadata, "reward_model.ground_truth")
    return prompt.answer


def _extra_info(prompt: Prompt, trajectory: Trajectory) -> Any:
    """As verl gives it: the column of that name, with what verl itself puts in."""
    found = copy.deepcopy(prompt.metadata.get("extra_info", prompt.metadata))
    if isinstance(found, dict):
        found.setdefault("num_turns", 1 + len(trajectory.turns))
        found.setdefault("rollout_reward_scores", {})
    return found


def _state(prompt: Prompt, trajectory: Trajectory, *, messages: bool) -> dict[str, Any]:
    names = ("prompt", "completion", "answer", "task", "info")
    state = {n: value_of(n, prompt, trajectory, messages=messages) for n in names}
    return state | {"turn": sum(turn.role == "policy" for turn in trajectory.turns)}


def completion_ids(trajectory: Trajectory) -> list[int]:
    """The ids that the policy sampled; of the step alone where a step is graded. [T]"""
    if trajectory.graded is not None:
        span = trajectory.graded
        return list(trajectory.turns[span.turn].token_ids[span.start : span.end])
    return [i for turn in trajectory.turns if turn.role == "policy" for i in turn.token_ids]


def prompt_messages(prompt: Prompt, trajectory: Trajectory) -> list[dict[str, Any]]:
    """The chat before the first turn of the policy."""
    return [{"role": m.role, "content": m.content} for m in (*prompt.messages, *trajectory.opening)]


def completion_messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    """All turns as chat messages: `assistant`, and `tool` or `user` for what came back.

    A turn that called tools has `tool_calls` with their names; what they were called with stands in its text.
    """
    if trajectory.graded is not None:
        return [{"role": "assistant", "content": trajectory.completion}]
    found: list[dict[str, Any]] = []
    for turn in trajectory.turns:
        if turn.role == "policy":
            found.append({"role": "assistant", "content": turn.text})
        elif turn.calls or _follows_call(found):
            names = [call.tool for call in turn.calls]
            if found and names:
                found[-1]["tool_calls"] = [
                    {"type": "function", "function": {"name": name}} for name in names
                ]
            found.append(_observed(turn, "tool") | ({"name": names[0]} if names else {}))
        else:
            found.append(_observed(turn, "user"))
    return found


def _observed(turn: Turn, role: str) -> dict[str, Any]:
    return {"role": role, "content": turn.text}


def _follows_call(before: Sequence[Mapping[str, Any]]) -> bool:
    return bool(before) and any(mark in before[-1]["content"] for mark in _CALL_MARKS)
