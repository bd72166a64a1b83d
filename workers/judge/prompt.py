"""Judge prompts: versioned text files, filled in one pass, with the data fenced off from the instructions."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from policies.base.attempt_answer import answer_of
from policies.base.component import load_object, reference_to
from policies.base.errors import ConfigurationError, JudgeError, explain
from policies.base.records import Json, Message, Prompt, Span, Trajectory, Turn
from workers.judge.judge import AskingJudge, JudgeBackend, Question, Reply
from workers.judge.parse import cleaned
from workers.scoring.graded_parts import Level

View = Literal["completion", "transcript"]

MAX_PROMPT_BYTES = 200_000
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class PromptSlots:
    """Contents that a judge's prompt must and may have."""

    required: frozenset[str]
    optional: frozenset[str]
    last_line: str
    """How the answer's last line starts; a prompt that does not ask for it could never be read."""


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with `{placeholders}`. Example: `PromptTemplate(name="mine.txt", text="Task: {prompt} ...")`."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def version(self) -> str:
        """File name and the start of the sha256 of the text."""
        return f"{self.name[-60:]}@{self.digest[:12]}"

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(_PLACEHOLDER.findall(self.text))

    def fill(self, values: Mapping[str, str]) -> str:
        """Put `values` in, in one pass: braces and placeholders inside a value stay as they are."""
        return _PLACEHOLDER.sub(lambda found: values[found.group(1)], self.text)

    @classmethod
    def load(cls, path: Path, *, slots: PromptSlots, where: str) -> Self:
        """Read and check a prompt file.

        Raises:
            ConfigurationError: it cannot be read, misses a placeholder, or has an unknown one.
        """
        try:
            if not path.is_file() or path.stat().st_size > MAX_PROMPT_BYTES:
                raise OSError("no such file, or not a text file of at most 200 kB")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"the judge prompt cannot be read: {error}"
            fix = "give the path of a UTF-8 text file"
            raise ConfigurationError(
                explain(what, value=str(path), where=where, fix=fix)
            ) from error
        template = cls(name=path.name, text=text)
        template._check(slots, where=where)
        return template

    def _check(self, slots: PromptSlots, *, where: str) -> None:
        known = slots.required | slots.optional
        listed = ", ".join(f"{{{name}}}" for name in sorted(known))
        unknown = sorted(self.placeholders - known)
        missing = sorted(slots.required - self.placeholders)
        if unknown:
            close = difflib.get_close_matches(unknown[0], sorted(known), n=1)
            hint = f"did you mean {{{close[0]}}}? " if close else ""
            what = f"the judge prompt {self.name} has unknown placeholders"
            fix = f"{hint}known: {listed}"
            raise ConfigurationError(explain(what, value=unknown, where=where, fix=fix))
        if missing:
            what = f"the judge prompt {self.name} lacks placeholders"
            fix = f"write {', '.join(f'{{{name}}}' for name in missing)} where the text belongs; known: {listed}"
            raise ConfigurationError(explain(what, value=missing, where=where, fix=fix))
        if slots.last_line not in self.text:
            what = f"the judge prompt {self.name} never asks for the line that is read"
            fix = f"ask for a last line that starts with {slots.last_line!r}"
            raise ConfigurationError(explain(what, value=self.text[-60:], where=where, fix=fix))


def fenced(text: str) -> str:
    """`text` between two marks that it does not contain: it can neither end its fence nor predict it."""
    digest = hashlib.sha256(json.dumps(text).encode()).hexdigest()
    length = 8
    while digest[:length] in text and length < len(digest):
        length += 8
    return f"<<<{digest[:length]}\n{text}\n{digest[:length]}>>>"


def viewed_text(trajectory: Trajectory, view: View, level: Level = "trajectory") -> str:
    """Return what a judge sees of an attempt or of its graded step; empty when there is no answer."""
    if view == "completion":
        return trajectory.completion if level == "step" else answer_of(trajectory).text
    if level == "step" and trajectory.graded is not None:
        return _until_step(trajectory, trajectory.graded)
    if not any(t.text.strip() for t in trajectory.turns if t.role == "policy"):
        return ""
    return "\n".join(_said(trajectory, trajectory.turns))


def _said(trajectory: Trajectory, turns: Sequence[Turn]) -> list[str]:
    """Labelled turns, after what the counterpart began with: without that a judge would not know the task."""
    opening = [f"[opening]\n{message.content}" for message in trajectory.opening]
    return opening + [f"[{turn.role}]\n{turn.text}" for turn in turns]


def _until_step(trajectory: Trajectory, graded: Span) -> str:
    """All that was said before the step, then the step: what comes after it must not colour the judgement."""
    if not trajectory.completion.strip():
        return ""
    parts = _said(trajectory, trajectory.turns[: graded.turn])
    steps = trajectory.turns[graded.turn].steps
    before = "".join(step.text for step in steps if step.end <= graded.start)
    parts += [f"[policy]\n{before}"] if before.strip() else []
    return "\n".join([*parts, f"[the step to judge]\n{trajectory.completion}"])


