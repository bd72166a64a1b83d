"""Estimates the memory of a run for the preflight: of every worker group, with the models that its components load."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.model_files import folder_of
from orchestrator.config.roles import group_of
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import ResourceSettings
from orchestrator.config.stages import Stage
from orchestrator.plan.model import ModelFacts, read_model
from orchestrator.plan.sizes import TokenCounts, completion_tokens, trained_share
from policies.base.errors import InputError
from policies.base.requirements import POLICY, Hosting, ModelRequirement

_ADAM_BYTES = 16
"""Per trained parameter: fp32 weight, gradient and two moments."""
_SHARES = {"judge": "judges", "verify": "verifiers", "grade": "verifiers", "rollout": "strategies"}
"""Names of what components load besides sampler and trainer, by worker group."""


def memory_of_run(config: RunConfig, model: ModelFacts, counts: TokenCounts) -> dict[str, int]:
    """Bytes by part, all groups together, as if everything were on one machine."""
    estimate = _Estimate(config, model, counts)
    trainer = int(model.parameters * trained_share(config)) * _ADAM_BYTES
    if config.policy.adapter is not None:
        trainer += model.parameters * 4  # frozen fp32 weights
    length = counts.longest_prompt + completion_tokens(config, config.longest_turn)
    stages = config.resolved_stages
    logits = max(_rows(config, stage) * min(length, stage.training.max_length) for stage in stages)
    logits *= (model.vocabulary or 0) * 4
    sampler = estimate.hosted(model, config.policy.dtype, config.hosting, config.rollout.resources)
    parts = {
        "samplers": sampler * config.rollout.workers,
        "trainer": trainer,
        "logits": logits,
        "reference": estimate.beside_the_trainer(),
    }
    for group, name in _SHARES.items():
        parts[name] = parts.get(name, 0) + estimate.of_group(group)
    if config.roles:
        parts["roles"] = sum(estimate.of_group(group_of(name)) for name in config.roles)
    return parts


class _Estimate:
    """Sizes of what the components of one config load."""

    def __init__(self, config: RunConfig, policy: ModelFacts, counts: TokenCounts) -> None:
        self._config, self._policy = config, policy
        self._length = counts.longest_prompt + completion_tokens(config, config.longest_turn)
        verify = config.verify
        self._workers: dict[str, tuple[int, ResourceSettings]] = {
            "judge": (verify.judge_workers, verify.judge_resources),
            "verify": (verify.workers, verify.resources),
            "grade": (verify.workers, verify.resources),
            "rollout": (config.rollout.workers, config.rollout.resources),
            **{group_of(n): (r.workers, r.resources) for n, r in config.roles.items()},
        }

    def of_group(self, group: str) -> int:
        """Bytes that the components of a group take in all of its workers."""
        workers, resources = self._workers[group]
        return workers * sum(self._parts(group, resources))

    def _parts(self, group: str, resources: ResourceSettings) -> Iterator[int]:
        for each in self._config.components_of(group):
            yield each.needs.memory_bytes
            for model in each.needs.models:
                yield self._copy(model, resources)

    def beside_the_trainer(self) -> int:
        """Bytes of the largest model that a training process compares with; stages come one after the other."""
        models = [m for each in self._config.components_of("train") for m in each.needs.models]
        sizes = [self._facts(m).parameters * 4 for m in models if m.memory_bytes is None]
        return max([*sizes, *(m.memory_bytes or 0 for m in models)], default=0)

    def _copy(self, model: ModelRequirement, resources: ResourceSettings) -> int:
        """Bytes of one copy of a model, as it says or as its weights have them."""
        if model.memory_bytes is not None:
            return model.memory_bytes
        if model.tokenizer_only:
            return 0
        facts, dtype = self._facts(model), model.dtype or self._config.policy.dtype
        if model.hosting is None:
            return facts.bytes_as(dtype)
        return self.hosted(facts, dtype, model.hosting, resources)

    def _facts(self, model: ModelRequirement) -> ModelFacts:
        """Facts of the model; those of the policy for one that is not on this machine."""
        folder = None if model.name == POLICY else folder_of(model)
        try:
            return self._policy if folder is None else read_model(folder)
        except InputError:
            return self._policy

    def hosted(
        self, model: ModelFacts, dtype: str, hosting: Hosting, resources: ResourceSettings
    ) -> int:
        """Bytes of a model in an engine of ours, with the keys and values that it holds."""
        rollout = self._config.rollout
        in_hand = min(hosting.max_sequences, rollout.prompts_per_shard * rollout.samples_per_prompt)
        cache = model.cache_bytes_per_token(dtype) * self._length * in_hand
        if not resources.gpus:
            cache = max(cache, hosting.cpu_cache_bytes)
        return model.bytes_as(dtype) + cache


def _rows(config: RunConfig, stage: Stage) -> int:
    """Sequences of one forward pass in training."""
    sides = config.builder_of(stage.first_round).fewest_sequences
    return sides * (stage.training.micro_batch_size or stage.training.batch_size)
