"""The named states of a round and what each leaves in the journal.

Every phase record is complete, small, and free of clocks: the journal of an interrupted run equals that
of an uninterrupted one.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from orchestrator.acceptance.measurement import PromptCounts
from policies.base.records import Record
from policies.objectives.reference import ReferencePlan
from workers.training.engine import UpdateOutcome


class Phase(StrEnum):
    """States of a round, in order."""

    DRAW = "draw"
    COLLECT = "collect"
    TRAIN = "train"
    PUBLISH = "publish"
    SYNC = "sync"
    EVALUATE = "evaluate"
    COMPARE = "compare"
    """Only where the acceptance rule wants a version measured again."""
    FINAL = "final"
    """Only at the start and the end of a run: measurements that no decision uses."""
    ACCEPT = "accept"


class Drawn(Record):
    """The prompts of a round. Example: `Drawn(num_prompts=48, num_shards=3, digest="9f..")`."""

    num_prompts: int
    num_shards: int
    digest: str
    model: str = ""
    """Digest over all files of the starting model. Given by round 0; empty by an older Pawl."""
    judge_models: dict[str, str] = Field(default_factory=dict)
    """The same of the models of judges that lie on this machine, by their names in the config. Given by round 0."""
    stage_prompts: dict[str, str] = Field(default_factory=dict, exclude_if=lambda found: not found)
    """Content digests of training sets that stages have of their own, by the stage's index. Given by round 0."""


class Collected(Record):
    """The examples of a round, and what the shards counted on the way."""

    digests: dict[str, str]
    """Content digest of each kind of file, over all shards in order."""
    num_trajectories: int
    num_examples: int
    counts: dict[str, float]
    """Sums over shards, by metric-like name (`rollout/tokens`, `verify/numeric_match/scored`, ...)."""
    dropped: dict[str, int] = Field(default_factory=dict)
    measured: dict[str, float] = Field(default_factory=dict, exclude_if=lambda found: not found)
    """What workers measured, joined over the shards. Written only where there is something."""


class Replayed(Record):
    """Part of an earlier round that joined an update.

    Example: `Replayed(round=2, digest="9f..", num_examples=12, ...)`.
    """

    round: int
    digest: str
    """Content digest of its examples, over all shards in order."""
    num_examples: int
    num_available: int


class Trained(Record):
    """An update, or the reason why there was none."""

    reference: ReferencePlan
    logprobs: str
    outcome: UpdateOutcome | None
    skipped_because: str = ""
    diverged: bool = False
    """It was abandoned because a number was not finite; `skipped_because` says which."""
    forced: bool = False
    """The reference log-probs were recomputed because the sampler's are too far off (`limits.max_logprob_gap`)."""
    reused: tuple[int, ...] = ()
    """Earlier rounds whose examples joined this round's (`on_rejection.keep_examples`)."""
    num_reused: int = 0
    """Examples that these rounds brought."""
    replayed: tuple[Replayed, ...] = Field(default=(), exclude_if=lambda found: not found)
    """Older rounds of which a part joined (`training.replay`), the oldest first."""


class Published(Record):
    """The new version, without its path: journals of equal runs in different folders are equal."""

    version: int
    parent: int
    digest: str
    optimizer_sha256: str | None = None
    """Of the optimizer state that the update left for the next one, when it is carried."""
    files_digest: str = ""
    """Over all files of the version: weights, tokenizer, chat template, configs. Empty by an older Pawl."""


class Synced(Record):
    """The samplers' answer after the swap."""

    version: int
    digest: str
    workers: int


class Evaluated(Record):
    """The held-out measurement of one version."""

    version: int
    digests: dict[str, str]
    metrics: dict[str, float]
    counts: PromptCounts | None = None
    """What came of each prompt's attempts; None by an older Pawl."""


class Remeasured(Record):
    """Versions that were measured once more, to decide on a candidate (`compare`), or for the record (`final`)."""

    measurements: dict[str, Evaluated]
    """By the name of the folder that holds its samples, inside the round's."""


def headline(result: Record) -> dict[str, float]:
    """The few numbers of a phase that belong on its one line."""
    if isinstance(result, Drawn):
        return {"prompts": result.num_prompts}
    if isinstance(result, Collected):
        return {"trajectories": result.num_trajectories, "examples": result.num_examples}
    if isinstance(result, Trained) and result.outcome is not None:
        return {"steps": result.outcome.num_steps, "examples": result.outcome.num_examples}
    if isinstance(result, Published | Synced):
        return {"version": result.version}
    return {}
