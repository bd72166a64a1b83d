"""Score with any function: ours, or one written for TRL, verl or OpenRLHF, which work unchanged.

    f(prompt, completion, answer[, metadata]) -> bool | float | Verdict | None         (pawl)
    f(prompts, completions, **columns) -> list[float | None]                           (trl)
    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict (verl)
    compute_score(data_sources, solution_strs, ground_truths, extra_infos) -> list     (verl_batch)
    reward_func(queries, prompts, labels) -> tensor | dict                             (openrlhf)

Parameters are filled by name (`workers/verify/parameter_names.py` has the names); a function in one of the plural forms
gets all attempts at a prompt in one call. None means that the function has no opinion.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from policies.base.bounds import MAX_SCORE, Score
from policies.base.component import load_object
from policies.base.errors import ConfigurationError, PawlError, VerificationError, boundary, explain
from policies.base.records import Json, Prompt, Trajectory, Verdict
from policies.base.requirements import Requirements
from workers.verify.function_fit import WANTED, Fit, FunctionSignature
from workers.verify.function_results import Logged, ResultError, ResultReader, Said
from workers.verify.function_values import answer_of, arguments_for_many, arguments_for_one
from workers.verify.message_form import annotated_form, source_reads_messages
from workers.verify.verifier import VERIFIERS, Verifier


class CallableVerifier(Verifier):
    """Calls the function, with one attempt or with all attempts at a prompt, and checks what it returns."""

    class Config(Verifier.Config):
        """Settings of `callable`."""

        function: str
        """`package.module:name`, `./file.py:name`, or the name of an installed entry point (group `pawl.verifiers`)."""
        signature: Literal["auto", "pawl", "trl", "verl", "verl_batch", "openrlhf"] = "auto"
        """How the function is called; `auto` tells by the names of its parameters."""
        arguments: dict[str, str] = Field(default_factory=dict, exclude_if=lambda set_: not set_)
        """What parameters get, by parameter: a column of the metadata (`level`, `extra_info.index`), or one of the
        words that `docs/functions.md` lists (`completion`, `answer`, ...). Not needed where the names are known."""
        factory_arguments: dict[str, Json] | None = Field(
            default=None, exclude_if=lambda set_: set_ is None
        )
        """Set where `function` makes the function: what it is called with, once, at the start. Default: it is none."""
        score_range: tuple[Score, Score] | None = None
        """Lowest and highest value that the function returns, mapped to [0, 1]; unset: it returns [0, 1] itself."""
        raw: bool = Field(default=False, exclude_if=lambda set_: not set_)
        """The function returns any finite number, such as a reward, which is kept as it is."""
        answer_column: str = "answer"
        """One more name under which the function gets the answer."""
        conversational: bool | None = None
        """Hand prompts and completions over as lists of chat messages, with all turns, instead of texts; unset: told by
        the function's annotations, else by whether its source reads the `content` or `role` of a message."""

        def requires(self) -> Requirements:
            return super().requires() + Requirements(raw_scores=self.raw)

        @model_validator(mode="after")
        def _rising(self) -> Self:
            if self.raw and self.score_range is not None:
                raise ValueError(
                    "raw scores are kept as they are, score_range maps them to [0, 1]. Fix: leave one of the two out"
                )
            if self.score_range is not None and self.score_range[0] >= self.score_range[1]:
                raise ValueError(
                    f"score_range must rise from low to high, got {list(self.score_range)}"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._function: Callable[..., Any] | None = None
        self._signature: FunctionSignature | None = None
        self._fits: dict[tuple[str, ...], Fit] = {}
        self._runner: asyncio.Runner | None = None
        self.reads_messages = False
        self._form_is_guessed = False

    def prepare(self) -> None:
        """Import the function and decide how it is called, before the first trajectory is timed."""
        function = _load(self.config)
        self._signature = FunctionSignature(
            function,
            style=self.config.signature,
            arguments=self.config.arguments,
            answer_column=self.config.answer_column,
            where=self.code,
        )
        self._choose_form(function)
        self._reader = ResultReader(self._range, self.code, tuples=self._signature.style == "verl")
        self._function = function

    def _choose_form(self, function: Callable[..., Any]) -> None:
        """Texts or chat messages: as the setting says, else the annotations, else the source."""
        annotated = annotated_form(function)
        open_forms = self._prepared().style in ("pawl", "trl")
        self._form_is_guessed = (
            self.config.conversational is None and annotated is None and open_forms
        )
        if self.config.conversational is not None:
            self.reads_messages = self.config.conversational
        elif open_forms:
            guessed = annotated is None and source_reads_messages(function)
            self.reads_messages = bool(annotated) or guessed

    @property
    def _range(self) -> tuple[float, float]:
        return (-MAX_SCORE, MAX_SCORE) if self.config.raw else self.config.score_range or (0.0, 1.0)

    @property
    def code(self) -> str:
        return f"verifiers[...].function = {self.config.function}"

    @property
    def takes_groups(self) -> bool:
        return self._prepared().calls == "many"

    def check_prompt(self, prompt: Prompt) -> None:
        self._fit(prompt)

    def described(self, prompt: Prompt) -> str:
        shown = self._fit(prompt).described()
        names = {*self._fit(prompt).sources.values(), *self._fit(prompt).keywords.values()}
        if names & {"prompt", "completion", "state"}:
            shown += "; as chat messages" if self.reads_messages else "; as texts"
        if self.config.score_range is not None:
            low, high = self.config.score_range
            shown += f"; [{low:g}, {high:g}] is mapped to [0, 1]"
        return shown

    def lacks_answer(self, prompt: Prompt) -> bool:
        sources = self._fit(prompt).sources
        asked = any(sources.get(name) == "answer" for name in self._prepared().required)
        return asked and answer_of(prompt) is None

    def probe_problem(self, prompt: Prompt, attempts: Sequence[Trajectory], *, error: str) -> str:
        """Say what the made-up attempts showed: another range, or the other of texts and messages.

        Where the form was guessed the other one is tried too: it must fail, or say the same.
        """
        held = self._reader.range_that_holds
        if held is not None:
            low, high = self._reader.score_range
            return explain(
                f"the function returns numbers outside [{low:g}, {high:g}], which would be errors and never clamped",
                value=f"{self._reader.lowest:g} to {self._reader.highest:g} on made-up attempts",
                where=self.code,
                fix=f"say what its lowest and highest values are, e.g. `score_range: {list(held)}`; they are mapped to "
                "[0, 1]",
            )
        if not self._form_is_guessed or not (error or self.reads_messages):
            return ""
        scores = None if error else self._tried(prompt, attempts)
        others = self._tried(prompt, attempts, other=True)
        if others is None or scores == others or (error and len(set(others)) == 1):
            return ""  # what says the same of everything does not read what it is given
        chosen = "chat messages" if self.reads_messages else "texts"
        where = f"verifiers[...].conversational of {self.config.function}"
        if error:
            other = str(not self.reads_messages).lower()
            what = f"the function fails when it is given {chosen}, and not with the other form: {error}"
            return explain(what, value=chosen, where=where, fix=f"set `conversational: {other}`")
        what = "the function says one thing of texts and another of chat messages: what it expects cannot be told"
        fix = "set `conversational: true` (messages) or `conversational: false` (texts)"
        return explain(what, value=chosen, where=where, fix=fix)

    def _tried(
        self, prompt: Prompt, attempts: Sequence[Trajectory], *, other: bool = False
    ) -> list[float | None] | None:
        """Scores in the chosen form or the other one; None where it fails."""
        chosen = self.reads_messages
        self.reads_messages = chosen != other
        groups = [attempts] if self.takes_groups else [[attempt] for attempt in attempts]
        try:
            with boundary(VerificationError, "a try"):
                said = [v for group in groups for v in self._ask(prompt, group)]
        except PawlError:
            return None
        finally:
            self.reads_messages = chosen
        return [None if isinstance(v, ResultError) else v.score for v in said]

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return what the function says."""
        if not trajectory.completion.strip() and not self.config.raw:
            return self.scored(trajectory, 0.0, "empty completion")
        (verdict,) = self._ask(prompt, [trajectory])
        if isinstance(verdict, ResultError):
            raise verdict
        return verdict

    def verify_group(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return what the function says of all attempts in one call. Empty ones take part, and are a 0 as always."""
        verdicts = []
        for trajectory, said in zip(trajectories, self._ask(prompt, trajectories), strict=True):
            if isinstance(said, ResultError):
                verdicts.append(self.failed(trajectory, str(said)))
            elif not trajectory.completion.strip() and not self.config.raw:
                empty = self.scored(trajectory, 0.0, "empty completion")
                verdicts.append(empty.model_copy(update={"metrics": said.metrics}))
            else:
                verdicts.append(said)
        return verdicts

    def _prepared(self) -> FunctionSignature:
        if self._signature is None:
            self.prepare()
        assert self._signature is not None
        return self._signature

    def _fit(self, prompt: Prompt) -> Fit:
        signature = self._prepared()
        columns = tuple(prompt.metadata)
        if columns not in self._fits:
            self._fits[columns] = signature.fit(prompt.metadata)
        return self._fits[columns]

    def _ask(
        self, prompt: Prompt, trajectories: Sequence[Trajectory]
    ) -> list[Verdict | ResultError]:
        fit = self._fit(prompt)
        assert self._function is not None
        logged = Logged()
        if fit.calls == "many":
            positional, named = arguments_for_many(
                fit, prompt, trajectories, messages=self.reads_messages, tools=logged.tools
            )
            result = self._awaited(self._function(*positional, **named))
            found = self._reader.many(result, len(trajectories))
        else:
            (trajectory,) = trajectories
            positional, named = arguments_for_one(
                fit, prompt, trajectory, messages=self.reads_messages, tools=logged.tools
            )
            found = [self._reader.one(self._awaited(self._function(*positional, **named)))]
        verdicts: list[Verdict | ResultError] = []
        of_call = logged.metrics  # stands beside the first verdict
        for index, (trajectory, said) in enumerate(zip(trajectories, found, strict=True)):
            if isinstance(said, ResultError):
                verdicts.append(said)
                continue
            note = "; ".join(n for n in (said.note, logged.note(index, len(found))) if n)
            metrics, of_call = {**said.metrics, **of_call}, {}
            verdicts.append(self._verdict(trajectory, said, note, metrics))
        return verdicts

    def _awaited(self, result: Any) -> Any:
        """The value of a coroutine: on one loop for the life of the verifier, to which clients may be bound."""
        if not inspect.isawaitable(result):
            return result

        async def wait() -> Any:
            return await result

        if self._runner is None:
            self._runner = asyncio.Runner()
            weakref.finalize(self, self._runner.close)
        return self._runner.run(wait())

    def _verdict(
        self, trajectory: Trajectory, said: Said, note: str, metrics: dict[str, float]
    ) -> Verdict:
        if said.verdict is not None:
            changes = {"source": self.config.source, "trajectory_id": trajectory.id}
            return said.verdict.model_copy(update=changes)
        if said.score is None:
            verdict = self.abstain(trajectory, note or "the function returned None")
        else:
            low, high = (0.0, 1.0) if self.config.raw else self._range
            verdict = self.scored(trajectory, (said.score - low) / (high - low), note)
        return verdict.model_copy(update={"metrics": metrics}) if metrics else verdict


def _load(config: CallableVerifier.Config) -> Callable[..., Any]:
    found = _named(config.function)
    if config.factory_arguments is not None:
        failed = explain(
            "the factory cannot make a function with these arguments",
            value=config.factory_arguments,
            where=f"verifiers[...].factory_arguments of {config.function}",
            fix="give the arguments that it takes",
        )
        with boundary(ConfigurationError, failed):
            found = found(**config.factory_arguments)
    if not callable(found) or inspect.isclass(found):
        makes = "; for a class give `factory_arguments: {}` to make an instance of it"
        raise ConfigurationError(
            explain(
                "this is not a function",
                value=config.function,
                where="verifiers[...].function",
                fix=f"name a function: {WANTED}{makes if inspect.isclass(found) else ''}",
            )
        )
    function: Callable[..., Any] = found
    return function


def _named(reference: str) -> Any:
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
