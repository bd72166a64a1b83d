"""Trajectories from given solutions instead of sampled ones: what a supervised warm-up learns from.

`prompt.metadata["demonstration"]` is a list of `{"role", "content"}`: assistant messages are the policy's turns, what
stands between them are observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from policies.base.component import Component
from policies.base.errors import PawlError, RolloutError, boundary, explain
from policies.base.records import (
    Ending,
    Json,
    Message,
    Prompt,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from workers.rollout.chat.transcript import RewrittenHistory, Transcript
from workers.rollout.engine import RolloutEngine
from workers.rollout.strategy import RolloutJob, RolloutStrategy

KEY = "demonstration"


class Demonstrations(RolloutStrategy):
    """Writes each demonstration in the model's own tokens and chat template; the engine samples nothing.

    A policy turn is the content of an assistant message, encoded without control tokens, and the terminator that the
    template writes after it: what a perfect policy would have sampled. The policy did not sample it, so its log-probs
    are not known: they are 0.0, and such trajectories fit supervised losses only. All attempts at a prompt would
    be the same, so a round makes one, whatever `rollout.samples_per_prompt` and `rollout.mixture` say. A prompt without
    a readable demonstration gives error trajectories.
    """

    samples_policy: ClassVar[bool] = False
    repeats_itself: ClassVar[bool] = True

    class Config(Component.Config):
        """Settings of `demonstrations`."""

        rewritten_history: RewrittenHistory = "auto"
        """When the chat template shows earlier turns otherwise than they were demonstrated (most remove thoughts):
        `auto` and `keep` keep the turns as they were, `refuse` refuses the trajectory."""

    config: Config

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        found = []
        for prompt in job.prompts:
            prompt_token_ids: tuple[int, ...] = ()
            turns: tuple[Turn, ...] = ()
            error = None
            try:
                with boundary(RolloutError, "the demonstration cannot be written in tokens"):
                    prompt_token_ids = engine.render(prompt.messages, prompt.tools)
                    turns = self._turns(prompt, engine)
                    _check_size(len(prompt_token_ids), turns, engine)
            except PawlError as failure:
                turns, error = (), str(failure)
            for index in job.sample_indices:
                found.append(
                    Trajectory(
                        id=job.trajectory_id(prompt, index),
                        prompt_id=prompt.id,
                        sample_index=index,
                        policy_version=engine.serving.number,
                        policy_digest=engine.serving.digest,
                        prompt_token_ids=prompt_token_ids,
                        turns=turns,
                        status=TrajectoryStatus.ERROR if error else TrajectoryStatus.COMPLETE,
                        sampling=job.sampling,
                        error=error,
                        ending=Ending.FAILED if error else Ending.ANSWERED,
                    )
                )
        return found

    def _turns(self, prompt: Prompt, engine: RolloutEngine) -> tuple[Turn, ...]:
        chat = engine.chat
        transcript = Transcript(
            chat, prompt.messages, prompt.tools, rewritten_history=self.config.rewritten_history
        )
        terminator = _terminator(prompt, engine)
        turns: list[Turn] = []
        for said, observation in _exchanges(prompt):
            token_ids = (*chat.encode(said, special=False), terminator)
            turns.append(
                Turn(
                    role="policy",
                    token_ids=token_ids,
                    text=said,
                    logprobs=(0.0,) * len(token_ids),
                    stop_reason=StopReason.STOP,
                )
            )
            transcript.said(token_ids, said)
            if observation:
                turns.append(
                    Turn(
                        role="observation",
                        token_ids=transcript.observed(observation),
                        text="\n".join(message.content for message in observation),
                        stop_reason=StopReason.OBSERVATION,
                    )
                )
        return tuple(turns)


def _exchanges(prompt: Prompt) -> list[tuple[str, tuple[Message, ...]]]:
    """Each assistant message with the messages that follow it up to the next one."""
    found: list[tuple[str, list[Message]]] = []
    for message in _messages(prompt):
        if message.role == "assistant":
            if found and not found[-1][1]:
                raise _refused(prompt, "two assistant messages follow each other")
            found.append((message.content, []))
        elif not found:
            raise _refused(prompt, "it does not begin with an assistant message")
        else:
            found[-1][1].append(message)
    if found[-1][1]:
        raise _refused(prompt, "it does not end with an assistant message")
    return [(said, tuple(observation)) for said, observation in found]


def _messages(prompt: Prompt) -> list[Message]:
    given: Json = prompt.metadata.get(KEY)
    if given is None:
        raise _refused(prompt, "there is none")
    if not isinstance(given, list) or not given:
        raise _refused(prompt, "it is not a list of messages")
    try:
        return [Message.model_validate(item) for item in given]
    except ValueError as error:
        raise _refused(prompt, "it is not a list of {role, content} with texts") from error


def _terminator(prompt: Prompt, engine: RolloutEngine) -> int:
    """The token that the template writes after an assistant turn."""
    chat = engine.chat
    probe = Transcript(chat, prompt.messages, prompt.tools, rewritten_history="keep")
    probe.said(chat.encode("pawl answers"), "pawl answers")
    written = probe.between((Message(role="user", content="pawl asks"),))
    for token_id in written:
        if token_id in chat.terminators:
            return token_id
    if len(chat.terminators) == 1:
        return next(iter(chat.terminators))
    raise RolloutError(
        explain(
            "the chat template ends an assistant turn with none of the model's terminators",
            value=sorted(chat.terminators),
            where="policy.model (its chat template and generation config)",
            fix="use a template that writes the end-of-turn token, or sample with another strategy",
        )
    )


def _check_size(size: int, turns: tuple[Turn, ...], engine: RolloutEngine) -> None:
    size += sum(len(turn.token_ids) for turn in turns)
    limit = engine.max_context
    if limit is not None and size > limit:
        raise RolloutError(f"prompt and demonstration have {size} tokens, the engine takes {limit}")


def _refused(prompt: Prompt, what: str) -> RolloutError:
    return RolloutError(
        explain(
            f"the demonstration of prompt {prompt.id!r} cannot be used: {what}",
            value=str(prompt.metadata.get(KEY))[:120],
            where=f"metadata.{KEY} of the prompt",
            fix="give a list of {role, content} that begins and ends with role assistant, with the tool's or user's "
            "messages between; tool_arithmetic makes it with demonstrations: true",
        )
    )
