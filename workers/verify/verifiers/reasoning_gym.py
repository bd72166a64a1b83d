"""Score a completion with the scorer of the reasoning-gym data set that made its prompt.

The prompt's metadata carries `{"dataset": name, "parameters": {...}, "entry": {...}}`, as the prompt source
`reasoning_gym` writes it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from policies.errors import VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict
from workers.verify.verifier import Verifier


class ReasoningGym(Verifier):
    """Takes the answer out of the completion and hands it to the data set's own `score_answer`."""

    class Config(Verifier.Config):
        """Settings of `reasoning_gym`."""

        tag: str | None = "answer"
        """The answer is the text of the last `<answer>...</answer>`; null reads no tag."""
        otherwise: Literal["whole", "last_line", "nothing"] = "whole"
        """What is scored when the tag is absent; `nothing` scores 0."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._datasets: dict[str, Any] = {}

    def prepare(self) -> None:
        """Import reasoning-gym before the first trajectory is timed."""
        import reasoning_gym

        assert reasoning_gym.create_dataset

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return the data set's score."""
        answer = self._extract(trajectory.completion)
        dataset, entry = self._origin(prompt)
        if not answer:
            return self.scored(trajectory, 0.0, "no answer found")
        score = float(dataset.score_answer(answer, entry))
        if not 0.0 <= score <= 1.0:
            raise VerificationError(
                explain(
                    f"the scorer of {prompt.metadata['dataset']!r} left the range [0, 1]",
                    value=score,
                    where="metadata.dataset of the prompt",
                    fix="use another data set, or a callable verifier with score_range",
                )
            )
        return self.scored(trajectory, score, f"read {answer[:80]!r}")

    def _extract(self, completion: str) -> str:
        if self.config.tag is not None:
            tag = re.escape(self.config.tag)
            found = re.findall(rf"<{tag}>(.*?)</{tag}>", completion, flags=re.DOTALL)
            if found:
                return str(found[-1]).strip()
        if self.config.otherwise == "last_line":
            return next((li.strip() for li in reversed(completion.splitlines()) if li.strip()), "")
        return completion.strip() if self.config.otherwise == "whole" else ""

    def _origin(self, prompt: Prompt) -> tuple[Any, dict[str, Any]]:
        name, parameters, entry = (
            prompt.metadata.get(key) for key in ("dataset", "parameters", "entry")
        )
        if not (isinstance(name, str) and isinstance(parameters, dict) and isinstance(entry, dict)):
            raise VerificationError(
                explain(
                    f"prompt {prompt.id!r} was not made by the reasoning_gym prompt source",
                    value=sorted(prompt.metadata),
                    where="prompts.train.type and prompts.held_out.type",
                    fix="use {type: reasoning_gym, dataset: ...} there, or another verifier",
                )
            )
        dataset = self._dataset(name, parameters)
        return dataset, self._original(dataset, entry)

    def _dataset(self, name: str, parameters: dict[str, Any]) -> Any:
        import reasoning_gym

        key = json.dumps([name, parameters], sort_keys=True)
        if key not in self._datasets:
            self._datasets[key] = reasoning_gym.create_dataset(name, **parameters)
        return self._datasets[key]

    @staticmethod
    def _original(dataset: Any, entry: dict[str, Any]) -> dict[str, Any]:
        # JSON turned tuples into lists and keys into text, which some scorers do not take. The generator is
        # deterministic, so the entry is made again; if it differs (another release), the stored one counts.
        metadata = entry.get("metadata")
        index = metadata.get("source_index") if isinstance(metadata, dict) else None
        if isinstance(index, int) and 0 <= index < len(dataset):
            again: dict[str, Any] = dataset[index]
            if again["question"] == entry.get("question") and again["answer"] == entry.get(
                "answer"
            ):
                return again
        return entry
