"""Sampling with Hugging Face transformers: for machines where vLLM cannot be had. Slower, same contract.

What is drawn from is the policy as the request says and nothing else: the folder's generation_config.json, which
`generate` would fill in for whatever is not set, gives end-of-sequence ids only. Where a row of a batch ends is decided
here, token by token: `generate` goes on filling a row that has ended, and none of that is the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.component import Component
from policies.base.records import PolicyVersion, Sampling, StopReason
from policies.base.seeds import derive_seed
from policies.storage.policy_store import check_files, weight_files
from workers.cluster.compute_threads import follow_threads
from workers.cluster.heartbeat import report_progress
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest

if TYPE_CHECKING:
    from torch import Tensor


class TransformersEngine(BatchEngine):
    """Samples with `model.generate`, in batches of equal sampling settings."""

    class Config(Component.Config):
        """Settings of the engine."""

        batch_size: int = Field(default=64, ge=1, le=MAX_COUNT)
        """Sequences per call of `generate`."""
        device: str | None = None
        """Where the model lies, e.g. `cuda:0`; null takes a GPU when there is one."""
        trust_remote_code: bool = False
        """Run Python code that comes with the model. Off unless you have read that code."""

    def __init__(
        self,
        config: Component.Config,
        *,
        policy: PolicyVersion,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        follow_threads()
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.config = cast(TransformersEngine.Config, config)
        super().__init__(batch_size=self.config.batch_size)
        check_files(policy)
        self._device = self.config.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        remote = self.config.trust_remote_code
        self.chat = TokenizerChat.load(policy.path, trust_remote_code=remote)
        self._tokenizer: Any = self.chat.tokenizer
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a checked folder
            policy.path, dtype=getattr(torch, dtype), trust_remote_code=remote
        )
        self._model.to(self._device).eval()
        self._model.generation_config = GenerationConfig()
        # With trust_remote_code a folder may bring a sampler of its own, which would not draw from the policy.
        self._model.__dict__.pop("generate", None)
        self.max_context = getattr(self._model.config, "max_position_embeddings", None)
        self.serving = policy

    def load_policy(self, policy: PolicyVersion) -> None:
        from safetensors.torch import load_file

        check_files(policy)
        state: dict[str, Tensor] = {}
        for path in weight_files(Path(policy.path)):
            state.update(load_file(path))
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        tied = set(getattr(self._model, "_tied_weights_keys", None) or ())
        lost = [name for name in missing if name not in tied]
        if lost or unexpected:
            from policies.base.errors import PolicyStoreError

            raise PolicyStoreError(
                f"policy version {policy.number} does not fit the model: missing {lost[:3]}, "
                f"unexpected {list(unexpected)[:3]}"
            )
        self._model.tie_weights()
        self.serving = policy

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        found: dict[int, Generation] = {}
        by_sampling: dict[Sampling, list[int]] = {}
        for index, request in enumerate(requests):
            if request.choices:
                found[index] = self._choose(request)
                continue
            by_sampling.setdefault(self._within_context(request), []).append(index)
        for sampling, indices in by_sampling.items():
            # Near lengths together: a batch is padded to its longest prompt.
            indices.sort(key=lambda i: len(requests[i].prompt_token_ids))
            for start in range(0, len(indices), self.config.batch_size):
                chosen = indices[start : start + self.config.batch_size]
                batch = self._batch([requests[i] for i in chosen], sampling)
                found.update(zip(chosen, batch, strict=True))
        return [found[i] for i in range(len(requests))]

    def _within_context(self, request: GenerationRequest) -> Sampling:
        """The request's settings with a budget that the model has positions for."""
        sampling = request.sampling
        if self.max_context is None:
            return sampling
        room = max(1, self.max_context - len(request.prompt_token_ids))
        return sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)})

    def _batch(self, requests: list[GenerationRequest], sampling: Sampling) -> list[Generation]:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        torch.manual_seed(derive_seed(*(r.seed for r in requests)) % 2**63)
        width = max(len(r.prompt_token_ids) for r in requests)
        pad = self._tokenizer.pad_token_id
        ids = [
            [pad] * (width - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in requests
        ]
        mask = [
            [0] * (width - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids)
            for r in requests
        ]
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        rows = _Rows(self.chat, len(requests), sampling.stop)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_tokens,
                    pad_token_id=pad,
                    num_beams=1,
                    use_cache=True,
                    return_dict_in_generate=True,
                    output_logits=True,
                    **drawn,
                ),
                stopping_criteria=StoppingCriteriaList([rows]),
            )
        sampled = output.sequences[:, width:]
        # Raw logits, before temperature: the same log-probs that the other engines record.
        steps = [torch.log_softmax(step.float(), dim=-1) for step in output.logits]
        logprobs = torch.stack(
            [s.gather(1, sampled[:, t : t + 1])[:, 0] for t, s in enumerate(steps)], dim=1
        )
        return [
            Generation(
                token_ids=tuple(written),
                logprobs=tuple(logprobs[row, : len(written)].tolist()),
                text=self.chat.decode(written),
                stop_reason=StopReason.STOP if rows.ended[row] else StopReason.LENGTH,
            )
            for row, written in enumerate(rows.written)
        ]

    def _choose(self, request: GenerationRequest) -> Generation:
        """One of `request.choices`, by the log-probs of their tokens: the likeliest at temperature 0, else sampled."""
        import torch

        prompt = list(request.prompt_token_ids)
        options = [self._tokenizer.encode(c, add_special_tokens=False) for c in request.choices]
        scored: list[Tensor] = []
        with torch.inference_mode():
            for option in options:
                ids = torch.tensor([prompt + option], device=self._device)
                logprobs = torch.log_softmax(
                    self._model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1
                )
                scored.append(logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0])
        totals = torch.stack([s.sum() for s in scored])
        index = int(totals.argmax())
        if request.sampling.temperature > 0:
            generator = torch.Generator().manual_seed(request.seed % 2**31)
            shares = torch.softmax(totals.cpu() / request.sampling.temperature, dim=0)
            index = int(torch.multinomial(shares, 1, generator=generator))
        return Generation(
            token_ids=tuple(options[index]),
            logprobs=tuple(scored[index].tolist()),
            text=request.choices[index],
            stop_reason=StopReason.STOP,
        )


class _Rows:
    """A stopping criterion of transformers that keeps what each row of a batch wrote until it ended."""

    def __init__(self, chat: ChatFormat, count: int, stop: Sequence[str]) -> None:
        """Begin `count` rows, each of which ends at a terminator of `chat` or at a string of `stop`."""
        self._chat = chat
        self._stop = stop
        # A character has at most four bytes, and a token at least one; the rest is for tokens without text.
        self._look_back = 4 * max(map(len, stop), default=0) + 16
        self.written: list[list[int]] = [[] for _ in range(count)]
        """Tokens of each row, the one that ended it included."""
        self.ended = [False] * count
        """Whether a row wrote a terminator or a stop string; the others ran into their budget."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Take the newest token of each row that has not ended; returns which have. [N]"""
        import torch

        report_progress(tokens=self.ended.count(False))
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[row]:
                self.written[row].append(token)
                self.ended[row] = token in self._chat.terminators or self._stops(row)
        return torch.tensor(self.ended, device=input_ids.device)

    def _stops(self, row: int) -> bool:
        if not self._stop:
            return False
        text = self._chat.decode(self.written[row][-self._look_back :])
        return any(each in text for each in self._stop)
