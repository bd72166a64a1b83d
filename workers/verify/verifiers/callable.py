"""Score with any function: ours, or one written for TRL or verl, which work unchanged.

    f(prompt, completion, answer[, metadata]) -> bool | float | Verdict | None         (pawl)
    f(prompts, completions, **columns) -> list[float | None]                           (trl)
    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict (verl)

`prompt` is the text of the last user message. None means that the function has no opinion.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, Self

from pydantic import model_validator

from policies.component import load_object
from policies.errors import ConfigurationError, VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict
from workers.verify.answers import last_user_message
from workers.verify.verifier import VERIFIERS, Verifier

Signature = Literal["pawl", "trl", "verl"]

_WANTED = (
    "f(prompt, completion, answer[, metadata]), TRL's f(prompts, completions, **columns) or verl's "
    "f(data_source, solution_str, ground_truth, extra_info)"
)


class CallableVerifier(Verifier):
    """Calls the function for one trajectory at a time and checks what it returns."""

    class Config(Verifier.Config):
        """Settings of `callable`."""

        function: str
        """`package.module:name`, `./file.py:name`, or the name of an installed entry point (group `pawl.verifiers`)."""
        signature: Literal["auto", "pawl", "trl", "verl"] = "auto"
        """How the function is called; `auto` tells by the names of its parameters."""
        score_range: tuple[float, float] | None = None
        """Lowest and highest value that the function returns, mapped to [0, 1]; unset: it returns [0, 1] itself."""
        answer_column: str = "answer"
        """Under which name a function in TRL's form gets the answer (`solution`, `ground_truth`, ...)."""

        conversational: bool = False
        """Hand prompts and completions to a function in TRL's form as lists of chat messages instead of texts."""

        @model_validator(mode="after")
        def _rising(self) -> Self:
            if self.score_range is not None and self.score_range[0] >= self.score_range[1]:
                raise ValueError(
                    f"score_range must rise from low to high, got {list(self.score_range)}"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._function: Callable[..., Any] | None = None

    def prepare(self) -> None:
        """Import the function and decide how it is called, before the first trajectory is timed."""
        function = _load(self.config.function)
        if not callable(function) or inspect.isclass(function):
            raise ConfigurationError(
                explain(
                    "this is not a function",
                    value=self.config.function,
                    where="verifiers[...].function",
                    fix=f"name a function: {_WANTED}",
                )
            )
        self._signature = self._detect(function)
        self._function = function

    def check_prompt(self, prompt: Prompt) -> None:
        if self._function is None:
            self.prepare()
        assert self._function is not None
        self._arguments(self._function, self._offered(prompt, None))

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return what the function says."""
        if not trajectory.completion.strip():
            return self.scored(trajectory, 0.0, "empty completion")
        if self._function is None:
            self.prepare()
        assert self._function is not None
        positional, named = self._arguments(self._function, self._offered(prompt, trajectory))
        result = self._function(*positional, **named)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return self._verdict(result, trajectory)

    def _detect(self, function: Callable[..., Any]) -> Signature:
        if self.config.signature != "auto":
            return self.config.signature
        names = set(inspect.signature(function).parameters)
        if "completions" in names:
            return "trl"
        if names & {"solution_str", "ground_truth"}:
            return "verl"
        return "pawl"

    def _arguments(
        self, function: Callable[..., Any], offered: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        parameters = inspect.signature(function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        required = [
            name
            for name, p in parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        positional_only = any(p.kind is p.POSITIONAL_ONLY for p in parameters.values())
        if set(required) <= set(offered) and not positional_only:
            if takes_all:
                return [], offered
            return [], {name: value for name, value in offered.items() if name in parameters}
        # Ours may call its parameters anything; then their order decides.
        if self._signature == "pawl" and len(required) in (3, 4):
            return [offered[n] for n in ("prompt", "completion", "answer", "metadata")][
                : len(required)
            ], {}
        missing = [name for name in required if name not in offered]
        raise VerificationError(
            explain(
                f"the function's parameters cannot be filled in; offered are {', '.join(sorted(offered))}",
                value=missing or required,
                where=f"verifiers[...].function = {self.config.function}",
                fix=f"write it as {_WANTED}; for TRL's form bring further columns by the prompt's metadata",
            )
        )

    def _offered(self, prompt: Prompt, trajectory: Trajectory | None) -> dict[str, Any]:
        """What the function may ask for; without a trajectory, to see whether its parameters can be filled."""
        turns = () if trajectory is None else trajectory.turns
        question = last_user_message(prompt)
        completion = "" if trajectory is None else trajectory.completion
        if self._signature == "trl":
            columns: dict[str, Any] = {name: [value] for name, value in prompt.metadata.items()}
            columns[self.config.answer_column] = [prompt.answer]
            ids = [i for turn in turns if turn.role == "policy" for i in turn.token_ids]
            columns |= {"prompts": [question], "completions": [completion], "completion_ids": [ids]}
            if self.config.conversational:
                columns["prompts"] = [[message.model_dump() for message in prompt.messages]]
                columns["completions"] = [[{"role": "assistant", "content": completion}]]
            return columns
        metadata = dict(prompt.metadata)
        if self._signature == "verl":
            return {
                "data_source": prompt.metadata.get("data_source", ""),
                "solution_str": completion,
                "ground_truth": prompt.answer,
                "extra_info": metadata,
            }
        return {
            "prompt": question,
            "completion": completion,
            "answer": prompt.answer,
            "metadata": metadata,
        }

    def _verdict(self, result: Any, trajectory: Trajectory) -> Verdict:
        if self._signature == "trl":
            result = self._only_item(result)
        elif self._signature == "verl" and isinstance(result, Mapping):
            if "score" not in result:
                raise self._refused("a dict with the key 'score'", sorted(map(str, result)))
            result = result["score"]
        if result is None:
            return self.abstain(trajectory, "the function returned None")
        if isinstance(result, Verdict):
            return result.model_copy(
                update={"source": self.config.source, "trajectory_id": trajectory.id}
            )
        return self.scored(trajectory, self._score(result))

    def _only_item(self, result: Any) -> Any:
        wanted = "a list with one number (or None) per completion, here 1"
        if hasattr(result, "tolist"):
            result = result.tolist()
        if not isinstance(result, (list, tuple)):
            raise self._refused(wanted, result)
        if len(result) != 1:
            raise self._refused(wanted, f"{len(result)} items")
        return result[0]

    def _score(self, result: Any) -> float:
        if not isinstance(result, (str, bytes)) and hasattr(result, "item"):
            result = result.item()  # numpy and torch scalars
        low, high = self.config.score_range or (0.0, 1.0)
        wanted = f"bool, a number in [{low:g}, {high:g}], a Verdict or None"
        if isinstance(result, bool):
            return float(result)
        if not isinstance(result, numbers.Real):
            raise self._refused(wanted, result)
        value = float(result)
        if not math.isfinite(value) or not low <= value <= high:
            raise self._refused(wanted, value)
        return (value - low) / (high - low)

    def _refused(self, wanted: str, value: Any) -> VerificationError:
        shown = (
            value if isinstance(value, (float, int)) else f"{type(value).__name__} {value!r}"[:120]
        )
        return VerificationError(
            explain(
                f"the function must return {wanted}",
                value=shown,
                where=f"verifiers[...].function = {self.config.function}",
                fix="return such a value; for another range set verifiers[...].score_range: [low, high]",
            )
        )


def _load(reference: str) -> Any:
    if ":" in reference:
        return load_object(reference)
    points = {point.name: point for point in entry_points(group=VERIFIERS.group)}
    if reference in points:
        return points[reference].load()
    raise ConfigurationError(
        explain(
            "no such function",
            value=reference,
            where="verifiers[...].function",
            fix="write package.module:name or ./file.py:name"
            + (f", or an installed one: {', '.join(sorted(points))}" if points else ""),
        )
    )
