"""The configuration of a run: what can be set, with which defaults, and the checks that cross sections.

Every section refuses unknown keys; no validator changes a value; the resolved tree is written into the
run folder. Importing this module, and loading a config, imports none of ray, vllm, torch, mlflow, trl.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from orchestrator.acceptance.rule import ACCEPTANCE
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.component import Component, Settings
from policies.loss import LOSSES, Loss
from policies.preference import PREFERENCES, PreferenceBuilder
from policies.records import Sampling
from policies.reference import REFERENCES, ReferenceSchedule
from workers.rollout.engine import ENGINES
from workers.rollout.strategy import STRATEGIES
from workers.training.engine import (
    TRAINING_ENGINES,
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
)
from workers.verify.aggregate import FeedbackSettings
from workers.verify.judge import JUDGES, Judge
from workers.verify.verifier import VERIFIERS, Verifier


class ResourceSettings(Settings):
    """What one worker of a group asks Ray for."""

    num_cpus: float = Field(default=0.5, ge=0)
    """Logical CPU cores. Groups that take turns (rollout, training) may share cores."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs; a fraction shares one."""


class PolicySettings(Settings):
    """The model that is improved."""

    model: str
    """A local directory with safetensors weights, a Hugging Face hub id, or `smollm2-135m-instruct`
    (the cached demo model)."""
    revision: str | None = None
    """Commit or tag of a hub model; null takes the newest."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format of the sampler's weights. Training keeps fp32 weights."""
    adapter: AdapterSettings | None = None
    """LoRA settings; null trains all weights."""


class PromptSettings(Settings):
    """Where tasks come from."""

    train: Annotated[Component.Config, PROMPT_SOURCES.field()]
    """Prompts to learn on."""
    held_out: Annotated[Component.Config, PROMPT_SOURCES.field()]
    """Prompts to measure on; never trained on."""
    per_round: int = Field(default=48, ge=1)
    """Prompts drawn in each round, without repetition until all were seen."""
    allow_overlap: bool = False
    """Accept prompts that stand in both sets. Off: such a run is refused before round 1."""


class MixtureSettings(Settings):
    """Samples that an earlier policy gives to every prompt of a round."""

    rounds_ago: int = Field(default=1, ge=1)
    """Which policy: the one that served so many rounds before; before there is one, the first of the run."""
    samples: int = Field(ge=1)
    """Attempts at each prompt by that policy."""


class RolloutSettings(Settings):
    """How attempts are sampled."""

    engine: Annotated[Component.Config, ENGINES.field()] = Field(
        default_factory=lambda: ENGINES.parse("vllm")
    )
    """What samples: vllm, transformers, or the scripted fake."""
    strategy: Annotated[Component.Config, STRATEGIES.field()] = Field(
        default_factory=lambda: STRATEGIES.parse("independent")
    )
    """How a prompt becomes trajectories."""
    workers: int = Field(default=1, ge=1)
    """Rollout actors, each with an engine of its own."""
    resources: ResourceSettings = Field(default_factory=ResourceSettings)
    """What each rollout actor asks for."""
    samples_per_prompt: int = Field(default=8, ge=1)
    """Attempts at each prompt (K)."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: smallest set of tokens with this probability."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    max_tokens: int = Field(default=256, ge=1)
    """Token budget of one policy turn."""
    stop: tuple[str, ...] = ()
    """Strings that end a turn, besides the model's own terminator."""
    prompts_per_shard: int = Field(default=16, ge=1)
    """Prompts in one shard: the unit of work, storage, retry and resume."""
    steps: Literal["turn", "line", "sentence"] = "turn"
    """What a step is, for step-level verifiers and losses: a policy turn, or the lines or sentences in it."""
    mixture: tuple[MixtureSettings, ...] = ()
    """Samples of earlier policies, besides the `samples_per_prompt` of the serving one."""

    @property
    def total_samples(self) -> int:
        """Attempts at each prompt, earlier policies' included."""
        return self.samples_per_prompt + sum(m.samples for m in self.mixture)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            stop=self.stop,
        )


