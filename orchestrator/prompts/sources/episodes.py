"""Prompts that open episodes: a text with the start of each episode in it, and the same start for the environment."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from orchestrator.prompts.source import PromptSource, digest_of, is_safe_id
from policies.base.bounds import MAX_GENERATED, MAX_WHOLE, Whole
from policies.base.component import Settings
from policies.base.records import Message, Prompt
from policies.base.seeds import derive_rng

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class NumberRange(Settings):
    """Whole numbers from `low` to `high`, both included."""

    low: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    """Smallest number."""
    high: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    """Largest number."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self


StartValues = NumberRange | tuple[Whole | str, ...]


class EpisodesSource(PromptSource):
    """Every combination of start values is one prompt: its metadata are the values, its text shows them.

    Training and held-out prompts are drawn from one list and never meet. What is not shown (a secret) cannot keep two
    prompts apart: combinations that read the same are one prompt, with the values of the first.
    """

    class Config(PromptSource.Config):
        """Settings of `episodes`."""

        template: str = Field(
            default="We play a game. There are {stones} stones. We take turns, and each takes 1, 2 or 3. Whoever takes "
            "the last stone wins. You begin. How many do you take?",
            min_length=1,
        )
        """The user message that opens the episode; `{name}` stands for the start value of that name."""
        starts: dict[str, StartValues] = Field(
            default={"stones": NumberRange(low=5, high=44)}, min_length=1
        )
        """Values by name, each a list or {low, high}; the environment reads them by these names."""
        before: tuple[Message, ...] = ()
        """Messages before it: a system message, or a worked example as `user` and `assistant` messages."""
        split: Literal["train", "held_out", "all"] = "train"
        """Which part of the combinations."""
        held_out: int = Field(default=8, ge=0, le=MAX_GENERATED)
        """How many combinations are held out; the same number in both sources."""
        split_seed: int = Field(default=0, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Which are held out, and which are left out by `count`; the same seed in both sources."""
        count: int | None = Field(default=None, ge=1, le=MAX_GENERATED)
        """Most prompts of this source, drawn at random; null takes all."""

        @model_validator(mode="after")
        def _sizes(self) -> Self:
            unknown = sorted(set(_PLACEHOLDER.findall(self.template)) - set(self.starts))
            if unknown:
                raise ValueError(
                    f"template names {{{unknown[0]}}}, and starts has {', '.join(sorted(self.starts))}"
                )
            if not set(_PLACEHOLDER.findall(self.template)):
                raise ValueError("template shows no start value: every prompt would read the same")
            combinations = math.prod(_number_of(values) for values in self.starts.values())
            if combinations > MAX_GENERATED:
                raise ValueError(
                    f"starts has {combinations} combinations, more than {MAX_GENERATED}. Fix: give fewer start values"
                )
            empty = sorted(name for name, values in self.starts.items() if not _listed(values))
            if empty:
                raise ValueError(f"starts.{empty[0]} has no value")
            total = math.prod(
                len(set(_listed(values)))
                for name, values in self.starts.items()
                if f"{{{name}}}" in self.template
            )
            if self.split != "all" and not 0 < self.held_out < total:
                raise ValueError(
                    f"held_out must be between 1 and {total - 1} of {total} prompts that differ"
                )
            return self

    config: Config

    def load(self) -> list[Prompt]:
        config = self.config
        names = sorted(config.starts)
        prompts: dict[str, Prompt] = {}
        for values in product(*(_listed(config.starts[name]) for name in names)):
            prompt = self._prompt(dict(zip(names, values, strict=True)))
            prompts.setdefault(prompt.messages[-1].content, prompt)
        chosen = list(prompts.values())
        derive_rng(config.split_seed, "episodes").shuffle(chosen)
        if config.split == "held_out":
            chosen = chosen[: config.held_out]
        elif config.split == "train":
            chosen = chosen[config.held_out :]
        kept = {prompt.id for prompt in chosen[: config.count]}
        return [prompt for prompt in prompts.values() if prompt.id in kept]

    def _prompt(self, start: dict[str, int | str]) -> Prompt:
        text = _PLACEHOLDER.sub(lambda found: str(start[found.group(1)]), self.config.template)
        shown = "-".join(f"{name}.{value}" for name, value in start.items())
        metadata: dict[str, JsonValue] = dict(start)
        return Prompt(
            id=shown if is_safe_id(shown) else f"episode-{digest_of(metadata)}",
            messages=(*self.config.before, Message(role="user", content=text)),
            metadata=metadata,
        )


def _number_of(values: StartValues) -> int:
    """Tell how many values there are, without listing them."""
    return values.high - values.low + 1 if isinstance(values, NumberRange) else len(values)


def _listed(values: StartValues) -> tuple[int | str, ...]:
    if isinstance(values, NumberRange):
        return tuple(range(values.low, values.high + 1))
    return values
