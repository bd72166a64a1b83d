"""Attempts from a log of answers, instead of sampled ones or beside them: what offline data brings to any builder.

The prompts' rows bring the answers (`columns: {metadata: [chosen, rejected]}`); each column holds a text, a list of
texts, a chat, or a list of chats. Verifiers and judges score them like any attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.component import Component
from policies.base.errors import InputError
from policies.base.recorded_answers import answers_of, refused
from policies.base.records import Prompt, Trajectory
from workers.rollout.chat.transcript import RewrittenHistory
from workers.rollout.engine import RolloutEngine
from workers.rollout.recorded_turns import recorded_trajectory, write
from workers.rollout.strategies.independent import Independent
from workers.rollout.strategy import RolloutJob, RolloutStrategy


class LoggedAnswers(RolloutStrategy):
    """The first attempts at a prompt are its recorded answers, in the order of the columns; the rest is sampled.

    Recorded answers are written on the prompt's own tokens, their author is `log`, and the trainer scores them under
    the policy where a loss wants reference log-probs. For a stage: held-out prompts are attempted with
    `rollout.strategy`.
    """

    samples_policy: ClassVar[bool] = False

    class Config(Component.Config):
        """Settings of `logged_answers`."""

        columns: tuple[str, ...] = Field(default=("answers",), min_length=1)
        """Names under which a prompt's row keeps the answers (`metadata` of the prompt), e.g. [chosen, rejected]."""
        answers: int = Field(default=2, ge=1, le=MAX_COUNT)
        """Recorded answers among the `rollout.samples_per_prompt` attempts at each prompt: with as many, nothing is
        sampled."""
        missing: Literal["error", "sample"] = "error"
        """What stands for an answer that a row lacks: an error, which counts as a failed attempt, or an attempt of the
        policy."""
        rewritten_history: RewrittenHistory = "auto"
        """When the chat template shows earlier turns of a recorded chat otherwise than they were recorded: `auto` and
        `keep` keep them as they were, `refuse` refuses the trajectory."""

    config: Config

    @classmethod
    def refused_prompt(cls, config: Component.Config, prompt: Prompt) -> str | None:
        assert isinstance(config, cls.Config)
        try:
            number = len(answers_of(prompt, config.columns))
        except InputError as error:
            return str(error)
        if number >= config.answers or config.missing == "sample":
            return None
        return str(refused(prompt, config.columns, f"{number} of {config.answers} answers"))

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        found: list[Trajectory] = []
        rest: list[tuple[Prompt, int]] = []
        for prompt in job.prompts:
            recorded = self._recorded(job, prompt, engine)
            found += recorded
            left = job.samples_per_prompt - len(recorded)
            if left:
                rest.append((prompt, left))
        for number in sorted({left for _, left in rest}):
            found += Independent(self.config).run(
                replace(
                    job,
                    prompts=tuple(prompt for prompt, left in rest if left == number),
                    samples_per_prompt=number,
                    first_sample=job.first_sample + job.samples_per_prompt - number,
                ),
                engine,
            )
        place = {prompt.id: index for index, prompt in enumerate(job.prompts)}
        return sorted(found, key=lambda t: (place[t.prompt_id], t.sample_index))

    def _recorded(self, job: RolloutJob, prompt: Prompt, engine: RolloutEngine) -> list[Trajectory]:
        """The attempts from the log; none where another policy samples its share of a mixture."""
        wanted = min(self.config.answers, job.samples_per_prompt) if not job.first_sample else 0
        try:
            answers = answers_of(prompt, self.config.columns)[:wanted]
        except InputError as error:
            failed = ((), (), str(error))
            return [recorded_trajectory(job, prompt, i, failed, engine) for i in range(wanted)]
        history = self.config.rewritten_history
        found = []
        for index, answer in enumerate(answers):
            written = write(prompt, partial(list, answer), engine, history)
            found.append(recorded_trajectory(job, prompt, index, written, engine))
        if self.config.missing == "error":
            lacks = (
                (),
                (),
                str(refused(prompt, self.config.columns, f"{len(answers)} of {wanted} answers")),
            )
            for index in range(len(answers), wanted):
                found.append(recorded_trajectory(job, prompt, index, lacks, engine))
        return found
