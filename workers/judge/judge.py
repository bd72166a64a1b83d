"""The judge seams: a judge asks questions about a group of attempts, a backend answers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from policies.base.bounds import MAX_COEFFICIENT, MAX_TOKENS
from policies.base.component import Component, Family
from policies.base.errors import JudgeError, PawlError, boundary
from policies.base.records import Comparison, Message, PolicyVersion, Prompt, Trajectory, Verdict
from workers.rollout.chat.chat_settings import ChatSettings

CUT = "the answer was cut at max_tokens: its last line may be half of one. Fix: raise judges[...].max_tokens"
"""Error of a reply that ran out of tokens: a score that is cut is another score."""


@dataclass(frozen=True)
class Question:
    """One call to a judge model."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    vote: int = 0
    """Which of several votes on the same messages this is: makes repeated samples differ."""
    choices: tuple[str, ...] = ()
    """When given, the reply must be one of these, whatever the model would rather write."""


@dataclass(frozen=True)
class Usage:
    """The cost of answering. Example: `Usage(calls=1, prompt_tokens=210, completion_tokens=4)`."""

    calls: int = 0
    """Requests that were sent to the model, repeats included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Calls of which nobody said how many tokens they took."""


@dataclass(frozen=True)
class Unavailable:
    """The reason why a backend cannot answer."""

    message: str
    """In four parts: what, the value, where it is set, what to do."""
    may_pass: bool = False
    """Whether it may be otherwise in a moment: a server that is busy or still loading."""


@dataclass(frozen=True)
class Reply:
    """The judge model's text, or why there is nothing. Exactly one of the two is set."""

    text: str | None
    error: str | None = None
    seconds: float = 0.0
    """Time of the call; 0.0 when a cache answered."""
    usage: Usage = Usage(calls=1, uncounted=1)
    """What it took; one call of an unknown number of tokens where the backend does not count."""


@dataclass(frozen=True)
class BackendContext:
    """Facts of the run that a backend may need. Its callables must pickle: bound methods or functions."""

    policy_version: Callable[[int], PolicyVersion]
    """The run's policy by number, as the policy store knows it."""
    model_version: Callable[[str], PolicyVersion]
    """Any other model, by hub id or path, with the digest of its weights."""
    dtype: str = "bfloat16"
    """Number format of weights where a backend's config names none."""
    seed: int = 0
    """The run's seed."""
    engine_seed: int = 0
    """Of the engine that answers in this worker: no two workers have the same."""
    chat: ChatSettings = ChatSettings()  # noqa: RUF009 # frozen
    """What the run tells the policy's chat template."""


class JudgeBackend(Component):
    """Answers questions. Constructor: `(config, *, context: BackendContext)`, which starts nothing."""

    takes_choices: ClassVar[bool] = False
    """Whether `Question.choices` is kept to."""

    def start(self) -> None:
        """Load what answers, or check that it can be reached; called once, before the first question."""

    def serve(self, policy: PolicyVersion) -> None:
        """Answer with this version of the run's policy from now on; of no meaning to a backend with a model of its own.

        Raises:
            JudgeError: it cannot be loaded.
        """

    def probe(self) -> Unavailable | None:
        """Tell why questions could not be answered from here now; None when they can, or when only a start would tell.

        Asked by `pawl plan`, `pawl doctor` and at the start of a run, before anything is sampled. Loads nothing, and
        costs one short question at most.
        """
        return None

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply per question, in order.

        A question that fails is a reply with an error; this never raises for one of them.
        """
        raise NotImplementedError

    def keep(self, question: Question, reply: Reply) -> None:
        """Take note that `reply` could be read: only then a cache may remember it."""

    def identity(self) -> str:
        """Return what answers, for the cache and the run's record: model name or digest, never a key."""
        raise NotImplementedError


BACKENDS = Family("judge backend", package="workers.judge.backends", base=JudgeBackend)


@dataclass(frozen=True)
class JudgeJob:
    """All attempts at one prompt that can be judged."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    seed: int


@dataclass
class Judgement:
    """A judge's word on a group: verdicts on each attempt, comparisons, and counts."""

    verdicts: list[Verdict] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Sums for the summary, such as `questions`, `errors`, `agreed`."""


class Judge(Component):
    """Judges whole groups, so that it can compare. What it is constructed with is said by its two bases."""

    class Config(Component.Config):
        """Settings that every judge has."""

        # A mistyped section can hold a key: messages name the field, never its content.
        model_config = ConfigDict(hide_input_in_errors=True)

        name: str | None = None
        """Name in metrics and verdicts; the type by default. Must be unique in a run."""
        weight: float = Field(default=1.0, gt=0, le=MAX_COEFFICIENT)
        """Share of this judge's score in the weighted mean over verifiers and judges."""
        level: Literal["trajectory", "step"] = "trajectory"
        """Judge whole trajectories, or every step that the policy wrote (`rollout.steps` says what a step is)."""

        @property
        def source(self) -> str:
            return self.name or self.type

    config: Config

    def version(self) -> str:
        """Return which prompt (or other instruction) the judge follows, for the run's record."""
        return ""

    def judge(self, jobs: Sequence[JudgeJob]) -> list[Judgement]:
        """One judgement per job, in order; all questions of all jobs are asked together.

        At the level `step` a job holds a copy of a trajectory for each of its steps, with the step as `graded`; the
        judgement then has one verdict for each of them, in their order, and no comparisons.
        """
        raise NotImplementedError


class AskingJudge(Judge):
    """Asks a model questions in words. Constructor: `(config, *, backend: JudgeBackend)`."""

    class Config(Judge.Config):
        """Settings of judges that ask."""

        backend: Annotated[Component.Config, BACKENDS.field()]
        """What answers: `{type: engine, ...}` for a model of ours, `{type: openai, ...}` for an endpoint."""
        max_tokens: int = Field(default=256, gt=0, le=MAX_TOKENS)
        """Longest answer of the judge model, in tokens."""

    config: Config

    def __init__(self, config: Config, *, backend: JudgeBackend) -> None:
        self.config = config
        self.backend = backend

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Ask the backend; whatever it raises becomes the error of every reply."""
        if not questions:
            return []
        try:
            with boundary(JudgeError, f"backend {self.config.backend.type!r} failed"):
                replies = self.backend.ask(questions)
                if len(replies) != len(questions):
                    raise JudgeError(
                        f"backend {self.config.backend.type!r} gave {len(replies)} replies "
                        f"to {len(questions)} questions"
                    )
        except PawlError as error:
            return [Reply(text=None, error=str(error))] * len(questions)
        return replies


JUDGES = Family("judge", package="workers.judge.judges", base=Judge)
