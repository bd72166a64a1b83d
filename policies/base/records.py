"""The records that travel through a round, in travel order; frozen and complete at birth.

A stage never edits what it received: it wraps it or refers to it by id. Token ids, never re-tokenised
text, are what moves from the sampler to the trainer, and every mask comes from who wrote the token.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from policies.base.authors import Author as Author
from policies.base.authors import AuthorField
from policies.base.bounds import Score
from policies.base.endings import Ending as Ending
from policies.base.endings import StopReason as StopReason
from policies.base.endings import TrajectoryStatus as TrajectoryStatus
from policies.base.messages import Json as Json
from policies.base.messages import Message as Message
from policies.base.messages import Record as Record
from policies.base.tool_calls import ToolCall as ToolCall
from policies.base.tool_calls import ToolCallStatus as ToolCallStatus

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
_TextIfAny = Annotated[str, BeforeValidator(lambda x: x or ""), Field(exclude_if=lambda x: not x)]


class Prompt(Record):
    """A task for the policy. Made by a prompt source.

    Example: `Prompt(id="7x8", messages=(Message(role="user", content="What is 7 times 8?"),), answer=56)`.
    """

    id: str
    messages: tuple[Message, ...]
    answer: Json = None
    """Ground truth for verifiers; any JSON."""
    metadata: dict[str, Json] = Field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the tools offered, in the chat template's form."""


