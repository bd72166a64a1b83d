"""Examples that a loss learns from: tokens with their masks, as pairs, single trajectories or demonstrations.

Made by preference builders from judged trajectories; every example names the trajectories it came from.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from policies.base.records import Feedback, Probability, Record, Trajectory


class TokenSpan(Record):
    """Positions of one policy turn in a sequence. Example: `TokenSpan(start=14, end=31)`."""

    start: int
    end: int


class LabelledStep(Record):
    """A judged step: its positions in a sequence. Example: `LabelledStep(start=14, end=22, desirable=True)`."""

    start: int
    end: int
    desirable: bool


class TokenSequence(Record):
    """Tokens of one trajectory ready for a loss.

    Example: `TokenSequence(trajectory_id="r1.7x8.0", policy_version=0, token_ids=(1, 5, 9), loss_mask=(0, 0, 1),
    logprobs=(0.0, 0.0, -0.3))`.
    """

    trajectory_id: str
    policy_version: int
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    """1 where the policy wrote the token. [T]"""
    logprobs: tuple[float, ...]
    """Behaviour log-probs; 0.0 where the mask is 0. [T]"""
    turns: tuple[TokenSpan, ...] = ()
    """The policy's turns, in order: what turn-weighted losses read. Empty: the scored tokens are one turn."""
    steps: tuple[LabelledStep, ...] = ()
    """The judged steps, in order: what step losses read."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError("token_ids, loss_mask and logprobs must have one length")
        return self

    @classmethod
    def of(
        cls, trajectory: Trajectory, feedback: Feedback | None = None, *, scored_from: int = 0
    ) -> Self:
        """The whole trajectory, scored where the policy wrote.

        Args:
            trajectory: what was sampled.
            feedback: gives the labels of its steps, if it has any.
            scored_from: position before which nothing is scored: what a pair's two sides share.
        """
        mask = trajectory.loss_mask
        if scored_from:
            mask = tuple(m if i >= scored_from else 0 for i, m in enumerate(mask))
        starts = [trajectory.start_of_turn(i) for i in range(len(trajectory.turns))]
        return cls(
            trajectory_id=trajectory.id,
            policy_version=trajectory.policy_version,
            token_ids=trajectory.token_ids,
            loss_mask=mask,
            logprobs=tuple(p if m else 0.0 for p, m in zip(trajectory.logprobs, mask, strict=True)),
            turns=tuple(
                TokenSpan(start=start, end=start + len(turn.token_ids))
                for start, turn in zip(starts, trajectory.turns, strict=True)
                if turn.role == "policy"
            ),
            steps=tuple(
                LabelledStep(
                    start=starts[step.span.turn] + step.span.start,
                    end=starts[step.span.turn] + step.span.end,
                    desirable=step.desirable,
                )
                for step in (feedback.steps if feedback is not None else ())
            ),
        )


class PreferencePair(Record):
    """Chosen over rejected, for the same prompt tokens. Made by a preference builder.

    Example: `PreferencePair(id="r1.7x8.0>r1.7x8.3", prompt_id="7x8", chosen=..., rejected=..., margin=1.0)`.
    """

    id: str
    prompt_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    margin: float
    """Score of chosen minus score of rejected."""
    weight: float = 1.0
    """What the pair's loss is multiplied with; set by `preferences.weight_by`."""
    soft_label: Probability = 1.0
    """Probability that chosen is really better (`examples/soft_labels.py`); losses read it with `soft_labels: true`."""


class UnpairedExample(Record):
    """One trajectory with a desirable bit (KTO family). Example: `UnpairedExample(id="r1.7x8.0", ...)`."""

    id: str
    prompt_id: str
    sequence: TokenSequence
    desirable: bool
    score: float
    weight: float = 1.0


class SupervisedExample(Record):
    """One trajectory to imitate. Example: `SupervisedExample(id="r1.7x8.0", prompt_id="7x8", sequence=...)`."""

    id: str
    prompt_id: str
    sequence: TokenSequence
    weight: float = 1.0


Example = PreferencePair | UnpairedExample | SupervisedExample
ExampleKind = Literal["pair", "unpaired", "supervised"]
