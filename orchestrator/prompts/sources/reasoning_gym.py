"""Prompts from a reasoning-gym generator; the verifier `reasoning_gym` scores them by the generator's own rules."""

from __future__ import annotations

import difflib
import json
import logging
from typing import Any

from pydantic import Field, JsonValue

from orchestrator.prompts.source import PromptSource, chat, digest_of
from policies.base.bounds import MAX_GENERATED, MAX_WHOLE
from policies.base.errors import InputError, boundary, explain
from policies.base.records import Prompt

logger = logging.getLogger(__name__)


class ReasoningGymSource(PromptSource):
    """Generates `size` tasks. The same question generated twice is kept once."""

    is_heavy = True

    class Config(PromptSource.Config):
        """Settings of `reasoning_gym`."""

        dataset: str
        """Name of the generator, e.g. `chain_sum`."""
        parameters: dict[str, JsonValue] = Field(default_factory=dict)
        """The generator's own parameters, e.g. {min_terms: 2, max_terms: 3}."""
        size: int = Field(default=500, gt=0, le=MAX_GENERATED)
        """How many tasks to generate."""
        seed: int = Field(default=0, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Seed of the generator: another seed gives other tasks, so train and held-out need two."""
        system: str | None = None
        """System message put before every prompt."""
        suffix: str = ""
        """Text added to every question, e.g. how to write the answer."""

    config: Config

    def load(self) -> list[Prompt]:
        dataset, parameters = self._dataset()
        prompts: dict[str, Prompt] = {}
        for index in range(self.config.size):
            with boundary(
                InputError, f"reasoning-gym {self.config.dataset!r} failed at task {index}"
            ):
                prompt = self._prompt(dataset[index], parameters)
            prompts.setdefault(prompt.id, prompt)
        if len(prompts) < self.config.size:
            logger.warning(
                "reasoning-gym %s: %d of %d tasks left out because they come again",
                self.config.dataset,
                self.config.size - len(prompts),
                self.config.size,
            )
        return list(prompts.values())

    def _dataset(self) -> tuple[Any, dict[str, JsonValue]]:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise InputError(
                explain(
                    "the package `reasoning-gym` is not installed",
                    value=str(error),
                    where="prompts.*.type = reasoning_gym",
                    fix="pip install reasoning-gym",
                )
            ) from error
        name = self.config.dataset
        if name not in DATASETS:
            close = difflib.get_close_matches(name, DATASETS, n=3)
            raise InputError(
                explain(
                    "reasoning-gym has no such generator",
                    value=name,
                    where="prompts.*.dataset",
                    fix=f"did you mean {' or '.join(close)}?"
                    if close
                    else "see its README for the names",
                )
            )
        parameters = {**self.config.parameters, "seed": self.config.seed, "size": self.config.size}
        with boundary(
            InputError, f"reasoning-gym {name!r} refuses prompts.*.parameters {parameters}"
        ):
            return reasoning_gym.create_dataset(name, **parameters), parameters

    def _prompt(self, entry: dict[str, Any], parameters: dict[str, JsonValue]) -> Prompt:
        question, answer = str(entry["question"]), entry["answer"]
        # What JSON cannot hold becomes text here; the verifier makes the original again from its index.
        plain = json.loads(json.dumps(_with_text_keys(entry), default=str))
        return Prompt(
            id=f"{self.config.dataset}-{digest_of(question)}",
            messages=chat(question + self.config.suffix, self.config.system),
            answer=None if answer is None else str(answer),
            metadata={"dataset": self.config.dataset, "parameters": parameters, "entry": plain},
        )


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
