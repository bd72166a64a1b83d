"""The end of an update: the trained model made whole, checked and written, and what the next round carries on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.examples.kinds import TokenSequence
from workers.training.adapter import lora_config
from workers.training.checkpoints.candidate import check_candidate, check_logits
from workers.training.checkpoints.trained_state import trained_weights
from workers.training.job import AdapterSettings, TrainingOptions, UpdateJob


def carry_optimizer(optimizer: Any, job: UpdateJob, options: TrainingOptions) -> None:
    """Write the moments for the next round, when they are to be carried; every worker takes part."""
    from workers.training.checkpoints.optimizer_state import moments_of, save_moments

    if job.optimizer_output is None or options.optimizer != "carry":
        return
    moments = moments_of(optimizer)
    if job.writes:
        save_moments(moments, Path(job.optimizer_output))


def gathered(
    trained: Any, job: UpdateJob, loading: Mapping[str, Any], adapter: AdapterSettings | None
) -> Any:
    """A model with all the shares of a sharded one, on the CPU; None for a worker that does not write."""
    from workers.training.checkpoints.weights import load_model
    from workers.training.distributed.fsdp import copy_weights

    weights = trained_weights(trained)
    if not job.writes:
        return None
    fresh = load_model(job.policy.path, **{**loading, "device": "cpu"})
    if adapter is not None:
        from peft import get_peft_model

        fresh = get_peft_model(fresh, lora_config(adapter))
    copy_weights(fresh, weights)
    return fresh


def save_candidate(
    trained: Any,
    job: UpdateJob,
    target: Path,
    *,
    adapter: AdapterSettings | None,
    probes: Sequence[TokenSequence],
) -> None:
    """Write the new policy to `target`: an adapter beside the weights that it is merged into.

    Raises:
        DivergenceError: a weight, or a log-prob of `probes`, is not finite.
        TrainingError: the weights do not fit their parent's.
    """
    from workers.training.checkpoints.weights import save_model

    source = Path(job.policy.path)
    if adapter is not None:
        trained.save_pretrained(target / "adapter", save_embedding_layers=False)
        trained = trained.merge_and_unload()
    check_logits(trained, probes)
    save_model(trained, source, target)
    tied = set(getattr(trained, "all_tied_weights_keys", None) or ())
    check_candidate(target, source, untrained=job.policy.parent is None, tied=tied)
