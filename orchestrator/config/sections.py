"""The sections of a config: what can be set under each key, with which defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import Field, JsonValue, model_validator

from orchestrator.config.mixture import MixtureSettings
from orchestrator.config.replay import ReplaySettings
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.bounds import (
    MAX_COUNT,
    MAX_CPUS,
    MAX_MEGABYTES,
    MAX_ROUNDS,
    MAX_SCORE,
    MAX_SECONDS,
    MAX_TOKENS,
    MAX_WORKERS,
    Score,
)
from policies.base.component import Component, Settings
from policies.base.records import Sampling
from policies.objectives.loss import LOSSES
from policies.objectives.reference import REFERENCES, ReferenceSchedule
from workers.cluster.seam import Placement
from workers.rollout.chat.chat_settings import (
    ChatSettings,
    TemplateRoles,
    TemplateTools,
    checked_date,
    refused_arguments,
)
from workers.rollout.engine import ENGINES, NumberFormat
from workers.rollout.strategy import STRATEGIES
from workers.training.engine import TRAINING_ENGINES, AdapterSettings, TrainingOptions
from workers.verify.verifier import VERIFIERS, Verifier

PER_ROUND = 128
"""Prompts of a round where the config names no number and there are as many."""


class ResourceSettings(Settings):
    """Resources that one worker of a group asks Ray for."""

    num_cpus: float = Field(default=0.5, ge=0, le=MAX_CPUS)
    """Logical CPU cores. Groups that take turns (rollout, training) may share cores."""
    num_gpus: Annotated[float, Field(ge=0, le=MAX_CPUS)] | Literal["auto"] = "auto"
    """GPUs; a fraction shares one, 0 hides them all. `auto`: what the machine or cluster has, one for each process that
    computes with a model (an engine's `tensor_parallel_size`), shared where there are fewer; none where there is none.
    A training process never has more than one."""
    custom: dict[str, Annotated[float, Field(gt=0, le=MAX_COUNT)]] = Field(default_factory=dict)
    """Resources of your own by name, as nodes offer them (`ray start --resources '{"fast_disk": 1}'`)."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have (`ray start --labels pool=gpu`), for instance `{pool: gpu}`."""
    placement: Placement = "default"
    """`spread` over as many nodes as there are, `pack` onto as few as possible (reserved together), or Ray's choice."""

    @property
    def gpus(self) -> float:
        """GPUs of one worker; 0 for an `auto` that was not resolved (`orchestrator.config.gpu_counts`)."""
        return 0.0 if self.num_gpus == "auto" else self.num_gpus

    @model_validator(mode="after")
    def _gpus_can_be_given(self) -> Self:
        if self.gpus > 1 and not self.gpus.is_integer():
            raise ValueError(
                f"num_gpus is {self.gpus:g}: above 1 only whole GPUs can be given. Fix: use {int(self.gpus)} or "
                f"{int(self.gpus) + 1}"
            )
        return self


class PolicySettings(Settings):
    """The model that is improved."""

    model: str
    """A local directory with safetensors weights, a Hugging Face hub id, or `smollm2-135m-instruct`
    (the cached demo model)."""
    revision: str | None = None
    """Commit or tag of a hub model; null takes the newest."""
    dtype: NumberFormat | Literal["auto"] = "auto"
    """Number format of the sampler's weights; float16 is for GPUs only. `auto`: bfloat16 on a GPU and on a CPU that
    multiplies it in hardware, else float32, which is several times as fast there; the run's config records the
    choice. Training keeps fp32 weights."""
    adapter: AdapterSettings | None = None
    """LoRA settings; null trains all weights."""


class PromptSettings(Settings):
    """Sources of tasks."""

    train: Annotated[Component.Config, PROMPT_SOURCES.field()]
    """Prompts to learn on."""
    held_out: Annotated[Component.Config, PROMPT_SOURCES.field()]
    """Prompts to measure on; never trained on."""
    test: Annotated[Component.Config, PROMPT_SOURCES.field()] | None = None
    """Prompts that no decision uses: measured at the start and at the end of the run only, which gives the number to
    report (`test/pass@1`). Null: the last version is measured on the held-out prompts once more (`final/pass@1`),
    where the acceptance rule chose it by its measurement."""
    per_round: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Prompts drawn in each round, without repetition until all were seen. Null: 128, or all where there are fewer. A
    round teaches what its examples agree on: a few dozen of them swing, a few hundred climb."""
    allow_overlap: bool = False
    """Accept prompts that stand in both sets. Off: such a run is refused before round 1."""

    def drawn(self, num_train: int) -> int:
        """Tell how many prompts a round draws of a training set of `num_train`."""
        return min(PER_ROUND, num_train) if self.per_round is None else self.per_round


class RolloutSettings(Settings):
    """Sampling of attempts."""

    engine: Annotated[Component.Config, ENGINES.field()] = Field(
        default_factory=lambda: ENGINES.parse("vllm")
    )
    """What samples: vllm, transformers, or the scripted fake."""
    strategy: Annotated[Component.Config, STRATEGIES.field()] = Field(
        default_factory=lambda: STRATEGIES.parse("independent")
    )
    """How a prompt becomes trajectories."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Rollout actors, each with an engine of its own."""
    resources: ResourceSettings = Field(default_factory=ResourceSettings)
    """What each rollout actor asks for."""
    threads: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """CPU threads that one rollout actor computes with; null divides the cores of its machine by `workers`. Where a
    cluster spreads the actors over nodes, give each node's cores divided by the actors on it."""
    samples_per_prompt: int = Field(default=8, ge=1, le=MAX_COUNT)
    """Attempts at each prompt (K). A round of `demonstrations` makes one: the others would be the same text."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: smallest set of tokens with this probability."""
    top_k: int = Field(default=0, ge=0, le=MAX_TOKENS)
    """Keep the k likeliest tokens; 0 keeps all."""
    max_tokens: int = Field(default=256, ge=1, le=MAX_TOKENS)
    """Token budget of one policy turn."""
    stop: tuple[str, ...] = ()
    """Strings that end a turn, besides the model's own terminator."""
    prompts_per_shard: int = Field(default=16, ge=1, le=MAX_COUNT)
    """Prompts in one shard: the unit of work, storage, retry and resume."""
    steps: Literal["turn", "line", "sentence"] = "turn"
    """What a step is, for step-level verifiers and losses: a policy turn, or the lines or sentences in it."""
    mixture: tuple[MixtureSettings, ...] = ()
    """Samples of earlier policies, besides the `samples_per_prompt` of the serving one."""
    ahead: int = Field(default=0, ge=0, le=1)
    """Rounds that sampling runs ahead of training. 1: while an update runs, the version that it starts from samples the
    next round, so samplers and trainer are busy at once and every example (but of the first round) is one version old;
    the trainer scores them under the policy."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables for the model's chat template wherever the policy's prompts are made, measurements included, e.g.
    {enable_thinking: false}; `pawl plan` warns of one that changes nothing."""
    template_date: str | None = None
    """The day that chat templates are told, YYYY-MM-DD; null takes the day on which the run is begun (UTC) and keeps
    it, also over a resume. A template with a fixed day of its own is told another only when one is set here."""
    template_bos: bool = False
    """Begin prompts with the tokenizer's BOS token where the tokenizer would add it and the chat template writes none.
    Off: prompts are what the template writes, as in transformers and vLLM's chat."""
    template_roles: TemplateRoles = "as_given"
    """`user_only`, for templates without a system or tool role or whose roles must alternate: all that is not the
    policy's is shown as user messages, one between two policy turns."""
    template_tools: TemplateTools = "template"
    """Who tells the policy of its tools: the chat template, or, where that does not, a `text` in the system message."""

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        refused = refused_arguments(self.template_arguments)
        if refused is not None:
            raise ValueError(
                f"template_arguments: {refused}. Fix: leave it out, or use another name"
            )
        if self.template_date is not None:
            checked_date(self.template_date)
        return self

    def chat(self, date: str = "") -> ChatSettings:
        """Return what the chat template is told; `date` holds where none is set."""
        return ChatSettings(
            template_arguments=self.template_arguments,
            date=self.template_date or date,
            date_is_given=self.template_date is not None,
            bos=self.template_bos,
            roles=self.template_roles,
            tools=self.template_tools,
        )

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

    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Verifier actors; each runs every verifier in a process of its own."""
    resources: ResourceSettings = ResourceSettings(num_cpus=0.2)
    """What each verifier actor asks for."""
    judge_workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Judge actors, when the config has judges."""
    judge_resources: ResourceSettings = ResourceSettings(num_cpus=0.2)
    """What each judge actor asks for; give it a GPU when the judge is a model of ours."""
    judge_threads: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """CPU threads that one judge actor computes with when the judge is a model of ours; null divides the cores of its
    machine by `judge_workers`."""


class TrainingSettings(TrainingOptions):
    """The update."""

    engine: Annotated[Component.Config, TRAINING_ENGINES.field()] = Field(
        default_factory=lambda: TRAINING_ENGINES.parse("trl")
    )
    """What applies the update: trl, torch, or the shipped fake."""
    loss: Annotated[Component.Config, LOSSES.field()] = Field(
        default_factory=lambda: LOSSES.parse("dpo")
    )
    """The objective; `pawl components loss` lists them."""
    reference: Annotated[ReferenceSchedule.Config, REFERENCES.field()] = Field(
        default_factory=lambda: cast(ReferenceSchedule.Config, REFERENCES.parse("refresh"))
    )
    """Which weights the policy is compared with: refresh, initial, rounds_ago, moving_average."""
    replay: ReplaySettings | None = Field(default=None, exclude_if=lambda value: value is None)
    """Examples of earlier rounds in each update, e.g. {rounds: 2, share: 0.3}; null learns from the round's own."""
    resources: ResourceSettings = Field(default_factory=ResourceSettings)
    """What the training actor asks for."""


class EvaluationSettings(Settings):
    """The held-out measurement after each round, and before the first."""

    samples_per_prompt: int = Field(default=8, ge=1, le=MAX_COUNT)
    """Attempts at each held-out prompt; the largest k of pass@k."""
    temperature: float = Field(default=0.7, ge=0, le=100)
    """Sampling temperature of the measurement."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the measurement."""
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    """Keep the k likeliest tokens in the measurement, 0 keeps all; null takes rollout.top_k."""
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Token budget of one turn; null takes rollout.max_tokens."""
    stop: tuple[str, ...] | None = None
    """Strings that end a turn, besides the model's own terminator; null takes rollout.stop."""
    verifiers: tuple[Annotated[Verifier.Config, VERIFIERS.field()], ...] | None = None
    """What grades held-out attempts; null takes the run's verifiers."""
    desirable_at: Score | None = Field(default=None, exclude_if=lambda value: value is None)
    """Lowest usable score of a held-out attempt that counts as right; null takes `feedback.desirable_at`. To be set
    where raw scores are trained on and others are measured with."""


class LimitSettings(Settings):
    """Limits at which failures stop the round instead of being counted."""

    max_failed_trajectories: float = Field(default=0.1, ge=0, le=1)
    """Largest share of a round's trajectories that may end in a rollout error."""
    max_verdict_errors: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a round's verdicts, per verifier or judge, that may be errors."""
    max_unmeasured: float = Field(default=0.05, ge=0, le=1)
    """Largest share of the held-out attempts that may lack a score because our side failed (sampler, verifier, a prompt
    that does not fit). With more, nothing is decided on the measurement: the new policy is kept, with the reason."""
    warn_logprob_gap: float = Field(default=0.1, gt=0, le=MAX_SCORE)
    """Mean distance in nats per token between the log-probs of sampler and trainer (`health/logprob_gap`) from
    which on a round is warned about. bf16 samplers are at about 0.01."""
    max_logprob_gap: float = Field(default=0.5, gt=0, le=MAX_SCORE)
    """The same, from which on the sampler's log-probs are not used as the reference's any more."""
    on_logprob_gap: Literal["recompute", "refuse"] = "recompute"
    """What a gap above max_logprob_gap does: the update is made again with reference log-probs that the trainer
    computes, or the run ends with the reason (so it does where they were computed by the trainer already)."""
    max_rejected_rounds: int = Field(default=4, ge=1, le=MAX_ROUNDS)
    """Rejected rounds in a row after which the run ends with the reason."""
    solution_seconds: float = Field(default=60.0, ge=0, le=MAX_SECONDS)
    """Before a run, longest time for judging the reference solutions that prompts bring (`code_tests` reads them from
    the prompt's metadata); solutions that fail count like errors. 0 judges none."""
    max_skipped_rounds: int = Field(default=2, ge=1, le=MAX_ROUNDS)
    """Rounds in a row without enough examples after which the run ends with the reason."""
    min_free_gb: float = Field(default=0.0, ge=0, le=MAX_MEGABYTES // 1024)
    """Room (10^9 bytes) that is left free on the disk of the run folder; a round that would use it is not begun."""
    max_diverged_rounds: int = Field(default=2, ge=1, le=MAX_ROUNDS)
    """Rounds in a row whose update was abandoned (loss, gradient or weight not finite) after which the run ends."""


class RejectionSettings(Settings):
    """Consequences of a rejected round for the next one, which starts from the same policy."""

    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """The learning rate is multiplied by this once for each rejected round in a row; the first accepted round sets it
    back. 1 leaves it as it is."""
    keep_examples: bool = True
    """Examples of earlier rounds that the serving version sampled join those of the next round: they are what that
    policy does, so they are still on-policy. After an accepted round there are none: it starts from a new version."""


class RetentionSettings(Settings):
    """Retention of finished rounds. What a coming round may need, and the best policy, is never removed."""

    policies: Literal["all", "best"] | Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = "all"
    """Published weights: all, only the best and what is needed, or besides those the newest n."""
    trajectories: Literal["all"] | Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = "all"
    """Samples, verdicts and examples: of all rounds, or of the newest n. Tables of a round that the tracking server
    has not taken by then are lost to it."""


class ClusterSettings(Settings):
    """The cluster that workers run on, and how long anything waits."""

    address: str | None = None
    """Ray cluster to join (`auto`, or `host:port`); null starts one on this machine."""
    allow_insecure: bool = False
    """Use a Ray cluster without token authentication that other machines can reach. Whoever reaches its ports can
    run any code on it; off refuses it."""
    pass_secrets: tuple[str, ...] = ()
    """Names of environment variables with secrets that workers may see all the same. Tokens, passwords and keys are
    otherwise kept from them; the `api_key_env` of a judge is passed without being named here."""
    lost_after_seconds: float = Field(default=40.0, ge=10, le=MAX_SECONDS)
    """How long the cluster's control plane may be silent before the run ends with exit code 75."""
    max_restarts: int = Field(default=8, ge=0, le=MAX_COUNT)
    """Fresh workers in the place of one that dies, in a row without a finished call between, before it is given
    up. Keep it above max_attempts, so that a prompt that kills workers is found first."""
    shared_folder: bool = True
    """Every node of the cluster at `address` sees the run folder at the same path; a node that does not ends the run
    at its start. Off: files travel through Ray to and from the nodes that do not."""
    transfer_timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
    """Longest wait for one piece (8 MiB) of a file on its way, with shared_folder off."""
    backend: Literal["ray", "inline"] = "ray"
    """`inline` runs every worker inside the driver, one call at a time: for debugging and tests."""
    num_cpus: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """Cores of the local cluster; null takes all. Ignored with an address."""
    max_shards_in_flight: int = Field(default=8, ge=1, le=MAX_COUNT)
    """Shards between rollout and finished examples at one time."""
    max_attempts: int = Field(default=3, ge=1, le=MAX_COUNT)
    """Tries at one shard when workers die, before the round stops."""
    start_timeout_seconds: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """Longest wait for a worker to be placed and to load its model."""
    import_timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Longest time to import one plug-in (a component or function of your own) in the process that looks at it for the
    driver."""
    silence_timeout_seconds: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """Longest time that a worker which samples, verifies, judges or trains may pass without a sign of life (a token,
    a verdict, a step); then it is ended, and its work handed out again."""
    shard_timeout_seconds: float = Field(default=1800.0, gt=0, le=MAX_SECONDS)
    """Longest wait for one shard to be sampled, verified or judged."""
    sync_timeout_seconds: float = Field(default=300.0, gt=0, le=MAX_SECONDS)
    """Longest wait for a sampler to load new weights."""
    training_timeout_seconds: float = Field(default=86400.0, gt=0, le=MAX_SECONDS)
    """Longest wait for one update."""


class StorageSettings(Settings):
    """A copy of the run in object storage, from which another machine can go on."""

    url: str | None = None
    """Where runs are copied to after each phase, `s3://BUCKET/PREFIX`; null makes no copy. Credentials come from
    the environment, a profile or the instance, as for any AWS client."""
    endpoint_url: str | None = None
    """Address of an S3-compatible server of your own; null takes AWS_ENDPOINT_URL, else AWS."""
    max_backlog: int = Field(default=8, ge=1, le=MAX_COUNT)
    """Phases that may wait to be copied before the run waits for the bucket."""
    timeout_seconds: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """Longest wait for the bucket: when the backlog is full, and at the end of the run."""


class TrackingSettings(Settings):
    """Tracking of metrics."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI; a relative SQLite path is taken from the folder that `pawl run` is started in."""
    experiment: str = Field(default="pawl", max_length=250)
    """MLflow experiment; also the default name of run folders."""
    enabled: bool = True
    """Off: nothing is sent; the run folder has everything anyway."""
    timeout_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
    """Longest wait for one request to the tracking server."""
    max_backlog_mb: float = Field(default=64.0, gt=0, le=MAX_MEGABYTES)
    """What may wait on disk for a server that is away (10^6 bytes); above it training curves by step are left out."""
    table_rows: int = Field(default=64, ge=0, le=MAX_COUNT)
    """Rows of the samples and pairs tables logged in each round."""
    register_policy: bool = False
    """Register every accepted policy as a version of a model named after the experiment."""
