"""Sampling with Hugging Face transformers: for machines where vLLM cannot be had. Slower, same contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from policies.component import Component
from policies.records import PolicyVersion, Sampling, StopReason
from policies.seeds import derive_seed
from policies.store import check_weights, weight_files
from workers.alive import beat
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest
from workers.rollout.tokenizer_chat import TokenizerChat

if TYPE_CHECKING:
    from torch import Tensor


class TransformersEngine(BatchEngine):
    """Samples with `model.generate`, in batches of equal sampling settings."""

    class Config(Component.Config):
        """Settings of the engine."""

        batch_size: int = Field(default=64, ge=1)
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
        import torch
        from transformers import AutoModelForCausalLM

        self.config = cast(TransformersEngine.Config, config)
        super().__init__(batch_size=self.config.batch_size)
        self.seed = seed
        check_weights(policy)
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
        self.max_context = getattr(self._model.config, "max_position_embeddings", None)
        self.serving = policy

    def load_policy(self, policy: PolicyVersion) -> None:
        from safetensors.torch import load_file

        check_weights(policy)
        state: dict[str, Tensor] = {}
        for path in weight_files(Path(policy.path)):
            state.update(load_file(path))
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        tied = set(getattr(self._model, "_tied_weights_keys", None) or ())
        lost = [name for name in missing if name not in tied]
        if lost or unexpected:
            from policies.errors import PolicyStoreError

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
            by_sampling.setdefault(request.sampling, []).append(index)
        for sampling, indices in by_sampling.items():
            # Near lengths together: a batch is padded to its longest prompt.
            indices.sort(key=lambda i: len(requests[i].prompt_token_ids))
            for start in range(0, len(indices), self.config.batch_size):
                chosen = indices[start : start + self.config.batch_size]
                batch = self._batch([requests[i] for i in chosen], sampling)
                found.update(zip(chosen, batch, strict=True))
        return [found[i] for i in range(len(requests))]

    def _batch(self, requests: list[GenerationRequest], sampling: Sampling) -> list[Generation]:
        import torch
        from transformers import StoppingCriteriaList

        torch.manual_seed(derive_seed(self.seed, *(r.seed for r in requests)) % 2**31)
        width = max(len(r.prompt_token_ids) for r in requests)
        pad = self._tokenizer.pad_token_id
        ids = [
            [pad] * (width - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in requests
        ]
        mask = [
            [0] * (width - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids)
            for r in requests
        ]
        arguments: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            arguments = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        if sampling.stop:
            arguments |= {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer}
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                max_new_tokens=sampling.max_tokens,
                pad_token_id=pad,
                eos_token_id=sorted(self.chat.terminators) or None,
                return_dict_in_generate=True,
                output_logits=True,
                stopping_criteria=StoppingCriteriaList([_goes_on]),
                **arguments,
            )
        sampled = output.sequences[:, width:]
        # Raw logits, before temperature: the same log-probs that the other engines record.
        steps = [torch.log_softmax(step.float(), dim=-1) for step in output.logits]
        logprobs = torch.stack(
            [s.gather(1, sampled[:, t : t + 1])[:, 0] for t, s in enumerate(steps)], dim=1
        )
        return [
            self._cut(sampled[i].tolist(), logprobs[i].tolist(), sampling)
            for i in range(len(requests))
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

    def _cut(self, ids: list[int], logprobs: list[float], sampling: Sampling) -> Generation:
        """Drop the padding after the terminator; the terminator itself stays."""
        terminators = self.chat.terminators
        end = next((n + 1 for n, token in enumerate(ids) if token in terminators), len(ids))
        stopped = end <= len(ids) and (ids[end - 1] in terminators)
        kept = ids[: end if stopped else len(ids)]
        text = self.chat.decode(kept)
        stopped = stopped or any(s in text for s in sampling.stop)
        reason = StopReason.STOP if stopped else StopReason.LENGTH
        return Generation(
            token_ids=tuple(kept),
            logprobs=tuple(logprobs[: len(kept)]),
            text=text,
            stop_reason=reason,
        )


def _goes_on(input_ids: Any, scores: Any, **_: Any) -> Any:
    """Called by transformers after each token of a batch: a sign of life, and never a reason to stop."""
    import torch

    beat(tokens=len(input_ids))
    return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
