"""The role worker: answers of one role (a teacher) to the prompts of a shard, drafted on disk before it says so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from policies.base.bounds import MAX_TOKENS
from policies.base.component import Component, Settings, create
from policies.base.errors import JudgeError, RolloutError, boundary, explain
from policies.base.records import Message, Prompt
from policies.base.role_answers import RoleAnswer
from policies.storage.artifacts import Written, read_records, write_draft
from workers.cluster.compute_threads import set_threads
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.judge.judge import BACKENDS, CUT, BackendContext, JudgeBackend, Question, Reply


class RoleAsking(Settings):
    """Settings that decide what a role answers."""

    # A mistyped section can hold a key: messages name the field, never its content.
    model_config = ConfigDict(hide_input_in_errors=True)

    backend: Annotated[Component.Config, BACKENDS.field()]
    """What answers: `{type: openai, ...}` for an endpoint, `{type: engine, model: ...}` for a model of ours."""
    system: str | None = None
    """A system message that stands before the prompt's messages when the role is asked; the policy never sees it."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature of its answers."""
    max_tokens: int = Field(default=512, ge=1, le=MAX_TOKENS)
    """Longest answer, in tokens of the role's own model; one that is cut is a failed attempt."""


class RoleWorker:
    """One role with its backend, for as long as the run."""

    def __init__(
        self,
        name: str,
        asking: RoleAsking,
        context: BackendContext,
        *,
        seed: int = 0,
        threads: int | None = None,
        shared_by: int = 1,
    ) -> None:
        """Start what answers; returns when it can.

        Args:
            name: of the role.
            asking: what it is and how it is asked.
            context: what backends may need of the run.
            seed: this worker's alone.
            threads: CPU threads to compute with; None shares this machine's cores.
            shared_by: workers of the role on this machine.

        Raises:
            JudgeError: it could not start.
        """
        set_threads(threads, shared_by=shared_by)
        self._name, self._asking = name, asking
        what = f"backend {asking.backend.type!r} of role {name!r} could not start"
        with boundary(JudgeError, what):
            given = replace(context, engine_seed=seed)
            self._backend: JudgeBackend = create(asking.backend, context=given)
            self._backend.start()

    def check(self) -> None:
        """Ask a trial question, before anything is sampled.

        Raises:
            JudgeError: it cannot answer; in four parts, with the role's name.
        """
        found = self._backend.probe()
        if found is not None:
            raise JudgeError(f"role {self._name!r}: {found.message}")

    def identities(self) -> dict[str, JsonValue]:
        """For the run's record: what answers."""
        return {self._name: self._backend.identity()}

    def answer(
        self,
        prompts_path: str,
        output_path: str,
        samples: int,
        item_filter: ItemFilter = WHOLE,
    ) -> Written:
        """Ask for `samples` answers to each prompt of a shard; one that fails is an answer with an error."""
        started = time.perf_counter()
        prompts = read_records(Path(prompts_path), Prompt)
        asked = [p for p in prompts if item_filter.takes(p.id)]
        slots = [(prompt, index) for prompt in asked for index in range(samples)]
        with boundary(RolloutError, f"role {self._name!r} failed"):
            replies = self._replies(slots)
        answers = [self._answer(p, i, reply) for (p, i), reply in zip(slots, replies, strict=True)]
        left_out = Reply(text=None, error=ItemFilter.reason("the prompt"))
        answers += [
            self._answer(prompt, index, left_out)
            for prompt in prompts
            if prompt.id in item_filter.skip
            for index in range(samples)
        ]
        summary: dict[str, JsonValue] = {
            "answers": len(answers),
            "errors": sum(answer.error is not None for answer in answers),
            "calls": sum(reply.usage.calls for reply in replies),
            "prompt_tokens": sum(reply.usage.prompt_tokens for reply in replies),
            "completion_tokens": sum(reply.usage.completion_tokens for reply in replies),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Written(
            files=(write_draft(Path(output_path), RoleAnswer, answers),), summary=summary
        )

    def _replies(self, slots: Sequence[tuple[Prompt, int]]) -> list[Reply]:
        asking = self._asking
        before = () if asking.system is None else (Message(role="system", content=asking.system),)
        tools = Reply(
            text=None,
            error="the prompt offers tools, which a role that answers in words cannot call",
        )
        questions = [
            Question(
                messages=(*before, *prompt.messages),
                max_tokens=asking.max_tokens,
                temperature=asking.temperature,
                vote=index,
            )
            for prompt, index in slots
            if not prompt.tools
        ]
        found = iter(self._backend.ask(questions) if questions else ())
        replies = [tools if prompt.tools else next(found, None) for prompt, _ in slots]
        if None in replies or next(found, None) is not None:
            raise RolloutError(
                explain(
                    "a backend must give one reply to each question",
                    value=f"{len(questions)} questions",
                    where=f"roles.{self._name}.backend",
                    fix="return a list of as many replies as questions",
                )
            )
        return [reply for reply in replies if reply is not None]

    def _answer(self, prompt: Prompt, index: int, reply: Reply) -> RoleAnswer:
        text = None if reply.error is not None else reply.text
        error = reply.error
        if error == CUT:
            error = f"the answer was cut at max_tokens. Fix: raise roles.{self._name}.max_tokens"
        if error is None and not (text or "").strip():
            text, error = None, "the role gave an empty answer"
        return RoleAnswer(
            id=f"{prompt.id}.{index}",
            prompt_id=prompt.id,
            index=index,
            role=self._name,
            answered_by=self._backend.identity(),
            text=text,
            error=error,
            seconds=reply.seconds,
        )