class Sampling(Record):
    """Settings by which completions are drawn. Example: `Sampling(temperature=0.9, max_tokens=48)`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    max_tokens: int = 256
    """Tokens per policy turn."""
    stop: tuple[str, ...] = ()


class Step(Record):
    """Part of a policy turn that is judged by itself. Example: `Step(start=0, end=7, text="7 x 8 is 56.")`."""

    start: int
    """First token of the step, counted within its turn."""
    end: int
    """One past its last token."""
    text: str


class Turn(Record):
    """A run of tokens with one author.

    Example: `Turn(role="policy", token_ids=(3, 9), text="56", logprobs=(-0.1, -0.7), stop_reason="stop")`.
    """

    role: Literal["policy", "observation"]
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    """Log-prob of each sampled token under the behaviour policy, before temperature; empty for observations, and where
    nobody knows them. [T]"""
    stop_reason: StopReason
    steps: tuple[Step, ...] = ()
    """Of a policy turn, when the run splits turns into steps; empty means that the turn is one step."""
    calls: tuple[ToolCall, ...] = ()
    """Of an observation: the tool calls that it answers."""
    opened_thought: _TextIfAny = ""
    """Of a policy turn: the mark (`<think>`) that the template began it with; part of the prompt's tokens."""
    marked_text: _TextIfAny = ""
    """Of a policy turn with control tokens that mark thoughts: `text`, which leaves them out, with them."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        expected = len(self.token_ids) if self.role == "policy" else 0
        if len(self.logprobs) not in (0, expected):
            raise ValueError(
                f"{self.role} turn of {len(self.token_ids)} tokens has {len(self.logprobs)} "
                f"log-probs, expected {expected}"
            )
        return self


class Branch(Record):
    """The place where a trajectory left its parent in a tree. Example: `Branch(parent="r1.7x8.0", at_token=12)`."""

    parent: str
    at_token: int


class Span(Record):
    """Part of a trajectory that a verdict is about. Example: `Span(turn=0, start=0, end=12)`.

    `turn` is an index into `Trajectory.turns`; `start` and `end` count tokens within that turn.
    """

    turn: int
    start: int
    end: int


class Trajectory(Record):
    """One sampled attempt at one prompt, with its tokens. Made by a rollout strategy.

    Example: `Trajectory(id="r1.7x8.0", prompt_id="7x8", sample_index=0, policy_version=0,
    policy_digest="9f..", prompt_token_ids=(1, 5), turns=(Turn(...),), status="complete", sampling=Sampling())`.
    """

    id: str
    prompt_id: str
    sample_index: int
    policy_version: int
    policy_digest: str
    prompt_token_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    status: TrajectoryStatus
    sampling: Sampling
    branch: Branch | None = None
    error: str | None = None
    """What went wrong, when status is `error`."""
    ending: Ending = Ending.ANSWERED
    outcome: Probability | None = None
    """What the environment says of the whole episode, e.g. 1.0 for a win; None where there is no environment."""
    graded: Span | None = None
    """What verifiers grade, when it is not the last policy turn: another turn, or one step."""
    opening: Annotated[
        tuple[Message, ...], BeforeValidator(lambda x: x or ()), Field(exclude_if=lambda x: not x)
    ] = ()
    """What the counterpart said before the first policy turn; its tokens are the end of `prompt_token_ids`. Written
    only where there is one, so that the digests of records without it stay what they were; absent is empty."""
    author: AuthorField = Author.POLICY
    """Who wrote the policy turns; written only where it was not the policy."""
    role: Annotated[str, BeforeValidator(lambda x: x or ""), Field(exclude_if=lambda x: not x)] = ""
    """Name of the role that wrote them, where the author is one."""
    derived_from: str | None = Field(default=None, exclude_if=lambda x: x is None)
    """Id of the attempt that this one revises."""

    @model_validator(mode="after")
    def _policy_knows_its_logprobs(self) -> Self:
        unknown = any(t.role == "policy" and t.token_ids and not t.logprobs for t in self.turns)
        if unknown and self.author is Author.POLICY:
            raise ValueError("a turn that the policy sampled has no log-probs")
        return self

    @property
    def completion(self) -> str:
        """Text that verifiers grade: the `graded` span, else the last policy turn."""
        if self.graded is None:
            return next((t.text for t in reversed(self.turns) if t.role == "policy"), "")
        turn = self.turns[self.graded.turn]
        steps = (s.text for s in turn.steps if (s.start, s.end) == self.graded_range)
        return next(steps, turn.text)

    @property
    def graded_range(self) -> tuple[int, int] | None:
        """First token and one past the last token of `graded`, within its turn."""
        return None if self.graded is None else (self.graded.start, self.graded.end)

    @property
    def step_spans(self) -> tuple[Span, ...]:
        """Every step that the policy wrote, in order; a turn without steps is one."""
        return tuple(
            Span(turn=i, start=start, end=end)
            for i, turn in enumerate(self.turns)
            if turn.role == "policy"
            for start, end in ([(s.start, s.end) for s in turn.steps] or [(0, len(turn.token_ids))])
        )

    def start_of_turn(self, turn: int) -> int:
        """Position in `token_ids` of the first token of `turns[turn]`."""
        return len(self.prompt_token_ids) + sum(len(t.token_ids) for t in self.turns[:turn])

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and all turns. [T]"""
        return self.prompt_token_ids + tuple(i for t in self.turns for i in t.token_ids)

    @property
    def loss_mask(self) -> tuple[int, ...]:
        """1 on tokens that the policy wrote, 0 on prompt and observations. [T]"""
        mask = [0] * len(self.prompt_token_ids)
        for turn in self.turns:
            mask.extend([1 if turn.role == "policy" else 0] * len(turn.token_ids))
        return tuple(mask)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The policy's own log-probs aligned with `token_ids`, 0.0 where the mask is 0; empty if others wrote. [T]"""
        if self.author is not Author.POLICY:
            return ()
        values = [0.0] * len(self.prompt_token_ids)
        for turn in self.turns:
            values.extend(turn.logprobs if turn.role == "policy" else [0.0] * len(turn.token_ids))
        return tuple(values)

    @property
    def num_policy_tokens(self) -> int:
        return sum(len(t.token_ids) for t in self.turns if t.role == "policy")


class VerdictStatus(StrEnum):
    """The word of a verifier."""

    SCORED = "scored"
    ABSTAINED = "abstained"
    ERROR = "error"


class Verdict(Record):
    """One opinion of one verifier or judge: a score in [0, 1] (or a raw one), an abstention, or an error.

    Example: `Verdict(source="numeric_match", trajectory_id="r1.7x8.0", status="scored", score=1.0)`.
    """

    source: str
    trajectory_id: str
    status: VerdictStatus
    score: Score | None = None
    error: str | None = None
    span: Span | None = None
    confidence: Probability = 1.0
    """Share of the source's weight that this verdict has in a mean with other sources; 0 leaves it out of it."""
    rationale: str = ""
    seconds: float = 0.0
    metrics: dict[str, float] = Field(default_factory=dict, exclude_if=lambda found: not found)
    """Numbers that a function gave beside its score; written only where there are some, as `Trajectory.opening`."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _none_is_empty(cls, found: Any) -> Any:
        return {} if found is None else found  # a file without the column, or a row without one

    policy_version: int | None = Field(default=None, exclude_if=lambda found: found is None)
    """The version of the run's own policy that judged, where one did. Written only then, so that the digests of other
    verdicts stay what they were."""
    raw: Annotated[bool, BeforeValidator(bool)] = Field(default=False, exclude_if=lambda v: not v)
    """The score may be any finite number, such as a reward. Written only then, as `policy_version`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.score is not None and not self.raw and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"a score that is not raw lies in [0, 1], got {self.score:g}")
        if (self.score is not None) != (self.status is VerdictStatus.SCORED):
            raise ValueError("a verdict has a score exactly when its status is 'scored'")
        if (self.error is not None) != (self.status is VerdictStatus.ERROR):
            raise ValueError("a verdict has an error exactly when its status is 'error'")
        return self


