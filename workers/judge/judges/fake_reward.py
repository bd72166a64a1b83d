"""A scripted reward model: no weights, the same reward for the same answer everywhere. For trying a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_SCORE
from policies.base.requirements import Requirements
from policies.base.seeds import derive_rng
from workers.judge.judge import Judge
from workers.judge.scoring_judge import ScoringJudge, ToScore


class FakeReward(ScoringJudge):
    """Rewards answers by `rule`."""

    class Config(Judge.Config):
        """Settings of the script."""

        rule: Literal["longer", "shorter", "coin", "error"] = "longer"
        """What it prefers: the `longer` or `shorter` answer, or any, by a `coin` seeded by task and answer; `error`
        raises."""
        scale: float = Field(default=1.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Reward of one character, or the largest one of `coin`. A negative one turns every preference around."""

        def requires(self) -> Requirements:
            return super().requires() + Requirements(raw_scores=True)

    config: Config

    def identity(self) -> str:
        return f"fake: {self.config.rule} {self.config.scale:g}"

    def score(self, batch: Sequence[ToScore]) -> list[float]:
        if self.config.rule == "error":
            raise RuntimeError("the fake reward model was told to fail")
        self.usage["calls"] += len(batch)
        self.usage["prompt_tokens"] += sum(len(each.answer.split()) for each in batch)
        return [self.config.scale * self._reward(each) for each in batch]

    def _reward(self, asked: ToScore) -> float:
        if self.config.rule == "coin":
            task = "\n".join(message.content for message in asked.messages)
            return 2.0 * derive_rng(task.encode("utf-8", "replace")).random() - 1.0
        length = float(len(asked.answer))
        return length if self.config.rule == "longer" else -length
