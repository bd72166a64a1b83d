"""How TRL's trainers step when Pawl drives them: mixins that come before DPOTrainer and KTOTrainer.

They hand the trainer batches made from the plan, keep its dataset preparation, reference search and telemetry from
running, and compute the loss with our formula where TRL has none. Nothing here imports trl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.loss import Loss, PairLoss, PairTensors, UnpairedLoss, UnpairedTensors
from workers.training.batching import MicroBatch
from workers.training.steplog import StepLog

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainerParts:
    """What one update hands to its trainer."""

    loss: Loss
    batches: Sequence[MicroBatch]
    collate: Callable[[MicroBatch], dict[str, Any]]
    log: StepLog
    accumulation: int
    custom: bool
    """Compute with `loss` itself instead of TRL's spelling of it."""
    optimizer_state: str | None


class Steps:
    """What both trainers share. Its methods replace private hooks of TRL 1.16; a parity test pins their names."""

    pawl: ClassVar[TrainerParts]

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # token ids need no tokenizer

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # the collator brings them

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def get_train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        parts = self.pawl
        batches, collate = cast(Any, parts.batches), cast(Any, parts.collate)
        return DataLoader(batches, batch_size=None, shuffle=False, collate_fn=collate)

    def create_optimizer(self, model: Any = None) -> Any:
        from workers.training.optimizer_state import load_optimizer_state

        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if self.pawl.optimizer_state is not None:
            load_optimizer_state(optimizer, Path(self.pawl.optimizer_state))
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)  # type: ignore[misc]
        if "loss" in logs:  # the trainer also logs a summary at the end
            self.pawl.log.record(logs)

    def _compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Any:
        inputs = dict(inputs)
        share, weights = inputs.pop("share"), inputs.pop("weights")
        if self.pawl.custom:
            loss = self.own_loss(model, inputs, weights)
        else:
            loss = super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        # The trainer divides by the number of microbatches; shares make the sum the mean over the step's rows.
        return loss * (share * self.pawl.accumulation)

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        """Weighted mean of our formula over a microbatch; records the metrics that TRL would."""
        raise NotImplementedError

    def forward_scored(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Run the model; return its output and the mask of scored positions. [N, T-1]"""
        mask = inputs["completion_mask"]
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, -100),
            use_cache=False,
            fused_lm_head=True,
        )
        scored = mask[:, 1:]
        self.keep_metric("entropy", (output.entropy.detach() * scored).sum() / scored.sum())
        return output, scored

    def keep_metric(self, name: str, value: Tensor) -> None:
        """Add a value to the mean that TRL logs at the end of the step."""
        cast(Any, self)._metrics["train"][name].append(float(value.detach()))


class PairSteps(Steps):
    """Steps of DPOTrainer."""

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        loss = cast(PairLoss, self.pawl.loss)
        output, scored = self.forward_scored(model, inputs)
        pairs = pair_tensors(
            output.log_probs,
            scored,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            tail_weight=loss.tail_weight,
            log_sum_squares=output.log_sum_sq_probs if loss.needs_alignment else None,
        )
        chosen = loss.config.beta * pairs.chosen_logratios.detach()
        rejected = loss.config.beta * pairs.rejected_logratios.detach()
        self.keep_metric("rewards/chosen", chosen.mean())
        self.keep_metric("rewards/rejected", rejected.mean())
        self.keep_metric("rewards/margins", (chosen - rejected).mean())
        self.keep_metric("rewards/accuracies", (chosen > rejected).float().mean())
        self.keep_metric("logps/chosen", pairs.chosen_logps.mean())
        self.keep_metric("logps/rejected", pairs.rejected_logps.mean())
        return (loss.per_pair(pairs) * weights).mean()


def pair_tensors(
    log_probs: Tensor,
    scored: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    tail_weight: float | None = None,
    log_sum_squares: Tensor | None = None,
) -> PairTensors:
    """Sum token log-probs into the tensors that a pair loss reads.

    Args:
        log_probs: of the next tokens, 0 where unscored; chosen rows first. [2B, T-1]
        scored: 1 where a token is scored. [2B, T-1]
        ref_chosen: reference sums, made with the same `tail_weight`. [B]
        ref_rejected: likewise. [B]
        tail_weight: weight of tokens beyond the shorter side's scored length (LD-DPO), or None.
        log_sum_squares: log of the sum of squared probabilities, for WPO. [2B, T-1]
    """
    import torch

    lengths = scored.sum(dim=1)
    if tail_weight is None:
        sums = log_probs.sum(dim=1)
    else:
        shared = torch.minimum(*lengths.chunk(2)).repeat(2)
        tail = scored.cumsum(dim=1) > shared[:, None]
        sums = (log_probs * torch.where(tail, tail_weight, 1.0)).sum(dim=1)
    alignment = None
    if log_sum_squares is not None:  # mean over tokens of log p - log sum p^2, both sides added
        aligned = ((log_probs - log_sum_squares).detach() * scored).sum(dim=1) / lengths.clamp(
            min=1
        )
        alignment = aligned[: len(aligned) // 2] + aligned[len(aligned) // 2 :]
    chosen, rejected = sums.chunk(2)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    return PairTensors(
        chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, alignment
    )


class UnpairedSteps(Steps):
    """Steps of KTOTrainer."""

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        import torch

        trainer = cast(Any, self)
        loss = cast(UnpairedLoss, self.pawl.loss)
        kl = torch.zeros((), device=weights.device)
        if loss.kl_share > 0:
            mismatched = trainer._compute_kl_logps(model, inputs) - inputs["ref_KL_logps"]
            kl = mismatched.mean().detach().clamp(min=0)
        output, _ = self.forward_scored(model, inputs)
        desirable = inputs["label"]
        examples = UnpairedTensors(output.log_probs.sum(dim=1), inputs["ref_logps"], desirable, kl)
        self.keep_metric("kl", kl)
        rewards = loss.config.beta * examples.logratios.detach()
        for side, rows in (("chosen", desirable), ("rejected", ~desirable)):
            if bool(rows.any()):
                self.keep_metric(f"rewards/{side}", rewards[rows].mean())
                self.keep_metric(f"logps/{side}", examples.logps.detach()[rows].mean())
        if bool(desirable.any()) and not bool(desirable.all()):
            self.keep_metric(
                "rewards/margins", rewards[desirable].mean() - rewards[~desirable].mean()
            )
        classes = torch.where(desirable, trainer.desirable_weight, trainer.undesirable_weight)
        return (loss.per_example(examples) * classes * weights).mean()
