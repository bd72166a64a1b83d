"""Steps of TRL's trainers when Pawl drives them: mixins that come before DPOTrainer, KTOTrainer and SFTTrainer.

They hand the trainer batches made from the plan, keep its dataset preparation, reference search and telemetry from
running, and compute the loss with our formula where TRL has none. Nothing here imports trl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.objectives.loss import (
    PairLoss,
    PairTensors,
    StepTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
    UnpairedTensors,
)
from workers.cluster.heartbeat import report_progress
from workers.training.trl_parts.resumable import ResumableSteps
from workers.training.whole_step import (
    Rows,
    StepRows,
    reference_point,
    rows_of_step,
    values_by_row,
)

if TYPE_CHECKING:
    from torch import Tensor


_OURS = ("soft_labels", "token_weights", "steps", "KL_steps", "rows", "mean_chosen_length")
"""What our formulas read beside TRL's inputs; TRL would hand it to the model."""


class Steps(ResumableSteps):
    """Parts that all trainers share. Its methods replace private hooks of TRL 1.16; a parity test pins their names."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # token ids need no tokenizer

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # the collator brings them

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples = super().get_batch_samples(*args, **kwargs)
        self.microbatches: list[dict[str, Any]] = samples[0]
        """This worker's microbatches of the optimizer step that begins."""
        self.step_rows: StepRows | None = None
        self.points: tuple[Tensor, Tensor] | None = None
        return samples

    def _compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Any:
        if self.pawl.custom:
            loss = self.own_loss(model, inputs)
        else:
            share = inputs["share"]
            ours = (*_OURS, "share", "weights")
            inputs = {name: value for name, value in inputs.items() if name not in ours}
            mean: Tensor = super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
            loss = share * mean
        report_progress(microbatches=1)
        # The trainer divides by the number of microbatches; shares make the sum the mean over the step's rows.
        return loss * self.pawl.accumulation

    def own_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """A microbatch's part of our formula's mean over the step; records the metrics that TRL would."""
        raise NotImplementedError

    def batch_of(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Run the model on a microbatch; return what the loss reads, and the model's output."""
        raise NotImplementedError

    def part_of_mean(
        self,
        model: Any,
        inputs: dict[str, Any],
        batch: Rows,
        formula: Callable[[Rows], Tensor],
    ) -> Tensor:
        """A microbatch's part of the weighted mean of `formula` over the rows of the optimizer step.

        The parts of all microbatches, added up and then averaged over the workers, are the mean of the whole step, and
        so are their gradients.
        """
        share: float = inputs["share"]
        parts = self.pawl
        if not parts.across_rows:
            own: Tensor = (formula(batch) * inputs["weights"]).mean()
            return share * own
        whole = self._rows_of_step(
            model
        )  # every worker takes part, also one without rows of its own
        if not share:  # a row repeated to fill the step
            return 0.0 * formula(batch).sum()
        mean = (formula(whole.with_live(batch, self._places(inputs))) * whole.weights).mean()
        # The mean belongs to the step, and its value is counted by share; the gradient comes through these rows only.
        return share * mean.detach() + parts.group.size * (mean - mean.detach())

    def _rows_of_step(self, model: Any) -> StepRows:
        """All rows of the step, from a pass without gradient over this worker's microbatches and from the others."""
        import torch

        if self.step_rows is None:
            parts: list[tuple[list[int], dict[str, Tensor]]] = []
            with torch.no_grad():
                for inputs in self.prepared_step():
                    batch, _ = self.batch_of(self.plain(model), inputs)
                    values = {**values_by_row(batch), "weights": inputs["weights"]}
                    parts.append((self._places(inputs) if inputs["share"] else [], values))
            count = len(self._rows_in_order())
            self.step_rows = rows_of_step(parts, count, self.pawl.group)
        return self.step_rows

    def _rows_in_order(self) -> Sequence[int]:
        return self.pawl.step_rows[len(self.pawl.log.steps)]

    def _places(self, inputs: dict[str, Any]) -> list[int]:
        place = {row: i for i, row in enumerate(self._rows_in_order())}
        return [place[row] for row in inputs["rows"].tolist()]

    def prepared_step(self) -> Iterator[dict[str, Any]]:
        """Each of this worker's microbatches of the step, on the model's device."""
        for microbatch in self.microbatches:
            prepared: dict[str, Any] = cast(Any, self)._prepare_inputs(microbatch)
            yield prepared
            report_progress()

    def plain(self, model: Any) -> Any:
        """The model without its wrapper for several workers, which talks to the others in every forward pass."""
        return cast(Any, self).accelerator.unwrap_model(model)

    def keep_entropy(self, output: Any, inputs: dict[str, Any]) -> None:
        """Add the mean entropy of a microbatch's scored tokens to what TRL logs."""
        scored = inputs["completion_mask"][:, 1:]
        self.keep_metric("entropy", (output.entropy.detach() * scored).sum() / scored.sum())

    def router_loss(self, output: Any) -> Tensor | float:
        """The routers' loss of a mixture of experts with its coefficient, where it is asked for; else 0."""
        if not self.pawl.options.router_aux_loss:
            return 0.0
        self.keep_metric("aux_loss", output.aux_loss)
        weighted: Tensor = cast(Any, self).router_aux_loss_coef * output.aux_loss
        return weighted

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

    def batch_of(self, model: Any, inputs: dict[str, Any]) -> tuple[PairTensors, Any]:
        loss = cast(PairLoss, self.pawl.loss)
        output = _forward(model, inputs)
        pairs = pair_tensors(
            output.log_probs,
            inputs["completion_mask"][:, 1:],
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            weights=inputs["token_weights"][:, 1:] if loss.weighs_tokens else None,
            log_sum_squares=output.log_sum_sq_probs if loss.needs_alignment else None,
            soft_labels=inputs["soft_labels"],
            mean_chosen_length=inputs["mean_chosen_length"],
        )
        return pairs, output

    def own_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = cast(PairLoss, self.pawl.loss)
        pairs, output = self.batch_of(model, inputs)
        self.keep_entropy(output, inputs)
        chosen = loss.config.beta * pairs.chosen_logratios.detach()
        rejected = loss.config.beta * pairs.rejected_logratios.detach()
        self.keep_metric("rewards/chosen", chosen.mean())
        self.keep_metric("rewards/rejected", rejected.mean())
        self.keep_metric("rewards/margins", (chosen - rejected).mean())
        self.keep_metric("rewards/accuracies", (chosen > rejected).float().mean())
        self.keep_metric("logps/chosen", pairs.chosen_logps.mean())
        self.keep_metric("logps/rejected", pairs.rejected_logps.mean())
        mean = self.part_of_mean(model, inputs, pairs, loss.per_pair)
        return mean + self.router_loss(output)


def pair_tensors(
    log_probs: Tensor,
    scored: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    weights: Tensor | None = None,
    log_sum_squares: Tensor | None = None,
    soft_labels: Tensor | None = None,
    mean_chosen_length: Tensor | None = None,
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
        mean_chosen_length: over all pairs of the optimizer step; None: these are all of them. []
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
        mean_chosen_length=chosen_lengths.float().mean()
        if mean_chosen_length is None
        else mean_chosen_length,
    )


class UnpairedSteps(Steps):
    """Steps of KTOTrainer."""

    def batch_of(self, model: Any, inputs: dict[str, Any]) -> tuple[UnpairedTensors, Any]:
        loss = cast(UnpairedLoss, self.pawl.loss)
        kl, step_kl = self.reference_points(model, inputs["weights"])
        output = _forward(model, inputs)
        steps = (
            step_tensors(output.log_probs, inputs["steps"], step_kl) if loss.reads_steps else None
        )
        logps = output.log_probs.sum(dim=1)
        return UnpairedTensors(logps, inputs["ref_logps"], inputs["label"], kl, steps), output

    def own_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = cast(UnpairedLoss, self.pawl.loss)
        examples, output = self.batch_of(model, inputs)
        self.keep_entropy(output, inputs)
        if examples.steps is not None:
            self._keep_step_metrics(examples.steps)
        self.keep_metric("kl", examples.kl)
        desirable, rewards = examples.desirable, loss.config.beta * examples.logratios.detach()
        self._keep_by_class("rewards", rewards, desirable)
        self._keep_by_class("logps", examples.logps.detach(), desirable)
        if bool(desirable.any()) and not bool(desirable.all()):
            self.keep_metric(
                "rewards/margins", rewards[desirable].mean() - rewards[~desirable].mean()
            )

        def weighted(rows: UnpairedTensors) -> Tensor:
            return loss.weighted(rows, self.pawl.class_weights)

        mean = self.part_of_mean(model, inputs, examples, weighted)
        return mean + self.router_loss(output)

    def reference_points(self, model: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Reference points of completions and of judged steps: one of each for the whole optimizer step. []

        Made before the step's first microbatch, from the mismatched completions of all of them, on all workers.
        """
        if self.points is None:
            group = self.pawl.group
            apart, steps_apart = self._mismatched_logratios(self.plain(model))
            self.points = (
                reference_point(apart, group, like),
                reference_point(steps_apart, group, like),
            )
        return self.points

    def _mismatched_logratios(self, model: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Log-ratios of this worker's mismatched completions, and of the judged steps in them, by microbatch."""
        import torch

        loss = cast(UnpairedLoss, self.pawl.loss)
        apart: list[Tensor] = []
        steps_apart: list[Tensor] = []
        if loss.kl_share == 0:
            return apart, steps_apart
        with torch.no_grad():
            for inputs in self.prepared_step():
                if "KL_input_ids" not in inputs:  # none of its rows has a partner
                    if self.pawl.group.sharded:  # the others need this worker's share of the model
                        _forward(model, inputs)
                    continue
                mismatched = _forward(model, inputs, "KL_").log_probs
                apart.append(mismatched.sum(dim=1) - inputs["ref_KL_logps"])
                if loss.reads_steps:
                    steps_apart.append(step_logratios(mismatched, inputs["KL_steps"]))
        return apart, steps_apart

    def _keep_step_metrics(self, steps: StepTensors) -> None:
        self.keep_metric("steps/kl", steps.kl)
        self._keep_by_class("steps/logratios", steps.logratios.detach(), steps.desirable)

    def _keep_by_class(self, name: str, values: Tensor, desirable: Tensor) -> None:
        for side, rows in (("chosen", desirable), ("rejected", ~desirable)):
            if bool(rows.any()):
                self.keep_metric(f"{name}/{side}", values[rows].mean())


def step_tensors(log_probs: Tensor, steps: dict[str, Tensor], kl: Tensor) -> StepTensors:
    """Return what a step loss reads, from next-token log-probs and the collator's `step_batch`.

    Args:
        log_probs: of the next tokens, 0 where unscored. [N, T-1]
        steps: see `workers.training.batches.collate.step_batch`.
        kl: the steps' reference point. []
    """
    return StepTensors(
        logratios=step_logratios(log_probs, steps),
        rows=steps["rows"],
        desirable=steps["desirable"],
        weights=steps["weights"],
        kl=kl,
        mean_per_example=steps.get("mean_per_example"),
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
        share = inputs["share"]
        num_tokens = inputs["completion_mask"][:, 1:].sum()
        if self.pawl.custom:
            return self.own_loss(model, inputs)
        rows = len(inputs["weights"])
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        batch["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        # TRL sums over the microbatch and divides by the tokens of the step: mean_length for each of the step's rows.
        step_tokens = inputs["mean_length"] * (rows / share) if share else num_tokens
        loss = super().compute_loss(model, batch, return_outputs, step_tokens)  # type: ignore[misc]
        self.keep_metric("nll", loss * step_tokens / num_tokens)
        return loss if share else 0.0 * loss

    def batch_of(self, model: Any, inputs: dict[str, Any]) -> tuple[SupervisedTensors, Any]:
        output = _forward(model, inputs)
        lengths = inputs["completion_mask"][:, 1:].sum(dim=1)
        logps = output.log_probs.sum(dim=1)
        return SupervisedTensors(logps, lengths, inputs["mean_length"]), output

    def own_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = cast(SupervisedLoss, self.pawl.loss)
        examples, output = self.batch_of(model, inputs)
        self.keep_entropy(output, inputs)
        self.keep_metric("nll", -examples.logps.sum() / examples.lengths.sum())
        mean = self.part_of_mean(model, inputs, examples, loss.per_example)
        return mean + self.router_loss(output)
