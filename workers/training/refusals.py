"""Settings of an update that cannot be right together, each with the reason and the way out, before a run starts."""

from __future__ import annotations

from policies.base.errors import explain
from policies.objectives.loss import Loss
from workers.training.job import AdapterSettings, TrainingOptions


def refused_because(
    loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
) -> str | None:
    """Tell why no engine that computes can train with these settings, or None."""
    return _loss(loss) or _sizes(options) or _routers(options) or _optimizer(options, adapter)


def _loss(loss: Loss) -> str | None:
    if unknown := [name for name in loss.reference_names if name != "reference"]:
        return explain(
            "a round has one reference, which losses know as `reference`",
            value=unknown,
            where=f"reference_names of training.loss {loss.config.type!r}",
            fix='write reference_names = ("reference",), or () where the loss reads none',
        )
    if (loss.reads_steps or loss.kl_share > 0) and not loss.reference_names:
        return explain(
            "judged steps and reference points are log-ratios to a reference, and the loss names none",
            value=loss.reference_names,
            where=f"reference_names of training.loss {loss.config.type!r}",
            fix='write reference_names = ("reference",) in its class',
        )
    if loss.across_rows and loss.reads_steps:
        return explain(
            "a loss that reads judged steps cannot look across rows too: only its own rows' steps are at hand",
            value=loss.config.type,
            where="training.loss",
            fix="set across_rows = False in its class, or reads_steps to False",
        )
    return None


def _sizes(options: TrainingOptions) -> str | None:
    micro = options.micro_batch_size
    if micro is not None and options.batch_size % micro:
        return explain(
            f"micro_batch_size must divide batch_size {options.batch_size}",
            value=micro,
            where="training.micro_batch_size",
            fix="use a divisor, or null",
        )
    if options.sharding == "fsdp" and options.workers == 1:
        return explain(
            "fsdp shares a model between training workers, and there is one",
            value=options.sharding,
            where="training.sharding and training.workers",
            fix="set training.workers to 2 or more, or sharding to none",
        )
    return None


def _routers(options: TrainingOptions) -> str | None:
    parts = {
        "training.micro_batch_size": (options.micro_batch_size or options.batch_size)
        < options.batch_size,
        "training.workers": options.workers > 1,
    }
    cut_by = [name for name, cuts in parts.items() if cuts]
    if not options.router_aux_loss or not cut_by:
        return None
    return explain(
        "the routers' loss is a statistic of one forward pass, so a step in microbatches or on several workers would "
        "have another objective",
        value=options.router_aux_loss,
        where=f"training.router_aux_loss and {' and '.join(cut_by)}",
        fix="set training.router_aux_loss: false, or training.micro_batch_size: null and training.workers: 1",
    )


def _optimizer(options: TrainingOptions, adapter: AdapterSettings | None) -> str | None:
    if adapter is not None and options.optimizer == "carry":
        return explain(
            "each round trains a new adapter, so the last round's optimizer moments belong to other weights",
            value=options.optimizer,
            where="training.optimizer",
            fix="use reset with policy.adapter",
        )
    return None
