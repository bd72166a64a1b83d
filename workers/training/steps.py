"""How TRL's trainers step when Pawl drives them: mixins that come before DPOTrainer, KTOTrainer and SFTTrainer.

They hand the trainer batches made from the plan, keep its dataset preparation, reference search and telemetry from
running, and compute the loss with our formula where TRL has none. Nothing here imports trl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.loss import (
    PairLoss,
    PairTensors,
    StepTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
    UnpairedTensors,
)
from workers.alive import beat
from workers.training.resuming import ResumableSteps

if TYPE_CHECKING:
    from torch import Tensor


_OURS = ("soft_labels", "token_weights", "steps", "KL_steps")
"""What our formulas read beside TRL's inputs; TRL would hand it to the model."""


class Steps(ResumableSteps):
    """What all trainers share. Its methods replace private hooks of TRL 1.16; a parity test pins their names."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # token ids need no tokenizer

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # the collator brings them

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def _compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Any:
        inputs = dict(inputs)
        share, weights = inputs.pop("share"), inputs.pop("weights")
        if self.pawl.custom:
            loss = self.own_loss(model, inputs, weights)
        else:
            inputs = {name: value for name, value in inputs.items() if name not in _OURS}
            loss = super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        beat(microbatches=1)
        # The trainer divides by the number of microbatches; shares make the sum the mean over the step's rows.
        return loss * (share * self.pawl.accumulation)

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        """Weighted mean of our formula over a microbatch; records the metrics that TRL would."""
        raise NotImplementedError

    def forward_scored(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Run the model; return its output and the mask of scored positions. [N, T-1]"""
        output = _forward(model, inputs)
        scored = inputs["completion_mask"][:, 1:]
        self.keep_metric("entropy", (output.entropy.detach() * scored).sum() / scored.sum())
        return output, scored

    def keep_metric(self, name: str, value: Tensor) -> None:
        """Add a value to the mean that TRL logs at the end of the step."""
        cast(Any, self)._metrics["train"][name].append(float(value.detach()))


