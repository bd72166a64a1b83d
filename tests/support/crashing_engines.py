"""Engines that kill their worker on one question: really, or by what the driver hears of a dead one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from policies.base.errors import WorkerLostError
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import FakeEngine

QUESTION = "2 times 3"


class Killing(FakeEngine):
    """Ends its process."""

    def die(self) -> None:
        os._exit(9)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        if any(QUESTION in self.chat.decode(r.prompt_token_ids) for r in requests):
            self.die()
        return super().generate(requests)


class Lost(Killing):
    """Raises what the driver hears of a process that has ended."""

    def die(self) -> None:
        raise WorkerLostError("rollout 0: the worker died")


class NotFinite(FakeEngine):
    """Gives a log-prob that is no number on one question."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        found = super().generate(requests)
        for place, request in enumerate(requests):
            if QUESTION in self.chat.decode(request.prompt_token_ids):
                broken = (float("nan"), *found[place].logprobs[1:])
                found[place] = Generation(
                    token_ids=found[place].token_ids,
                    logprobs=broken,
                    text=found[place].text,
                    stop_reason=found[place].stop_reason,
                )
        return found


class Unsound(FakeEngine):
    """Gives on one question what no engine should; a subclass says what."""

    def spoil(self, request: GenerationRequest, sound: Generation) -> Generation:
        raise RuntimeError("the engine was told to fail")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [
            self.spoil(request, sound)
            if QUESTION in self.chat.decode(request.prompt_token_ids)
            else sound
            for request, sound in zip(requests, super().generate(requests), strict=True)
        ]


class Empty(Unsound):
    """Gives not a single token."""

    def spoil(self, request: GenerationRequest, sound: Generation) -> Generation:
        return Generation(token_ids=(), logprobs=(), text="", stop_reason=sound.stop_reason)


class TooLong(Unsound):
    """Gives more tokens than it was asked for."""

    def spoil(self, request: GenerationRequest, sound: Generation) -> Generation:
        times = request.sampling.max_tokens // len(sound.token_ids) + 1
        return Generation(
            token_ids=sound.token_ids * times,
            logprobs=sound.logprobs * times,
            text=sound.text * times,
            stop_reason=sound.stop_reason,
        )


class Unaligned(Unsound):
    """Gives fewer log-probs than tokens."""

    def spoil(self, request: GenerationRequest, sound: Generation) -> Generation:
        return Generation(
            token_ids=sound.token_ids,
            logprobs=sound.logprobs[1:],
            text=sound.text,
            stop_reason=sound.stop_reason,
        )


class Fewer(FakeEngine):
    """Answers one request less than it was asked."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return super().generate(requests)[1:]