class VerifySettings(Settings):
    """The verifier and judge worker groups."""

    workers: int = Field(default=1, ge=1)
    """Verifier actors; each runs every verifier in a process of its own."""
    resources: ResourceSettings = ResourceSettings(num_cpus=0.2)
    """What each verifier actor asks for."""
    judge_workers: int = Field(default=1, ge=1)
    """Judge actors, when the config has judges."""
    judge_resources: ResourceSettings = ResourceSettings(num_cpus=0.2)
    """What each judge actor asks for; give it a GPU when the judge is a model of ours."""


class TrainingSettings(TrainingOptions):
    """The update."""

    engine: Annotated[Component.Config, TRAINING_ENGINES.field()] = Field(
        default_factory=lambda: TRAINING_ENGINES.parse("trl")
    )
    """What applies the update: trl, or the shipped fake."""
    loss: Annotated[Component.Config, LOSSES.field()] = Field(
        default_factory=lambda: LOSSES.parse("dpo")
    )
    """The objective; `pawl components loss` lists them."""
    reference: Annotated[ReferenceSchedule.Config, REFERENCES.field()] = Field(
        default_factory=lambda: cast(ReferenceSchedule.Config, REFERENCES.parse("refresh"))
    )
    """Which weights the policy is compared with: refresh, initial, rounds_ago, moving_average."""
    resources: ResourceSettings = Field(default_factory=ResourceSettings)
    """What the training actor asks for."""


class EvaluationSettings(Settings):
    """The held-out measurement after each round, and before the first."""

    samples_per_prompt: int = Field(default=8, ge=1)
    """Attempts at each held-out prompt; the largest k of pass@k."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature of the measurement."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the measurement."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Token budget of one turn; null takes rollout.max_tokens."""
    verifiers: tuple[Annotated[Verifier.Config, VERIFIERS.field()], ...] | None = None
    """What grades held-out attempts; null takes the run's verifiers."""


class LimitSettings(Settings):
    """When failures stop the round instead of being counted."""

    max_failed_trajectories: float = Field(default=0.1, ge=0, le=1)
    """Largest share of a round's trajectories that may end in a rollout error."""
    max_verdict_errors: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a round's verdicts, per verifier or judge, that may be errors."""
    max_skipped_rounds: int = Field(default=2, ge=1)
    """Rounds in a row without enough examples after which the run ends with the reason."""


class ClusterSettings(Settings):
    """Where the workers run, and how long anything waits."""

    address: str | None = None
    """Ray cluster to join (`auto`, or `host:port`); null starts one on this machine."""
    backend: Literal["ray", "inline"] = "ray"
    """`inline` runs every worker inside the driver, one call at a time: for debugging and tests."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Cores of the local cluster; null takes all. Ignored with an address."""
    max_shards_in_flight: int = Field(default=8, ge=1)
    """Shards between rollout and finished examples at one time."""
    max_attempts: int = Field(default=3, ge=1)
    """Tries at one shard when workers die, before the round stops."""
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for a worker to be placed and to load its model."""
    shard_timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait for one shard to be sampled, verified or judged."""
    sync_timeout_seconds: float = Field(default=300.0, gt=0)
    """Longest wait for a sampler to load new weights."""
    training_timeout_seconds: float = Field(default=86400.0, gt=0)
    """Longest wait for one update."""


class TrackingSettings(Settings):
    """Where metrics go."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI; a relative SQLite path is taken from the folder that `pawl run` is started in."""
    experiment: str = "pawl"
    """MLflow experiment; also the default name of run folders."""
    enabled: bool = True
    """Off: nothing is sent; the run folder has everything anyway."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Longest wait for one request to the tracking server."""
    table_rows: int = Field(default=64, ge=0)
    """Rows of the samples and pairs tables logged in each round."""
    register_policy: bool = False
    """Register every accepted policy as a version of a model named after the experiment."""


