"""The settings of an update, the job that asks a training worker for one, and its outcome."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from policies.base.bounds import (
    MAX_COEFFICIENT,
    MAX_COUNT,
    MAX_SCORE,
    MAX_SECONDS,
    MAX_TOKENS,
    MAX_WORKERS,
)
from policies.base.component import Settings
from policies.base.records import PolicyVersion, Record
from policies.objectives.reference import ReferencePlan


class AdapterSettings(Settings):
    """LoRA: train a low-rank adapter in each round and merge it into the weights that are published."""

    rank: int = Field(default=16, ge=1, le=65_536)
    """Rank of the update matrices."""
    alpha: float = Field(default=32.0, gt=0, le=MAX_COEFFICIENT)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Above 0 the loss at step 0 is no longer ln 2."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter; the output head is never adapted."""


class TrainingOptions(Settings):
    """Settings of an update, whatever the engine."""

    learning_rate: float = Field(default=1.0e-5, gt=0, le=100)
    """Peak step size of AdamW."""
    batch_size: int = Field(default=8, ge=1, le=MAX_COUNT)
    """Pairs (or unpaired examples) per optimizer step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Examples per forward pass; must divide batch_size; null means batch_size. Smaller needs less memory."""
    epochs: int = Field(default=1, ge=1, le=MAX_COUNT)
    """Passes over the round's examples."""
    max_length: int = Field(default=2048, ge=8, le=MAX_TOKENS)
    """Longest sequence in tokens; a longer one is dropped and counted, never cut."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of a round's steps in which the learning rate rises, as (step + 1) / (warm-up + 1): AdamW's moments start
    anew in each round, and its first steps are as long as the learning rate allows, whatever the gradient. 0: none."""
    warmup_min_steps: int = Field(default=3, ge=0, le=MAX_COUNT)
    """Shortest warm-up in optimizer steps, where warmup_fraction of a short round would be less; at most half of the
    round's steps. Not read when warmup_fraction is 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0, le=MAX_COEFFICIENT)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=MAX_SCORE)
    """Gradients are scaled down to this norm."""
    router_aux_loss: bool = False
    """Mixtures of experts: add the model's own load-balancing loss of its routers, with the coefficient of its config
    (`router_aux_loss_coef`), to every step of whatever loss. Off: never added. It is a statistic of one forward pass
    over prompts and answers, so it needs micro_batch_size: null and workers: 1."""
    optimizer: Literal["reset", "carry"] = "reset"
    """Start each round with fresh AdamW moments, or carry them over from the last accepted round."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast of the forward pass; weights, gradients and log-softmax stay in fp32. `auto`: bf16 on a GPU and on a CPU
    that multiplies it in hardware, else fp32; chosen before the run, and an update never sees it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    loss_mask: Literal["policy", "completion"] = "policy"
    """Which tokens are learned from: those that the policy wrote, or everything after the prompt, tool output included.
    Only to show what goes wrong: pairs are then told apart by what the tools printed, and the policy learns to print
    it itself. Needs recomputed reference log-probs, because the sampler has none of tokens that it did not write."""
    min_examples: int = Field(default=1, ge=1, le=MAX_COUNT)
    """A round with fewer examples is skipped, with the reason recorded."""
    checkpoint_steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Write a checkpoint inside the update every so many optimizer steps; null goes by time alone."""
    checkpoint_seconds: float | None = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """Write a checkpoint when so much time went by since the last: the most that a killed update repeats. By time,
    because what is lost is time: short updates write none. One takes three times the size of the weights in fp32
    (weights and both AdamW moments; an adapter's only, with policy.adapter); null turns it off."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Training actors that share each batch (data parallel); gradients are summed between them."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several workers: every one holds the whole model, or (fsdp) a share of weights, gradients and moments."""
    group_timeout_seconds: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """Longest wait of a training worker for the others: at the start, and in each exchange of gradients."""


class ProcessGroup(Record):
    """A training worker's place among those of one update.

    Example: `ProcessGroup(address="127.0.0.1", port=41817, rank=0, world_size=2, local_world_size=2)`.
    """

    address: str
    """Of rank 0, where the others meet."""
    port: int
    """On which rank 0 listens: see `TrainWorker.open_rendezvous`."""
    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    local_world_size: int = Field(default=1, ge=1)
    """Workers that share the cores of this worker's machine."""

    @property
    def writes(self) -> bool:
        """Tell whether this worker writes the log, the checkpoints and the candidate."""
        return self.rank == 0


class UpdateJob(Record):
    """One round's update. `logprobs` says where the reference log-probs come from."""

    round: int
    stage: int = 0
    """Which of the worker's setups: index of the stage that the round belongs to."""
    policy: PolicyVersion
    """Where training starts: the version that sampled."""
    reference: ReferencePlan
    reference_versions: tuple[PolicyVersion, ...]
    """The versions named by `reference`."""
    logprobs: Literal["rollout", "recompute"]
    seed: int
    example_rows: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """By path of an example file that is not read whole, the rows to take."""
    output_dir: str
    """Where the new weights go: safetensors (fp32), config and tokenizer files. Must not exist yet."""
    optimizer_state: str | None = None
    """File with the optimizer state to carry over, if any."""
    optimizer_output: str | None = None
    """File to write the optimizer state to, if it is to be carried."""
    log_path: str
    """JSON lines, one per optimizer step: `{"step": 1, "train/loss": 0.69, ...}`."""
    checkpoint_dir: str | None = None
    """Where checkpoints lie; the update goes on from the newest whole one of the same inputs. None keeps none."""
    learning_rate_factor: float = 1.0
    """What the learning rate is multiplied by in this round; see `scaled`."""
    process_group: ProcessGroup | None = None
    """Given when several workers make the update together; each gets the same job but for its rank."""

    def scaled(self, options: TrainingOptions) -> TrainingOptions:
        """The options with this round's learning rate; an engine trains with these."""
        rate = options.learning_rate * self.learning_rate_factor
        return options.model_copy(update={"learning_rate": rate})

    @property
    def writes(self) -> bool:
        """Tell whether the worker that got this job writes files."""
        return self.process_group is None or self.process_group.writes


class UpdateOutcome(Record):
    """The outcome of an update. Metrics are named as the tracker shows them (`train/...`, `rewards/...`)."""

    num_examples: int
    num_steps: int
    num_tokens: int
    """Tokens in all sequences of the update, prompts included, once per epoch."""
    dropped: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