def prompt_text(prompt: Prompt) -> str:
    """The task as a judge sees it: one message as it is, several with their roles."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n".join(f"[{message.role}]\n{message.full_text}" for message in prompt.messages)


def answer_text(answer: Json) -> str:
    """The ground truth as a judge sees it."""
    if answer is None:
        return "(none is known)"
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


@dataclass(frozen=True)
class Answer:
    """A reply that was read: its value, or why there is none. The text is kept either way."""

    value: float | None
    error: str | None
    text: str
    seconds: float


def _rebuilt(
    reference: str, values: dict[str, Any], template: PromptTemplate
) -> AskingJudge.Config:
    owner: type[AskingJudge] = load_object(reference)
    return owner.Config.model_validate(values, context={"template": template})


class PromptedJudge(AskingJudge):
    """A judge that fills a prompt file and reads one line of the answer. Base of pairwise and rubric."""

    class Config(AskingJudge.Config):
        """Settings of judges that follow a prompt file."""

        slots: ClassVar[PromptSlots]
        shipped_prompt: ClassVar[Path]

        criteria: str = "Correct, complete, and to the point."
        """What a good attempt is, in words; put in the place of {criteria}."""
        prompt_file: Path | None = None
        """Your own prompt as a text file with placeholders; null takes the shipped one."""
        view: View = "completion"
        """What is judged: the policy's answer as verifiers read it: no thoughts, and empty when a limit cut it short
        (at the level `step`: the step alone), or the `transcript` of all turns as they were written (up to the step,
        which is marked as the one to judge)."""
        temperature: float = Field(default=0.0, ge=0, le=100)
        """Sampling temperature of the judge model; 0 is greedy."""
        verdict_only: bool = False
        """Let the judge write nothing but a verdict line that can be read (constrained decoding): for small
        models that ignore the form. Their reasons are lost. Needs a backend that takes choices: `engine`."""
        _template: PromptTemplate = PrivateAttr()

        @model_validator(mode="after")
        def _backend_takes_choices(self) -> Self:
            backend = cast("type[JudgeBackend]", type(self.backend).component)
            if self.verdict_only and not backend.takes_choices:
                what = f"the judge backend {self.backend.type!r} cannot hold a model to a choice"
                fix = "use backend type engine, or verdict_only: false"
                where = f"verdict_only of judge {self.source!r}"
                raise ConfigurationError(explain(what, value=True, where=where, fix=fix))
            return self

        @model_validator(mode="after")
        def _load_prompt(self, info: ValidationInfo) -> Self:
            template = (info.context or {}).get("template")
            if template is None:
                path = self.prompt_file or self.shipped_prompt
                where = f"prompt_file of judge {self.source!r}"
                template = PromptTemplate.load(path, slots=self.slots, where=where)
            default = type(self).model_fields["criteria"].default
            if self.criteria != default and "criteria" not in template.placeholders:
                what = f"the judge prompt {template.name} has no {{criteria}}, so these would be ignored"
                fix = "write {criteria} into the prompt file, or leave criteria out"
                where = f"criteria of judge {self.source!r}"
                raise ConfigurationError(explain(what, value=self.criteria, where=where, fix=fix))
            self._template = template
            return self

        def __reduce__(self) -> tuple[Any, ...]:
            # The worker may run where the prompt file does not exist, or later, when it was edited.
            values = self.model_dump(mode="json")
            return _rebuilt, (reference_to(type(self).component), values, self._template)

        @property
        def template(self) -> PromptTemplate:
            """The prompt as it was when the config was read: it travels with the config to the workers."""
            return self._template

    def __init__(self, config: AskingJudge.Config, *, backend: JudgeBackend) -> None:
        super().__init__(config, backend=backend)
        self.settings = cast(PromptedJudge.Config, config)

    def version(self) -> str:
        return self.settings.template.version

    def question(
        self, prompt: Prompt, attempts: Mapping[str, str], vote: int = 0, **plain: str
    ) -> Question:
        """The filled prompt: task, answer and `attempts` fenced; criteria and `plain` values as they are."""
        values = {
            "prompt": fenced(prompt_text(prompt)),
            "answer": fenced(answer_text(prompt.answer)),
            "criteria": self.settings.criteria,
            **{name: fenced(text) for name, text in attempts.items()},
            **plain,
        }
        return Question(
            messages=(Message(role="user", content=self.settings.template.fill(values)),),
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
            vote=vote,
            choices=self.verdict_lines() if self.settings.verdict_only else (),
        )

    def verdict_lines(self) -> tuple[str, ...]:
        """Every verdict line that can be read."""
        raise NotImplementedError

    def answers(self, questions: Sequence[Question], read: Callable[[str], float]) -> list[Answer]:
        """Ask all questions and read each reply by itself; one that cannot be read harms no other."""
        replies = self.ask(questions)
        return [self._answer(q, reply, read) for q, reply in zip(questions, replies, strict=True)]

    def _answer(self, question: Question, reply: Reply, read: Callable[[str], float]) -> Answer:
        text = cleaned(reply.text or "")
        if reply.text is None:
            error = cleaned(reply.error or "the backend gave neither a text nor an error")
            return Answer(None, error, text, reply.seconds)
        try:
            value = read(reply.text)
        except JudgeError as error:
            return Answer(None, str(error), text, reply.seconds)
        self.backend.keep(question, reply)
        return Answer(value, None, text, reply.seconds)
