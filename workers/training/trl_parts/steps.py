"""Steps of TRL's trainers when Pawl drives them: a mixin that comes before DPOTrainer, KTOTrainer and SFTTrainer.

It hands the trainer batches made from the plan, keeps its dataset preparation, reference search and telemetry from
running, and computes the loss with our formula where TRL has none. Nothing here imports trl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.examples.scored_batch import TokenScores
from policies.objectives.loss import PairLoss, UnpairedLoss
from workers.cluster.heartbeat import report_progress
from workers.training.step_loss import StepLoss
from workers.training.trl_parts.inputs import pair_inputs, unpaired_inputs
from workers.training.trl_parts.resumable import ResumableSteps

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
        self.step_loss: StepLoss | None = None
        return samples

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A microbatch's part of the mean over the step's examples: the parts add up."""
        if self.pawl.custom:
            return self.own_loss(model, inputs)
        report_progress(microbatches=1)
        return self.trl_loss(model, inputs)

    def trl_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's own formula, on what it reads of a microbatch."""
        loss, share, trl = self.pawl.objective.loss, inputs["share"], cast(Any, super())
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
        if self.step_loss is None:
            self.step_loss = self.begun_loss(cast(Any, self).accelerator.unwrap_model(model))
        self.step_loss.reference_points(inputs["facts"]["weights"])
        output = _forward(model, inputs)
        return self.step_loss(inputs, _scores(output)) + self.router_loss(output)

    def begun_loss(self, plain: Any) -> StepLoss:
        """The loss of a step; `plain` is the model without its wrapper, which talks to other workers in each pass."""
        return StepLoss(
            self.pawl.objective,
            self.microbatches,
            lambda tokens: _scores(_forward(plain, tokens)),
            cast(Any, self)._prepare_inputs,
            self.keep_metric,
        )

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


def _scores(output: Any) -> TokenScores:
    return TokenScores(output.log_probs, output.entropy, log_sum_squares=output.log_sum_sq_probs)


def _forward(model: Any, inputs: Mapping[str, Any]) -> Any:
    ids = inputs["input_ids"]
    return model(
        input_ids=ids,
        attention_mask=inputs["attention_mask"],
        labels=ids.masked_fill(inputs["completion_mask"] == 0, -100),
        use_cache=False,
        fused_lm_head=True,
    )
