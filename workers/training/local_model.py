"""A model of transformers in a training process: settings of how it is loaded, and what the process is set to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT, MAX_CPUS
from policies.base.component import Component
from policies.base.requirements import Requirements
from policies.examples.kind import Example
from workers.cluster.gpus import require_one_gpu, visible_gpus
from workers.training.batches.plan import longest_sides
from workers.training.distributed.process_group import WorkerGroup, joined
from workers.training.job import TrainingOptions, UpdateJob
from workers.training.memory import kept_memory, torch_threads

_EAGER_LIMIT = 512
"""On a CPU, plain attention beats the fused kernel (whose backward is slow) for sequences up to about this length."""


class ModelSettings(Component.Config):
    """Settings of an engine that trains a model of transformers."""

    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of transformers; auto is eager for short sequences on a CPU, else sdpa."""
    threads: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """CPU threads; null uses every core that the process may use."""
    probe_sequences: int = Field(default=32, ge=0, le=MAX_COUNT)
    """Sequences that the trainer scores to compare its log-probs with the sampler's."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""

    def requires(self) -> Requirements:
        """The packages that it trains with."""
        packages = ("torch", "transformers", "safetensors", "numpy")
        return super().requires() + Requirements(packages=packages)


def device_of_process() -> str:
    """The GPU, where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def set_for_training(
    settings: ModelSettings, options: TrainingOptions, job: UpdateJob
) -> Iterator[WorkerGroup]:
    """Give an update its threads, its memory and the other workers; all is put back at the end."""
    from workers.training.checkpoints.weights import quiet_transformers

    quiet_transformers()
    require_one_gpu(visible_gpus())
    device, place = device_of_process(), job.process_group
    with (
        torch_threads(settings.threads, shared_by=place.local_world_size if place else 1),
        kept_memory(enabled=device == "cpu"),
        joined(
            place,
            timeout_seconds=options.group_timeout_seconds,
            device=device,
            sharded=options.sharding == "fsdp",
        ) as group,
    ):
        yield group


def loading(settings: ModelSettings, examples: Sequence[Example]) -> dict[str, Any]:
    """Arguments of `load_model` and `load_reference` for an update with these examples."""
    attention: str = settings.attention
    device = device_of_process()
    if attention == "auto":
        short = max(longest_sides(examples)) <= _EAGER_LIMIT
        attention = "eager" if device == "cpu" and short else "sdpa"
    remote = settings.trust_remote_code
    return {"device": device, "attention": attention, "trust_remote_code": remote}


def load_policy(
    job: UpdateJob,
    options: TrainingOptions,
    examples: Sequence[Example],
    arguments: dict[str, Any],
) -> Any:
    """Load the policy that the update starts from; `arguments` are those of `loading`.

    Raises:
        TrainingError: it is noisy in training mode, or has no router loss where one is wanted.
    """
    from workers.training.checkpoints.weights import check_loaded, load_model
    from workers.training.router_loss import set_router_loss

    model = load_model(job.policy.path, **arguments)
    set_router_loss(model, wanted=options.router_aux_loss)
    tried = examples[0].sequences()[0].token_ids
    check_loaded(model, tried, precision=options.precision)
    return model