class RunConfig(Settings):
    """Everything that defines a run."""

    rounds: int = Field(default=1, ge=1, le=100_000)
    """Rounds to run."""
    seed: int = Field(default=0, ge=0)
    """Root of every derived seed."""
    policy: PolicySettings
    """The model that is improved."""
    prompts: PromptSettings
    """Where tasks come from."""
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    """How attempts are sampled."""
    verifiers: tuple[Annotated[Verifier.Config, VERIFIERS.field()], ...] = ()
    """Rule-based checks."""
    judges: tuple[Annotated[Judge.Config, JUDGES.field()], ...] = ()
    """Model-based checks."""
    verify: VerifySettings = Field(default_factory=VerifySettings)
    """The worker groups of verifiers and judges."""
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    """How verdicts add up to one score."""
    preferences: Annotated[PreferenceBuilder.Config, PREFERENCES.field()]
    """How judged attempts become training examples."""
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    """The update."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """The held-out measurement."""
    acceptance: Annotated[Component.Config, ACCEPTANCE.field()] = Field(
        default_factory=lambda: ACCEPTANCE.parse("always")
    )
    """Whether a new policy is kept."""
    limits: LimitSettings = Field(default_factory=LimitSettings)
    """When failures stop the round."""
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    """Where the workers run."""
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    """Where metrics go."""

    @property
    def evaluation_verifiers(self) -> tuple[Verifier.Config, ...]:
        return self.verifiers if self.evaluation.verifiers is None else self.evaluation.verifiers

    @property
    def evaluation_sampling(self) -> Sampling:
        return Sampling(
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.top_p,
            max_tokens=self.evaluation.max_tokens or self.rollout.max_tokens,
            stop=self.rollout.stop,
        )

    @property
    def example_kind(self) -> str:
        """Kind of example that the preference builder makes: pair, unpaired or supervised."""
        builder = type(self.preferences).component
        assert issubclass(builder, PreferenceBuilder)
        return builder.kind

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        problems = list(_problems(self))
        if problems:
            raise ValueError(" | ".join(problems))
        return self


def _problems(config: RunConfig) -> list[str]:
    """Contradictions between sections, each with the way out."""
    found: list[str] = []
    loss = type(config.training.loss).component
    assert issubclass(loss, Loss)
    if loss.kind != config.example_kind:
        found.append(
            f"training.loss {config.training.loss.type!r} learns from {loss.kind} examples, but preferences "
            f"{config.preferences.type!r} makes {config.example_kind} examples. Fix: change one of the two"
        )
    engine = cast("type[TrainingEngine]", type(config.training.engine).component)
    refused = engine.refused(
        loss(cast(Loss.Config, config.training.loss)), config.training, config.policy.adapter
    )
    if refused is not None:
        found.append(refused)
    if not config.verifiers and not config.judges:
        found.append(
            "verifiers and judges are both empty: nothing would score a completion. Fix: give at least one"
        )
    if not config.evaluation_verifiers:
        found.append(
            "nothing grades the held-out prompts. Fix: give evaluation.verifiers (judges are not used there)"
        )
    if config.example_kind == "pair" and config.rollout.samples_per_prompt < 2:
        found.append(
            f"rollout.samples_per_prompt is {config.rollout.samples_per_prompt}: a pair needs at least 2 attempts. "
            "Fix: raise it, or use a thresholded builder with loss kto"
        )
    if config.rollout.temperature == 0 and config.rollout.samples_per_prompt > 1:
        found.append(
            "rollout.temperature is 0: all samples of a prompt would be equal. Fix: "
            "raise it, or set samples_per_prompt: 1"
        )
    micro = config.training.micro_batch_size or config.training.batch_size
    if config.training.batch_size % micro:
        found.append(
            f"training.batch_size {config.training.batch_size} is not a multiple of training.micro_batch_size {micro}"
        )
    sources = [v.source for v in config.verifiers] + [j.source for j in config.judges]
    twice = sorted({s for s in sources if sources.count(s) > 1})
    if twice:
        found.append(
            f"two verifiers or judges are called {', '.join(twice)}. Fix: give one of them another `name`"
        )
    return found
