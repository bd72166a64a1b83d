"""Estimates for the preflight: tokens, memory and disk of a run. Upper bounds, rounded for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import PER_ROUND, PromptSettings
from orchestrator.plan.model import ModelFacts
from policies.base.component_walk import stated_requirements
from policies.base.records import Prompt

_CHARACTERS_PER_TOKEN = 3.0
_TEMPLATE_TOKENS = 8
"""What a chat template writes around one message, at least."""
_NUM_LONGEST = 8
_BYTES_PER_TOKEN_ON_DISK = 24
"""Ids, masks and log-probs of a token in trajectories and examples, compressed."""


@dataclass(frozen=True)
class TokenCounts:
    """Amounts that a round samples."""

    longest_prompt: int
    prompt_lengths: tuple[int, ...]
    """Tokens of every prompt, training prompts first; all but the longest are scaled from it by their characters."""
    num_train: int
    exact: bool
    """Counted with the model's tokenizer (chat template estimated), not guessed from characters."""
    samples: int
    sampled_tokens: int
    held_out_samples: int
    measured_tokens: int
    max_examples: int

    @classmethod
    def of(
        cls,
        config: RunConfig,
        model: ModelFacts | None,
        train: Sequence[Prompt],
        held_out: Sequence[Prompt],
    ) -> TokenCounts:
        """Count for a config and its prompts."""
        samples = max(
            _drawn(stage.sections.prompts, train) * config.total_samples_of(stage.first_round)
            for stage in config.resolved_stages
        )
        measured = len(held_out) * config.evaluation.samples_per_prompt
        every = [*train, *held_out]
        longest, exact = longest_prompt(every, model, by_bytes=config.hosting.scripted)
        characters = [len(prompt_text(p)) for p in every]
        scale = longest / max(1, *characters) if characters else 0.0
        return cls(
            longest_prompt=longest,
            num_train=len(train),
            prompt_lengths=tuple(round(n * scale) for n in characters),
            exact=exact,
            samples=samples,
            sampled_tokens=samples * completion_tokens(config, config.longest_turn),
            held_out_samples=measured,
            measured_tokens=measured
            * completion_tokens(config, config.evaluation.max_tokens or config.rollout.max_tokens),
            max_examples=samples,
        )

    def num_longer(self, limit: int, *, only_train: bool) -> int:
        """Prompts that alone leave no room for one sampled token."""
        lengths = self.prompt_lengths[: self.num_train] if only_train else self.prompt_lengths
        return sum(1 for length in lengths if length >= limit)


def _drawn(settings: PromptSettings, train: Sequence[Prompt]) -> int:
    """Prompts of a round of a stage, of at most all that are known."""
    prompts = settings.drawn(len(train) or PER_ROUND)
    return min(prompts, len(train)) if train else prompts


def completion_tokens(config: RunConfig, per_turn: int) -> int:
    """Most tokens of a trajectory after its prompt, as the strategy limits it."""
    needs = stated_requirements(config.rollout.strategy)
    tokens = per_turn * (1 if needs.max_turns is None else needs.max_turns)
    limit = needs.max_trajectory_tokens
    return tokens if limit is None else min(tokens, limit)


def prompt_text(prompt: Prompt) -> str:
    """All that a template is given of a prompt, as one text: its messages, and the schemas of its tools."""
    tools = [json.dumps(tool) for tool in prompt.tools]
    return "\n".join([*(message.full_text for message in prompt.messages), *tools])


def longest_prompt(
    prompts: Sequence[Prompt], model: ModelFacts | None, *, by_bytes: bool
) -> tuple[int, bool]:
    """Tokens of the longest prompt, and whether they were counted rather than guessed."""
    texts = sorted(map(prompt_text, prompts), key=len)[-_NUM_LONGEST:]
    template = _TEMPLATE_TOKENS * max((len(p.messages) + 1 for p in prompts), default=1)
    if by_bytes:
        return max((len(t.encode()) for t in texts), default=0) + template * 4, True
    tokenizer = None if model is None else fast_tokenizer(model.path / "tokenizer.json")
    if tokenizer is not None:
        return max((len(tokenizer.encode(t).ids) for t in texts), default=0) + template, True
    return round(max((len(t) for t in texts), default=0) / _CHARACTERS_PER_TOKEN) + template, False


def fast_tokenizer(path: Path) -> Any:
    """The fast tokenizer, when its package is installed and the file is one."""
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except Exception:  # the package raises a bare Exception; a guess will do
        return None


def disk_of_run(
    config: RunConfig, model: ModelFacts | None, counts: TokenCounts
) -> tuple[int, int]:
    """Bytes written in a round, and in the whole run."""
    parameters = 0 if model is None else model.parameters
    weights = parameters * 4
    if config.training.optimizer == "carry":
        weights += parameters * 8
    tokens = counts.sampled_tokens + counts.samples * counts.longest_prompt
    measured = counts.measured_tokens + counts.held_out_samples * counts.longest_prompt
    measurement = measured * _BYTES_PER_TOKEN_ON_DISK
    per_round = weights + 2 * tokens * _BYTES_PER_TOKEN_ON_DISK + measurement
    kept = config.retention
    policies = {"all": config.rounds, "best": 2}.get(str(kept.policies)) or int(kept.policies) + 2
    rounds = config.rounds if kept.trajectories == "all" else int(kept.trajectories) + 1
    total = weights * min(config.rounds, policies)
    total += (per_round - weights) * min(config.rounds, rounds) + measurement
    return per_round, total


def checkpoint_bytes(config: RunConfig, weights: int) -> int:
    """Size of one checkpoint inside an update: weights and both AdamW moments in fp32, of what is trained.

    Args:
        config: with its adapter, if any.
        weights: bytes of all weights in fp32.
    """
    return round(3 * weights * trained_share(config))


def checkpoints_of_run(
    config: RunConfig, model: ModelFacts | None, counts: TokenCounts
) -> tuple[int, bool]:
    """Most bytes that checkpoints inside an update take at one time, and whether the config is sure to write some.

    An upper bound: how long an update takes is not known before one was made, and one that ends within
    `checkpoint_seconds` writes none. By `checkpoint_steps` it is known, if every sample becomes an example. While
    a checkpoint is written the one before is still there, so two count.
    """
    one = checkpoint_bytes(config, 0 if model is None else model.parameters * 4)
    most, sure = 0, False
    for stage in config.resolved_stages:
        options = stage.training
        steps = -(-counts.max_examples // options.batch_size) * options.epochs
        by_steps = (
            0 if options.checkpoint_steps is None else (steps - 1) // options.checkpoint_steps
        )
        sure = sure or by_steps > 0
        by_time = 0 if options.checkpoint_seconds is None else steps - 1
        most = max(most, min(2, max(by_steps, by_time)) * one)
    return most, sure


def trained_share(config: RunConfig) -> float:
    """Trained parameters as a share of the model's: about `rank` rows and columns per adapted matrix."""
    adapter = config.policy.adapter
    return 1.0 if adapter is None else min(1.0, adapter.rank / 256)


def memory_text(size: float) -> str:
    """Bytes for people: `269 MB`, `3.1 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if unit == "GB" else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"
