"""A model of ours as the judge: any rollout engine, in the judge worker's own process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self, cast

from pydantic import Field, JsonValue, model_validator

from policies.base.component import Component, create
from policies.base.errors import ConfigurationError, JudgeError, PawlError, boundary, explain
from policies.base.policy_choice import PolicyChoice
from policies.base.records import PolicyVersion, Sampling, StopReason
from policies.base.requirements import Hosting, ModelRequirement, Requirements
from policies.base.seeds import derive_seed
from workers.judge.judge import CUT, BackendContext, JudgeBackend, Question, Reply, Usage
from workers.rollout.chat.chat_settings import ChatSettings, refused_arguments
from workers.rollout.chat.thought_marks import marked_text
from workers.rollout.engine import (
    ENGINES,
    Generation,
    GenerationRequest,
    NumberFormat,
    RolloutEngine,
)

logger = logging.getLogger(__name__)


class EngineBackend(JudgeBackend):
    """Answers with a frozen version of the run's own policy, or with another model."""

    takes_choices: ClassVar[bool] = True

    class Config(Component.Config):
        """Settings of the judge's engine."""

        engine: Annotated[Component.Config, ENGINES.field()] = Field(
            default_factory=lambda: ENGINES.parse("vllm")
        )
        """What serves the model: vllm, transformers, or the scripted fake."""
        model: str = "policy"
        """`policy`: the run's own policy, frozen; else a hub id or a directory with safetensors."""
        version: PolicyChoice | None = None
        """With `model: policy`, which version judges: a number (until that version is published, the one that serves),
        `initial`, `current` (the one that serves) or `{rounds_ago: n}`; null takes `initial`, the policy as it came."""
        dtype: NumberFormat | None = None
        """Number format of the judge's weights; null takes the policy's."""
        template_arguments: dict[str, JsonValue] | None = None
        """Variables for the judge's chat template, e.g. {enable_thinking: false}; null takes
        `rollout.template_arguments` with `model: policy`, and gives another model none."""

        def requires(self) -> Requirements:
            """The model that its engine is handed: the policy in one of its versions, or another one."""
            hosting = self.engine.requires().hosting or Hosting()
            model = ModelRequirement(
                name=self.model,
                version=self.version,
                dtype=self.dtype,
                gpus=hosting.gpus,
                hosting=hosting,
                trusts_code=hosting.trusts_code,
                trusted_by="engine.trust_remote_code",
            )
            return super().requires() + Requirements(models=(model,))

        @model_validator(mode="after")
        def _can_be_told(self) -> Self:
            refused = refused_arguments(self.template_arguments or {})
            if refused is not None:
                raise ValueError(f"template_arguments: {refused}. Fix: leave it out")
            return self

        @model_validator(mode="after")
        def _version_of_policy(self) -> Self:
            if self.version is not None and self.model != "policy":
                what = "version numbers exist for the run's own policy only"
                fix = "leave version out, or use model: policy"
                where = "backend.version of a judge"
                raise ConfigurationError(explain(what, value=self.version, where=where, fix=fix))
            return self

    def __init__(self, config: Component.Config, *, context: BackendContext) -> None:
        self.config = cast(EngineBackend.Config, config)
        self._context = context
        self._dtype = self.config.dtype or context.dtype
        self._engine: RolloutEngine | None = None
        self._model: PolicyVersion | None = None

    def start(self) -> None:
        """Load the model. Warns when a policy is judged by a version of itself.

        Raises:
            JudgeError: the model cannot be had, or its engine does not start.
        """
        if self._engine is not None:
            return
        if self.config.model == "policy":
            logger.warning(
                "the judge is the policy's own version %d: models tend to prefer text like their own",
                self.model().number,
            )
        with boundary(
            JudgeError, f"the judge's engine {self.config.engine.type!r} could not start"
        ):
            self._engine = create(
                self.config.engine,
                policy=self.model(),
                dtype=self._dtype,
                seed=self._context.engine_seed,
            )
            self._engine.tell(self._chat())

    def serve(self, policy: PolicyVersion) -> None:
        """Judge with this version from now on; a loaded engine swaps its weights in place."""
        if self._engine is not None and self._model != policy:
            with boundary(JudgeError, f"the judge cannot load policy version {policy.number}"):
                self._engine.load_policy(policy)
        self._model = policy

    def model(self) -> PolicyVersion:
        """The weights that judge."""
        if self._model is None:
            with boundary(JudgeError, f"the judge's model {self.config.model!r} cannot be had"):
                if self.config.model == "policy":
                    chosen = self.config.version
                    number = chosen if isinstance(chosen, int) else 0
                    self._model = self._context.policy_version(number)
                else:
                    self._model = self._context.model_version(self.config.model)
        return self._model

    def identity(self) -> str:
        name = self.config.model
        if name == "policy":
            name = f"policy version {self.model().number}"
        told = self._chat().template_arguments
        arguments = f" {json.dumps(told, sort_keys=True)}" if told else ""
        return (
            f"{self.config.engine.type}: {name} {self.model().digest[:12]} {self._dtype}{arguments}"
        )

    def _chat(self) -> ChatSettings:
        """Return what the judge's chat template is told: of another model, the day and its own arguments alone."""
        own, run = self.config.template_arguments, self._context.chat
        if self.config.model != "policy":
            run = ChatSettings(date=run.date, date_is_given=run.date_is_given)
        return run if own is None else run.model_copy(update={"template_arguments": own})

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One generate call for all; when it fails, its halves are tried, down to the questions at fault."""
        self.start()
        requests: dict[int, GenerationRequest] = {}
        replies: dict[int, Reply] = {}
        for index, question in enumerate(questions):
            try:
                with boundary(JudgeError, "the chat template failed"):
                    requests[index] = self._request(question)
            except PawlError as error:
                replies[index] = Reply(text=None, error=str(error), usage=Usage())
        if requests:
            replies.update(self._generate(requests))
        return [replies[index] for index in range(len(questions))]

    def _request(self, question: Question) -> GenerationRequest:
        assert self._engine is not None
        content = json.dumps([[message.role, message.content] for message in question.messages])
        return GenerationRequest(
            prompt_token_ids=self._engine.render(question.messages),
            sampling=Sampling(temperature=question.temperature, max_tokens=question.max_tokens),
            seed=derive_seed(self._context.seed, content, question.vote),
            choices=question.choices,
        )

    def _generate(self, requests: dict[int, GenerationRequest]) -> dict[int, Reply]:
        assert self._engine is not None
        started = time.perf_counter()
        try:
            with boundary(JudgeError, "the judge's engine failed"):
                answers = self._engine.generate(list(requests.values()))
                if len(answers) != len(requests):
                    raise JudgeError(
                        f"the judge's engine gave {len(answers)} answers to {len(requests)}"
                    )
        except PawlError as error:
            if len(requests) == 1:
                return {index: Reply(text=None, error=str(error)) for index in requests}
            items = list(requests.items())
            middle = len(items) // 2
            return self._generate(dict(items[:middle])) | self._generate(dict(items[middle:]))
        seconds = (time.perf_counter() - started) / len(requests)
        return {
            index: self._reply(request, answer, seconds)
            for (index, request), answer in zip(requests.items(), answers, strict=True)
        }

    def _reply(self, request: GenerationRequest, answer: Generation, seconds: float) -> Reply:
        """Return what was written, the mark of a thought that the template opened included; a cut text is none."""
        assert self._engine is not None
        usage = Usage(1, len(request.prompt_token_ids), len(answer.token_ids))
        if answer.error is not None:
            return Reply(text=None, error=answer.error, seconds=seconds, usage=usage)
        if request.choices:
            return Reply(text=answer.text, seconds=seconds, usage=usage)
        if answer.stop_reason is StopReason.LENGTH:
            return Reply(text=None, error=CUT, seconds=seconds, usage=usage)
        chat = self._engine.chat
        text = marked_text(answer.text, answer.token_ids, request.prompt_token_ids, chat)
        return Reply(text=text, seconds=seconds, usage=usage)
