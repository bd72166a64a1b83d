"""The rollout engine seam: token ids in, token ids and log-probs out, weights swapped in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from policies.base.component import Component, Family
from policies.base.records import Message, PolicyVersion, Sampling, StopReason
from policies.base.requirements import Hosting, Requirements
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.shown_calls import check_shown

NumberFormat = Literal["bfloat16", "float16", "float32"]
"""What weights are loaded and computed in."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    """Derived from run, round, prompt and sample: what has to repeat, on whichever worker, follows from it."""
    choices: tuple[str, ...] = ()
    """When given, the text must be one of these (constrained decoding), as judges need it."""


@dataclass(frozen=True)
class Generation:
    """One sampled completion, terminator included when the model wrote it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # [T] raw log-prob of each sampled token, before temperature
    text: str
    stop_reason: StopReason
    error: str | None = None
    """Why there is no completion; then `stop_reason` is `error`, and there are no tokens."""

    @classmethod
    def failed(cls, error: str) -> Generation:
        """A completion that the engine broke off: its trajectory becomes an error, and nothing is learned from it."""
        return cls((), (), "", StopReason.ERROR, error)


class RolloutEngine(Component):
    """Samples completions from one policy version at a time. Lives as long as the run.

    Constructor: `(config, *, policy: PolicyVersion, dtype: str, seed: int)` loads `policy` and is ready. `seed` is this
    engine's alone: another worker's, and that of a worker in the place of a lost one, is another.

    A row of a batch ends where its own terminator, stop string or budget is reached, and nothing behind that is given
    back as the policy's: every token of a `Generation` was sampled.
    """

    serving: PolicyVersion
    """The version whose weights answer now."""
    chat: ChatFormat
    """Template and tokenizer of the model."""
    max_context: int | None = None
    """Most tokens of prompt and completion together; None where the engine knows no limit."""

    @classmethod
    def usual_requirements(cls, config: Component.Config) -> Requirements:
        """Say how an engine holds its model, by the names that vLLM's arguments have; a copy on a GPU otherwise."""
        set_by = "tensor_parallel_size"
        told: dict[str, Any] = dict(config)
        hosting = Hosting(
            gpus=told.get(set_by, 1),
            gpus_set_by=set_by if set_by in told else "",
            splits_heads=set_by in told,
            trusts_code=told.get("trust_remote_code", False) is True,
            max_context=told.get("max_model_len"),
            max_sequences=told.get("max_num_seqs", 128),
            cpu_cache_bytes=told.get("cpu_cache_gib", 0) << 30,
        )
        return super().usual_requirements(config) + Requirements(hosting=hosting)

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, object]] = ()
    ) -> tuple[int, ...]:
        """Token ids of the chat prompt, generation prompt included, by the model's own chat template."""
        text = self.chat.text(messages, tools, generation_prompt=True)
        check_shown(text, messages, tools)
        return self.chat.encode(text)

    def tell(self, settings: ChatSettings) -> None:
        """Write prompts from now on under the settings of a run; nothing to do for an engine without a chat format."""
        chat = getattr(self, "chat", None)
        if isinstance(chat, ChatFormat):
            self.chat = chat.configured(settings)

    def worded(self, generation: Generation) -> Generation:
        """The generation with its text as the chat format reads it: tags that are special tokens are not left out."""
        if self.chat.spoken.isdisjoint(generation.token_ids):
            return generation
        return replace(generation, text=self.chat.decode(generation.token_ids))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Sample one completion per request; the answers come in the order of the requests."""
        raise NotImplementedError

    def submit(self, request: GenerationRequest) -> int:
        """Hand in one request; its answer comes out of `advance` under the ticket that is returned."""
        raise NotImplementedError

    def advance(self) -> list[tuple[int, Generation]]:
        """Work on all submitted requests for one step; the answers that are finished, each once.

        Requests may be submitted between two calls and join those under way (continuous batching). Returns an
        empty list when nothing has finished yet, and at once when nothing was submitted.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Forget every submitted request that has not been answered."""
        raise NotImplementedError

    def load_policy(self, policy: PolicyVersion) -> None:
        """Serve `policy` from now on: weights swapped in place, caches of the old weights dropped.

        Raises:
            PolicyStoreError: the files at `policy.path` do not have the digest of `policy`.
        """
        raise NotImplementedError


class BatchEngine(RolloutEngine):
    """An engine that works a batch through at once: what is submitted waits for the next `advance`."""

    def __init__(self, *, batch_size: int | None = None) -> None:
        """Begin with an empty queue; `batch_size` is the most requests of one `advance`."""
        self._queue: list[tuple[int, GenerationRequest]] = []
        self._tickets = 0
        self._batch_size = batch_size

    def submit(self, request: GenerationRequest) -> int:
        self._tickets += 1
        self._queue.append((self._tickets, request))
        return self._tickets

    def advance(self) -> list[tuple[int, Generation]]:
        size = self._batch_size or len(self._queue)
        batch, self._queue = self._queue[:size], self._queue[size:]
        if not batch:
            return []
        generations = self.generate([request for _, request in batch])
        return [(ticket, answer) for (ticket, _), answer in zip(batch, generations, strict=True)]

    def abandon(self) -> None:
        self._queue = []


ENGINES = Family("rollout engine", package="workers.rollout.engines", base=RolloutEngine)