class Comparison(Record):
    """A pairwise judge on two trajectories of one prompt, asked in both orders.

    Example: `Comparison(source="pairwise", first="r1.7x8.0", second="r1.7x8.1", probability=0.5,
    first_shown_first=1.0, first_shown_second=0.0, agreed=False)`: the judge preferred whatever came first.
    """

    source: str
    first: str
    second: str
    probability: Probability | None
    """That `first` is better: mean of the two orders; None when an order failed."""
    first_shown_first: Probability | None
    first_shown_second: Probability | None
    agreed: bool
    """Both orders prefer the same side (ties agree with ties only)."""
    error: str | None = None
    rationale: str = ""
    seconds: float = 0.0


class StepScore(Record):
    """Sum of the verdicts on one step. Example: `StepScore(span=Span(...), score=1.0, desirable=True)`."""

    span: Span
    score: float
    desirable: bool


class Feedback(Record):
    """Sum of the verdicts on one trajectory. Made by aggregation; knows nothing of pairs.

    Example: `Feedback(trajectory_id="r1.7x8.0", score=1.0, desirable=True, verdicts=(Verdict(...),))`.
    """

    trajectory_id: str
    score: float | None
    desirable: bool | None
    unusable_because: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    steps: tuple[StepScore, ...] = ()
    """Of the steps that were scored, in order; the whole trajectory's score does not read them."""


class ScoredGroup(Record):
    """A prompt with all its judged attempts: what preference builders read.

    `feedback[i]` belongs to `trajectories[i]`.
    """

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    feedback: tuple[Feedback, ...]
    comparisons: tuple[Comparison, ...] = ()
    """What pairwise judges saw: soft labels of pairs come from them."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of each verifier and judge in the scores; 1 where none is given."""
    raw: bool = False
    """The scores of `feedback` may be any finite number instead of [0, 1]."""


class VersionFile(Record):
    """One file of a model folder. Example: `VersionFile(name="tokenizer.json", num_bytes=2104556, sha256="9f..")`."""

    name: str
    """Relative to the folder."""
    num_bytes: int
    sha256: str


class PolicyVersion(Record):
    """Published weights. Example: `PolicyVersion(number=1, round=1, parent=0, path="runs/x/policies/0001",
    digest="9f..")`.
    """

    number: int
    round: int
    parent: int | None
    path: str
    digest: str
    """sha256 over the names and contents of the weight files."""
    companions: tuple[VersionFile, ...] | None = None
    """The files beside the weights (tokenizer, template, configs); None where nobody recorded them (an older Pawl)."""


class RoundStatus(StrEnum):
    """The outcome of a round."""

    UNTRAINED = "untrained"
    """Round 0: the policy as it came, measured."""
    IMPROVED = "improved"
    """The new policy was accepted, and its held-out score rose by more than the noise of the measurement."""
    KEPT = "kept"
    """The new policy was accepted, and whether its held-out score rose cannot be told from noise."""
    SKIPPED = "skipped"
    """Too few examples: no update."""
    REJECTED = "rejected"
    """The new policy was rolled back."""
    DIVERGED = "diverged"
    """The update was abandoned because a loss, a gradient or a weight was not finite; the old policy serves on."""


class RoundResult(Record):
    """A finished round, as the journal keeps it: no clock in it, so that two runs can be compared.

    Example: `RoundResult(round=1, status="improved", before=0, after=1, reference="version 0",
    metrics={"eval/pass@1": 0.39})`.
    """

    round: int
    status: RoundStatus
    before: int
    after: int
    reference: str
    reason: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    best: int | None = None
    """The best version known after the round, where the acceptance rule keeps track of one."""
