"""Score a completion with the scorer of the reasoning-gym data set that made its prompt.

The prompt's metadata carries `{"dataset": name, "parameters": {...}, "entry": {...}}`, as the prompt source
`reasoning_gym` writes it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field

from policies.base.bounds import MAX_SECONDS
from policies.base.errors import VerificationError, explain
from policies.base.records import Prompt, Trajectory, Verdict
from workers.isolation.forked_call import call_in_copy
from workers.verify.answer_verifier import AnswerVerifier


class ReasoningGym(AnswerVerifier):
    """Takes the answer out of the completion and hands it to the data set's own `score_answer`.

    A scorer that raises on what the policy wrote, or takes too long over it, was given garbage: 0. One that does so on
    the data set's own answer has failed itself: an error.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `reasoning_gym`."""

        timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest time for one trajectory. The scorer may take a twentieth of it as processor time; an answer with
        which it takes longer is a 0."""
        tag: str | None = "answer"
        """The answer is the text of the last `<answer>...</answer>` behind the thoughts. Another name reads that tag
        where there is none of these; null reads no further tag."""
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
        dataset, entry = self._origin(prompt)
        said = self.answer(trajectory)
        if said.missing:
            return self.unanswered(trajectory, said)
        answer = self._extract(said.text)
        if not answer:
            return self.scored(trajectory, 0.0, "no answer found")
        score = self._score(dataset, entry, answer)
        if score is None:
            self._check_scorer(prompt, dataset, entry)
            return self.scored(trajectory, 0.0, f"the scorer cannot read {answer[:80]!r}")
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

    def _score(self, dataset: Any, entry: dict[str, Any], answer: str) -> float | None:
        """Return what the data set's scorer says; None when it raises or takes too long (a twentieth of the time)."""
        return call_in_copy(
            lambda: dataset.score_answer(answer, entry),
            cpu_seconds=self.config.timeout_seconds / 20,
            wall_seconds=self.config.timeout_seconds * 0.4,
        )

    def _check_scorer(self, prompt: Prompt, dataset: Any, entry: dict[str, Any]) -> None:
        """Raise VerificationError when the scorer fails on the data set's own answer, too."""
        if self._score(dataset, entry, str(entry.get("answer"))) is None:
            raise VerificationError(
                explain(
                    f"the scorer of {prompt.metadata['dataset']!r} fails on the data set's own answer",
                    value=str(entry.get("answer"))[:80],
                    where="metadata.dataset of the prompt",
                    fix="use another data set, or raise verifiers[...].timeout_seconds",
                )
            )

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
