"""Steps of TRL's trainers when Pawl drives them: a mixin that comes before DPOTrainer, KTOTrainer and SFTTrainer.

It hands the trainer batches made from the plan, keeps its dataset preparation, reference search and telemetry from
running, and computes the loss with our formula where TRL has none. Nothing here imports trl.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.objectives.loss import PairLoss, ScoredBatch, UnpairedLoss
from workers.cluster.heartbeat import report_progress
from workers.training.batches.scored import scored_batch, step_logratios, step_tensors
from workers.training.trl_parts.inputs import pair_inputs, unpaired_inputs
from workers.training.trl_parts.resumable import ResumableSteps
from workers.training.whole_step import reference_point, values_of_step

if TYPE_CHECKING:
    from torch import Tensor


class Steps(ResumableSteps):
    """Its methods replace hooks of TRL 1.16, private ones too; parity tests pin their names."""

    loss_is_scaled_for_ga: ClassVar[bool] = True
    """The shares of a step's microbatches sum to 1, so the trainer has nothing to divide by."""

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
        self.whole: ScoredBatch | None = None
        self.points: tuple[Tensor, Tensor] | None = None
        return samples

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A microbatch's part of the mean over the step's examples: the parts add up."""
        loss = self.own_loss(model, inputs) if self.pawl.custom else self.trl_loss(model, inputs)
        report_progress(microbatches=1)
        return loss

    def trl_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's own formula, on what it reads of a microbatch."""
        loss, share, trl = self.pawl.loss, inputs["share"], cast(Any, super())
        if isinstance(loss, (PairLoss, UnpairedLoss)):
            translated = pair_inputs if isinstance(loss, PairLoss) else unpaired_inputs
            return share * trl.compute_loss(model, translated(inputs))
        num_tokens = inputs["completion_mask"][:, 1:].sum()
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        batch["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        # TRL sums over the microbatch and divides by the tokens of the step: mean_length for each of the step's rows.
        rows, mean_length = len(inputs["rows"]), inputs["facts"]["mean_lengths"][0]
        step_tokens = mean_length * (rows / share) if share else num_tokens
        found = trl.compute_loss(model, batch, False, step_tokens)
        self.keep_metric("nll", found * step_tokens / num_tokens)
        return found if share else 0.0 * found

    def own_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Our formula; records the metrics that TRL would."""
        batch, output = self.batch_of(model, inputs)
        scored = inputs["completion_mask"][:, 1:]
        self.keep_metric("entropy", (output.entropy.detach() * scored).sum() / scored.sum())
        for name, value in self.pawl.loss.metrics(batch).items():
            self.keep_metric(name, value)
        return self.part_of_mean(model, inputs, batch) + self.router_loss(output)

    def batch_of(self, model: Any, inputs: dict[str, Any]) -> tuple[ScoredBatch, Any]:
        """Run the model on a microbatch; return what the loss reads, and the model's output."""
        loss = self.pawl.loss
        kl, step_kl = self.reference_points(model, inputs["facts"]["weights"])
        output = _forward(model, inputs)
        weights = inputs.get("token_weights")
        batch = scored_batch(
            output.log_probs,
            inputs["completion_mask"][:, 1:],
            inputs["facts"],
            weights=None if weights is None else weights[:, 1:],
            log_sum_squares=output.log_sum_sq_probs if loss.needs_alignment else None,
            kl=kl,
            steps=step_tensors(output.log_probs, inputs["steps"], step_kl)
            if loss.reads_steps
            else None,
        )
        return batch, output

    def part_of_mean(self, model: Any, inputs: dict[str, Any], batch: ScoredBatch) -> Tensor:
        """A microbatch's part of the weighted mean of the losses over the examples of the optimizer step.

        The parts of all microbatches, added up and then averaged over the workers, are the mean of the whole step, and
        so are their gradients.
        """
        share: float = inputs["share"]
        parts, losses = self.pawl, self.pawl.loss.losses
        if not parts.across_rows:
            own: Tensor = (losses(batch) * batch.weights).mean()
            return share * own
        # Every worker takes part, also one without rows of its own.
        whole = self._whole_step(model, inputs["step"])
        if not share:  # a row repeated to fill the step
            return 0.0 * losses(batch).sum()
        mean = (losses(whole.with_live(batch, self._places(inputs))) * whole.weights).mean()
        # The mean belongs to the step, and its value is counted by share; the gradient comes through these rows only.
        return share * mean.detach() + parts.group.size * (mean - mean.detach())

    def _whole_step(self, model: Any, step: int) -> ScoredBatch:
        """All examples of the step: a pass without gradient over this worker's microbatches, and the others' values."""
        import torch

        if self.whole is not None:
            return self.whole
        parts: list[tuple[list[int], Tensor]] = []
        with torch.no_grad():
            for inputs in self.prepared_step():
                batch, _ = self.batch_of(self.plain(model), inputs)
                values = [v for v in (batch.logps, batch.alignment) if v is not None]
                parts.append((self._places(inputs), torch.stack(values)))
        rows = self.pawl.step_rows[step]
        facts = self._prepared(self.pawl.collate.facts(rows, step))
        scores = values_of_step(parts, len(facts["owners"]), self.pawl.group)
        alignment = scores[1] if len(scores) > 1 else None
        kl, _ = self.reference_points(model, facts["weights"])
        self.whole = ScoredBatch(logps=scores[0], alignment=alignment, kl=kl, **facts)
        return self.whole

    def _places(self, inputs: dict[str, Any]) -> list[int]:
        """Places of a microbatch's sequences among those of its step; none of a row that is repeated to fill it."""
        collate = self.pawl.collate
        every = collate.places(self.pawl.step_rows[inputs["step"]])
        place = {each: i for i, each in enumerate(every)}
        return [place[each] for each in collate.places(inputs["rows"])] if inputs["share"] else []

    def reference_points(self, model: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Reference points of completions and of judged steps: one of each for the whole optimizer step. []

        Made before the step's first microbatch, from the mismatched completions of all of them, on all workers.
        """
        if self.pawl.loss.kl_share == 0:
            return like.new_zeros(()), like.new_zeros(())
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

        apart: list[Tensor] = []
        steps_apart: list[Tensor] = []
        with torch.no_grad():
            for inputs in self.prepared_step():
                mismatched = inputs.get("mismatched")
                if mismatched is None:  # none of its rows has a partner
                    if self.pawl.group.sharded:  # the others need this worker's share of the model
                        _forward(model, inputs)
                    continue
                log_probs = _forward(model, mismatched).log_probs
                apart.append(log_probs.sum(dim=1) - mismatched["references"])
                if self.pawl.loss.reads_steps:
                    steps_apart.append(step_logratios(log_probs, mismatched["steps"]))
        return apart, steps_apart

    def prepared_step(self) -> Iterator[dict[str, Any]]:
        """Each of this worker's microbatches of the step, on the model's device."""
        for microbatch in self.microbatches:
            yield self._prepared(microbatch)
            report_progress()

    def _prepared(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", cast(Any, self)._prepare_inputs(tensors))

    def plain(self, model: Any) -> Any:
        """The model without its wrapper for several workers, which talks to the others in every forward pass."""
        return cast(Any, self).accelerator.unwrap_model(model)

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


def _forward(model: Any, inputs: dict[str, Any]) -> Any:
    ids = inputs["input_ids"]
    return model(
        input_ids=ids,
        attention_mask=inputs["attention_mask"],
        labels=ids.masked_fill(inputs["completion_mask"] == 0, -100),
        use_cache=False,
        fused_lm_head=True,
    )
