"""Our training options in the terms of transformers and TRL."""

from __future__ import annotations

from typing import Any

from policies.objectives.loss import Loss, PairLoss, UnpairedLoss
from workers.training.batches.plan import BatchPlan
from workers.training.job import TrainingOptions


def training_arguments(
    options: TrainingOptions, plan: BatchPlan, *, seed: int, scratch: str, use_cpu: bool
) -> dict[str, Any]:
    """Arguments that TRL's configs share; every default of theirs that would surprise is set here."""
    return {
        "output_dir": scratch,
        # Only TRL's own checks read it (KTO refuses 1): batches come from the plan.
        "per_device_train_batch_size": max(2, options.micro_batch_size or options.batch_size),
        "gradient_accumulation_steps": plan.accumulation,
        "num_train_epochs": 1,  # the plan holds all epochs
        "learning_rate": options.learning_rate,
        # Ours replaces it (`workers.training.schedule`): theirs begins a warm-up with a step of learning rate 0.
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        # TRL would add the routers' loss to every mixture of experts; None is the coefficient of the model.
        "router_aux_loss_coef": None if options.router_aux_loss else 0.0,
        "optim": "adamw_torch_fused",
        "bf16": options.precision == "bf16",
        "use_cpu": use_cpu,
        "gradient_checkpointing": options.gradient_checkpointing,
        "max_length": None,  # nothing is ever cut
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide the very step that diverged
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "seed": seed % 2**32,
    }


def loss_arguments(loss: Loss, class_weights: tuple[float, float]) -> dict[str, Any]:
    """The objective in the terms of TRL's config for its kind of example."""
    spelled = loss.trl()
    arguments: dict[str, Any] = {"loss_type": spelled.loss_type, **spelled.arguments}
    if isinstance(loss, (PairLoss, UnpairedLoss)):  # SFTTrainer knows no reference
        arguments.update(
            beta=loss.config.beta,
            precompute_ref_log_probs=True,
            # done on loading; TRL's switch would silence the adapter's dropout too
            disable_dropout=False,
        )
    if isinstance(loss, UnpairedLoss):
        arguments.update(desirable_weight=class_weights[0], undesirable_weight=class_weights[1])
    return arguments