def _forward(model: Any, inputs: dict[str, Any], prefix: str = "") -> Any:
    ids = inputs[f"{prefix}input_ids"]
    return model(
        input_ids=ids,
        attention_mask=inputs[f"{prefix}attention_mask"],
        labels=ids.masked_fill(inputs[f"{prefix}completion_mask"] == 0, -100),
        use_cache=False,
        fused_lm_head=True,
    )


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
            weights=inputs["token_weights"][:, 1:] if loss.weighs_tokens else None,
            log_sum_squares=output.log_sum_sq_probs if loss.needs_alignment else None,
            soft_labels=inputs["soft_labels"],
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
    weights: Tensor | None = None,
    log_sum_squares: Tensor | None = None,
    soft_labels: Tensor | None = None,
) -> PairTensors:
    """Sum token log-probs into the tensors that a pair loss reads.

    Args:
        log_probs: of the next tokens, 0 where unscored; chosen rows first. [2B, T-1]
        scored: 1 where a token is scored. [2B, T-1]
        ref_chosen: reference sums, made with the same token weights. [B]
        ref_rejected: likewise. [B]
        weights: of scored tokens (`PairLoss.token_weights`); None weighs all alike. [2B, T-1]
        log_sum_squares: log of the sum of squared probabilities, for WPO. [2B, T-1]
        soft_labels: probability that chosen is really better. [B]
    """
    lengths = scored.sum(dim=1)
    sums = (log_probs if weights is None else log_probs * weights).sum(dim=1)
    alignment = None
    if log_sum_squares is not None:  # mean over tokens of log p - log sum p^2, both sides added
        aligned = ((log_probs - log_sum_squares).detach() * scored).sum(dim=1) / lengths.clamp(
            min=1
        )
        alignment = aligned[: len(aligned) // 2] + aligned[len(aligned) // 2 :]
    chosen, rejected = sums.chunk(2)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    return PairTensors(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        alignment=alignment,
        soft_labels=soft_labels,
    )


class UnpairedSteps(Steps):
    """Steps of KTOTrainer."""

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        import torch

        loss = cast(UnpairedLoss, self.pawl.loss)
        kl = step_kl = torch.zeros((), device=weights.device)
        if loss.kl_share > 0:
            kl, step_kl = self._reference_points(model, inputs, weights)
        output, _ = self.forward_scored(model, inputs)
        steps = None
        if loss.reads_steps:
            steps = step_tensors(output.log_probs, inputs["steps"], step_kl)
            self._keep_step_metrics(steps)
        desirable = inputs["label"]
        examples = UnpairedTensors(
            output.log_probs.sum(dim=1), inputs["ref_logps"], desirable, kl, steps
        )
        self.keep_metric("kl", kl)
        rewards = loss.config.beta * examples.logratios.detach()
        self._keep_by_class("rewards", rewards, desirable)
        self._keep_by_class("logps", examples.logps.detach(), desirable)
        if bool(desirable.any()) and not bool(desirable.all()):
            self.keep_metric(
                "rewards/margins", rewards[desirable].mean() - rewards[~desirable].mean()
            )
        return (loss.weighted(examples, self.pawl.class_weights) * weights).mean()

    def _reference_points(
        self, model: Any, inputs: dict[str, Any], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean log-ratio of the borrowed completions, and of the judged steps in them, over all workers' rows.

        Without any (no judged step in the borrowed completions of this microbatch): 0, the estimate's lower end.
        """
        import torch

        apart = steps_apart = like.new_zeros(0)
        if "KL_input_ids" in inputs:  # one of several workers may have no borrowed completion
            with torch.no_grad():
                mismatched = _forward(model, inputs, "KL_").log_probs
            apart = mismatched.sum(dim=1) - inputs["ref_KL_logps"]
            if cast(UnpairedLoss, self.pawl.loss).reads_steps:
                steps_apart = step_logratios(mismatched, inputs["KL_steps"])
        sums = [
            part
            for each in (apart, steps_apart)
            for part in (each.sum(), each.new_tensor(len(each)))
        ]
        total, count, steps_total, num_steps = self.pawl.group.total(torch.stack(sums).double())
        kl = (total / count.clamp(min=1)).clamp(min=0)
        step_kl = (steps_total / num_steps.clamp(min=1)).clamp(min=0)
        return kl.to(apart.dtype), step_kl.to(apart.dtype)

    def _keep_step_metrics(self, steps: StepTensors) -> None:
        self.keep_metric("steps/kl", steps.kl)
        self._keep_by_class("steps/logratios", steps.logratios.detach(), steps.desirable)

    def _keep_by_class(self, name: str, values: Tensor, desirable: Tensor) -> None:
        for side, rows in (("chosen", desirable), ("rejected", ~desirable)):
            if bool(rows.any()):
                self.keep_metric(f"{name}/{side}", values[rows].mean())


def step_tensors(log_probs: Tensor, steps: dict[str, Tensor], kl: Tensor) -> StepTensors:
    """What a step loss reads, from next-token log-probs and the collator's `step_batch`.

    Args:
        log_probs: of the next tokens, 0 where unscored. [N, T-1]
        steps: see `workers.training.collate.step_batch`.
        kl: the steps' reference point. []
    """
    return StepTensors(
        logratios=step_logratios(log_probs, steps),
        rows=steps["rows"],
        desirable=steps["desirable"],
        weights=steps["weights"],
        kl=kl,
    )


def step_logratios(log_probs: Tensor, steps: dict[str, Tensor]) -> Tensor:
    """Log-ratio of each judged step: the sum over its scored tokens, less the reference's. [S]"""
    references = steps["references"].to(log_probs.dtype)
    values = log_probs[steps["token_rows"], steps["token_columns"]]
    return (-references).index_add(0, steps["token_steps"], values)


class SupervisedSteps(Steps):
    """Steps of SFTTrainer, whose hook is `compute_loss` itself."""

    loss_is_scaled_for_ga: ClassVar[bool] = True
    """The shares of a step's microbatches sum to 1, so the trainer has nothing to divide by."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        share, weights = inputs.pop("share"), inputs.pop("weights")
        num_tokens = inputs["completion_mask"][:, 1:].sum()
        if self.pawl.custom:
            return share * self.own_loss(model, inputs, weights)
        rows = len(weights)
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        batch["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        # TRL sums over the microbatch and divides by the tokens of the step: mean_length for each of the step's rows.
        step_tokens = inputs["mean_length"] * (rows / share) if share else num_tokens
        loss = super().compute_loss(model, batch, return_outputs, step_tokens)  # type: ignore[misc]
        self.keep_metric("nll", loss * step_tokens / num_tokens)
        return loss if share else 0.0 * loss

    def own_loss(self, model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        loss = cast(SupervisedLoss, self.pawl.loss)
        output, scored = self.forward_scored(model, inputs)
        examples = SupervisedTensors(
            output.log_probs.sum(dim=1), scored.sum(dim=1), inputs["mean_length"]
        )
        self.keep_metric("nll", -examples.logps.sum() / examples.lengths.sum())
        return (loss.per_example(examples) * weights).mean()
